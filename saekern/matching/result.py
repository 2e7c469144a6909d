"""What a matching is: for each latent of one dictionary its partner in another, and how sure that is."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class Certificate(NamedTuple):
    """Proof that an assignment is optimal: dual prices whose value bounds every assignment from above."""

    exact: bool
    """The primal and dual values agree within rounding: no assignment has a larger sum of cosines."""
    primal: float
    """Σ cosine over the assigned pairs."""
    dual: float
    """Σ u + Σ v, an upper bound on the sum of cosines of every assignment."""
    gap: float
    """dual − primal."""
    u: Tensor
    """[Fa] prices of a's latents."""
    v: Tensor
    """[Fb] prices of b's latents."""
    rows_recomputed: int
    """Rows of the cosine matrix that a candidate list did not settle and that were computed in full."""


@dataclass(frozen=True, eq=False)
class Matching:
    """a's latent i corresponds to b's latent `index[i]`."""

    index: Tensor
    """[Fa] int64, into b's latents; −1 where there is no partner: a's latent is set aside (dead or zero), or it is left
    over in a one-to-one assignment."""
    cosine: Tensor
    """[Fa] signed cosine of the two decoder rows (float32, float64 for float64 dictionaries); NaN where index is −1."""
    margin: Tensor | None = None
    """[Fa] best minus second-best cosine, NaN where there is no second; None where it was not computed: nearest
    partners from `match` have it, assignments and the pairs of a `PairStore` do not."""
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
