"""What a cost is, a machine's roofs, what is assumed about its cache, and the costs of torch's operations."""

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
    "operands": "each operand of a matrix product is read from memory once a launch; what its tiles read from L2 is not"
    " counted (256 × 128 tiles without multicast would want 9 TB/s at 788 TFLOP/s)",
    "survivors": "scores come in random order: of the columns after the first n, k / n pass a row's threshold",
    "second walk": "a program that walks its rows' codes back finds the dictionary's rows of the last ones in L1, where"
    " 16 warps an SM share 200 KB",
    "shift": "the chunk of biases that all rows of a selection read stays in L1",
    "screened": "a bound on bf16 scores leaves two float32 candidates a winner, read from memory; no list overflows",
    "groups of scores": "the k-th largest group maximum is reached by 1.15 k groups of a row",
    "heads": "the k-th largest bound of a chunk's heads is reached by 1.3 k products; of the heads after the first h,"
    " k / h beat a row's threshold, and one product of each",
    "groups": "1.1 groups of 8 a row are scored again to find its nearest",
    "hot": "latents firing on 30 % of the rows are few (8): the float32 partial sums of their chunks are counted, not"
    " the worst case that the buffer is made for",
    "between": "nothing stays in L2 from one op to the next",
}
RADIX_BITS = 8  # digits of torch's radix sort; keys and values are read and written once a digit


class Roofs(NamedTuple):
    """A machine's limits; the defaults are measured figures of an H200, the rest estimates for it."""

    memory: float = 4.3e12  # bytes/s, a device-to-device copy, read and written
    matrix: float = 788e12  # bf16 operations/s, a large product of random numbers
    vector: float = 55e12  # float32 operations/s outside the tensor cores
    l2: float = 5.5e12  # bytes/s from L2
    launch: float = 2e-6  # seconds from one small kernel to the next in a stream that never waits for the host
    triton: float = 0.82  # share of `matrix` that products written in Triton reach: 600 to 680 TFLOP/s in others' hands
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
