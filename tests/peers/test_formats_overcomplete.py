"""State dicts in both directions beside overcomplete itself: what it holds we read, and what we write it takes."""

import foreign_saes
import pytest
import torch
from format_checks import assert_answers, assert_round_trip

import saekern
from saekern.bench.common import Absent

pytestmark = pytest.mark.peers
try:
    LIBRARY = foreign_saes.overcomplete_modules()
    CASES = {foreign.name: foreign for foreign in foreign_saes.overcomplete()}
except Absent as error:
    pytest.skip(str(error), allow_module_level=True)

POINTS = torch.randn(15, 12, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("name", CASES)
def test_theirs_read(name, tmp_path, record_property):
    foreign, x = CASES[name], foreign_saes.rows(256)
    foreign_saes.write_overcomplete(foreign, tmp_path)
    if foreign.fold:
        sae = saekern.load(tmp_path / foreign.path, options=foreign.options, fold=True)
    else:
        sae = assert_round_trip(tmp_path / foreign.path, tmp_path, "overcomplete", foreign.options)
    record_property("of the bound", assert_answers(sae, x, *foreign_saes.answers_overcomplete(foreign.model, x)))


def topk():
    return saekern.TopKSAE(12, 20, 3, init_seed=1), LIBRARY.TopKSAE(12, 20, top_k=3)


def relu():
    sae = saekern.ReLUSAE(12, 20, init_seed=1)
    return sae, LIBRARY.SAE(12, 20, dictionary_params={"use_multiplier": True})


def rows_of_any_norm():
    sae = foreign_saes.moved(saekern.ReLUSAE(12, 20, init_seed=1))
    sae.b_dec.data.zero_()
    return sae, LIBRARY.SAE(12, 20, dictionary_params={"normalization": "identity"})


def jump():
    sae = saekern.JumpReLUSAE(12, 20, initial_threshold=0.3, init_seed=1)
    return sae, LIBRARY.JumpSAE(12, 20)


def archetypal():
    base = {"k": 3, "subtract_b_dec": False}
    sae = saekern.ArchetypalSAE(12, 20, points=POINTS, relaxation=0.5, multiplier=True, base_args=base, init_seed=1)
    with torch.no_grad():
        sae.Lambda.normal_()
        sae.multiplier.fill_(0.25)
    sae.project_parameters_()
    return sae, LIBRARY.RATopKSAE(12, 20, torch.zeros(15, 12), top_k=3, delta=0.5)


@pytest.mark.parametrize("make", [topk, relu, rows_of_any_norm, jump, archetypal])
def test_ours_taken(make, tmp_path):
    sae, model = make()
    x = foreign_saes.rows(256)
    options = {"normalization": "identity"} if make is rows_of_any_norm else {}
    saekern.save(sae, tmp_path / "sae.pt", "overcomplete", options=options, fold=make is relu or make is jump)
    model.load_state_dict(torch.load(tmp_path / "sae.pt", weights_only=True))
    assert_answers(sae, x, *foreign_saes.answers_overcomplete(model, x))


def test_a_batchs_threshold(tmp_path):
    """Theirs chooses over the batch in training and by running_threshold afterwards, which its state dict loses."""
    x = foreign_saes.rows(256)
    model = LIBRARY.BatchTopKSAE(12, 20, top_k=3 * 256)
    for _ in range(5):
        model(x)
    foreign_saes.write_state_dict(tmp_path / "sae.pt", model)
    threshold = float(model.running_threshold)
    options = {"class": "BatchTopKSAE", "top_k": 768, "batch_size": 256, "normalization": "l2", "threshold": threshold}
    sae = saekern.load(tmp_path / "sae.pt", options=options)
    assert sae.k == 3
    codes, x_hat = foreign_saes.answers_overcomplete(model, x)
    assert_answers(sae, x, codes, x_hat)
    # The score that made the threshold passes there, and so it does here.
    exact = foreign_saes.rows(256)
    assert int((sae.encode(exact) != 0).sum()) == int((codes != 0).sum())
    again = LIBRARY.BatchTopKSAE(12, 20, top_k=768)
    saekern.save(sae, tmp_path / "again.pt", "overcomplete", options={"threshold": threshold})
    again.load_state_dict(torch.load(tmp_path / "again.pt", weights_only=True))
    again.running_threshold = torch.tensor(threshold)
    assert_answers(sae, x, *foreign_saes.answers_overcomplete(again, x))


def test_straight_after_a_step(tmp_path):
    """Where the library leaves a dictionary off its constraints: refused, and with fold as its next forward pass."""
    model, x = LIBRARY.TopKSAE(12, 20, top_k=3), foreign_saes.rows(256)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(x)[2].sub(x).square().mean().backward()
    optimizer.step()
    foreign_saes.write_state_dict(tmp_path / "sae.pt", model)
    options = {"class": "TopKSAE", "top_k": 3, "normalization": "l2"}
    with pytest.raises(ValueError, match="rows are not yet of l2 norm 1; fold=True"):
        saekern.load(tmp_path / "sae.pt", options=options)
    sae = saekern.load(tmp_path / "sae.pt", options=options, fold=True)
    assert_answers(sae, x, *foreign_saes.answers_overcomplete(model, x))


def test_tied_encoders_are_refused(tmp_path):
    foreign_saes.write_state_dict(tmp_path / "sae.pt", LIBRARY.TopKSAE(12, 20, top_k=3).tied())
    with pytest.raises(ValueError, match="an encoder that saekern does not have"):
        saekern.load(tmp_path / "sae.pt", options={"class": "TopKSAE", "top_k": 3, "normalization": "l2"})
    whole = LIBRARY.TopKSAE(12, 20, top_k=3, encoder_module="mlp_bn_1")
    foreign_saes.write_state_dict(tmp_path / "sae.pt", whole)
    with pytest.raises(ValueError, match="without normalisation layers"):
        saekern.load(tmp_path / "sae.pt", options={"class": "TopKSAE", "top_k": 3, "normalization": "l2"})
