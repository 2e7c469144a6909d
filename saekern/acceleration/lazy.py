"""Dense codes [..., F] that stay sparse until somebody reads what values and indices do not answer."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from saekern.ops import LatentOrder, RaggedCodes, latent_gather


class Codes(NamedTuple):
    """Sparse codes of B rows over F latents."""

    values: Tensor  # [B, K], or [nnz] with offsets
    indices: Tensor  # its shape, int64
    latents: int  # F
    offsets: Tensor | None = None  # [B+1]: ragged rows
    order: LatentOrder | None = None  # sorted by latent, for `ops.decode`

    @property
    def rows(self) -> int:
        return self.values.shape[0] if self.offsets is None else self.offsets.numel() - 1

    def row_index(self) -> Tensor:
        """[values.numel()]: the row that each code belongs to."""
        if self.offsets is None:
            return torch.arange(self.rows, device=self.values.device).repeat_interleave(self.values.shape[1])
        counts = self.offsets.diff()
        return torch.arange(self.rows, device=self.values.device).repeat_interleave(
            counts, output_size=self.values.numel()
        )

    def row_sums(self, values: Tensor) -> Tensor:
        """[B]: Σ over each row's codes, for other values at the same places."""
        if self.offsets is None:
            return values.sum(1)
        return summed_by(self.row_index(), values, self.rows)

    def latent_sums(self, values: Tensor) -> Tensor:
        """[F]: Σ over each latent's codes."""
        return summed_by(self.indices.flatten(), values.flatten(), self.latents)

    def dense(self) -> Tensor:
        """[B, F]. Gradients flow to values."""
        flat = self.row_index() * self.latents + self.indices.flatten()
        zeros = self.values.new_zeros(self.rows * self.latents)
        return zeros.scatter(0, flat, self.values.flatten()).view(self.rows, self.latents)


def summed_by(places: Tensor, values: Tensor, count: int) -> Tensor:
    """[count]: Σ over the values of each place. As `sum`, it adds half-precision values in float32."""
    wide = torch.promote_types(values.dtype, torch.float32) if values.is_floating_point() else values.dtype
    return torch.zeros(count, dtype=wide, device=values.device).index_add(0, places, values.to(wide)).to(values.dtype)


class LazyTensor(Tensor):
    """A dense tensor that is made when it is read: by any function of torch but those that `codes` answer as well.

    What training loops ask of codes (did a latent fire, how many did) has the same answer without [B, F]; all else, an
    index, a product, a write, `numpy()`, makes the dense tensor once, by operations that autograd follows, and goes on
    with it.

    Args:
        make: returns the dense tensor.
        shape, dtype, device: its own.
        needs_grad: it will have a gradient.
        codes: what is in it, where it is sparse and [B, F].

    Attributes:
        source: anything that whoever made it wants to find again.
    """

    make: Callable[[], Tensor]
    codes: Codes | None
    made: Tensor | None
    source: Any

    @staticmethod
    def __new__(
        cls: type["LazyTensor"],
        make: Callable[[], Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        needs_grad: bool,
        codes: Codes | None = None,
    ) -> "LazyTensor":
        lazy = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device, requires_grad=needs_grad)
        lazy.make, lazy.codes, lazy.made, lazy.source = make, codes, None, None
        if needs_grad:
            with torch._C.DisableTorchFunctionSubclass():
                lazy.register_hook(lost_gradient)
        return lazy

    def dense(self) -> Tensor:
        if self.made is None:
            with torch.set_grad_enabled(self.requires_grad):  # the first reader may be a log, the second a loss
                self.made = self.make()
        return self.made

    def current_codes(self) -> Codes | None:
        """The codes, unless somebody has written into the dense tensor since."""
        return self.codes if self.made is None or self.made._version == 0 else None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = args[0] if args else None
        if func in SPARSE and isinstance(first, LazyTensor) and first.codes is not None and first.made is None:
            answer = SPARSE[func](first.codes, *args[1:], **kwargs)
            if answer is not NotImplemented:
                return answer
        args, kwargs = tree_map_only(LazyTensor, LazyTensor.dense, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What reaches the dispatcher past __torch_function__, such as an autograd function's own arguments."""
        args, kwargs = tree_map_only(LazyTensor, LazyTensor.dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def lazy_codes(codes: Codes, shape: tuple[int, ...] | None = None) -> LazyTensor:
    """Codes as the dense tensor of that shape, [B, F] unless given, whose last size is F."""
    shape = (codes.rows, codes.latents) if shape is None else shape
    known = codes if len(shape) == 2 else None
    values = codes.values
    return LazyTensor(
        lambda: codes.dense().view(shape), shape, values.dtype, values.device, values.requires_grad, known
    )


def lost_gradient(grad: Tensor) -> None:
    raise RuntimeError(
        "a gradient arrived at codes that saekern keeps sparse, past torch's own functions (an autograd.Function's"
        " argument?); call handle.restore(), or pass `codes + 0`"
    )


def getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


# Answered without any data.
METADATA = {
    *(getter(name) for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad")),
    *(getter(name) for name in ("is_sparse", "is_cuda", "is_cpu", "is_meta", "is_mps", "is_quantized", "itemsize")),
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.__len__,
    Tensor.is_floating_point,
    Tensor.is_complex,
    torch.is_floating_point,
}


def mapped(codes: Codes, values: Tensor) -> LazyTensor:
    """Other values at the same places."""
    return lazy_codes(codes._replace(values=values))


def elementwise(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """A function of each element that is 0 at 0."""
    return lambda codes, *args, **kwargs: mapped(codes, function(codes.values, *args, **kwargs))


def converted(codes: Codes, *args: Any, **kwargs: Any) -> Any:
    values = codes.values.to(*args, **kwargs)
    return mapped(codes, values) if values.device == codes.values.device else NotImplemented


def compared(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """> 0 and != 0 are false at 0."""

    def answer(codes: Codes, other: Any) -> Any:
        known = isinstance(other, int | float) and other == 0
        return mapped(codes, function(codes.values, 0)) if known else NotImplemented

    return answer


def at_least(codes: Codes, other: Any) -> Any:
    """>= a positive number is false at 0."""
    known = isinstance(other, int | float) and other > 0
    return mapped(codes, codes.values >= other) if known else NotImplemented


def power(codes: Codes, exponent: Any) -> Any:
    """Whose value and derivative are finite at 0."""
    known = isinstance(exponent, int) and exponent >= 1
    return mapped(codes, codes.values.pow(exponent)) if known else NotImplemented


def scaled(codes: Codes, other: Any) -> Any:
    """By a number, or by one for each latent."""
    if isinstance(other, int | float) and math.isfinite(other):
        return mapped(codes, codes.values * other)
    plain = isinstance(other, Tensor) and not isinstance(other, LazyTensor) and other.is_floating_point()
    if not plain or other.shape != (codes.latents,) or other.device != codes.values.device:
        return NotImplemented
    if codes.offsets is None:
        return mapped(codes, codes.values * other[codes.indices])
    factors = latent_gather(other, RaggedCodes(codes.values, codes.indices, codes.offsets, codes.order))
    return mapped(codes, codes.values * factors)


def only_dim(dim: Any) -> Any:
    return dim[0] if isinstance(dim, tuple | list) and len(dim) == 1 else dim


def summed(codes: Codes, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    if keepdim or kwargs:
        return NotImplemented
    values, dim = codes.values, only_dim(dim)
    values = values.long() if not (values.is_floating_point() or values.is_complex()) else values
    if dim is None:
        return values.sum()
    if dim in (-1, 1):
        return codes.row_sums(values)
    return codes.latent_sums(values) if dim in (0, -2) else NotImplemented


def averaged(codes: Codes, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    total = summed(codes, dim, keepdim, **kwargs)
    if total is NotImplemented or not codes.values.is_floating_point():
        return NotImplemented
    sizes = {None: codes.rows * codes.latents, 0: codes.rows, -2: codes.rows, 1: codes.latents, -1: codes.latents}
    return total / sizes[only_dim(dim)]


def any_of(codes: Codes, dim: Any = None, keepdim: bool = False) -> Any:
    total = summed(codes, dim, keepdim) if codes.values.dtype == torch.bool else NotImplemented
    return total if total is NotImplemented else total > 0


def norm(codes: Codes, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """The L1 norm alone: others have a derivative that is not a number in a row of zeros."""
    known = p == 1 and dtype is None
    return summed(codes._replace(values=codes.values.abs()), dim, keepdim) if known else NotImplemented


# Answered from the codes: what training loops and their logs ask.
SPARSE: dict[Any, Callable[..., Any]] = {
    Tensor.bool: elementwise(Tensor.bool),
    Tensor.float: elementwise(Tensor.float),
    Tensor.double: elementwise(Tensor.double),
    Tensor.long: elementwise(Tensor.long),
    Tensor.int: elementwise(Tensor.int),
    Tensor.detach: elementwise(Tensor.detach),
    Tensor.abs: elementwise(Tensor.abs),
    Tensor.to: converted,
    Tensor.gt: compared(Tensor.gt),
    Tensor.__gt__: compared(Tensor.gt),
    torch.gt: compared(Tensor.gt),
    Tensor.ne: compared(Tensor.ne),
    Tensor.__ne__: compared(Tensor.ne),
    torch.ne: compared(Tensor.ne),
    Tensor.sum: summed,
    torch.sum: summed,
    Tensor.mean: averaged,
    torch.mean: averaged,
    Tensor.any: any_of,
    torch.any: any_of,
    Tensor.norm: norm,
    torch.abs: elementwise(torch.abs),
    Tensor.relu: elementwise(Tensor.relu),
    torch.relu: elementwise(torch.relu),
    Tensor.square: elementwise(Tensor.square),
    torch.square: elementwise(torch.square),
    Tensor.pow: power,
    Tensor.__pow__: power,
    torch.pow: power,
    Tensor.ge: at_least,
    Tensor.__ge__: at_least,
    torch.ge: at_least,
    Tensor.mul: scaled,
    Tensor.__mul__: scaled,
    torch.mul: scaled,
}
