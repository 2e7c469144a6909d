"""Native files: every bit back, nothing half written, and errors that say what is wrong."""

import json
import os

import pytest
import safetensors.torch
import torch

import saekern
from saekern.sae import files


@pytest.fixture
def sae():
    return saekern.TopKSAE(6, 20, 3, init_seed=9, k_aux=2, aux_coefficient=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_round_trip_is_exact(tmp_path, dtype, sae):
    sae = sae.to(dtype)
    with torch.no_grad():
        sae.b_enc.normal_()
        sae.b_dec[0] = -0.0
    files.save(sae, tmp_path / "a", provenance={"hook": "blocks.1.hook_resid_pre"})
    loaded = files.load(tmp_path / "a")
    assert type(loaded) is saekern.TopKSAE
    assert loaded.config() == sae.config()
    assert loaded.config()["init_seed"] == 9
    for name, parameter in sae.named_parameters():
        got = loaded.get_parameter(name)
        assert got.dtype == dtype
        assert got.requires_grad
        assert got.stride() == parameter.stride()
        assert got.contiguous().view(torch.uint8).equal(parameter.contiguous().view(torch.uint8)), name
    assert files.read_config(tmp_path / "a")["provenance"]["hook"] == "blocks.1.hook_resid_pre"
    assert files.load(tmp_path / "a", dtype=torch.float64).W_enc.dtype == torch.float64
    files.save(loaded, tmp_path / "b")
    assert (tmp_path / "a" / files.WEIGHTS).read_bytes() == (tmp_path / "b" / files.WEIGHTS).read_bytes()


def test_stored_layout(tmp_path, sae):
    files.save(sae, tmp_path)
    tensors, _ = files.read_tensors(tmp_path / files.WEIGHTS)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {"W_enc": [6, 20], "W_dec": [20, 6], "b_enc": [20], "b_dec": [6]}
    assert tensors["W_enc"].is_contiguous()
    assert torch.equal(tensors["W_enc"], sae.W_enc)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "sae.safetensors"]


def edit(path, **changes):
    config = json.loads((path / files.CONFIG).read_text())
    (path / files.CONFIG).write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, r"version 2 is newer than 1, the newest that saekern \S+ reads"),
        ({"architecture": "tokp"}, 'unknown architecture "tokp", expected one of: .*topk'),
        ({"format": "other"}, 'expected format "saekern", got "other"'),
        ({"sae": {"d_in": 6, "d_sae": 20, "k": 4}}, "describe different SAEs"),
    ],
)
def test_foreign_configs_are_refused(tmp_path, sae, changes, message):
    files.save(sae, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        files.load(tmp_path)


def test_missing_and_damaged_files(tmp_path, sae):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist: expected the folder of a saved SAE"):
        files.load(tmp_path)
    files.save(sae, tmp_path)
    weights = tmp_path / files.WEIGHTS
    whole = weights.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"sae\.safetensors is truncated or damaged"):
            files.load(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"sae\.safetensors does not exist"):
        files.load(tmp_path)
    (tmp_path / files.CONFIG).write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        files.load(tmp_path)


def test_a_missing_tensor_is_named(tmp_path, sae):
    files.save(sae, tmp_path)
    tensors, metadata = files.read_tensors(tmp_path / files.WEIGHTS)
    del tensors["b_enc"]
    files.write_tensors(tmp_path / files.WEIGHTS, tensors, metadata)
    with pytest.raises(ValueError, match=r'sae\.safetensors: (.|\n)*Missing key\(s\) in state_dict: "b_enc"'):
        files.load(tmp_path)


def test_full_disk_leaves_the_old_files(tmp_path, sae):
    """The limit on file size stands in for the full disk: the kernel refuses the write in the middle of the file.

    Planted: writing to the final name; caught.
    """
    resource = pytest.importorskip("resource")
    files.save(sae, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with torch.no_grad():
        sae.b_enc.fill_(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"cannot write .*sae\.safetensors \(.*\); what was there before is unchanged"
        ):
            files.save(sae, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made(tmp_path, sae):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/run/sae\.safetensors"):
        files.save(sae, tmp_path / "file" / "run")


def test_any_reader_of_safetensors_reads_it(tmp_path):
    """Ours is a writer of its own. Planted: byte order of the length; a gap between tensors; header not
    padded to 8 bytes. Each was caught.
    """
    tensors = {
        "half": torch.randn(3).half(),
        "bf16": torch.randn(2, 5).bfloat16(),
        "transposed": torch.randn(4, 3).T,
        "double": torch.randn(3, dtype=torch.float64),
        "integers": torch.tensor([2**62, -1]),
        "bytes": torch.tensor([255, 0, 7], dtype=torch.uint8),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
    }
    files.write_tensors(tmp_path / "x.safetensors", tensors, {"note": "ß"})
    content = (tmp_path / "x.safetensors").read_bytes()
    got = safetensors.torch.load(content)
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="pt") as handle:
        assert handle.metadata() == {"note": "ß"}
    assert int.from_bytes(content[:8], "little") % 8 == 0
    files.write_tensors(tmp_path / "x.safetensors", {}, None)
    assert files.read_tensors(tmp_path / "x.safetensors") == ({}, {})
