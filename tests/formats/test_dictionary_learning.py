"""dictionary_learning's files, made with the library by `make_golden.py`: answers, round trips, refusals.

Planted: decoder.weight not transposed; threshold −1 read as −1; k written as int64; b_dec subtracted in AutoEncoderNew;
group_sizes read as prefixes; biases of a backup not scaled; negative thresholds not refused; b_dec W_enc moved with
the wrong sign, or past a gate's magnitudes without exp(r_mag); caught.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from format_checks import assert_answers, assert_round_trip
from safetensors.torch import load_file

import saekern
from saekern.formats import examine

GOLDEN = Path(__file__).parent / "golden" / "dictionary_learning"
CASES = sorted(folder.name for folder in GOLDEN.iterdir())
OURS = {
    "AutoEncoder": saekern.ReLUSAE,
    "AutoEncoderNew": saekern.ReLUSAE,
    "AutoEncoderTopK": saekern.TopKSAE,
    "BatchTopKSAE": saekern.BatchTopKSAE,
    "GatedAutoEncoder": saekern.GatedSAE,
    "JumpReluAutoEncoder": saekern.JumpReLUSAE,
    "MatryoshkaBatchTopKSAE": saekern.MatryoshkaSAE,
}


@pytest.fixture
def copied(tmp_path):
    def copy(name, state=None, **trainer):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        config = json.loads((folder / "config.json").read_text())
        config["trainer"] |= trainer
        (folder / "config.json").write_text(json.dumps(config))
        tensors = torch.load(folder / "ae.pt", weights_only=True)
        if state is not None:
            torch.save(state(tensors), folder / "ae.pt")
        return folder

    return copy


def test_every_class_is_there():
    assert sorted(OURS) == CASES


@pytest.mark.parametrize("name", CASES)
def test_answers_of_the_library(name):
    sae, answers = saekern.load(GOLDEN / name), load_file(GOLDEN / name / "answers.safetensors")
    assert type(sae) is OURS[name]
    assert (sae.provenance["model"], sae.provenance["hook"]) == ("pythia", "r")
    assert_answers(sae, answers["x"], answers["codes"], answers["x_hat"])


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, tmp_path):
    assert_round_trip(GOLDEN / name, tmp_path, "dictionary_learning", {})


@pytest.mark.parametrize("name", ["AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.1])
def test_thresholds_come_back(name, threshold, copied, tmp_path):
    """−1 means not set, when encoding is a plain ReLU; 0.1 is no float32, and the nearest comes back."""
    folder = copied(name, lambda state: state | {"threshold": torch.tensor(threshold)})
    sae = assert_round_trip(folder, tmp_path / "work", "dictionary_learning", {})
    if name != "AutoEncoderTopK":
        codes = sae.encode(torch.randn(50, sae.d_in))
        assert bool((codes >= 0).all())
        assert float(sae.threshold) == max(0.0, float(torch.tensor(threshold)))


def test_an_sae_of_ours_loads_there(tmp_path):
    sae = saekern.TopKSAE(6, 10, 2, init_seed=0)
    saekern.save(sae, tmp_path / "new", "dictionary_learning", provenance={"model": "gpt2", "hook": "h.3"})
    state = torch.load(tmp_path / "new" / "ae.pt", weights_only=True)
    assert (state["k"].dtype, state["k"].shape, int(state["k"])) == (torch.int32, (), 2)
    assert (state["threshold"].dtype, float(state["threshold"])) == (torch.float32, -1.0)
    trainer = json.loads((tmp_path / "new" / "config.json").read_text())["trainer"]
    assert trainer["dict_class"] == "AutoEncoderTopK"
    assert (trainer["activation_dim"], trainer["dict_size"], trainer["k"], trainer["lm_name"]) == (6, 10, 2, "gpt2")
    assert torch.equal(saekern.load(tmp_path / "new").W_dec, sae.W_dec)


def test_prefixes_of_ours_become_groups(tmp_path):
    sae = saekern.MatryoshkaSAE(6, 10, 2, prefixes=[3, 10], prefix_weights=[2, 1], init_seed=0)
    saekern.save(sae, tmp_path / "m", "dictionary_learning")
    trainer = json.loads((tmp_path / "m" / "config.json").read_text())["trainer"]
    assert (trainer["group_sizes"], trainer["group_weights"]) == ([3, 7], [2.0, 1.0])
    again = saekern.load(tmp_path / "m")
    assert (again.prefixes, again.prefix_weights) == ([3, 10], [2.0, 1.0])


def test_a_training_of_ours_moves_what_is_written(copied, tmp_path):
    sae = saekern.load(copied("BatchTopKSAE"))
    sae.threshold.fill_(1.25)
    saekern.save(sae, tmp_path / "moved", "dictionary_learning")
    assert float(torch.load(tmp_path / "moved" / "ae.pt", weights_only=True)["threshold"]) == 1.25


@pytest.mark.parametrize("name", ["AutoEncoder", "BatchTopKSAE", "GatedAutoEncoder"])
def test_backup(name, copied):
    """Of a training on x / 4: codes and x̂ of x are 4 times those that the stored SAE has for x / 4."""
    plain = saekern.load(GOLDEN / name)
    folder = copied(name, lambda ae: {"step": 7, "ae": ae, "optimizer": {}, "config": {"lr": 1.0}, "norm_factor": 4.0})
    with pytest.raises(ValueError, match=r"a backup, whose SAE reads x / 4 \(norm_factor\): fold=True"):
        saekern.load(folder)
    sae = saekern.load(folder, fold=True)
    if name == "AutoEncoder":
        plain = saekern.load(GOLDEN / name, fold=True)
    assert sae.provenance["dictionary_learning"]["backup"] == {"step": 7, "norm_factor": 4.0}
    x = torch.randn(9, sae.d_in)
    torch.testing.assert_close(sae(4 * x), 4 * plain(x))
    torch.testing.assert_close(sae.encode(4 * x), 4 * plain.encode(x))
    assert any("backup" in note for note in examine(folder, fold=True).notes)


def test_backup_without_a_scale(copied):
    folder = copied("JumpReluAutoEncoder", lambda ae: {"step": 7, "ae": ae, "optimizer": {}, "norm_factor": None})
    assert torch.equal(saekern.load(folder).W_dec, saekern.load(GOLDEN / "JumpReluAutoEncoder").W_dec)


def test_a_file_of_checkpoints(copied):
    folder = copied("AutoEncoderTopK")
    (folder / "checkpoints").mkdir()
    shutil.move(folder / "ae.pt", folder / "checkpoints" / "ae_100.pt")
    assert saekern.load(folder / "checkpoints" / "ae_100.pt").k == 3


def test_decoder_norms_only_if_asked(tmp_path):
    as_stored, scaled = saekern.load(GOLDEN / "AutoEncoder"), saekern.load(GOLDEN / "AutoEncoder", fold=True)
    stored = torch.load(GOLDEN / "AutoEncoder" / "ae.pt", weights_only=True)
    assert torch.equal(as_stored.W_dec, stored["decoder.weight"].T)
    torch.testing.assert_close(scaled.W_dec.norm(dim=1), torch.ones(20))
    x = torch.randn(9, 12)
    torch.testing.assert_close(scaled(x), as_stored(x))


def test_negative_thresholds(copied):
    """Below 0 their encoder is a ReLU."""
    folder = copied("JumpReluAutoEncoder", lambda state: state | {"threshold": state["threshold"] - 0.2})
    with pytest.raises(ValueError, match=r"thresholds are below 0, where their encoder is a ReLU"):
        saekern.load(folder)
    sae, state = saekern.load(folder, fold=True), torch.load(folder / "ae.pt", weights_only=True)
    score = torch.randn(50, 12) @ state["W_enc"] + state["b_enc"]
    x = torch.randn(50, 12)
    score = x @ state["W_enc"] + state["b_enc"]
    assert bool(((score < 0) & (score > state["threshold"])).any())
    torch.testing.assert_close(sae.encode(x), (score * (score > state["threshold"])).relu())


def test_an_encoder_that_reads_x(tmp_path):
    sae = saekern.load(GOLDEN / "JumpReluAutoEncoder")
    sae.subtract_b_dec = True
    with pytest.raises(ValueError, match=r"subtracts b_dec, and the format's does not; fold=True"):
        saekern.save(sae, tmp_path / "j", "dictionary_learning")
    saekern.save(sae, tmp_path / "j", "dictionary_learning", fold=True)
    x = torch.randn(9, 12)
    torch.testing.assert_close(saekern.load(tmp_path / "j")(x), sae(x))
    gated = saekern.load(GOLDEN / "GatedAutoEncoder")
    gated.subtract_b_dec = False
    saekern.save(gated, tmp_path / "g", "dictionary_learning", fold=True)
    torch.testing.assert_close(saekern.load(tmp_path / "g")(x), gated(x))


@pytest.mark.parametrize(
    ("name", "state", "trainer", "message"),
    [
        ("AutoEncoder", None, {"dict_class": "CrossCoder"}, "dict_class: expected one of AutoEncoder, .*'CrossCoder'"),
        ("AutoEncoder", None, {"dict_class": None}, "dict_class: expected one of"),
        ("AutoEncoderTopK", None, {"k": 4}, "k is 3, and config.json has 4"),
        ("AutoEncoderTopK", None, {"dict_class": "AutoEncoder"}, "not AutoEncoder: missing .*'bias'.*unexpected"),
        ("AutoEncoderTopK", None, {"dict_size": 21}, "dict_size is 21, and the tensors have 20"),
        ("AutoEncoderTopK", lambda s: s | {"extra": torch.ones(1)}, {}, "unexpected .*'extra'"),
        ("AutoEncoderTopK", lambda s: s | {"k": torch.tensor([3])}, {}, r"k: expected a number, got shape \[1\]"),
        ("AutoEncoderTopK", lambda s: {n: s[n] for n in s if n != "threshold"}, {}, "no 'threshold'"),
        ("BatchTopKSAE", lambda s: s | {"threshold": torch.tensor(torch.inf)}, {}, "threshold: expected a finite"),
        (
            "MatryoshkaBatchTopKSAE",
            lambda s: s | {"group_sizes": torch.tensor([4, 6])},
            {},
            r"with sum 20, got \[4, 6\]",
        ),
        ("JumpReluAutoEncoder", lambda s: s | {"threshold": s["threshold"] / 0}, {}, "20 entries are not finite"),
        ("AutoEncoder", lambda s: s | {"bias": 3}, {}, "'bias' is int"),
        ("AutoEncoder", lambda s: list(s.values()), {}, "expected a state dict, got list"),
    ],
)
def test_refusals_of_reading(name, state, trainer, message, copied):
    with pytest.raises(ValueError, match=message):
        saekern.load(copied(name, state, **trainer), format="dictionary_learning")


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (lambda: saekern.KronSAE(8, 16, 2, m=2, n=4), "cannot express 'kron'; it has: relu, gated"),
        (lambda: saekern.HierarchicalTopKSAE(8, 16, 2), "cannot express 'hierarchical_topk'"),
        (lambda: saekern.NormalizedSAE(8, 16, base_args={"k": 2}), r"'normalized' \(rows normalised by layer_norm\)"),
        (
            lambda: saekern.ArchetypalSAE(8, 16, points=torch.randn(5, 8), base_args={"k": 2}),
            "made of points; fold=True",
        ),
    ],
)
def test_refusals_of_writing(sae, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        saekern.save(sae(), tmp_path / "sae", "dictionary_learning")
    assert not (tmp_path / "sae").exists()


def test_atoms_of_an_archetypal_sae(tmp_path):
    sae = saekern.ArchetypalSAE(8, 16, points=torch.randn(5, 8), base_args={"k": 2}, init_seed=0)
    saekern.save(sae, tmp_path / "sae", "dictionary_learning", fold=True)
    again, x = saekern.load(tmp_path / "sae"), torch.randn(4, 8)
    assert type(again) is saekern.TopKSAE
    torch.testing.assert_close(again(x), sae(x))
