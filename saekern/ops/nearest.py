"""Best cosine partners between two dictionaries, both directions from one pass, never a [Fa, Fb] matrix."""

from typing import NamedTuple

import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library


class NearestPair(NamedTuple):
    """Each latent's best partner on the other side; ties to the smaller index; cosine 0 for a zero row."""

    a_cosine: Tensor  # [Fa]
    a_index: Tensor  # [Fa] int64, into b
    b_cosine: Tensor  # [Fb]
    b_index: Tensor  # [Fb] int64, into a


def nearest(a: Tensor, b: Tensor) -> NearestPair:
    """The largest signed cosine of every row of a [Fa, D] among the rows of b [Fb, D], and of b among a.

    Equivalent to: `cos = normalize(a) @ normalize(b).T`, then `cos.max(1)` and `cos.max(0)`.

    Cosines are float32 (float64 for float64 input), from one fixed order of summation.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an empty dictionary.
    """
    _check(a, b)
    return NearestPair(*torch.ops.saekern.nearest(a, b))


def nearest_top(a: Tensor, b: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The m best partners in b of every row of a: cosine [Fa, m] descending, index [Fa, m] int64, and rest_bound [Fa],
    which no cosine outside the list exceeds (−inf where m = Fb). 1 ≤ m ≤ Fb."""
    _check(a, b)
    checks.between("m", m, 1, b.shape[0], "Fb")
    return torch.ops.saekern.nearest_top(a, b, m)


def _check(a: Tensor, b: Tensor) -> None:
    checks.shape("a", a, ("Fa", "D"))
    checks.floating("a", a)
    checks.shape("b", b, ("Fb", a.shape[1]))
    checks.floating("b", b, a, "a")
    checks.same_device("b", b, a, "a")
    if a.shape[0] == 0 or b.shape[0] == 0:
        raise ValueError(f"nearest: expected non-empty dictionaries, got {list(a.shape)} and {list(b.shape)}")


def _nearest_cpu(a, b):
    if a.dtype == torch.float64:
        return reference.nearest(a, b)
    sizes = (a.shape[0], a.shape[0], b.shape[0], b.shape[0])
    out = [torch.empty(n, dtype=t) for n, t in zip(sizes, 2 * (torch.float32, torch.int64), strict=True)]
    _C.nearest(library.array(a), library.array(b), *(t.numpy() for t in out), library.threads(), library.isa())
    return tuple(out)


def _nearest_top_cpu(a, b, m):
    if a.dtype == torch.float64:
        return reference.nearest_top(a, b, m)
    threads = library.threads()
    a_rows, b_rows = library.array(a), library.array(b)
    a_scale, b_scale = torch.empty(a.shape[0]).numpy(), torch.empty(b.shape[0]).numpy()
    _C.inverse_norms(a_rows, a_scale, threads)
    _C.inverse_norms(b_rows, b_scale, threads)
    kept = min(m + 1, b.shape[0])  # one more than asked: it bounds the rest
    cosine, index = torch.empty(a.shape[0], kept), torch.empty(a.shape[0], kept, dtype=torch.int64)
    none, no_index = torch.empty(a.shape[0], 0).numpy(), torch.empty(a.shape[0], 0, dtype=torch.int64).numpy()
    _C.topk_encode(
        a_rows,
        b_rows,
        None,
        None,
        a_scale,
        b_scale,
        cosine.numpy(),
        index.numpy(),
        None,
        none,
        no_index,
        False,
        threads,
        library.isa(),
    )
    rest = cosine[:, m].clone() if kept > m else torch.full((a.shape[0],), -torch.inf)
    return cosine[:, :m].contiguous(), index[:, :m].contiguous(), rest


def _accumulated(a: Tensor, shape: tuple[int, ...]) -> Tensor:
    return a.new_empty(shape, dtype=reference.precision.accumulation(a))


def _nearest_fake(a, b):
    return (
        _accumulated(a, a.shape[:1]),
        a.new_empty(a.shape[0], dtype=torch.int64),
        _accumulated(a, b.shape[:1]),
        a.new_empty(b.shape[0], dtype=torch.int64),
    )


def _nearest_top_fake(a, b, m):
    return (
        _accumulated(a, (a.shape[0], m)),
        a.new_empty(a.shape[0], m, dtype=torch.int64),
        _accumulated(a, a.shape[:1]),
    )


library.define(
    "nearest(Tensor a, Tensor b) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_nearest_cpu,
    cuda=None,
    reference=reference.nearest,
    fake=_nearest_fake,
)
library.define(
    "nearest_top(Tensor a, Tensor b, int m) -> (Tensor, Tensor, Tensor)",
    cpu=_nearest_top_cpu,
    cuda=None,
    reference=reference.nearest_top,
    fake=_nearest_top_fake,
)
