"""Rows in memory and on disk: the same values in any order, and files that do not fit named."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saekern.activations import Rows, ShardRows, TensorRows, open_shards


def write(path, tensor, key="rows"):
    if path.suffix == ".npy":
        np.save(path, tensor.numpy())
    else:
        save_file({key: tensor}, path)
    return path


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".npy", torch.float32),
        (".npy", torch.float16),
        (".npy", torch.float64),
        (".safetensors", torch.float32),
        (".safetensors", torch.float16),
        (".safetensors", torch.bfloat16),
        (".safetensors", torch.float64),
    ],
)
def test_take_equals_the_concatenated_tensor(tmp_path, suffix, dtype):
    """Planted: bfloat16 mapped as float16; caught. `- start` dropped in ShardRows.take; caught."""
    shards = [torch.randn(n, 5).to(dtype) for n in (4, 1, 0, 7)]
    paths = [write(tmp_path / f"{i}{suffix}", shard) for i, shard in enumerate(shards)]
    rows = open_shards(paths)
    everything = torch.cat(shards).float()
    assert isinstance(rows, Rows)
    assert (len(rows), rows.width) == (12, 5)
    for indices in (torch.randperm(12), torch.tensor([11, 11, 0, 4, 5, 3]), torch.empty(0, dtype=torch.int64)):
        got = rows.take(indices)
        assert got.dtype == torch.float32
        assert torch.equal(got, everything[indices])


def test_mapped_rows_do_not_write_to_the_file(tmp_path):
    path = write(tmp_path / "a.npy", torch.ones(2, 3))
    rows = open_shards([path])
    rows.take(torch.tensor([0])).zero_()
    rows.shards[0].zero_()
    assert torch.equal(open_shards([path]).take(torch.tensor([0, 1])), torch.ones(2, 3))


def test_tensor_rows():
    tensor = torch.randn(5, 3, dtype=torch.bfloat16).t().contiguous().t()  # non-contiguous
    rows = TensorRows(tensor)
    assert isinstance(rows, Rows)
    assert torch.equal(rows.take(torch.tensor([4, 0])), tensor[[4, 0]].float())
    with pytest.raises(ValueError, match=r"expected a floating \[n, D\], got torch.int64 \[3\]"):
        TensorRows(torch.arange(3))


@pytest.mark.parametrize("rows", [TensorRows(torch.ones(3, 2)), ShardRows([torch.ones(1, 2), torch.ones(2, 2)])])
def test_indices_out_of_range(rows):
    with pytest.raises(IndexError, match=r"expected 0 to 2, got 0 to 3"):
        rows.take(torch.tensor([0, 3]))
    with pytest.raises(IndexError, match=r"expected 0 to 2, got -1 to 1"):
        rows.take(torch.tensor([1, -1]))
    with pytest.raises(ValueError, match=r"expected int64 \[n\], got torch.int32 \[1\]"):
        rows.take(torch.tensor([0], dtype=torch.int32))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_truncated_file_is_named(tmp_path, suffix, size):
    """Planted: the size check `!=` as `<` the header only; caught at -1."""
    path = write(tmp_path / f"a{suffix}", torch.randn(50, 4))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"a{suffix}: (truncated|not a)"):
        open_shards([path])


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.npy: no such shard"):
        open_shards([tmp_path / "none.npy"])
    (tmp_path / "a.pt").touch()
    with pytest.raises(ValueError, match=r"a.pt: expected a .npy or .safetensors file"):
        open_shards([tmp_path / "a.pt"])
    with pytest.raises(ValueError, match=r"expected a floating \[n, D\], got torch.int64 \[4\]"):
        open_shards([write(tmp_path / "a.npy", torch.arange(4))])
    with pytest.raises(ValueError, match=r"expected one width, got \[2, 3\]"):
        open_shards([write(tmp_path / "b.npy", torch.ones(1, 2)), write(tmp_path / "c.npy", torch.ones(1, 3))])
    save_file({"x": torch.ones(1, 2), "y": torch.zeros(1, 2)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"expected the tensor None, found \['x', 'y'\]"):
        open_shards([tmp_path / "two.safetensors"])
    assert open_shards([tmp_path / "two.safetensors"], key="x").take(torch.tensor([0])).tolist() == [[1.0, 1.0]]
    save_file({"x": torch.ones(1, 2, dtype=torch.int32)}, tmp_path / "int.safetensors")
    with pytest.raises(ValueError, match=r"expected one of \['BF16', .*\], got I32"):
        open_shards([tmp_path / "int.safetensors"])
    with pytest.raises(ValueError, match="expected at least one"):
        open_shards([])
