"""Explanations of latents, and how well they tell where a latent fires: detection and fuzzing."""

from saekern.interpretation.compare import Difference, InterpretationComparison, compare_scores
from saekern.interpretation.examples import Example, Examples, Explainer, Judge, Passage
from saekern.interpretation.language_model import LanguageModelExplainer, LanguageModelJudge
from saekern.interpretation.rules import Rule, RuleExplainer, RuleJudge
from saekern.interpretation.scores import InterpretationScores, Score, interpretation_scores

__all__ = [
    "Difference",
    "Example",
    "Examples",
    "Explainer",
    "InterpretationComparison",
    "InterpretationScores",
    "Judge",
    "LanguageModelExplainer",
    "LanguageModelJudge",
    "Passage",
    "Rule",
    "RuleExplainer",
    "RuleJudge",
    "Score",
    "compare_scores",
    "interpretation_scores",
]
