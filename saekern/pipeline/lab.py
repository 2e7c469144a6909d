"""What an experiment may ask of a study whose stability has been measured."""

from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from saekern.matching import PairStore
from saekern.pipeline.config import StudyConfig
from saekern.pipeline.sources import Sources
from saekern.stability.lazy import Lazy

SAMPLE = 131_072  # rows, evenly spaced, of which means and covariances are made


class Lab:
    """The study's SAEs, what is known of them, and the data; each opened when it is asked for."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    @property
    def config(self) -> StudyConfig:
        return self.sources.config

    @property
    def seeds(self) -> int:
        return self.config.seeds

    @property
    def threshold(self) -> float:
        """θ."""
        return self.config.stability.threshold

    @property
    def epsilon(self) -> float:
        """ε."""
        return self.config.stability.epsilon

    @property
    def saes(self) -> Lazy:
        """The trained SAEs, each read when asked for."""
        return Lazy(self.seeds, self.sources.sae)

    @property
    def dictionaries(self) -> Lazy:
        """Their decoders [F, D]."""
        return self.sources.dictionaries

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        """results/stability.safetensors; `saekern.report.results.ARRAYS` says what each is."""
        return load_file(self.sources.folder / "results" / "stability.safetensors")

    @property
    def live(self) -> Tensor:
        """[S, F] bool."""
        return self.arrays["live"].bool()

    @property
    def stable(self) -> Tensor:
        """[S, F] bool, every seed as the anchor."""
        return self.arrays["stable"].bool()

    @property
    def unstable(self) -> Tensor:
        """[S, F] bool."""
        return self.arrays["unstable"].bool()

    @property
    def probability(self) -> Tensor:
        """p̂ [S, F] float64, NaN where dead."""
        return self.arrays["probability"]

    @cached_property
    def pairs(self) -> PairStore:
        """The nearest partners of all pairs of seeds."""
        return PairStore.open(self.sources.folder / "pairs")

    @property
    def rows(self) -> Any:
        """What the SAEs were trained on."""
        return self.sources.rows

    @property
    def heldout(self) -> Any:
        """The held-out rows of the study's figures."""
        return self.sources.evaluated()

    @property
    def has_text(self) -> bool:
        """Whether the held-out rows came with their tokens."""
        return getattr(self.sources.heldout, "tokens", None) is not None

    @cached_property
    def tokens(self) -> Tensor:
        """int64 [n]: the token of each held-out row."""
        cache = self.sources.heldout
        return cache.tokens.flatten()[cache.positions][: len(self.heldout)]

    @cached_property
    def sequence_numbers(self) -> Tensor:
        """int64 [n]: the sequence of each held-out row."""
        cache = self.sources.heldout
        return (cache.positions // cache.tokens.shape[1])[: len(self.heldout)]

    def model_with_texts(self, sequences: int) -> dict[str, Any]:
        """`model`, `hook`, `sequences` and `exclude_bos` for functions that splice into the model; empty for rows that
        came without one."""
        if self.sources.external or sequences == 0:
            return {}
        settings = self.config.activations
        tokens = self.sources.sequences("heldout")[:sequences]
        return {
            "model": self.sources.model,
            "hook": settings.hook,
            "sequences": tokens,
            "exclude_bos": settings.exclude_bos,
        }

    @cached_property
    def sample(self) -> Tensor:
        """Training rows, evenly spaced, float32 [up to SAMPLE, D]."""
        count = min(SAMPLE, len(self.rows))
        return self.rows.take(torch.arange(count) * len(self.rows) // count).float()

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the sampled rows, float64 [D]."""
        return self.sample.double().mean(0)

    @cached_property
    def covariance(self) -> Tensor:
        """Covariance of the sampled rows, float64 [D, D]."""
        return torch.cov(self.sample.double().T)
