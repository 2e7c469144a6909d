"""Bytes and operations of each kernel, from the grid, shapes and constants that its launcher used.

One formula a kernel in KERNELS, under the name of the `@triton.jit` function. A kernel without one stops the model: it
is never guessed. What is assumed about the cache is listed in ASSUMPTIONS, by the names that the formulas use.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from saekern.bench.recorder import Step

ASSUMPTIONS = {
    "slice": "a slice of the dictionary, rows × block columns, of at most `l2_usable` bytes is read from memory once,"
    " however many codes gather from it; a larger one is read anew by every code",
    "codes": "indices and values are read from memory once if they, a slice of the dictionary and one of the result fit"
    " into `l2_usable` together; else again by each slice",
    "sort": "the passes of a radix sort whose two buffers fit into `l2_usable` stay in L2: one read, one write",
    "upstream": "a slice of the rows that a batch's codes point at (B × block columns) stays in L2",
    "scores": "scores that a matrix product leaves in a buffer of at most `l2_usable` bytes are read from L2 by the"
    " selection that follows, and are overwritten there by the next block before they reach memory",
    "operands": "each operand of a matrix product is read from memory once a launch",
    "hot": "latents firing on 30 % of the rows are few (HOT): the float32 partial sums of their chunks are counted, not"
    " the worst case that the buffer is made for",
    "between": "nothing stays in L2 from one op to the next",
}
HOT = 8  # latents that fire on 30 % of the rows
RADIX_BITS = 8  # digits of torch's radix sort; keys and values are read and written once a digit
SECTOR = 32  # bytes: what one scattered 2- or 4-byte access moves between L2 and an SM


class Roofs(NamedTuple):
    """A machine's limits; the defaults are measured figures of an H200, the last three estimates for it."""

    memory: float = 4.3e12  # bytes/s, a device-to-device copy, read and written
    matrix: float = 788e12  # bf16 operations/s, a large product of random numbers
    vector: float = 55e12  # float32 operations/s outside the tensor cores
    l2: float = 5.5e12  # bytes/s from L2
    launch: float = 2e-6  # seconds from one small kernel to the next in a stream that never waits for the host
    l2_usable: float = 45e6  # bytes of 60 MB: the two halves of the cache keep some lines twice


class Cost(NamedTuple):
    read: float = 0.0  # bytes from memory
    written: float = 0.0
    l2: float = 0.0  # bytes between L2 and the SMs beyond these
    matrix: float = 0.0  # tensor-core operations
    vector: float = 0.0
    launches: int = 1

    @property
    def bytes(self) -> float:
        return self.read + self.written

    def seconds(self, roofs: Roofs) -> dict[str, float]:
        """By roof; launches of a step that takes longer than its launch hide behind it."""
        times = {
            "memory": self.bytes / roofs.memory,
            "L2": (self.bytes + self.l2) / roofs.l2,
            "tensor cores": self.matrix / roofs.matrix,
            "vector units": self.vector / roofs.vector,
        }
        return times | {"launch": self.launches * roofs.launch}


def size(*tensors: Tensor | None) -> float:
    return float(sum(tensor.nbytes for tensor in tensors if tensor is not None))


def gathered(rows: Tensor, codes: int, block: int, roofs: Roofs) -> tuple[float, float]:
    """Bytes from memory and hits in L2 when `codes` codes each read a row, slice by slice. ASSUMPTIONS["slice"]."""
    count, width = rows.shape
    row = float(width * rows.itemsize)
    resident = count * min(block, width) * rows.itemsize <= roofs.l2_usable
    misses = min(count, codes) if resident else codes
    return row * misses, row * (codes - misses)


def decode(step: Step, roofs: Roofs) -> Cost:
    values, weight, slices = step["values"], step["weight"], step.grid[1]
    memory, l2 = gathered(weight, values.numel(), step["BLOCK_D"], roofs)
    codes, part = size(values, step["indices"]), weight.shape[0] * step["BLOCK_D"] * weight.itemsize
    again = 1 if part + codes + size(step["out"]) / slices <= roofs.l2_usable else slices
    once = size(step["bias"], step["offsets"])
    l2 += slices * codes
    return Cost(memory + again * codes + once, size(step["out"]), l2, vector=2.0 * values.numel() * weight.shape[1])


def _split(codes: int, rows: int, chunk: int) -> int:
    """Chunks of the hot latents, each of which leaves one float32 row. ASSUMPTIONS["hot"]."""
    return min(HOT * math.ceil(0.3 * rows / chunk), codes // chunk)


def segments(step: Step, roofs: Roofs) -> Cost:
    entries, rows, slices = step["entries"], step["rows"], step.grid[1]
    codes, (batch, width) = entries.numel(), rows.shape
    memory, l2 = gathered(rows, codes, step["BLOCK_D"], roofs)
    index = slices * size(step["segments"], step["overflow_begins"], entries, step["positions"])
    table = size(step["coefficients"], step["row_table"])  # picked one by one, from L2
    picked = [t for t in (step["coefficients"], step["row_table"], step["dots"]) if t is not None]
    read = memory + index + table + size(step["weight"], step["shift"])
    partials = 4.0 * width * _split(codes, batch, step["CHUNK"]) if step["row_sums"] is not None else 0.0
    written = size(step["row_sums"], step["sums"], step["dots"]) + partials
    scattered = slices * codes * SECTOR * len(picked)
    products = (step["dots"] is not None) + (step["row_sums"] is not None)
    return Cost(read, written, l2 + scattered, vector=2.0 * codes * width * products)


def fold(step: Step, roofs: Roofs) -> Cost:
    overflow, slices = step.grid
    chunks = min(HOT * 20, overflow)
    width = step["D"] if step["row_sums"] is not None else 1
    row = step["row_sums"].itemsize if step["row_sums"] is not None else 4
    index = slices * size(step["overflow_latents"], step["overflow_begins"])
    return Cost(index + 4.0 * width * chunks, float(row * width * HOT), vector=float(width * chunks))


def weighted_row_sum(step: Step, roofs: Roofs) -> Cost:
    rows, slices = step["rows"], step.grid[1]
    read = size(rows) + slices * size(step["coefficients"])
    return Cost(read, size(step["partials"]), vector=2.0 * rows.numel())


def streamed(written: tuple[str, ...], updated: tuple[str, ...] = (), work: int = 8) -> Callable[[Step, Roofs], Cost]:
    """A kernel that reads every tensor argument once, in order, except `written`; `updated` are written as well."""

    def cost(step: Step, roofs: Roofs) -> Cost:
        tensors = {name: value for name, value in step.arguments.items() if isinstance(value, Tensor)}
        read = size(*(t for name, t in tensors.items() if name not in written))
        wrote = size(*(tensors[name] for name in (*written, *updated)))
        return Cost(read, wrote, vector=float(work * max(t.numel() for t in tensors.values())))

    return cost


ADAM = streamed((), ("param", "exp_avg", "exp_avg_sq"), work=20)
KERNELS: dict[str, Callable[[Step, Roofs], Cost]] = {
    "decode_kernel": decode,
    "segment_kernel": segments,
    "fold_kernel": fold,
    "weighted_row_sum_kernel": weighted_row_sum,
    "moments_kernel": streamed(("column_sums", "scalars")),
    "scaled_difference_kernel": streamed(("out",), work=2),
    "row_kernel": ADAM,
    "element_kernel": ADAM,
}

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
FILLS = ("aten::zero_", "aten::fill_", "aten::zeros", "aten::zeros_like", "aten::full", "aten::arange", "aten::ones")
COPIES = ("aten::copy_",)


def torch_operation(step: Step, roofs: Roofs) -> Cost:
    """Inputs read once, results written once; more for a sort, less for a fill."""
    if step.name == "aten::sort":
        keys = step["self"]
        passes, once = keys.itemsize * 8 // RADIX_BITS, keys.numel() * (keys.itemsize + 8.0)  # int64 positions go along
        memory = once if 2 * once <= roofs.l2_usable else passes * once
        return Cost(memory + size(keys), memory, 2 * (passes * once - memory), launches=2 + passes)
    inputs = {id(leaf): leaf for leaf in tree_leaves(step.arguments) if isinstance(leaf, Tensor)}
    results = [r for r in step.results if id(r) not in inputs]
    if step.name in PRODUCTS:
        return _product(step, list(inputs.values()), roofs)
    if step.name in FILLS:
        return Cost(written=size(*step.results))
    if step.name in COPIES:
        return Cost(size(step["src"]), size(step["self"]))
    written = size(*results) if results else size(*step.results[:1])
    return Cost(size(*inputs.values()), written)


def _product(step: Step, inputs: list[Tensor], roofs: Roofs) -> Cost:
    """ASSUMPTIONS["operands"] and ["scores"]."""
    out = step.results[0]
    operands = [t for t in inputs if t is not out]
    inner = next(t for t in operands if t.dim() == out.dim()).shape[-1]
    resident = out.nbytes <= roofs.l2_usable
    written, l2 = (0.0, size(out)) if resident else (size(out), 0.0)
    work = 2.0 * out.numel() * inner
    half = operands[-1].dtype in (torch.bfloat16, torch.float16)
    return Cost(size(*operands), written, l2, matrix=work if half else 0.0, vector=0.0 if half else work)


def cost(step: Step, roofs: Roofs) -> Cost:
    """Raises ValueError for a kernel that KERNELS does not know."""
    if step.view:
        return Cost(launches=0)
    if not step.kernel:
        return torch_operation(step, roofs)
    if step.name not in KERNELS:
        raise ValueError(f"{step.name}: no formula for this kernel; add it to KERNELS in bench/kernel_costs.py")
    return KERNELS[step.name](step, roofs)
