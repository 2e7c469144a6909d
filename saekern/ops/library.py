"""Registration of the ops with PyTorch's dispatcher, which then chooses by device.

`Library.define/impl` rather than `custom_op`: half the overhead of a call, and a second definition of the same name
is an error instead of silently winning (see CONTRIBUTING, "Design notes").
"""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from saekern import _C

LIBRARY = torch.library.Library("saekern", "DEF")
BACKENDS: dict[str, dict[str, str]] = {}  # op -> device -> what runs there, for `saekern info`
CUDA: dict[str, Callable] = {}  # op -> what the dispatcher calls on CUDA tensors; ops without kernels are not in it


def define(
    schema: str,
    *,
    cpu: Callable,
    cuda: Callable | None,
    reference: Callable,
    fake: Callable,
    on_cuda: str = "Triton",
) -> None:
    """Registers one op: `cpu` and `cuda` on their devices, `reference` on all others, `fake` for shapes alone.

    on_cuda: what `cuda` is made of."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    LIBRARY.impl(name, cpu, "CPU")
    if cuda is not None:
        LIBRARY.impl(name, cuda, "CUDA")
        CUDA[name] = cuda
    torch.library.register_fake(f"saekern::{name}", fake, lib=LIBRARY)
    on_cpu = "reference" if cpu is reference else "C++"
    on_cuda = "reference" if cuda is None or cuda is reference else on_cuda
    BACKENDS[name] = {"CPU": on_cpu, "CUDA": on_cuda, "others": "reference"}


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, torch's products of float32 on CUDA are of float32, whatever the program has set."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


_THREADS: ContextVar[int | None] = ContextVar("saekern_threads", default=None)


def threads() -> int:
    """How many threads our C++ code may use: torch's number, unless `torch_on_one_thread` lent it to us."""
    return _THREADS.get() or torch.get_num_threads()


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Inside, torch's own operations run on one thread and ours on as many as torch had.

    torch's OpenMP threads spin for milliseconds after each parallel region, on cores that our pool then waits for. If
    ours do the work and torch's are small (a training step: gathers, masks) that costs more than it gains: 101 against
    31 ms a step at D=128, F=2048, B=2048 on a busy 2-core machine.
    """
    count = torch.get_num_threads()
    token = _THREADS.set(threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _THREADS.reset(token)


@contextmanager
def torch_on_all_threads() -> Iterator[None]:
    """Inside `torch_on_one_thread`, lends torch the threads back, for one product that is worth it."""
    count = torch.get_num_threads()
    torch.set_num_threads(threads())
    try:
        yield
    finally:
        torch.set_num_threads(count)


_LEVEL: ContextVar[str] = ContextVar("saekern_instruction_level", default="")


def isa() -> str:
    """The instruction level that the C++ code uses: the processor's best, unless `instruction_level` asks for less."""
    return _LEVEL.get() or _C.isa()


@contextmanager
def instruction_level(name: str) -> Iterator[None]:
    """Inside, the ops that choose among products by hand (topk_encode, row_topk, nearest) use "avx512bf16", "avx512",
    "avx2" or "portable". Results are the same bits; it is for measuring what a lesser processor would do.

    Raises:
        ValueError: the processor has less, or there is no such level; by the first op that runs.
    """
    token = _LEVEL.set(name)
    try:
        yield
    finally:
        _LEVEL.reset(token)


def kernels(op: str) -> ModuleType:
    """`saekern.kernels.<op>`, for an op's CUDA function. Without Triton an error: never a silent slow path."""
    try:
        return importlib.import_module(f"saekern.kernels.{op}")
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != "triton":
            raise
        raise RuntimeError(
            f"saekern.{op} on a CUDA device needs Triton, which is not installed: pip install 'triton>=3.6',"
            " or move the tensors to the CPU"
        ) from missing


def autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    torch.library.register_autograd(f"saekern::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def differentiable(*tensors: Tensor | None) -> bool:
    """Will a backward pass come?"""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def array(tensor: Tensor | None) -> np.ndarray | None:
    """What `_C` takes: a contiguous view, floats widened to float32 (zero copy where nothing changes); None stays."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    return (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).contiguous().numpy()


def output(shape: Sequence[int], wanted: bool = True) -> Tensor | None:
    """Memory for `_C` to write: float32, rounded once to the storage type afterwards. None where not wanted.

    Large outputs take over the memory of earlier ones (csrc/memory.h)."""
    if not wanted:
        return None
    if 4 * math.prod(shape) < _C.LARGE_OUTPUT:
        return torch.empty(shape, dtype=torch.float32)
    return torch.from_numpy(_C.large_output(shape))


def release_memory() -> None:
    """Gives memory kept for large outputs back to the system. On CPU, gradients of 16 MiB and more take over the memory
    of earlier ones, which otherwise stays for the next; it never exceeds what such outputs held at one time."""
    _C.release_memory()


def rounded(tensor: Tensor | None, dtype: torch.dtype) -> Tensor:
    """An output in its storage type; the empty tensor that ops return for one that was not wanted."""
    return torch.empty(0, dtype=dtype) if tensor is None else tensor.to(dtype)
