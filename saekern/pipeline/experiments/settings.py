"""Which experiments a study runs, and their settings."""

from dataclasses import dataclass, field

from saekern.pipeline.experiments import EXPERIMENTS
from saekern.pipeline.experiments.convergence import ConvergenceSettings
from saekern.pipeline.experiments.excess import ExcessSettings
from saekern.pipeline.experiments.masking import MaskingSettings
from saekern.pipeline.experiments.pooling import PoolingSettings
from saekern.pipeline.experiments.statistics import StatisticsSettings
from saekern.pipeline.experiments.strict_rule import StrictRuleSettings
from saekern.pipeline.experiments.subspaces import SubspacesSettings
from saekern.pipeline.experiments.thresholds import ThresholdsSettings


@dataclass(frozen=True)
class ExperimentsConfig:
    """Experiments on the trained seeds."""

    run: tuple[str, ...] = ()
    """Names of the experiments to run; docs/stability.md says what each is."""

    convergence: ConvergenceSettings = field(default_factory=ConvergenceSettings)
    """How many seeds are enough."""

    excess: ExcessSettings = field(default_factory=ExcessSettings)
    """Reappearance beyond chance."""

    masking: MaskingSettings = field(default_factory=MaskingSettings)
    """What is lost when stable or unstable latents are masked."""

    pooling: PoolingSettings = field(default_factory=PoolingSettings)
    """SAEs of the latents that most seeds found."""

    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    """Activation statistics of stable and unstable latents."""

    strict_rule: StrictRuleSettings = field(default_factory=StrictRuleSettings)
    """Encoder and decoder must agree on the partner."""

    subspaces: SubspacesSettings = field(default_factory=SubspacesSettings)
    """Whether unstable latents of different seeds lie in the same directions."""

    thresholds: ThresholdsSettings = field(default_factory=ThresholdsSettings)
    """Shares of stable latents at other θ and ε."""

    def __post_init__(self) -> None:
        for name in self.run:
            if name not in EXPERIMENTS:
                raise ValueError(f"experiments.run: expected names among {', '.join(EXPERIMENTS)}, got {name!r}")
        if len(set(self.run)) != len(self.run):
            raise ValueError(f"experiments.run: expected every name once, got {', '.join(self.run)}")
