"""Files in both directions beside sparsify itself: what it writes we read, and what we write it reads."""

import foreign_saes
import pytest
import torch
from format_checks import assert_answers, assert_round_trip

import saekern
from saekern.bench.common import Absent

pytestmark = pytest.mark.peers
try:
    LIBRARY = foreign_saes.sparsify_module()
    CASES = {foreign.name: foreign for foreign in foreign_saes.sparsify()}
except Absent as error:
    pytest.skip(str(error), allow_module_level=True)


def answers(model, x):
    with torch.no_grad():
        return foreign_saes.answers_sparsify(model, x)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_theirs_read(name, dtype, tmp_path, record_property):
    model = LIBRARY.SparseCoder(12, CASES[name].model.cfg, dtype=dtype)
    model.load_state_dict(CASES[name].model.state_dict())
    model.save_to_disk(tmp_path / "layers.3")
    sae, x = assert_round_trip(tmp_path / "layers.3", tmp_path, "sparsify", {}), foreign_saes.rows(256)
    assert sae.W_dec.dtype == dtype
    record_property("of the bound", assert_answers(sae.float(), x, *answers(model.float(), x)))


@pytest.mark.parametrize("name", CASES)
def test_their_loader_reads_ours(name, tmp_path):
    sae, x = saekern.TopKSAE(12, 24 if name == "expansion" else 20, 3, init_seed=1), foreign_saes.rows(256)
    foreign_saes.moved(sae)
    saekern.save(sae, tmp_path / "layers.3", "sparsify")
    model = LIBRARY.SparseCoder.load_from_disk(tmp_path / "layers.3")
    assert (model.num_latents, model.cfg.k) == (sae.d_sae, 3)
    assert_answers(sae, x, *answers(model, x))


def test_a_run_with_two_hookpoints(tmp_path):
    """load_many of theirs, and the list of ours."""
    for hookpoint, foreign in zip(("layers.3", "layers.4"), CASES.values(), strict=True):
        sae = saekern.load(written(foreign, tmp_path / "theirs" / hookpoint))
        saekern.save(sae, tmp_path / "ours" / hookpoint, "sparsify")
    many = LIBRARY.SparseCoder.load_many(str(tmp_path / "ours"), local=True)
    assert {name: model.num_latents for name, model in many.items()} == {"layers.3": 24, "layers.4": 20}
    with pytest.raises(ValueError, match=r"holds 2 SAE\(s\): pass subfolder= one of 'layers.3', 'layers.4'"):
        saekern.load(tmp_path / "ours")


def test_skip_and_groupmax_are_refused(tmp_path):
    for name, config in (
        ("skip_connection", {"skip_connection": True}),
        ("transcode", {"transcode": True}),
        ("groupmax", {"activation": "groupmax"}),
    ):
        LIBRARY.SparseCoder(12, LIBRARY.SparseCoderConfig(num_latents=21, k=3, **config)).save_to_disk(tmp_path / name)
        with pytest.raises(ValueError, match=name):
            saekern.load(tmp_path / name)


def written(foreign, folder):
    foreign.model.save_to_disk(folder)
    return folder
