"""Gemma Scope's files: made here as its authors describe them; SAELens' reading of them is in tests/peers."""

import json

import numpy as np
import pytest
import torch
from bounds import UNIT

import saekern
from saekern import formats
from saekern.formats.source import read_npz, read_safetensors
from saekern.sae.files import write_tensors

D, F = 6, 20


def arrays(dtype=np.float32, **changes):
    generator = np.random.default_rng(0)
    made = {
        "W_enc": generator.standard_normal((D, F)),
        "W_dec": generator.standard_normal((F, D)),
        "b_enc": generator.standard_normal(F) / 9,
        "b_dec": generator.standard_normal(D),
        "threshold": generator.random(F),
    }
    return {name: np.asarray(array, dtype) for name, array in {**made, **changes}.items() if array is not None}


def first(folder, **changes):
    folder.mkdir(exist_ok=True)
    np.savez(folder / "params.npz", **arrays(**changes))
    return folder


def second(folder, config=None, **changes):
    folder.mkdir(exist_ok=True)
    named = {
        name.lower() if name.startswith("W") else name: torch.tensor(array) for name, array in arrays(**changes).items()
    }
    write_tensors(folder / "params.safetensors", named)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


CONFIG = {
    "architecture": "jump_relu",
    "model_name": "gemma-v3-270m-pt",
    "hf_hook_point_in": "model.layers.5.output",
    "width": F,
    "l0": 3,
}


@pytest.mark.parametrize("make", [first, lambda folder: second(folder, CONFIG)])
def test_forward_is_the_formula(tmp_path, make):
    """Planted: b_dec subtracted; caught."""
    sae, given = saekern.load(make(tmp_path / "a")), arrays(np.float64)
    x = torch.randn(64, D)
    weights = {name: torch.tensor(arrays()[name]).double() for name in given}
    scores = x.double() @ weights["W_enc"] + weights["b_enc"]
    codes = scores.relu() * (scores > weights["threshold"])
    bound = 2 * (D + 4) * UNIT * (x.double().abs() @ weights["W_enc"].abs() + weights["b_enc"].abs())
    clear = ((scores - weights["threshold"]).abs() > bound).all(1)
    assert int(clear.sum()) >= 60
    assert bool(((sae.encode(x) - codes).abs() <= bound)[clear].all())
    want = codes @ weights["W_dec"] + weights["b_dec"]
    out_bound = bound @ weights["W_dec"].abs() + 2 * F * UNIT * (
        codes @ weights["W_dec"].abs() + weights["b_dec"].abs()
    )
    assert bool(((sae(x) - want).abs() <= out_bound)[clear].all())


def test_scores_at_their_threshold_are_not_active(tmp_path):
    """Planted: the next lower number as threshold; caught."""
    zero = {"W_enc": np.zeros((D, F)), "b_enc": np.full(F, 0.5)}
    sae = saekern.load(first(tmp_path, **zero, threshold=np.where(np.arange(F) < 5, 0.5, 0.25)))
    assert sae.encode(torch.randn(3, D)).count_nonzero(1).tolist() == [F - 5] * 3


def test_round_trips_are_exact(tmp_path):
    saekern.save(saekern.load(first(tmp_path / "a")), tmp_path / "native")
    saekern.save(saekern.load(tmp_path / "native"), tmp_path / "b", "gemma_scope")
    one, two = read_npz(tmp_path / "a" / "params.npz"), read_npz(tmp_path / "b" / "params.npz")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)

    saekern.save(saekern.load(second(tmp_path / "c", CONFIG)), tmp_path / "native2")
    saekern.save(saekern.load(tmp_path / "native2"), tmp_path / "d", "gemma_scope")
    one, two = (read_safetensors(tmp_path / name / "params.safetensors") for name in "cd")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert json.loads((tmp_path / "d" / "config.json").read_text()) == CONFIG


def test_from_one_version_to_the_other(tmp_path):
    sae, x = saekern.load(first(tmp_path / "a")), torch.randn(9, D)
    saekern.save(sae, tmp_path / "b", "gemma_scope", options={"version": 2}, provenance={"model": "m"})
    assert json.loads((tmp_path / "b" / "config.json").read_text())["model_name"] == "m"
    again = saekern.load(tmp_path / "b")
    assert torch.equal(again(x), sae(x))
    saekern.save(again, tmp_path / "c.npz", "gemma_scope", options={"version": 1})
    assert torch.equal(saekern.load(tmp_path / "c.npz")(x), sae(x))


def test_where_rows_came_from(tmp_path):
    sae = saekern.load(second(tmp_path, CONFIG))
    assert sae.provenance["model"] == "gemma-v3-270m-pt"
    assert sae.provenance["hook"] == "model.layers.5.output"
    assert any("No config.json" in note for note in formats.examine(second(tmp_path / "b")).notes)


def test_ours(tmp_path):
    """Planted: b_dec not folded; caught."""
    x = torch.randn(40, D)
    for sae in (
        saekern.JumpReLUSAE(D, F, subtract_b_dec=False, initial_threshold=0.2),
        saekern.BatchTopKSAE(D, F, 3, subtract_b_dec=False),
        saekern.MatryoshkaSAE(D, F, 3),
        saekern.ReLUSAE(D, F),
        saekern.ArchetypalSAE(D, F, points=torch.randn(9, D), base="jumprelu", base_args={"subtract_b_dec": False}),
    ):
        with torch.no_grad():
            sae.b_dec.copy_(torch.randn(D))
            if sae.architecture in ("batch_topk", "matryoshka"):
                sae.threshold.fill_(0.3)
        fold = sae.subtract_b_dec
        if fold:
            with pytest.raises(ValueError, match="this encoder reads x − b_dec, Gemma Scope's x; pass fold=True"):
                saekern.save(sae, tmp_path, "gemma_scope")
        saekern.save(sae, tmp_path, "gemma_scope", fold=fold)
        again = saekern.load(tmp_path)
        assert type(again) is saekern.JumpReLUSAE
        torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(again(x), sae(x), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_widened_for_numpy(tmp_path):
    sae = saekern.JumpReLUSAE(D, F, subtract_b_dec=False, initial_threshold=0.25).bfloat16()
    saekern.save(sae, tmp_path, "gemma_scope")
    assert torch.equal(saekern.load(tmp_path).W_dec, sae.W_dec.float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": None}, r"W_enc: expected a matrix \[d_in, d_sae\], got none"),
        ({"W_enc": np.ones(3)}, r"W_enc: expected a matrix \[d_in, d_sae\], got \[3\]"),
        ({"threshold": None}, r"tensors missing: \['threshold'\], unexpected: none"),
        ({"W_skip": np.ones(3)}, r"unexpected: \['W_skip'\]"),
        ({"W_dec": np.ones((D, F))}, r"W_dec: expected floating point of shape \[20, 6\], got float32 \[6, 20\]"),
        ({"W_dec": np.ones((F, 2, D))}, r"W_dec: expected floating point of shape \[20, 6\]"),  # a cross-layer one
        ({"b_enc": np.ones(1)}, r"b_enc: expected floating point of shape \[20\], got float32 \[1\]"),
        ({"threshold": np.full(F, np.nan)}, "20 thresholds are NaN"),
        ({"threshold": np.full(F, -1.0)}, r"20 thresholds below 0, .* pass fold=True"),
        ({"scaling_factor": np.full(F, 2.0)}, "scaling_factor has no counterpart here"),
        ({"affine_skip_connection": np.ones((D, D))}, "affine_skip_connection: a transcoder with a skip connection"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, changes, message):
    for make in (first, second):
        with pytest.raises(ValueError, match=message):
            saekern.load(make(tmp_path / make.__name__, **changes), format="gemma_scope")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "topk"}, "architecture: expected 'jump_relu', got 'topk'"),
        ({"affine_connection": True}, "affine_connection: a transcoder with a skip connection"),
        ({"hf_hook_point_out": "model.layers.6.output"}, "hf_hook_point_out 'model.layers.6.output': a transcoder"),
    ],
)
def test_configurations_that_are_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        saekern.load(second(tmp_path, CONFIG | config))


def test_negative_thresholds_and_ones(tmp_path):
    folder = first(tmp_path, threshold=np.linspace(-1, 1, F), scaling_factor=np.ones(F))
    assert bool((saekern.load(folder, fold=True).encode(torch.randn(30, D)) >= 0).all())
    assert "scaling_factor, all ones, is left out." in formats.examine(folder, fold=True).notes
    assert any("√D" in note for note in formats.examine(first(tmp_path / "embedding")).notes)


def test_writing_is_refused_by_name(tmp_path):
    for sae in (saekern.TopKSAE(D, F, 3), saekern.GatedSAE(D, F), saekern.NormalizedSAE(D, F, base_args={"k": 3})):
        with pytest.raises(ValueError, match=f"gemma_scope: {type(sae).__name__} has no counterpart"):
            saekern.save(sae, tmp_path, "gemma_scope")
    jump = saekern.JumpReLUSAE(D, F, subtract_b_dec=False)
    for version in (3, True, "1"):
        with pytest.raises(ValueError, match="version: expected 1 or 2, got "):
            saekern.save(jump, tmp_path, "gemma_scope", options={"version": version})
    with torch.no_grad():
        jump.threshold[0] = -1
    with pytest.raises(ValueError, match="a threshold below 0"):
        saekern.save(jump, tmp_path, "gemma_scope")


def test_other_archives_are_not_claimed(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    assert formats.detect(tmp_path / "other.npz") == {}
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    assert formats.detect(tmp_path / "torn.npz") == {}
    write_tensors(tmp_path / "params.safetensors", {"w": torch.ones(3)})
    assert formats.detect(tmp_path) == {}
