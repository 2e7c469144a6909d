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


class NearestRows(NamedTuple):
    """Dictionaries of one size, ready for `nearest_pairs`."""

    rows: Tensor  # [S, F, D]
    prepared: list[Tensor]  # what the device's kernels compute once for all pairs; empty where they need nothing


def nearest_prepare(rows: Tensor) -> NearestRows:
    """S dictionaries [S, F, D], or one [F, D], prepared once for any number of pairs. On a CUDA device this takes half
    a float32 dictionary's memory for each; the rows themselves are not copied unless they are not contiguous.

    Raises:
        ValueError: another shape or dtype, or an empty dictionary.
    """
    rows = rows[None] if rows.dim() == 2 else rows
    checks.shape("rows", rows, ("S", "F", "D"))
    checks.floating("rows", rows)
    if rows.numel() == 0:
        raise ValueError(f"rows: expected shape [S, F, D] with S, F, D >= 1, got {list(rows.shape)}")
    rows = rows.detach().contiguous()
    return NearestRows(rows, torch.ops.saekern.nearest_prepare(rows))


def nearest_pairs(a: NearestRows, b: NearestRows, pairs: Tensor) -> NearestPair:
    """`nearest(a.rows[i], b.rows[j])` for every row (i, j) of `pairs` [P, 2] int64: fields [P, Fa] and [P, Fb].

    Equal to it bit for bit; on a CUDA device several pairs share a launch. Indices are trusted to be in range there.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    checks.shape("b.rows", b.rows, ("S", "Fb", a.rows.shape[2]))
    checks.floating("b.rows", b.rows, a.rows, "a.rows")
    checks.same_device("b.rows", b.rows, a.rows, "a.rows")
    checks.shape("pairs", pairs, ("P", 2))
    checks.integer("pairs", pairs)
    checks.same_device("pairs", pairs, a.rows, "a.rows")
    return NearestPair(*torch.ops.saekern.nearest_pairs(a.rows, a.prepared, b.rows, b.prepared, pairs))


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


def _nearest_cuda(a, b):
    if a.dtype == torch.float64:
        return reference.nearest(a, b)
    return library.kernels("nearest").nearest(a, b)


def _prepare_nothing(rows):
    return []


def _prepare_cuda(rows):
    if rows.dtype == torch.float64:
        return []
    return list(library.kernels("cosine_screen").prepare(rows)[1:])  # without the rows: no output may be an input


def _pairs_reference(a, a_prepared, b, b_prepared, pairs):
    return reference.nearest_pairs(a, b, pairs)


def _pairs_cpu(a, a_prepared, b, b_prepared, pairs):
    if a.dtype == torch.float64 or pairs.shape[0] == 0:
        return reference.nearest_pairs(a, b, pairs)
    found = [_nearest_cpu(a[i], b[j]) for i, j in pairs.tolist()]
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def _pairs_cuda(a, a_prepared, b, b_prepared, pairs):
    if a.dtype == torch.float64:
        return reference.nearest_pairs(a, b, pairs)
    prepared = library.kernels("cosine_screen").Prepared
    pairs = pairs.to(torch.int32)
    return library.kernels("nearest").nearest_pairs(prepared(a, *a_prepared), prepared(b, *b_prepared), pairs)


def _nearest_top_cuda(a, b, m):
    if a.dtype == torch.float64:
        return reference.nearest_top(a, b, m)
    return library.kernels("nearest_top").nearest_top(a, b, m)


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


def _prepare_fake(rows):
    if rows.device.type != "cuda" or rows.dtype == torch.float64:
        return []
    runs, count, width = rows.shape
    rounded = (runs, count, library.kernels("cosine_screen").padded(width))
    return [
        rows.new_empty(rounded, dtype=torch.float16),
        rows.new_empty(runs, count, dtype=torch.float32),
        rows.new_empty(runs, count, dtype=torch.float32),
        rows.new_empty(runs, dtype=torch.float32),
        rows.new_empty(runs, dtype=torch.int32),
    ]


def _pairs_fake(a, a_prepared, b, b_prepared, pairs):
    count = pairs.shape[0]
    sizes = (a.shape[1], a.shape[1], b.shape[1], b.shape[1])
    dtypes = 2 * (reference.precision.accumulation(a), torch.int64)
    return tuple(a.new_empty(count, size, dtype=dtype) for size, dtype in zip(sizes, dtypes, strict=True))


def _nearest_top_fake(a, b, m):
    return (
        _accumulated(a, (a.shape[0], m)),
        a.new_empty(a.shape[0], m, dtype=torch.int64),
        _accumulated(a, a.shape[:1]),
    )


library.define(
    "nearest(Tensor a, Tensor b) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_nearest_cpu,
    cuda=_nearest_cuda,
    reference=reference.nearest,
    fake=_nearest_fake,
)
library.define(
    "nearest_prepare(Tensor rows) -> Tensor[]",
    cpu=_prepare_nothing,
    cuda=_prepare_cuda,
    reference=_prepare_nothing,
    fake=_prepare_fake,
)
library.define(
    "nearest_pairs(Tensor a, Tensor[] a_prepared, Tensor b, Tensor[] b_prepared, Tensor pairs)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_pairs_cpu,
    cuda=_pairs_cuda,
    reference=_pairs_reference,
    fake=_pairs_fake,
)
library.define(
    "nearest_top(Tensor a, Tensor b, int m) -> (Tensor, Tensor, Tensor)",
    cpu=_nearest_top_cpu,
    cuda=_nearest_top_cuda,
    reference=reference.nearest_top,
    fake=_nearest_top_fake,
)
