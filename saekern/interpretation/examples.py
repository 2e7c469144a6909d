"""What explainers and judges are given, and what is asked of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class Passage(NamedTuple):
    """A stretch of text for a judge, who is not told where the latent fires."""

    pieces: list[str]
    """One a token."""
    start: int
    """The first piece that is asked about; those before it are there to be read."""
    marks: tuple[int, ...] | None = None
    """Pieces said to be those on which the latent fires. None: does it fire on any from `start` on?"""

    def text(self) -> str:
        """As it reads, marked pieces in << >>, neighbours in one pair."""
        parts, inside = [], False
        for i, piece in enumerate(self.pieces):
            marked = self.marks is not None and i in self.marks
            if marked != inside:
                parts.append("<<" if marked else ">>")
            parts.append(piece)
            inside = marked
        return "".join(parts) + (">>" if inside else "")


class Example(NamedTuple):
    """A stretch of text for an explainer, with what the latent does in it."""

    pieces: list[str]
    """One a token."""
    start: int
    """The first piece that counts: what the latent does before it is not said."""
    values: list[float | None]
    """The latent's code at each piece; None before `start`, and where the activations hold no row."""

    @property
    def fires(self) -> tuple[int, ...]:
        """The pieces on which the latent fires: its code is not zero."""
        return tuple(i for i, value in enumerate(self.values) if value)

    @property
    def silent(self) -> tuple[int, ...]:
        """The pieces on which the latent is known not to fire."""
        return tuple(i for i, value in enumerate(self.values) if value == 0)

    @property
    def largest(self) -> float:
        """Its largest code, 0 where there is none."""
        return max((value for value in self.values if value is not None), default=0.0)

    def passage(self, marks: Sequence[int] | None = None) -> Passage:
        """The text alone."""
        return Passage(self.pieces, self.start, None if marks is None else tuple(marks))


class Examples(NamedTuple):
    """What an explainer learns of one latent, in random order."""

    positives: list[Example]
    """The latent fires in each."""
    negatives: list[Example]
    """It fires in none."""


class Explainer(Protocol):
    """From examples of one latent to an explanation: anything whose `str` is a sentence for people."""

    def __call__(self, examples: Examples) -> Any: ...


class Judge(Protocol):
    """Applies an explanation to passages that the explainer has not seen.

    Of a passage without marks: does the latent fire on one of its pieces from `start` on? Of one with marks: are those
    the pieces on which it fires? The answers are bool, or scores from 0 to 1 of which 0.5 and more count as yes.
    """

    def __call__(self, explanation: Any, passages: Sequence[Passage]) -> Sequence[float]: ...
