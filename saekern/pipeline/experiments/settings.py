"""Which experiments a study runs, and their settings."""

from dataclasses import dataclass, field

from saekern.pipeline.experiments import EXPERIMENTS
from saekern.pipeline.experiments.archetypal import ArchetypalSettings
from saekern.pipeline.experiments.convergence import ConvergenceSettings
from saekern.pipeline.experiments.initialisation import InitialisationSettings
from saekern.pipeline.experiments.interpretation import InterpretationSettings
from saekern.pipeline.experiments.masking import MaskingSettings
from saekern.pipeline.experiments.notebooks import NotebooksSettings
from saekern.pipeline.experiments.pooling import PoolingSettings
from saekern.pipeline.experiments.statistics import StatisticsSettings
from saekern.pipeline.experiments.strict_rule import StrictRuleSettings
from saekern.pipeline.experiments.subspaces import SubspacesSettings
from saekern.pipeline.experiments.synthetic import SyntheticSettings
from saekern.pipeline.experiments.thresholds import ThresholdsSettings
from saekern.pipeline.experiments.trajectories import TrajectoriesSettings


@dataclass(frozen=True)
class ExperimentsConfig:
    """Experiments on the trained seeds."""

    run: tuple[str, ...] = ()
    """Names of the experiments to run; docs/stability.md says what each is."""

    archetypal: ArchetypalSettings = field(default_factory=ArchetypalSettings)
    """Whether latents correspond to known objects and to classes of bytes."""

    convergence: ConvergenceSettings = field(default_factory=ConvergenceSettings)
    """How many seeds are enough."""

    initialisation: InitialisationSettings = field(default_factory=InitialisationSettings)
    """The same training from different beginnings."""

    interpretation: InterpretationSettings = field(default_factory=InterpretationSettings)
    """How well explanations of latents tell where they fire."""

    masking: MaskingSettings = field(default_factory=MaskingSettings)
    """What is lost when stable or unstable latents are masked."""

    notebooks: NotebooksSettings = field(default_factory=NotebooksSettings)
    """The four arms of the notebooks released with "Ablating Archetypes"."""

    pooling: PoolingSettings = field(default_factory=PoolingSettings)
    """SAEs of the latents that most seeds found."""

    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    """Activation statistics of stable and unstable latents."""

    strict_rule: StrictRuleSettings = field(default_factory=StrictRuleSettings)
    """Encoder and decoder must agree on the partner."""

    subspaces: SubspacesSettings = field(default_factory=SubspacesSettings)
    """Whether unstable latents of different seeds lie in the same directions."""

    synthetic: SyntheticSettings = field(default_factory=SyntheticSettings)
    """True features that are isolated or crowd a block of few dimensions."""

    thresholds: ThresholdsSettings = field(default_factory=ThresholdsSettings)
    """Shares of stable latents at other θ and ε."""

    trajectories: TrajectoriesSettings = field(default_factory=TrajectoriesSettings)
    """When runs come together."""

    def __post_init__(self) -> None:
        for name in self.run:
            if name not in EXPERIMENTS:
                raise ValueError(f"experiments.run: expected names among {', '.join(EXPERIMENTS)}, got {name!r}")
        if len(set(self.run)) != len(self.run):
            raise ValueError(f"experiments.run: expected every name once, got {', '.join(self.run)}")
