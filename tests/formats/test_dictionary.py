"""Dictionaries from folders and raw arrays, mapped and not copied."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saekern.formats import read_dictionary, read_encoder
from saekern.sae import KronSAE, TopKSAE, save


def file_at(address: int) -> str:
    """The file that is mapped there."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            if start <= address < end:
                return line.rstrip().split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["rows.npy", "rows.safetensors"])
def test_arrays_are_mapped(tmp_path, name):
    """Planted: np.load without mmap_mode; caught."""
    rows, path = torch.randn(300, 64), tmp_path / name
    np.save(path, rows.numpy()) if name.endswith("npy") else save_file({"W_dec": rows, "b": torch.ones(3)}, path)
    found = read_dictionary(path)
    assert torch.equal(found, rows)
    assert file_at(found.data_ptr()) == str(path)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", ">f8"])
def test_every_layout_of_npy(tmp_path, order, dtype):
    rows = np.random.default_rng(0).normal(size=(7, 5)).astype(dtype)
    np.save(tmp_path / "rows.npy", np.asarray(rows, order=order))
    found = read_dictionary(tmp_path / "rows.npy")
    assert np.array_equal(found.numpy(), rows)
    assert torch.equal(read_dictionary(tmp_path / "rows.npy", transpose=True), found.T)


def test_which_tensor(tmp_path):
    """W_dec; or the only matrix; or the one that is named. Planted: the first matrix of several; caught."""
    path, x, y = tmp_path / "t.safetensors", torch.randn(3, 2), torch.randn(4, 2)
    save_file({"A": x, "W_dec": y}, path)
    assert torch.equal(read_dictionary(path), y)
    assert torch.equal(read_dictionary(path, "A"), x)
    save_file({"A": x, "bias": torch.ones(4)}, path)
    assert torch.equal(read_dictionary(path), x)
    save_file({"A": x, "B": y}, path)
    with pytest.raises(ValueError, match=r"no W_dec, and 2 matrices; .*\(--tensor\): A \[3, 2\], B \[4, 2\]"):
        read_dictionary(path)
    save_file({"A": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no W_dec, and 0 matrices"):
        read_dictionary(path)
    save_file({"A": x.bfloat16()}, path)
    assert torch.equal(read_dictionary(path), x.bfloat16())


def test_folder_of_an_sae(tmp_path):
    sae = TopKSAE(6, 9, 2, init_seed=0)
    save(sae, tmp_path)
    found = read_dictionary(tmp_path, "ignored", transpose=True)
    assert torch.equal(found, sae.dictionary)
    assert not found.requires_grad
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no known format \(found: an empty folder\)"):
        read_dictionary(tmp_path / "empty")


def test_encoders(tmp_path):
    """[F, D] however it is stored; None where the shapes do not tell, or where there is none.

    Planted: [D, F] returned as it lies; caught."""
    decoder, encoder = torch.randn(7, 3), torch.randn(7, 3)
    path = tmp_path / "x.safetensors"
    for stored in (encoder, encoder.T.contiguous()):
        save_file({"W_dec": decoder, "W_enc": stored}, path)
        assert torch.equal(read_encoder(path), encoder)
    for tensors in (
        {"W_dec": decoder},
        {"W_dec": decoder, "W_enc": torch.randn(6, 3)},
        {"W_dec": decoder[:3].contiguous(), "W_enc": encoder[:3].contiguous()},  # 3 x 3: either way
    ):
        save_file(tensors, path)
        assert read_encoder(path) is None
    np.save(tmp_path / "x.npy", decoder.numpy())
    assert read_encoder(tmp_path / "x.npy") is None
    sae = TopKSAE(3, 7, 2)
    save(sae, tmp_path / "sae")
    assert torch.equal(read_encoder(tmp_path / "sae"), sae.W_enc.detach().T)
    save(KronSAE(3, 8, 2, heads=1, m=2, n=4), tmp_path / "kron")
    assert read_encoder(tmp_path / "kron") is None
