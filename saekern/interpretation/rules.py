"""Explanations without a language model: rules on the tokens before, found by counting."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekern.interpretation.examples import Example, Examples, Passage
from saekern.interpretation.intervals import wilson

# Kind -> the n it is tried with, and how it reads. All look back only: so does the activation at a token.
KINDS = {
    "token": ((1,), "The token is"),
    "ngram": ((2, 3, 4), "The text up to and with the token ends with"),
    "before": ((1, 2, 3), "The text before the token ends with"),
    "word": ((0,), "The word up to and with the token is"),
    "prefix": ((2, 3, 4), "The word up to and with the token begins with"),
}
MOST = 32  # alternatives of one rule: the digits and the letters of the alphabet find room
TIE = 0.01  # balanced accuracies this close are equal, and the shorter rule wins


@dataclass(frozen=True)
class Rule:
    """A latent fires where the text up to and with the token ends in one of some strings."""

    kind: str
    """One of `KINDS`."""
    n: int
    """Tokens of an n-gram or before the token, letters of a prefix."""
    strings: tuple[str, ...]
    """The alternatives, the most certain first."""

    def __str__(self) -> str:
        listed = [repr(text) for text in self.strings]
        end = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} or {listed[-1]}"
        return f"{KINDS[self.kind][1]} {end}."

    def fires(self, pieces: Sequence[str]) -> list[bool]:
        """Of each piece whether the rule says so."""
        return [key in self.strings for key in keys(self.kind, self.n, pieces)]


class RuleExplainer:
    """The rule of all kinds that tells the examples best, judged by two-fold cross-validation; no randomness.

    What is maximised is the mean of two balanced accuracies: of windows (does the rule hold anywhere in it; detection)
    and of tokens (fuzzing). Of each kind the strings are ranked by the lower Wilson bound of the share of their tokens
    on which the latent fires, and the first m of them tried. Among rules within 0.01 of the best, the one with fewest
    characters is taken. Ours.
    """

    def __call__(self, examples: Examples) -> Rule:
        windows = examples.positives + examples.negatives
        if not examples.positives:
            raise ValueError("examples: expected some in which the latent fires, got none")
        fold = torch.tensor([*_alternate(len(examples.positives)), *_alternate(len(examples.negatives))])
        found: list[tuple[float, Rule]] = []
        for kind, (sizes, _) in KINDS.items():
            for n in sizes:
                table = _Table(kind, n, windows)
                if not table.names:
                    continue
                curve = torch.stack([table.accuracy(table.ranked(fold != held), fold == held) for held in (0, 1)]).mean(
                    0
                )
                strings = table.ranked(torch.ones_like(fold, dtype=torch.bool))
                for m in range(1, min(MOST, len(strings)) + 1):
                    rule = Rule(kind, n, tuple(table.names[i] for i in strings[:m].tolist()))
                    found.append((float(curve[m - 1]), rule))
        if not found:
            raise ValueError("examples: no token on which the latent fires has text before it")
        best = max(accuracy for accuracy, _ in found)
        # max and min take the first among equals: simpler kinds stand first
        return min((rule for accuracy, rule in found if accuracy >= best - TIE), key=_length)


class RuleJudge:
    """Applies a rule: a passage is answered yes if the rule holds somewhere in it, marks by the share of them at which it
    holds, of which a half is yes."""

    def __call__(self, explanation: Any, passages: Sequence[Passage]) -> list[float]:
        if not isinstance(explanation, Rule):
            raise TypeError(f"explanation: expected a Rule, got {type(explanation).__name__}")
        answers = []
        for passage in passages:
            fires = explanation.fires(passage.pieces)
            if passage.marks is None:
                answers.append(float(any(fires[passage.start :])))
            else:
                answers.append(sum(fires[i] for i in passage.marks) / len(passage.marks))
        return answers


def keys(kind: str, n: int, pieces: Sequence[str]) -> Iterator[str | None]:
    """Of each piece the string that a rule of this kind looks at; None where the text before it is not long enough."""
    if kind in ("word", "prefix"):
        for word in _words(pieces):
            if kind == "word":
                yield word or None
            else:
                yield word[:n] if word is not None and len(word) >= n else None
    else:
        after = 0 if kind == "before" else 1
        for i in range(len(pieces)):
            low = i + after - n
            yield "".join(pieces[low : i + after]) if low >= 0 else None


def _words(pieces: Sequence[str]) -> Iterator[str | None]:
    """The letters, digits and underscores at the end of the text so far; None in the first word, whose beginning may
    not be in the text."""
    word: str | None = None
    for piece in pieces:
        for character in piece:
            if not (character.isalnum() or character == "_"):
                word = ""
            elif word is not None:
                word += character
        yield word


class _Table:
    """The tokens of all windows by the string that one kind of rule looks at."""

    def __init__(self, kind: str, n: int, windows: Sequence[Example]) -> None:
        numbers: dict[str, int] = {}
        key, window, fires = [], [], []
        for w, example in enumerate(windows):
            for text, value in zip(keys(kind, n, example.pieces), example.values, strict=True):
                if value is None:
                    continue
                key.append(-1 if text is None else numbers.setdefault(text, len(numbers)))
                window.append(w)
                fires.append(value != 0)
        self.names = list(numbers)
        self.key, self.window = torch.tensor(key), torch.tensor(window)
        self.fires = torch.tensor(fires)
        self.positive = torch.tensor([bool(example.fires) for example in windows])

    def ranked(self, fold: Tensor) -> Tensor:
        """The strings on which the latent fires in these windows, most certain first."""
        inside = fold[self.window] & (self.key >= 0)
        total = torch.bincount(self.key[inside], minlength=len(self.names))
        hits = torch.bincount(self.key[inside & self.fires], minlength=len(self.names))
        there = (hits > 0).nonzero()[:, 0]
        certain = wilson(hits[there], total[there])[0]
        return there[certain.argsort(descending=True, stable=True)]

    def accuracy(self, ranked: Tensor, fold: Tensor) -> Tensor:
        """[MOST] float64: in these windows, of the first 1, 2, … strings together."""
        rank = torch.full((len(self.names) + 1,), MOST)  # the last one: no string
        rank[ranked[:MOST]] = torch.arange(min(MOST, len(ranked)))
        inside = fold[self.window]
        tokens, fires = rank[self.key[inside]], self.fires[inside]
        windows = torch.full((len(self.positive),), MOST).scatter_reduce_(0, self.window[inside], tokens, "amin")
        return (_balanced(tokens, fires) + _balanced(windows[fold], self.positive[fold])) / 2


def _balanced(rank: Tensor, positive: Tensor) -> Tensor:
    """[MOST] balanced accuracy of "the rank is below m", for m = 1 … MOST; what has no members counts as half right."""
    shares = []
    for group in (positive, ~positive):
        count = torch.bincount(rank[group], minlength=MOST + 1)[:MOST].cumsum(0).double()
        members = int(group.sum())
        shares.append(count / members if members else torch.full_like(count, 0.5))
    return (shares[0] + 1 - shares[1]) / 2


def _alternate(count: int) -> list[int]:
    return [i % 2 for i in range(count)]


def _length(rule: Rule) -> int:
    return sum(len(text) + 1 for text in rule.strings)
