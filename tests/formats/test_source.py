"""Files made to hurt: read without running, following or believing them, and refused by one clear error."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from saekern.formats import source


def refused(match, read, *arguments):
    with pytest.raises(ValueError, match=match):
        read(*arguments)


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["pickle", "torch", "torch, old format"])
def test_code_in_a_pickle_is_not_run(tmp_path, how):
    """Planted: weights_only=False; caught."""
    file, trace = tmp_path / "ae.pt", tmp_path / "it ran"
    content = {"encoder.weight": torch.ones(2, 2), "config": Bomb(trace)}
    if how == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "torch")
    refused(r"ae\.pt: refused, or damaged: tensors and plain containers only", source.read_pickle, file)
    assert not trace.exists()


def test_harmless_pickles_are_read(tmp_path):
    content = {"k": torch.tensor(3, dtype=torch.int32), "w": torch.randn(3, 4), "activation": "TopK", "n": [1, 2.5]}
    torch.save(content, tmp_path / "ae.pt")
    found = source.read_pickle(tmp_path / "ae.pt")
    assert found.keys() == content.keys()
    assert torch.equal(found["w"], content["w"])
    assert found["k"].dtype == torch.int32


def save_cut(file, whole, keep):
    file.write_bytes(whole[: int(len(whole) * keep)])


@pytest.mark.parametrize("keep", [0, 0.3, 0.9, 0.999])
def test_truncated_files(tmp_path, keep):
    buffer = io.BytesIO()
    torch.save({"w": torch.randn(64, 64)}, buffer)
    save_cut(tmp_path / "ae.pt", buffer.getvalue(), keep)
    refused(r"ae\.pt: refused, or damaged", source.read_pickle, tmp_path / "ae.pt")
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones((64, 64), np.float32))
    save_cut(tmp_path / "params.npz", buffer.getvalue(), keep)
    refused(r"params\.npz is truncated or damaged", source.read_npz, tmp_path / "params.npz")
    text = json.dumps({"d_in": 16, "d_sae": 64}).encode()
    save_cut(tmp_path / "cfg.json", text, keep)
    refused(r"cfg\.json is not valid JSON", source.read_json, tmp_path / "cfg.json")
    whole = safetensors_bytes({"w": ("F32", [2, 2], [0, 16])}, 16)
    save_cut(tmp_path / "w.safetensors", whole, keep)
    refused(r"w\.safetensors is truncated or damaged", source.read_safetensors, tmp_path / "w.safetensors")


def safetensors_bytes(header, size):
    entries = {name: {"dtype": d, "shape": s, "data_offsets": o} for name, (d, s, o) in header.items()}
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


@pytest.mark.parametrize(
    "header",
    [
        {"w": ("F32", [2, 2], [0, 1 << 40])},
        {"w": ("F32", [1 << 30, 1 << 30], [0, 16])},
        {"w": ("F32", [1 << 62, 4], [0, 16])},
        {"w": ("F32", [2, 2], [16, 0])},
        {"w": ("F32", [2, 2], [8, 24])},
        {"w": ("F32", [2], [0, 8]), "v": ("F32", [2], [4, 12])},
        {"w": ("F99", [2, 2], [0, 16])},
    ],
)
def test_safetensors_with_lying_offsets(tmp_path, header):
    file = tmp_path / "w.safetensors"
    file.write_bytes(safetensors_bytes(header, 16))
    refused(r"w\.safetensors is truncated or damaged", source.read_safetensors, file)
    refused(r"w\.safetensors is truncated or damaged", source.safetensors_shapes, file)


def test_safetensors_whose_header_says_it_is_huge(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    refused("is truncated or damaged", source.read_safetensors, file)


def write_npz_of_zeros(file, gigabytes):
    """Zeros compress a thousandfold; written in pieces, so that the test does not hold them either."""
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("W_enc.npy", "w", force_zip64=True) as member,
    ):
        shape = (gigabytes * 2**28,)
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        block = bytes(2**24)
        for _ in range(gigabytes * 2**6):
            member.write(block)


def test_npz_bombs_are_refused_before_they_unfold(tmp_path, monkeypatch):
    """Planted: no look at the sizes; caught."""
    file = tmp_path / "params.npz"
    write_npz_of_zeros(file, 1)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was opened"))
    refused(r"params\.npz: [\d,]+ bytes would become 1,073,[\d,]+; refused", source.read_npz, file)


@pytest.mark.parametrize("count", [2**30, 2**45, 2**61])
def test_npz_that_lies_about_its_sizes(tmp_path, count):
    """The directory promises 16 bytes, the array's header 4 GiB, or more than there is. Planted: MemoryError let
    through; caught."""
    file = tmp_path / "params.npz"
    with zipfile.ZipFile(file, "w") as archive:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (count,)})
        archive.writestr("W_enc.npy", buffer.getvalue() + bytes(16))
    refused(r"params\.npz is not a readable \.npz of numbers", source.read_npz, file)


def test_npz_of_objects(tmp_path):
    file = tmp_path / "params.npz"
    np.savez(file, W_enc=np.array([None, {}], dtype=object))
    refused(r"params\.npz is not a readable \.npz of numbers", source.read_npz, file)
    np.savez(file, W_enc=np.array(["a", "b"]))
    refused(r"params\.npz is not a readable \.npz of numbers", source.read_npz, file)


def test_npz_in_the_other_byte_order(tmp_path):
    file = tmp_path / "params.npz"
    np.savez(file, b_dec=np.arange(4, dtype=">f4"))
    assert source.read_npz(file)["b_dec"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"d_in": 1e999}', "1e999 is out of range"),
        ('{"d_in": NaN}', "NaN is not a number"),
        ('{"d_in": -Infinity}', "-Infinity is not a number"),
        ('{"d_in": ' + "9" * 100_000 + "}", "is not valid JSON: "),
        ("[" * 200_000, "nested too deeply"),
        ('{"d_in": "\ud800"}'.encode("utf-8", "surrogatepass"), "is not valid JSON"),
    ],
)
def test_json_that_no_configuration_holds(tmp_path, text, message):
    file = tmp_path / "cfg.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(message, source.read_json, file)


def test_json_of_another_kind_or_size(tmp_path, monkeypatch):
    file = tmp_path / "cfg.json"
    file.write_text("[1]")
    refused("expected a JSON object, got list", source.read_object, file)
    monkeypatch.setattr(source, "JSON_BYTES", 2)
    refused("3 bytes; a configuration has at most 2", source.read_json, file)


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/../../outside", "..", "link", "a\\..\\b"])
def test_names_stay_inside_their_folder(tmp_path, name):
    """Planted: the link followed; caught."""
    folder = tmp_path / "sae"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    refused("expected a name inside", source.child, folder, name)
    (folder / "layers.3").mkdir()
    assert source.child(folder, "layers.3/seed0") == folder / "layers.3" / "seed0"


def test_missing_files(tmp_path):
    for read in (source.read_json, source.read_safetensors, source.read_npz, source.read_pickle):
        with pytest.raises(FileNotFoundError, match="nothing does not exist"):
            read(tmp_path / "nothing")
