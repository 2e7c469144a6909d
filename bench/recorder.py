"""What a launcher does, without a GPU: run on `meta` tensors, its launches and torch operations are written down.

`recorded(call)` replaces the launch of every Triton kernel by a note of its grid and arguments, so that the launcher's
own arithmetic (slices, chunks, programs) is what the cost model sees, and catches every torch operation on the way.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "launch_pdl")


@dataclass(frozen=True)
class Step:
    """One launch of a Triton kernel, or one operation of torch."""

    name: str
    """The kernel's function, or the operation as "aten::sort"."""
    arguments: dict[str, Any]
    """By parameter; tensors are still tensors, on `meta`."""
    results: tuple[Tensor, ...] = ()
    """What a torch operation returned; a kernel writes to its arguments."""
    grid: tuple[int, ...] = ()
    """Of a kernel."""
    view: bool = False
    """A torch operation that only renames or allocates memory."""

    @property
    def kernel(self) -> bool:
        return bool(self.grid)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


@dataclass
class Record:
    """Everything that one call of a launcher did, in order."""

    steps: list[Step] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    """Allocations, results included."""
    result: Any = None

    def largest(self) -> Tensor | None:
        return max(self.buffers, key=Tensor.numel, default=None)

    def launches(self) -> int:
        return sum(not step.view for step in self.steps)


def recorded(call: Callable[[], Any]) -> Record:
    """Runs `call`, whose tensors must be on `meta`: nothing is computed, nothing is allocated."""
    record = Record()
    with _launches_noted(record), _Operations(record):
        record.result = call()
    return record


@contextmanager
def _launches_noted(record: Record) -> Iterator[None]:
    from triton.runtime.jit import KernelInterface

    def getitem(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*values: Any, **named: Any) -> None:
            arguments = dict(zip(kernel.arg_names, values, strict=False))
            arguments |= {name: value for name, value in named.items() if name not in OPTIONS}
            size = grid(arguments) if callable(grid) else grid
            size = tuple(size) if isinstance(size, (tuple, list)) else (size,)
            if math.prod(size):
                record.steps.append(Step(kernel.fn.__name__, arguments, grid=size))

        return launch

    # One place for both of Triton's kernel classes, the compiler's and the interpreter's.
    with mock.patch.object(KernelInterface, "__getitem__", getitem):
        yield


class _Operations(TorchDispatchMode):
    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.known: set[int] = set()  # storages; the record keeps the tensors, so that no number is given twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        results = tuple(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        self.known |= {_storage(tensor) for tensor in inputs}
        fresh = [tensor for tensor in results if _storage(tensor) not in self.known]
        self.record.buffers += fresh
        self.known |= {_storage(tensor) for tensor in fresh}
        schema = func._schema
        arguments = {a.name: value for a, value in zip(schema.arguments, args, strict=False)} | kwargs
        alias = [r.alias_info for r in schema.returns]
        renames = bool(alias) and all(info is not None and not info.is_write for info in alias)
        view = renames or "empty" in schema.name or (not fresh and not _writes(schema) and bool(results))
        self.record.steps.append(Step(schema.name, arguments, results, view=view))
        return out


def _writes(schema: Any) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
