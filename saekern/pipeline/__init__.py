"""The main job: activations → S seeds → all pairs → stability → report, in one folder."""

from saekern.pipeline.config import StudyConfig
from saekern.pipeline.pairs import match_study
from saekern.pipeline.plan import Planned, plan
from saekern.pipeline.presets import PRESETS, preset
from saekern.pipeline.run import Study, study

__all__ = ["PRESETS", "Planned", "Study", "StudyConfig", "match_study", "plan", "preset", "study"]
