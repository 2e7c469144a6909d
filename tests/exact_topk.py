"""What exact means for a top-k of scores (docs/ops.md), as an assertion; for every backend of `topk_encode`."""

import torch
from bounds import UNIT, output_rounding
from torch import Tensor


def problem(batch: int, width: int, latents: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, pre_bias."""
    weight = torch.randn(latents, width) * (0.1 + torch.rand(latents, 1))  # norms differ: the bound is per latent
    x = torch.randn(batch, width)
    x[:1] += 5 * weight[-1]  # so that the last latent, alone in its panel, is among the winners
    return x, weight, torch.randn(latents), torch.randn(width)


def assert_exact_topk(
    values: Tensor,
    indices: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_bias: Tensor | None,
    allowed: Tensor | None = None,
    relu: bool = True,
) -> None:
    """With ε the rounding bound of one score, a latent whose float64 score beats the K-th by more than 2ε is in, one
    below by more than 2ε is out, and each value is within ε of its score, and its own rounding."""
    x64, w64 = x.double() - (0 if pre_bias is None else pre_bias.double()), weight.double()
    score = x64 @ w64.T + (0 if bias is None else bias.double())
    magnitude = (x.abs().double() + (0 if pre_bias is None else pre_bias.abs().double())) @ w64.abs().T
    eps = (x.shape[1] + 4) * UNIT * (magnitude + (0 if bias is None else bias.abs().double()))
    k = indices.shape[1]
    if allowed is not None:
        score = score.masked_fill(~allowed, -torch.inf)
        k = min(k, int(allowed.sum()))
        values, indices = values[:, :k], indices[:, :k]
    assert all(len(set(row.tolist())) == k for row in indices), "an index twice in one row"
    chosen = score.gather(1, indices)
    want = chosen.clamp(min=0) if relu else chosen
    bound = eps.gather(1, indices)
    if values.dtype != torch.float32:
        bound = bound + 2 * output_rounding(values.dtype) * (want.abs() + bound)  # the interpreter truncates
    assert bool(((values.double() - want).abs() <= bound).all())
    assert bool((values.diff(dim=1) <= 0).all())
    kth = score.topk(k).values[:, -1:]
    assert bool((chosen >= kth - 2 * eps.amax(1, keepdim=True)).all())
    surely_in = (score > kth + 2 * eps.amax(1, keepdim=True)).sum(1)
    found = (chosen > kth + 2 * eps.amax(1, keepdim=True)).sum(1)
    assert torch.equal(surely_in, found)
