"""What a study reads from: token sequences, the model, activation caches, the trained SAEs."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import saekern.sae
from saekern import activations
from saekern.pipeline import existing
from saekern.pipeline.config import StudyConfig
from saekern.stability.lazy import Lazy


class Part:
    """Rows `start` to `stop` of other rows, without copying them."""

    def __init__(self, rows: Any, start: int, stop: int) -> None:
        self.rows, self.start, self.stop = rows, start, stop
        self.width = rows.width

    def __len__(self) -> int:
        return self.stop - self.start

    def take(self, indices: Tensor) -> Tensor:
        return self.rows.take(indices + self.start)

    @property
    def fingerprint(self) -> str:
        return f"{self.rows.fingerprint}[{self.start}:{self.stop}]"


class Sources:
    """The data of one study, opened once and only when a step needs it."""

    def __init__(self, config: StudyConfig, folder: Path) -> None:
        self.config, self.folder = config, folder

    @property
    def external(self) -> bool:
        """Whether the rows come from a cache that was there before."""
        return self.config.activations.cache is not None

    @cached_property
    def cache(self) -> Any:
        path = self.config.activations.cache
        return activations.open_cache(path if path is not None else self.folder / "activations" / "train")

    @cached_property
    def rows(self) -> Any:
        """What training sees: an outside cache keeps its last rows for the evaluation, half of them where nothing is
        trained."""
        return Part(self.cache, 0, len(self.cache) - self._kept) if self.external else self.cache

    @cached_property
    def heldout(self) -> Any:
        if self.external:
            return Part(self.cache, len(self.cache) - self._kept, len(self.cache))
        return activations.open_cache(self.folder / "activations" / "heldout")

    @property
    def _kept(self) -> int:
        return min(self.config.evaluation.rows, len(self.cache) // (2 if self.config.saes else 10))

    def evaluated(self) -> Any:
        """The held-out rows that the figures use."""
        return Part(self.heldout, 0, min(self.config.evaluation.rows, len(self.heldout)))

    @cached_property
    def model(self) -> Any:
        name = self.config.activations.model
        if name is None:
            raise ValueError("activations.model: there is none, and no rows without a cache")
        return activations.tiny_model() if name == "tiny" else activations.load_model(name, self.config.device)

    def sequences(self, split: str) -> Tensor:
        """int64 [count, context]: "train" or "heldout" token sequences, which share no source file (or no row)."""
        settings = self.config.activations
        count = settings.sequences if split == "train" else settings.heldout_sequences
        if settings.tokens is None:
            return activations.python_source_sequences(split, settings.context, count, settings.token_seed)
        tokens = np.load(settings.tokens, mmap_mode="r", allow_pickle=False)
        needed = settings.sequences + settings.heldout_sequences
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or len(tokens) < needed:
            raise ValueError(
                f"{settings.tokens}: expected integer token ids [at least {needed}, context], "
                f"got {tokens.dtype} {list(tokens.shape)}"
            )
        chosen = tokens[:count] if split == "train" else tokens[len(tokens) - count :]
        return torch.from_numpy(np.asarray(chosen, dtype=np.int64))

    def sae_paths(self) -> list[Path]:
        """Where the trained SAEs are."""
        return [self.folder / "seeds" / f"{i:03d}" for i in range(self.config.seeds)]

    def sae(self, i: int) -> Any:
        """The trained SAE of a seed, or the given one."""
        if self.config.saes:
            return existing.sae(self.config.saes[i], self.config.device)
        return saekern.sae.load(self.sae_paths()[i], device=self.config.device)

    @cached_property
    def dictionaries(self) -> Lazy:
        """The decoders [F, D] of the SAEs, each read when asked for."""
        paths = self.config.saes
        if paths:
            return Lazy(len(paths), lambda i: existing.dictionary(paths[i], self.config.device))
        return Lazy(self.config.seeds, lambda i: self.sae(i).dictionary.detach())

    @property
    def encoders(self) -> Lazy:
        """The encoders [F, D] of SAEs that exist already."""
        return Lazy(self.config.seeds, lambda i: existing.encoder(self.config.saes[i], self.config.device))

    def described(self) -> list[dict[str, Any]]:
        """What the step of each given SAE found in its files."""
        files = [self.folder / "checkpoints" / f"{i:03d}.json" for i in range(len(self.config.saes))]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]
