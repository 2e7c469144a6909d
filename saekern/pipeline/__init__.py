"""The main job: activations → S seeds → all pairs → stability → report, in one folder."""

from saekern.pipeline.config import PRESETS, StudyConfig, preset
from saekern.pipeline.plan import Planned, plan
from saekern.pipeline.run import Study, study

__all__ = ["PRESETS", "Planned", "Study", "StudyConfig", "plan", "preset", "study"]
