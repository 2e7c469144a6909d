"""What a subspace keeps of the unstable latents' work: their contribution to x̂ projected onto it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekern.activations import Rows
from saekern.activations.harvest import activations
from saekern.activations.hugging_face import hooked
from saekern.evaluation.language_model import losses_by_sequence
from saekern.evaluation.rows import Variance
from saekern.stability.contributions import Blocks, reconstructed, reconstructions
from saekern.stability.directions import principal_directions, subspace
from saekern.stability.interval import crossed_interval
from saekern.stability.nulls import random_rotation
from saekern.stability.subspaces import generator_of, groups_of


@dataclass(frozen=True, eq=False)
class Replacement:
    """Losses when c_U(x), what unstable latents add to x̂, is replaced by its projection. Made by `replacement`.

    R ranks; an arm is a kind of basis, with one or more bases (other seeds, draws).
    """

    ranks: list[int]
    """[R] dimensions kept; 0 removes c_U."""
    latents: int
    """Unstable latents, |U|."""
    ev: float
    """Explained variance as it is."""
    ev_drop: dict[str, Tensor]
    """By arm [bases, R, blocks] float64: what each block of rows adds to EV − EV(replaced); the mean is the loss."""
    ce: float | None
    """Cross entropy with the SAE in place as it is, in nats; None without a model."""
    ce_rise: dict[str, Tensor] | None
    """By arm [bases, R, sequences] float64: rise of each sequence's loss."""
    rows: int
    """Rows of the explained variance."""
    confidence: float
    """Coverage of the intervals, each by itself."""

    def curve(self, arm: str, metric: str = "ev") -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss of "ev" or "ce" and its interval over bases and blocks (or sequences) together, [R] each."""
        return crossed_interval(self._of(arm, metric).movedim(1, 0), self.confidence)

    def difference(self, a: str, b: str, metric: str = "ev") -> tuple[Tensor, Tensor, Tensor]:
        """What arm a loses more than arm b, [R] each; paired by block of rows or sequence, and by basis where both have
        as many; else with the mean over b's."""
        of_a, of_b = self._of(a, metric), self._of(b, metric)
        if len(of_a) != len(of_b):
            of_b = of_b.mean(0, keepdim=True)
        return crossed_interval((of_a - of_b).movedim(1, 0), self.confidence)

    def to_json(self) -> dict[str, Any]:
        """Means and intervals as plain numbers."""
        metrics = ["ev"] + ([] if self.ce is None else ["ce"])

        def plain(estimate: tuple[Tensor, ...]) -> dict[str, list[float | None]]:
            found = zip(("mean", "lower", "upper"), estimate, strict=True)
            return {name: [None if x != x else x for x in values.tolist()] for name, values in found}

        return {
            "ranks": self.ranks,
            "latents": self.latents,
            "rows": self.rows,
            "ev": self.ev,
            "ce": self.ce,
            "confidence": self.confidence,
            "arms": {
                arm: {"bases": len(values)} | {metric: plain(self.curve(arm, metric)) for metric in metrics}
                for arm, values in self.ev_drop.items()
            },
            "differences": {
                f"cross - {arm}": {metric: plain(self.difference("cross", arm, metric)) for metric in metrics}
                for arm in self.ev_drop
                if "cross" in self.ev_drop and arm != "cross"
            },
        }

    def _of(self, arm: str, metric: str) -> Tensor:
        values = {"ev": self.ev_drop, "ce": self.ce_rise}.get(metric)
        if values is None:
            known = "'ev'" if self.ce is None else "'ev' or 'ce'"
            raise ValueError(f"metric: expected {known}, got {metric!r}")
        if arm not in values:
            raise ValueError(f"arm: expected one of {', '.join(values)}, got {arm!r}")
        return values[arm]


@torch.no_grad()
def replacement(
    sae: Any,
    rows: Rows,
    unstable: Tensor,
    bases: Mapping[str, Sequence[Tensor]],
    ranks: Sequence[int],
    *,
    model: Any = None,
    hook: str | None = None,
    sequences: Tensor | None = None,
    exclude_bos: bool = True,
    blocks: int = 50,
    batch: int = 4096,
    confidence: float = 0.95,
) -> Replacement:
    """x̂ with c_U(x) = Σ_{i ∈ U} z_i d_i replaced by V_r V_rᵀ c_U(x), V_r the first r columns of a basis: ΔEV and ΔCE.

    If another seed's basis loses no more than the seed's own, and both less than controls, what unstable latents do is
    reproducible though they are not. Rank 0 (c_U removed) is the loss that there is to be avoided.

    Args:
        unstable: [F] bool, the U.
        bases: by arm, matrices [D, q] with orthonormal columns: the `subspace` of this seed, of others, of controls.
        ranks: the r; where r > q the whole basis is used.
        model, hook, sequences, exclude_bos, blocks: as in `masking`; the model gets x̂ without the SAE's error.

    Raises:
        ValueError: a mask, bases or ranks that do not fit, or a model without its texts.

    Source: as `subspaces`; the experiment's details were not available and are ours.
    """
    latents, width = sae.dictionary.shape
    _check(unstable, bases, ranks, latents, width)
    if len({model is None, hook is None, sequences is None}) != 1:
        raise ValueError("model, hook and sequences: expected all three, or none of them")
    device = sae.dictionary.device
    placed = {arm: [basis.to(device, torch.float64) for basis in found] for arm, found in bases.items()}
    unstable, kept = unstable.to(device), sorted(set(ranks))
    error, drop = _explained(sae, rows, unstable, placed, kept, min(blocks, len(rows)), batch)
    ce, rise = None, None
    if model is not None and hook is not None and sequences is not None:
        ce, rise = _cross_entropies(sae, model, hook, sequences, unstable, placed, kept, exclude_bos)
    return Replacement(kept, int(unstable.sum()), 1 - error, drop, ce, rise, len(rows), confidence)


def replacement_bases(
    dictionaries: Sequence[Any],
    unstable: Sequence[Tensor],
    stable: Sequence[Tensor],
    anchor: int = 0,
    *,
    covariance: Tensor | None = None,
    seed: int = 0,
) -> dict[str, list[Tensor]]:
    """Bases for `replacement` of seed `anchor`: "own", "cross" (of every other seed), and as in `subspaces` "random"
    (as many as there are other seeds), "stable" (as many stable rows of every other seed that has any) and "pca".
    """
    bases: dict[str, list[Tensor]] = {name: [] for name in ("own", "cross", "random", "stable")}
    for s in range(len(dictionaries)):
        rows, reference, _ = groups_of(dictionaries[s], unstable[s], stable[s], s)
        if s == anchor:
            bases["own"].append(subspace(rows).basis)
            continue
        generator = generator_of(seed, s)
        bases["cross"].append(subspace(rows).basis)
        bases["random"].append(random_rotation(rows.shape[1], generator))
        if len(reference):
            sample = reference[torch.randperm(len(reference), generator=generator)[: len(rows)]]
            bases["stable"].append(subspace(sample).basis)
    bases = {name: found for name, found in bases.items() if found}
    if covariance is not None:
        bases["pca"] = [principal_directions(covariance, covariance.shape[0])]
    return bases


def _explained(
    sae: Any, rows: Rows, unstable: Tensor, bases: dict[str, list[Tensor]], ranks: list[int], blocks: int, batch: int
) -> tuple[float, dict[str, Tensor]]:
    units, variance, plain = Blocks(len(rows), blocks), Variance(rows.width), torch.zeros(blocks, dtype=torch.float64)
    sums = {arm: torch.zeros(len(found), len(ranks), blocks, dtype=torch.float64) for arm, found in bases.items()}
    for given in reconstructions(sae, rows, batch):
        variance.add(given.x.cpu())
        error = given.x.double() - given.x_hat
        plain += units.sums(error.square().sum(1), given.start)
        part = given.part(sae, given.entries.of(unstable[given.entries.latents]))
        without = error + part
        for arm, found in bases.items():
            for i, basis in enumerate(found):
                # ‖e − V_r V_rᵀ c‖² for all r from two products: the columns are orthonormal.
                kept, along = part @ basis, without @ basis
                gain = torch.cat([kept.new_zeros(len(kept), 1), (kept * (kept - 2 * along)).cumsum(1)], 1)
                most = torch.tensor(ranks, device=gain.device).clamp(max=basis.shape[1])
                squares = without.square().sum(1)[None] + gain.T[most]  # [R, B]
                sums[arm][i] += units.sums(squares, given.start)
    total = variance.total() or float("nan")
    return float(plain.sum()) / total, {arm: (found - plain) * (blocks / total) for arm, found in sums.items()}


def _cross_entropies(
    sae: Any,
    model: Any,
    hook: str,
    sequences: Tensor,
    unstable: Tensor,
    bases: dict[str, list[Tensor]],
    ranks: list[int],
    exclude_bos: bool,
) -> tuple[float, dict[str, Tensor]]:
    plain: list[Tensor] = []
    rises: dict[str, list[Tensor]] = {arm: [] for arm in bases}
    for tokens in sequences.split(32):
        x = activations(hooked(model), hook, tokens)
        given = reconstructed(sae, x.flatten(0, 1))
        part = given.part(sae, given.entries.of(unstable[given.entries.latents]))

        def loss(replaced: Tensor, tokens: Tensor = tokens, x: Tensor = x) -> Tensor:
            return losses_by_sequence(model, hook, tokens, replaced.reshape(x.shape), exclude_bos=exclude_bos)

        plain.append(loss(given.x_hat))
        for arm, found in bases.items():
            losses = [
                torch.stack([loss(given.x_hat - part + part @ basis[:, :r] @ basis[:, :r].T) for r in ranks])
                for basis in found
            ]
            rises[arm].append(torch.stack(losses) - plain[-1])
    return float(torch.cat(plain).mean()), {arm: torch.cat(found, -1) for arm, found in rises.items()}


def _check(
    unstable: Tensor, bases: Mapping[str, Sequence[Tensor]], ranks: Sequence[int], latents: int, width: int
) -> None:
    if unstable.dtype != torch.bool or list(unstable.shape) != [latents]:
        raise ValueError(f"unstable: expected bool [{latents}], got {unstable.dtype} {list(unstable.shape)}")
    if not ranks or min(ranks) < 0 or max(ranks) > width:
        raise ValueError(f"ranks: expected numbers from 0 to D = {width}, got {list(ranks)}")
    if not bases or not all(bases.values()):
        raise ValueError("bases: expected at least one arm, each with at least one basis")
    for arm, found in bases.items():
        for basis in found:
            if basis.dim() != 2 or basis.shape[0] != width:
                raise ValueError(f"bases[{arm!r}]: expected [D = {width}, q], got {list(basis.shape)}")
            product = basis.double().T @ basis.double()
            if not torch.allclose(
                product, torch.eye(len(product), dtype=torch.float64, device=product.device), atol=1e-4
            ):
                raise ValueError(f"bases[{arm!r}]: expected orthonormal columns, which these are not")
