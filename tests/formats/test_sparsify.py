"""sparsify's files, made with the library by `make_golden.py`: answers, round trips, folders, refusals.

Planted: W_dec transposed; num_latents 0 read as F = 0; k left at 32 in what is written; the folder's own name lost in
the list of seeds; caught.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from format_checks import assert_answers, assert_round_trip
from safetensors.torch import load_file, save_file

import saekern
from saekern.formats import examine
from saekern.formats.sparsify import DEFAULTS

GOLDEN = Path(__file__).parent / "golden" / "sparsify"
CASES = ("expansion", "latents")


@pytest.fixture
def copied(tmp_path):
    def copy(where="layers.3", state=None, **config):
        folder = tmp_path / "run" / where
        shutil.copytree(GOLDEN / "latents" / "layers.3", folder)
        content = json.loads((folder / "cfg.json").read_text()) | config
        content = {name: value for name, value in content.items() if value != "absent"}
        (folder / "cfg.json").write_text(json.dumps(content))
        if state is not None:
            save_file(state(load_file(folder / "sae.safetensors")), folder / "sae.safetensors")
        return folder

    return copy


@pytest.mark.parametrize("name", CASES)
def test_answers_of_the_library(name):
    sae, answers = saekern.load(GOLDEN / name / "layers.3"), load_file(GOLDEN / name / "answers.safetensors")
    assert (type(sae), sae.k, sae.subtract_b_dec) == (saekern.TopKSAE, 3, True)
    assert_answers(sae, answers["x"], answers["codes"], answers["x_hat"])


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, tmp_path):
    assert_round_trip(GOLDEN / name / "layers.3", tmp_path, "sparsify", {})


def test_num_latents_0_is_the_expansion_factor():
    config = json.loads((GOLDEN / "expansion" / "layers.3" / "cfg.json").read_text())
    assert (config["num_latents"], config["expansion_factor"]) == (0, 2)
    assert saekern.load(GOLDEN / "expansion" / "layers.3").d_sae == 24


def test_an_old_config_stays_as_it_is(copied, tmp_path):
    """Before there were `activation` and `transcode` there was `signed`; what is missing is not filled in."""
    folder = copied(activation="absent", transcode="absent", skip_connection="absent", signed=False)
    assert_round_trip(folder, tmp_path / "work", "sparsify", {})


def test_half_precision_stays(copied, tmp_path):
    folder = copied(state=lambda state: {name: tensor.bfloat16() for name, tensor in state.items()})
    assert assert_round_trip(folder, tmp_path / "work", "sparsify", {}).W_dec.dtype == torch.bfloat16


@pytest.mark.parametrize("latents", [10, 6 * 32])
def test_an_sae_of_ours_loads_there(latents, tmp_path):
    sae = saekern.TopKSAE(6, latents, 2, init_seed=0)
    saekern.save(sae, tmp_path / "layers.3", "sparsify")
    config = json.loads((tmp_path / "layers.3" / "cfg.json").read_text())
    assert config == {**DEFAULTS, "num_latents": 10 if latents == 10 else 0, "k": 2, "d_in": 6}
    assert torch.equal(saekern.load(tmp_path / "layers.3").W_dec, sae.W_dec)


def test_a_change_of_ours_reaches_the_config(copied, tmp_path):
    sae = saekern.load(copied())
    smaller = saekern.TopKSAE(12, 7, 2, init_seed=0)
    smaller.provenance = sae.provenance
    saekern.save(smaller, tmp_path / "new", "sparsify")
    config = json.loads((tmp_path / "new" / "cfg.json").read_text())
    assert (config["num_latents"], config["k"], config["multi_topk"]) == (7, 2, True)


def test_hookpoint_seed_and_model(copied):
    folder = copied("layers.3/seed1")
    assert "hook" not in saekern.load(folder).provenance
    (folder.parent.parent / "config.json").write_text('{"sae": {"k": 3}, "model": "gpt2"}')
    provenance = saekern.load(folder).provenance
    assert (provenance["hook"], provenance["model"]) == ("layers.3", "gpt2")
    assert provenance["sparsify"]["seed"] == "seed1"


def test_a_folder_of_several_lists_them(copied, tmp_path):
    for where in ("layers.3/seed0", "layers.3/seed1", "layers.4"):
        copied(where)
    with pytest.raises(
        ValueError, match=r"run holds 3 SAE\(s\): pass subfolder= one of 'layers.3/seed0', 'layers.3/se"
    ):
        saekern.load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds 2 SAE\(s\): pass subfolder= one of 'seed0', 'seed1'"):
        saekern.load(tmp_path / "run" / "layers.3")
    assert saekern.load(tmp_path / "run", subfolder="layers.3/seed1").k == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no cfg.json with sae.safetensors, here or in its folders"):
        saekern.load(tmp_path / "empty", format="sparsify")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "groupmax"}, r"activation 'groupmax' \(the largest of each of k groups\)"),
        ({"activation": "relu"}, "activation 'relu' is not one that saekern has"),
        ({"signed": True}, "signed: signed latents"),
        ({"transcode": True}, "transcode: a transcoder"),
        ({"skip_connection": True}, "skip_connection: a skip connection"),
        ({"k": "absent"}, "k: expected a whole number of at least 1, got None"),
        ({"k": 0}, "k: expected a whole number of at least 1, got 0"),
        ({"k": 21}, "k: expected 1 <= k <= d_sae = 20, got 21"),
        ({"k": 3.0}, "k: expected a whole number"),
        ({"d_in": True}, "d_in: expected a whole number"),
        ({"num_latents": 21}, r"cfg.json says \[21, 12\], got \[20, 12\]"),
        ({"num_latents": 0, "expansion_factor": "absent"}, "expansion_factor: expected a whole number"),
    ],
)
def test_refusals_of_configs(config, message, copied):
    with pytest.raises(ValueError, match=message):
        saekern.load(copied(**config))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda s: s | {"W_skip": torch.zeros(12, 12)}, "unexpected .*'W_skip'"),
        (lambda s: {name: s[name] for name in s if name != "W_dec"}, "missing .*'W_dec'"),
        (lambda s: s | {"b_dec": s["b_dec"].half()}, "expected one type"),
        (lambda s: s | {"encoder.weight": s["b_dec"].clone()}, "encoder.weight: expected a matrix"),
        (lambda s: s | {"encoder.bias": torch.zeros(7)}, r"b_enc: expected floating point of shape \[20\], got"),
    ],
)
def test_refusals_of_tensors(state, message, copied):
    with pytest.raises(ValueError, match=message):
        saekern.load(copied(state=state))


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (lambda: saekern.ReLUSAE(8, 16), "cannot express 'relu'; it has: topk"),
        (lambda: saekern.BatchTopKSAE(8, 16, 2), "cannot express 'batch_topk'"),
        (lambda: saekern.JumpReLUSAE(8, 16), "cannot express 'jumprelu'"),
    ],
)
def test_refusals_of_writing(sae, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        saekern.save(sae(), tmp_path / "sae", "sparsify")
    assert not (tmp_path / "sae").exists()


def test_an_encoder_that_reads_x(copied, tmp_path):
    sae = saekern.load(copied())
    sae.subtract_b_dec = False
    with pytest.raises(ValueError, match=r"does not subtract b_dec, and the format's does; fold=True"):
        saekern.save(sae, tmp_path / "sae", "sparsify")
    saekern.save(sae, tmp_path / "sae", "sparsify", fold=True)
    x = torch.randn(9, 12)
    torch.testing.assert_close(saekern.load(tmp_path / "sae")(x), sae(x))


def test_notes(copied):
    notes = " ".join(examine(GOLDEN / "expansion" / "layers.3").notes)
    assert "encoder.weight" in notes
    assert "num_latents 0 means d_in x expansion_factor = 24" in notes
