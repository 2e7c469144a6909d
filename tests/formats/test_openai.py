"""OpenAI's files, made with its code by `make_golden.py`: answers, round trips, refusals.

Planted: rows of constant norm for TopK; ε added when the scale is undone; a file without an activation read as a ReLU;
statistics lost; caught.
"""

from pathlib import Path

import pytest
import torch
from format_checks import assert_answers, assert_round_trip
from safetensors.torch import load_file

import saekern

GOLDEN = Path(__file__).parent / "golden" / "openai"


@pytest.mark.parametrize(("name", "cls"), [("ReLU", saekern.ReLUSAE), ("TopK", saekern.NormalizedSAE)])
def test_answers_of_the_library(name, cls):
    sae, answers = saekern.load(GOLDEN / name / "sae.pt"), load_file(GOLDEN / name / "answers.safetensors")
    assert type(sae) is cls
    assert_answers(sae, answers["x"], answers["codes"], answers["x_hat"])


@pytest.mark.parametrize("name", ["ReLU", "TopK"])
def test_round_trip(name, tmp_path):
    """With the statistics of its training, which are not constants here."""
    state = torch.load(GOLDEN / name / "sae.pt", weights_only=True)
    assert len(set(state["stats_last_nonzero"].tolist())) > 1
    assert len(set(state["latents_mean_square"].tolist())) > 1
    assert_round_trip(GOLDEN / name / "sae.pt", tmp_path, "openai", {})


def test_small_rows_come_back_in_their_own_scale():
    """Where ε matters: it divides, and does not multiply back."""
    sae = saekern.load(GOLDEN / "TopK" / "sae.pt")
    x = 1e-6 * torch.randn(4, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sae = sae.double()
    std = x.std(1, keepdim=True)
    normal = (x - x.mean(1, keepdim=True)) / (std + 1e-5)
    torch.testing.assert_close(sae(x), sae.base(normal) * std + x.mean(1, keepdim=True), rtol=1e-12, atol=0)


def test_saes_of_ours(tmp_path):
    base = {"k": 2}
    sae = saekern.NormalizedSAE(6, 10, norm="layer_norm", base="topk", base_args=base, init_seed=0)
    saekern.save(sae, tmp_path / "sae.pt", "openai")
    state = torch.load(tmp_path / "sae.pt", weights_only=True)
    assert (state["activation"], state["activation_state_dict"]) == ("TopK", {"k": 2, "postact_fn": "ReLU"})
    assert bool((state["latents_activation_frequency"] == 1).all())
    x = torch.randn(5, 6)
    assert torch.equal(saekern.load(tmp_path / "sae.pt")(x), sae(x))
    relu = saekern.ReLUSAE(6, 10, init_seed=0)
    saekern.save(relu, tmp_path / "relu.pt", "openai")
    assert torch.equal(saekern.load(tmp_path / "relu.pt")(x), relu(x))


def changed(tmp_path, name, change):
    state = change(torch.load(GOLDEN / name / "sae.pt", weights_only=True))
    torch.save(state, tmp_path / "sae.pt")
    return tmp_path / "sae.pt"


def without(*names):
    return lambda state: {name: value for name, value in state.items() if name not in names}


def test_a_file_without_an_activation(tmp_path):
    """Its own loader would call it a ReLU."""
    file = changed(tmp_path, "TopK", without("activation", "activation_state_dict"))
    with pytest.raises(
        ValueError, match=r"no activation in the file: pass options=\{'activation': 'ReLU'\}, or 'TopK'"
    ):
        saekern.load(file)
    with pytest.raises(ValueError, match="k: expected a whole number of at least 1, got None"):
        saekern.load(file, options={"activation": "TopK"})
    x = torch.randn(5, 12)
    given = saekern.load(file, options={"activation": "TopK", "k": 3})
    assert torch.equal(given(x), saekern.load(GOLDEN / "TopK" / "sae.pt")(x))
    assert type(saekern.load(file, options={"activation": "ReLU"})) is saekern.ReLUSAE
    with pytest.raises(ValueError, match="activation: the file has its own activation, 'TopK'"):
        saekern.load(GOLDEN / "TopK" / "sae.pt", options={"activation": "ReLU"})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ReLU", lambda s: s | {"activation": "Identity"}, "activation 'Identity': expected ReLU or TopK"),
        ("TopK", lambda s: s | {"activation_state_dict": {"k": 3, "postact_fn": "Identity"}}, "postact_fn 'Identity'"),
        ("TopK", lambda s: s | {"activation_state_dict": {"postact_fn": "ReLU"}}, "k: expected a whole number"),
        ("TopK", lambda s: s | {"activation_state_dict": 3}, "activation_state_dict: expected a dict, got int"),
        ("TopK", lambda s: s | {"activation_state_dict": {"k": 21, "postact_fn": "ReLU"}}, "k: expected 1 <= k <="),
        ("ReLU", without("decoder.weight"), "missing .*'decoder.weight'"),
        ("ReLU", lambda s: s | {"decoder.linear.weight": torch.ones(2)}, "unexpected .*'decoder.linear.weight'"),
        ("ReLU", lambda s: s | {"pre_bias": torch.ones(3)}, r"b_dec: expected floating point of shape \[12\], got"),
        ("ReLU", lambda s: s | {"pre_bias": s["pre_bias"].long()}, r"b_dec: expected floating .* got int64 \[12\]"),
        (
            "ReLU",
            lambda s: s | {"stats_last_nonzero": torch.ones(20)},
            r"expected torch.int64 \[20\], got torch.float32",
        ),
        ("ReLU", lambda s: list(s.values()), "expected a state dict, got list"),
    ],
)
def test_refusals_of_files(name, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        saekern.load(changed(tmp_path, name, change), format="openai")


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (
            lambda: saekern.TopKSAE(8, 16, 2),
            "takes TopK to mean that rows are normalised, and those of this SAE are not",
        ),
        (lambda: saekern.NormalizedSAE(8, 16, norm="constant_norm", base_args={"k": 2}), "topk on constant_norm with"),
        (lambda: saekern.NormalizedSAE(8, 16, eps=1e-6, base_args={"k": 2}), "topk on layer_norm with eps 1e-06"),
        (lambda: saekern.NormalizedSAE(8, 16, base="relu"), "for TopK only; this SAE is relu on layer_norm"),
        (lambda: saekern.BatchTopKSAE(8, 16, 2), "cannot express 'batch_topk'; it has: topk, relu"),
    ],
)
def test_refusals_of_writing(sae, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        saekern.save(sae(), tmp_path / "sae.pt", "openai")
    assert not (tmp_path / "sae.pt").exists()


def test_statistics_of_somebody_else_are_not_believed(tmp_path):
    """What the provenance of a native file claims is as large as this SAE or is left out."""
    sae = saekern.load(GOLDEN / "ReLU" / "sae.pt")
    for text in ("", "no text of ours", 3, saekern.load(GOLDEN / "TopK" / "sae.pt").provenance):
        sae.provenance["openai"]["statistics"]["stats_last_nonzero"] = text
        saekern.save(sae, tmp_path / "sae.pt", "openai")
        state = torch.load(tmp_path / "sae.pt", weights_only=True)
        assert torch.equal(state["stats_last_nonzero"], torch.zeros(20, dtype=torch.int64))
