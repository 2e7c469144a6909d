"""Tolerances from arithmetic: what rounding can do, and not a bit more."""

import torch
from torch import Tensor

UNIT = 2.0**-24  # unit roundoff of float32


def output_rounding(dtype: torch.dtype) -> float:
    return 0.0 if dtype == torch.float64 else torch.finfo(dtype).eps / 2


def assert_within_bound(name: str, got: Tensor, want64: Tensor, magnitude: Tensor | float, terms: int) -> None:
    """|got − want64| ≤ 2 ((terms + 2) 2⁻²⁴ magnitude + eps_out/2 |want64|), elementwise.

    `magnitude` is Σ|products| of the sum that made the element, from the same inputs in float64; `terms` the number of
    products in it. Written with `not (error <= bound)`, so that NaN fails; where the reference is infinite or NaN the
    result must be the same.
    """
    want64 = want64.detach().to(torch.float64)
    got64 = got.detach().to(torch.float64)
    assert got64.shape == want64.shape, f"{name}: shape {list(got64.shape)}, expected {list(want64.shape)}"
    finite = torch.isfinite(want64)
    special = torch.equal(torch.nan_to_num(got64[~finite], 7.0), torch.nan_to_num(want64[~finite], 7.0))
    assert special, f"{name}: infinities or NaNs differ"
    bound = 2 * ((terms + 2) * UNIT * torch.as_tensor(magnitude) + output_rounding(got.dtype) * want64.abs())
    storage = torch.finfo(got.dtype)
    underflow = max(torch.finfo(torch.float32).tiny, storage.tiny * storage.eps)  # float16 spaces 2⁻²⁴ apart near 0
    bound = bound.expand_as(want64) + underflow
    error = (got64 - want64).abs()
    bad = finite & ~(error <= bound)
    if bad.any():
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise AssertionError(
            f"{name}: {int(bad.sum())} of {bad.numel()} elements beyond the bound, first at {where}: got "
            f"{got64[where].item():.9g}, want {want64[where].item():.9g}, bound {bound[where].item():.3g}"
        )
