"""Whether an SAE of ours is the same function as another library's, where both compute in float32."""

from typing import NamedTuple

import torch
from bounds import UNIT
from torch import Tensor


class Scores(NamedTuple):
    """What decides which latents are active, in float64 from the other library's formula."""

    score: Tensor  # [B, F]
    cut: Tensor  # broadcasts to [B, F]: active above it
    magnitude: Tensor  # [B, F] Σ|products| of the score
    terms: int  # of products in it
    gain: Tensor | float = 1.0  # how much a code moves when its score moves


def kth(score: Tensor, k: int) -> Tensor:
    """The cut between the k-th and the next score of each row, [B, 1]."""
    ordered = score.sort(-1, descending=True).values
    following = ordered[:, k : k + 1] if k < score.shape[1] else ordered[:, -1:] - 1
    return (ordered[:, k - 1 : k] + following) / 2


def assert_same_function(ours, x, codes, x_hat, scores: Scores, decoder: Tensor, bias: Tensor, scale=1.0) -> int:
    """Codes [B, F] and x̂ [B, D] of another library within twice the bound of one float32 computation; returns the
    number of rows with a tie at the cut, where a score lies within the bound of the cut and the choice may differ.

    `decoder` [F, D] and `bias` [D] are those of the codes; `scale` [B, 1] multiplies their sum.
    """
    bound = 2 * (scores.terms + 4) * UNIT * scores.magnitude
    mine = ours.encode(x).detach().double()
    theirs = codes.detach().double()
    undecided = (scores.score - scores.cut).abs() <= bound
    differ = (mine != 0) != (theirs != 0)
    assert not bool((differ & ~undecided).any()), "a latent is active in one and not in the other, far from the cut"
    code_bound = (bound * scores.gain + 4 * UNIT * theirs.abs()) * 2
    error = (mine - theirs).abs()
    same = ~differ
    assert bool((error <= code_bound)[same].all()), (
        f"codes differ by {float((error - code_bound)[same].max()):.3g} more"
    )
    rows = ~differ.any(1)
    magnitude = theirs.abs() @ decoder.double().abs() + bias.double().abs()
    out_bound = (code_bound * (theirs != 0)) @ decoder.double().abs()
    out_bound = (out_bound + 2 * (theirs.shape[1] + 6) * UNIT * magnitude) * scale
    got, want = ours(x).detach().double()[rows], x_hat.detach().double()[rows]
    out_bound = (out_bound + 8 * UNIT * x.double().abs().amax(-1, keepdim=True))[rows]
    assert bool(((got - want).abs() <= out_bound).all()), (
        f"x_hat: {float(((got - want).abs() - out_bound).max()):.3g} more"
    )
    assert bool((want != 0).any())
    return int((undecided & (scores.cut > -torch.inf)).any(1).sum())
