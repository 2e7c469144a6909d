"""Whether the unstable latents of different seeds lie in the same directions."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekern import stability
from saekern.pipeline.check import require

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


@dataclass(frozen=True)
class SubspacesSettings:
    """Subspaces of unstable latents."""

    ranks: tuple[int, ...] | None = None
    """Dimensions of the subspaces; null: the model width, and powers of two with the numbers halfway between."""

    rank: int | None = None
    """The dimension that the verdict is about, chosen before seeing results; null: a quarter of the model width."""

    anchor: int = 0
    """The seed whose unstable latents are replaced by what subspaces keep of them."""

    others: int = 8
    """Other seeds whose subspaces replace its own, and as many of each control; 0 skips the replacement."""

    sequences: int = 16
    """Held-out sequences through the model for the cross-entropy; 0 skips it."""

    seed: int = 0
    """Of the controls."""

    def __post_init__(self) -> None:
        for name, least in (("anchor", 0), ("others", 0), ("sequences", 0)):
            require(getattr(self, name) >= least, f"subspaces.{name}", f"at least {least}", getattr(self, name))
        require(self.ranks is None or all(r >= 1 for r in self.ranks), "subspaces.ranks", "at least 1", self.ranks)
        require(self.rank is None or self.rank >= 1, "subspaces.rank", "at least 1 or null", self.rank)


def run(lab: "Lab", settings: SubspacesSettings, work: Path) -> dict[str, Any]:
    """`stability.subspaces` raw and centred, and one seed's `stability.replacement`."""
    seeds = [s for s in range(lab.seeds) if int(lab.unstable[s].sum()) >= 2]
    if len(seeds) < 2:
        return {"skipped": f"{len(seeds)} of {lab.seeds} seeds have two unstable latents or more"}
    width = lab.rows.width
    primary = min(settings.rank or max(1, width // 4), width)
    ranks = sorted({*(min(r, width) for r in settings.ranks or _ranks(width)), primary})
    dictionaries = [lab.dictionaries[s] for s in seeds]
    unstable, stable = ([mask[s] for s in seeds] for mask in (lab.unstable, lab.stable))
    found = {
        "rank": primary,
        "seeds": seeds,
        "left_out": lab.seeds - len(seeds),
        "sample": len(lab.sample),
    }
    for name, centred in (("raw", False), ("centred", True)):
        found[name] = stability.subspaces(
            dictionaries,
            unstable,
            stable,
            ranks=ranks,
            covariance=lab.covariance,
            centred=centred,
            seed=settings.seed,
        ).to_json()
    found["replacement"] = _replacement(lab, settings, seeds, ranks, primary)
    return found


def _ranks(width: int) -> list[int]:
    powers = [1 << i for i in range(width.bit_length())]
    return sorted(r for r in {*powers, *(3 * p // 2 for p in powers[1:]), width} if r <= width)


def _replacement(
    lab: "Lab", settings: SubspacesSettings, seeds: list[int], ranks: list[int], primary: int
) -> dict[str, Any] | None:
    """None if there is no other seed to ask, or the anchor has too few unstable latents."""
    others = [s for s in seeds if s != settings.anchor][: settings.others]
    if not others or settings.anchor not in seeds:
        return None
    chosen = [settings.anchor, *others]
    bases = stability.replacement_bases(
        [lab.dictionaries[s] for s in chosen],
        [lab.unstable[s] for s in chosen],
        [lab.stable[s] for s in chosen],
        covariance=lab.covariance,
        seed=settings.seed,
    )
    powers = [r for r in ranks if r & (r - 1) == 0]  # the model runs once for each
    kept = sorted({0, *powers, primary, ranks[-1]})
    found = stability.replacement(
        lab.saes[settings.anchor],
        lab.heldout,
        lab.unstable[settings.anchor],
        bases,
        kept,
        **lab.model_with_texts(settings.sequences),
    )
    return {"anchor": settings.anchor, **found.to_json()}
