"""Which experiments a study runs, and their settings."""

from dataclasses import dataclass, field

from saekern.pipeline.experiments import EXPERIMENTS
from saekern.pipeline.experiments.masking import MaskingSettings


@dataclass(frozen=True)
class ExperimentsConfig:
    """Experiments on the trained seeds."""

    run: tuple[str, ...] = ()
    """Names of the experiments to run; docs/stability.md says what each is."""

    masking: MaskingSettings = field(default_factory=MaskingSettings)
    """What is lost when stable or unstable latents are masked."""

    def __post_init__(self) -> None:
        for name in self.run:
            if name not in EXPERIMENTS:
                raise ValueError(f"experiments.run: expected names among {', '.join(EXPERIMENTS)}, got {name!r}")
        if len(set(self.run)) != len(self.run):
            raise ValueError(f"experiments.run: expected every name once, got {', '.join(self.run)}")
