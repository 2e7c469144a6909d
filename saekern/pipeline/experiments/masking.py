"""Masking stable and unstable latents of one seed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekern import stability
from saekern.pipeline.check import require

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


@dataclass(frozen=True)
class MaskingSettings:
    """Masking stable and unstable latents."""

    anchor: int = 0
    """The seed whose latents are masked."""

    draws: int = 5
    """Random orders in which latents are masked."""

    sequences: int = 16
    """Held-out sequences through the model for the cross-entropy; 0 skips it."""

    error_term: bool = False
    """Whether the model also gets the SAE's error, x − x̂."""

    seed: int = 0
    """Of the orders."""

    def __post_init__(self) -> None:
        for name, least in (("anchor", 0), ("draws", 2), ("sequences", 0)):
            require(getattr(self, name) >= least, f"masking.{name}", f"at least {least}", getattr(self, name))


def run(lab: "Lab", settings: MaskingSettings, work: Path) -> dict[str, Any]:
    """One seed's `stability.masking`, its levels the powers of two that both groups can fill."""
    anchor = settings.anchor
    stable, unstable = lab.stable[anchor], lab.unstable[anchor]
    most = int(min(stable.sum(), unstable.sum()))
    if most == 0:
        return {"skipped": f"seed {anchor} has {int(stable.sum())} stable and {int(unstable.sum())} unstable latents"}
    found = stability.masking(
        lab.saes[anchor],
        lab.heldout,
        stable,
        unstable,
        live=lab.live[anchor],
        levels=sorted({*(1 << i for i in range(most.bit_length()) if 1 << i <= most), most}),
        draws=settings.draws,
        seed=settings.seed,
        error_term=settings.error_term,
        **lab.model_with_texts(settings.sequences),
    )
    return {"anchor": anchor, **found.to_json()}
