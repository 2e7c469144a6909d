"""Files of the BatchTopK repository, made with its code by `make_golden.py`: answers, round trips, refusals.

Planted: b_dec subtracted by its JumpReLU; θ = log_threshold; input_unit_norm ignored; BatchTopK read as a ReLU, without
a threshold; b_enc added in TopK; caught.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from format_checks import assert_answers, assert_round_trip
from safetensors.torch import load_file

import saekern

GOLDEN = Path(__file__).parent / "golden" / "batchtopk"
CASES = [kind + end for kind in ("vanilla", "topk", "batchtopk", "jumprelu") for end in ("", "_normalised")]
OURS = {
    "vanilla": saekern.ReLUSAE,
    "topk": saekern.TopKSAE,
    "batchtopk": saekern.BatchTopKSAE,
    "jumprelu": saekern.JumpReLUSAE,
}


def options(name):
    return {"threshold": 0.25} if name.startswith("batchtopk") else {}


@pytest.fixture
def copied(tmp_path):
    def copy(name, state=None, **config):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name / "sae", folder)
        content = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(content))
        if state is not None:
            torch.save(state(torch.load(folder / "sae.pt", weights_only=True)), folder / "sae.pt")
        return folder

    return copy


@pytest.mark.parametrize("name", CASES)
def test_answers_of_the_library(name):
    """Those of a BatchTopK are over the batch: the choice of encode_batch."""
    sae, answers = (
        saekern.load(GOLDEN / name / "sae", options=options(name)),
        load_file(GOLDEN / name / "answers.safetensors"),
    )
    kind, _, normalised = name.partition("_")
    inner = sae.base if normalised else sae
    assert (type(inner), type(sae) is saekern.NormalizedSAE) == (OURS[kind], bool(normalised))
    assert (sae.provenance["model"], sae.provenance["hook"]) == ("gpt2-small", "blocks.8.hook_resid_pre")
    x, codes = answers["x"], answers["codes"]
    if kind == "batchtopk":
        rows = sae.normalize(x)[0] if normalised else x
        ours = saekern.SparseCodes(*inner.encode_batch(rows)[:3]).dense(inner.d_sae)
        assert torch.equal(ours != 0, codes != 0)
        # A threshold between the smallest chosen and the largest other score makes the same choice row by row.
        inner.threshold.fill_(float(ours.detach()[ours > 0].min()) - 1e-6)
    assert_answers(sae, x, codes, answers["x_hat"])


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, tmp_path):
    assert_round_trip(GOLDEN / name / "sae", tmp_path, "batchtopk", options(name), options(name))


def test_an_sae_of_ours(tmp_path):
    sae = saekern.TopKSAE(6, 10, 2, init_seed=0)
    saekern.save(sae, tmp_path / "sae", "batchtopk", provenance={"model": "gpt2", "hook": "h.3"})
    config = json.loads((tmp_path / "sae" / "config.json").read_text())
    assert (config["sae_type"], config["top_k"], config["act_size"], config["dict_size"]) == ("topk", 2, 6, 10)
    assert (config["input_unit_norm"], config["dtype"], config["hook_point"]) == (False, "torch.float32", "h.3")
    x = torch.randn(5, 6)
    assert torch.equal(saekern.load(tmp_path / "sae")(x), sae(x))


def test_b_enc_is_not_read_there(copied):
    folder = copied("topk", lambda state: state | {"b_enc": torch.ones(20)})
    with pytest.raises(ValueError, match="b_enc is not 0, and a topk SAE never reads it: fold=True"):
        saekern.load(folder)
    x = torch.randn(5, 12)
    assert torch.equal(saekern.load(folder, fold=True)(x), saekern.load(GOLDEN / "topk" / "sae")(x))


@pytest.mark.parametrize(
    ("name", "given", "state", "config", "message"),
    [
        ("batchtopk", {}, None, {}, r"a batchtopk SAE without a threshold, whose codes depend on the other rows"),
        ("batchtopk", {"threshold": 0.0}, None, {}, r"expected a positive number \(0 would be a plain ReLU\), got 0.0"),
        ("topk", {"threshold": 0.1}, None, {}, "only an SAE of type batchtopk takes one"),
        ("topk", {}, None, {"sae_type": "gated"}, "sae_type: expected one of vanilla, topk, .* got 'gated'"),
        ("topk", {}, None, {"sae_type": "jumprelu"}, r"not a jumprelu SAE: missing \['jumprelu.log_threshold'\]"),
        ("topk", {}, None, {"top_k": None}, "top_k: expected a whole number"),
        ("topk", {}, None, {"dict_size": 21}, r"expected shape \[.*21"),
        ("jumprelu", {}, lambda s: s | {"jumprelu.log_threshold": torch.full((20,), torch.inf)}, {}, "20 logarithms"),
    ],
)
def test_refusals_of_files(name, given, state, config, message, copied):
    with pytest.raises(ValueError, match=message):
        saekern.load(copied(name, state, **config), options=given)


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (lambda: saekern.GatedSAE(8, 16), "cannot express 'gated'; it has: relu, topk, batch_topk, jumprelu"),
        (
            lambda: saekern.NormalizedSAE(8, 16, norm="constant_norm", base="relu"),
            "by layer_norm with eps 1e-05, not const",
        ),
        (lambda: with_bias(saekern.TopKSAE(8, 16, 2)), "its topk encoder has no b_enc"),
        (lambda: saekern.BatchTopKSAE(8, 16, 2), r"has no threshold and chooses over each batch: this SAE's is 0.0"),
    ],
)
def test_refusals_of_writing(sae, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        saekern.save(sae(), tmp_path / "sae", "batchtopk")
    assert not (tmp_path / "sae").exists()


def with_bias(sae):
    sae.b_enc.data.fill_(0.5)
    return sae
