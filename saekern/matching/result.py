"""What a matching is: for each latent of one dictionary its partner in another, and how sure that is."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class Certificate(NamedTuple):
    """Proof that an assignment is optimal: dual prices whose value bounds every assignment from above."""

    exact: bool
    """The primal and dual values agree within the rounding of their sums: no assignment has a larger sum of cosines,
    each computed in float64 from the given rows and rounded once to their dtype."""
    primal: float
    """Σ cosine over the assigned pairs."""
    dual: float
    """Σ u + Σ v, an upper bound on the sum of cosines of every assignment."""
    gap: float
    """dual − primal."""
    u: Tensor
    """[Fa] float64 prices of a's latents, u_i + v_j ≥ cosine(i, j) for all pairs of live latents."""
    v: Tensor
    """[Fb] float64 prices of b's latents. The side with more live latents has prices ≥ 0, and 0 where a latent is left
    over; latents that were set aside have 0 on both sides."""
    rows_recomputed: int
    """Candidate lists that turned out too short and were chosen again from a whole row of cosines."""
    verified: bool = False
    """A second pass over all pairs, with products of another library, found u_i + v_j ≥ cosine(i, j) everywhere."""


@dataclass(frozen=True, eq=False)
class Matching:
    """a's latent i corresponds to b's latent `index[i]`."""

    index: Tensor
    """[Fa] int64, into b's latents; −1 where there is no partner: a's latent is set aside (dead or zero), or it is left
    over in a one-to-one assignment."""
    cosine: Tensor
    """[Fa] signed cosine of the two decoder rows (float32, float64 for float64 dictionaries); NaN where index is −1."""
    margin: Tensor | None = None
    """[Fa], NaN where there is no partner or no other choice; None where it was not computed, as for the pairs of a
    `PairStore`. Nearest partners: best minus second-best cosine. Assignments: the pair stays in an optimal assignment
    while its cosine falls by no more than this; a lower bound from the prices, often 0, or with `margin="exact"` the
    exact amount."""
    certificate: Certificate | None = None
    """Proof of optimality of an assignment; None where the solver made none."""

    def cpu(self) -> "Matching":
        margin = None if self.margin is None else self.margin.cpu()
        return replace(self, index=self.index.cpu(), cosine=self.cosine.cpu(), margin=margin)


class Pair(NamedTuple):
    """Two runs and the matching in both directions."""

    i: int
    """Position of the first dictionary, i < j."""
    j: int
    """Position of the second dictionary."""
    forward: Matching
    """From i's latents to j's."""
    backward: Matching
    """From j's latents to i's."""

    def cpu(self) -> "Pair":
        return self._replace(forward=self.forward.cpu(), backward=self.backward.cpu())
