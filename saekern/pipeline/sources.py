"""What a study reads from: token sequences, the model, activation caches, the trained SAEs."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import saekern.sae
from saekern import activations
from saekern.pipeline import existing
from saekern.pipeline.config import StudyConfig, VariantConfig
from saekern.pipeline.row_source import OtherRows, RowSource, row_source
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
        return self.first_rows(self.heldout)

    def first_rows(self, heldout: Any) -> Part:
        """As many of the held-out rows as the figures use."""
        return Part(heldout, 0, min(self.config.evaluation.rows, len(heldout)))

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
        return torch.from_numpy(np.array(chosen, dtype=np.int64))  # a copy: the file is mapped read-only

    def variant(self, name: str) -> VariantConfig:
        """A variant by name.

        Raises:
            ValueError: the study has none of that name.
        """
        for variant in self.config.variants:
            if variant.name == name:
                return variant
        raise ValueError(f"variants: expected {', '.join(v.name for v in self.config.variants)}, got {name!r}")

    def row_source(self, name: str) -> RowSource:
        return row_source(self.config, self.variant(name))

    @cached_property
    def _others(self) -> OtherRows:
        return OtherRows(self)

    def model_of(self, source: RowSource) -> Any:
        """The model that its rows come from."""
        return self._others.model(source)

    def variant_rows(self, name: str) -> Any:
        """What the SAEs of a variant train on."""
        return self._others.rows(self.row_source(name), "train")

    def variant_heldout(self, name: str) -> Any:
        """Held-out rows of the variant's own kind, as many as the figures use."""
        return self._others.rows(self.row_source(name), "heldout")

    def variant_cache(self, name: str) -> Any:
        """The held-out activation cache, with its tokens, that `variant_heldout` begins; shuffled rows have no text.

        Raises:
            ValueError: the variant's rows are shuffled.
        """
        return self._others.text(self.row_source(name))

    def variant_saes(self, name: str) -> Lazy:
        """The trained SAEs of a variant, each read when asked for."""
        folder = self.folder / "variants" / self.variant(name).name
        device = self.config.device
        return Lazy(self.variant(name).seeds, lambda i: saekern.sae.load(folder / f"{i:03d}", device=device))

    def variant_stability(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `matched.match_variant` left: its summary, and "probability", "probability_centred", "live", "stable",
        "unstable" [S, F].

        Raises:
            ValueError: a variant of one seed, which is not matched.
        """
        if self.variant(name).seeds < 2:
            raise ValueError(f"variants.{name}.seeds: expected at least 2 for its stability, got 1")
        path = self.folder / "results" / "variants" / "matched" / name
        summary = json.loads(path.with_name(f"{name}.json").read_text(encoding="utf-8"))
        return summary, load_file(path.with_name(f"{name}.safetensors"))

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
