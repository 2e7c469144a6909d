"""Detection and fuzzing: does an explanation of a latent tell where it fires, on text that the explainer has not seen?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from saekern.activations import ActivationCache
from saekern.interpretation.collect import collect
from saekern.interpretation.examples import Explainer, Examples, Judge, Passage
from saekern.interpretation.intervals import balanced_interval
from saekern.stability.means import MeanInterval, mean_interval

DETECTED = 64  # positives and negatives of one latent's detection, at most
FUZZED = 64  # correct marks, at most; half as many wrong ones on positives, and on negatives
AT_ONCE = 8  # passages a judge sees in one call
REASONS = ("dead", "few positives", "few negatives")


class Score(NamedTuple):
    """½(TPR + TNR) with its interval over passages."""

    value: float
    lower: float
    upper: float
    true_positive_rate: float
    true_negative_rate: float


@dataclass(frozen=True, eq=False)
class InterpretationScores:
    """Of L latents that could be scored. Made by `interpretation_scores`."""

    latents: Tensor
    """[L] int64, in the order asked for."""
    detection: Tensor
    """[L, 5] float64: balanced accuracy ½(TPR + TNR) of "the latent fires in this window", the ends of its interval, TPR, TNR."""
    fuzzing: Tensor
    """[L, 5] float64: the same of "these tokens are where it fires": half of the marks are right, a quarter wrong in windows
    in which it fires, a quarter random in windows in which it does not. NaN for a latent that fires on all or none of a window."""
    mislabelled_caught: Tensor
    """[L] float64: share of the wrong marks in windows in which it fires that are answered no."""
    null_detection: Tensor
    """[L] float64: detection with another latent's explanation; NaN where it was not asked for or L = 1."""
    null_fuzzing: Tensor
    """[L] float64: fuzzing with it."""
    explanations: list[str]
    """[L]"""
    positives: Tensor
    """[L] int64: windows in which the latent fires, in the detection."""
    negatives: Tensor
    """[L] int64: windows in which it does not."""
    firings: Tensor
    """[L] int64: rows in which the latent fires."""
    skipped: dict[int, str]
    """Latents without a score, and why: "dead" (does not fire in these rows), "few positives", "few negatives"."""
    rows: int
    """Rows read."""
    confidence: float
    """Coverage of the intervals."""
    seed: int
    """Of the choice of windows, marks and permutation."""

    def mean(self, name: str) -> MeanInterval:
        """Mean over latents of "detection", "fuzzing", "null_detection" or "null_fuzzing" with Student's interval."""
        return mean_interval(_first(getattr(self, name)).tolist(), self.confidence)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; None for NaN."""
        reasons = list(self.skipped.values())
        return {
            "rows": self.rows,
            "seed": self.seed,
            "confidence": self.confidence,
            "interval": "over passages: both Wilson ends in squares; means: Student's t over latents",
            "null": "the explanation of another latent; 0.5 unless the two are alike",
            "scored": len(self.latents),
            "skipped": {reason: reasons.count(reason) for reason in REASONS},
            "mean": {name: self.mean(name)._asdict() for name in NAMES},
            "latents": [
                {
                    "latent": int(self.latents[i]),
                    "explanation": self.explanations[i],
                    "detection": _json(self.detection[i]),
                    "fuzzing": _json(self.fuzzing[i]),
                    "mislabelled_caught": _number(self.mislabelled_caught[i]),
                    "null_detection": _number(self.null_detection[i]),
                    "null_fuzzing": _number(self.null_fuzzing[i]),
                    "positives": int(self.positives[i]),
                    "negatives": int(self.negatives[i]),
                    "firings": int(self.firings[i]),
                }
                for i in range(len(self.latents))
            ],
        }


NAMES = ("detection", "fuzzing", "null_detection", "null_fuzzing")


class _Task(NamedTuple):
    """What the judge is asked of one latent."""

    detect: list[tuple[Passage, bool]]
    fuzz: list[tuple[Passage, bool]]
    mislabelled: list[bool]  # [fuzz]: a wrong mark in a window in which the latent fires


def interpretation_scores(
    sae: Any,
    cache: ActivationCache,
    latents: Tensor,
    explainer: Explainer,
    judge: Judge,
    *,
    seed: int,
    rows: int | None = None,
    size: int = 31,
    lead: int = 8,
    least: int = 16,
    null: bool = True,
    confidence: float = 0.95,
    batch: int = 4096,
    progress: bool = False,
) -> InterpretationScores:
    """Explains each latent from the even sequences and lets the explanation be judged on the odd ones.

    Windows are `size` tokens; in a negative one the latent fires nowhere, nor in the `lead` tokens shown before it. The judge gets
    at most 8 passages at a time, in random order. Detection has at most 64 positives and 64 negatives. In fuzzing
    marks are as many in wrong as in right passages; the numbers of the kinds are 2 : 1 : 1 exactly, no window twice.

    Args:
        sae: has `encode_sparse(x)` and `dictionary` [F, D]. A latent fires where its code is not zero.
        cache: rows with their tokens; read once.
        latents: distinct latents, int64 [L].
        explainer, judge: see `Explainer` and `Judge`; what is not random in them makes the result repeatable.
        seed: of all choices made here.
        rows: only the first so many rows of the cache.
        size, lead: tokens of a window, and tokens shown before it, of which nothing is asked.
        least: windows of each kind that a latent needs to be scored, at least 3.
        null: whether every latent is also judged by another's explanation.
        batch: rows at a time.

    Raises:
        ValueError: a cache without tokens or of another width than the SAE's, latents repeated or not there, fewer than two
            sequences, a judge that does not answer each passage by a number from 0 to 1.

    Source: scores and numbers as in KronSAE (arXiv 2505.22255, appendix D); ours are the split by sequence, the tokens
    before a window, the intervals and the null.
    """
    if least < 3:
        raise ValueError(f"least: expected at least 3, got {least}")
    if cache.tokens is not None and len(cache.tokens) < 2:
        raise ValueError("cache: expected at least two sequences, one to explain from and one to judge on, got fewer")
    contexts = collect(
        sae,
        cache,
        latents,
        seed=seed,
        rows=rows,
        size=size,
        lead=lead,
        positives=(2 * DETECTED, FUZZED + FUZZED // 2),
        negatives=(2 * DETECTED, DETECTED),
        batch=batch,
        progress=progress,
    )
    numbers, skipped, explanations = [], {}, []
    for slot, latent in enumerate(tqdm(latents.tolist(), unit="latent", desc="explaining", disable=not progress)):
        examples = contexts.explained(slot)
        reason = _lacking(examples, contexts.judged(slot), int(contexts.firings[slot]), least)
        if reason is not None:
            skipped[latent] = reason
            continue
        numbers.append(slot)
        explanations.append(explainer(examples))
    other = _derangement(len(numbers), seed)
    lines: list[list[float]] = []
    for i, slot in enumerate(tqdm(numbers, unit="latent", desc="judging", disable=not progress)):
        task = _task(contexts.judged(slot), random.Random(f"{seed} {int(latents[slot])}"))
        detect, fuzz = (_answers(judge, explanations[i], cases) for cases in task[:2])
        caught = [not yes for yes, wrong in zip(fuzz, task.mislabelled, strict=True) if wrong]
        line = [*_score(task.detect, detect, confidence), *_score(task.fuzz, fuzz, confidence)]
        line.append(sum(caught) / len(caught) if caught else float("nan"))
        for cases in task[:2]:
            known = null and len(numbers) > 1
            line.append(
                _score(cases, _answers(judge, explanations[other[i]], cases), confidence).value if known else torch.nan
            )
        right = sum(truth for _, truth in task.detect)
        lines.append([*line, right, len(task.detect) - right])
    table = torch.tensor(lines, dtype=torch.float64).reshape(len(lines), 15)
    chosen = torch.tensor(numbers, dtype=torch.int64)
    return InterpretationScores(
        latents=latents[chosen],
        detection=table[:, :5],
        fuzzing=table[:, 5:10],
        mislabelled_caught=table[:, 10],
        null_detection=table[:, 11],
        null_fuzzing=table[:, 12],
        explanations=[str(explanation) for explanation in explanations],
        positives=table[:, 13].long(),
        negatives=table[:, 14].long(),
        firings=contexts.firings[chosen],
        skipped=skipped,
        rows=len(cache) if rows is None else min(rows, len(cache)),
        confidence=confidence,
        seed=seed,
    )


def _lacking(explained: Examples, judged: Examples, firings: int, least: int) -> str | None:
    if firings == 0:
        return REASONS[0]
    if min(len(explained.positives), len(judged.positives)) < least:
        return REASONS[1]
    if min(len(explained.negatives), len(judged.negatives)) < least:
        return REASONS[2]
    return None


def _task(judged: Examples, draw: random.Random) -> _Task:
    detect = [(example.passage(), True) for example in judged.positives[:DETECTED]]
    detect += [(example.passage(), False) for example in judged.negatives[:DETECTED]]
    # Windows in which the latent fires at every token cannot be marked wrongly: they are marked rightly.
    able = [example for example in judged.positives if example.silent]
    full = [example for example in judged.positives if not example.silent]
    quarter = min(FUZZED // 2, len(judged.positives) // 3, len(able), len(judged.negatives))
    wrong = able[:quarter]
    right = (full + able[quarter:])[: 2 * quarter]
    draw.shuffle(right)
    sizes = [len(example.fires) for example in right]
    fuzz = [(example.passage(example.fires), True) for example in right]
    for example in wrong:
        count = min(len(example.fires), len(example.silent))
        fuzz.append((example.passage(sorted(draw.sample(example.silent, count))), False))
    for example, size in zip(judged.negatives[:quarter], sizes, strict=False):
        count = min(size, len(example.silent))
        fuzz.append((example.passage(sorted(draw.sample(example.silent, count))), False))
    order = list(range(len(fuzz)))
    draw.shuffle(detect)
    draw.shuffle(order)
    mislabelled = [2 * quarter <= i < 3 * quarter for i in order]
    return _Task(detect, [fuzz[i] for i in order], mislabelled)


def _answers(judge: Judge, explanation: Any, cases: Sequence[tuple[Passage, bool]]) -> list[bool]:
    answers: list[bool] = []
    for start in range(0, len(cases), AT_ONCE):
        part = [passage for passage, _ in cases[start : start + AT_ONCE]]
        scores = [float(score) for score in judge(explanation, part)]
        if len(scores) != len(part) or not all(0 <= score <= 1 for score in scores):
            raise ValueError(f"judge: expected {len(part)} numbers from 0 to 1, got {scores}")
        answers += [score >= 0.5 for score in scores]
    return answers


def _score(cases: Sequence[tuple[Passage, bool]], answers: Sequence[bool], confidence: float) -> Score:
    groups = [
        [yes == truth for (_, truth), yes in zip(cases, answers, strict=True) if truth is side]
        for side in (True, False)
    ]
    hits, totals = (sum(groups[0]), sum(groups[1])), (len(groups[0]), len(groups[1]))
    if 0 in totals:
        return Score(*[float("nan")] * 5)
    return Score(*balanced_interval(hits, totals, confidence), hits[0] / totals[0], hits[1] / totals[1])


def _derangement(count: int, seed: int) -> list[int]:
    """A random cycle through all: nobody keeps their own."""
    cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    after = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [after[i] for i in range(count)]


def _first(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values[:, 0]


def _json(score: Tensor) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(Score._fields, score, strict=True)}


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else value.item()
