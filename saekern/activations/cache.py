"""Harvested activations on disk: `manifest.json`, `tokens.safetensors` and shards of rows, read memory-mapped."""

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from saekern.activations.rows import ShardRows, map_shard

FORMAT, VERSION = "saekern-activations", 1


class ActivationCache(ShardRows):
    """The rows of a finished cache, with the text they came from.

    `manifest` says what was harvested: model, hook, dataset hash, dtype, rows, context, which positions were left out.
    """

    def __init__(self, path: Path, manifest: dict, shards: list[Tensor]):
        super().__init__(shards)
        self.path = path
        self.manifest = manifest

    @cached_property
    def tokens(self) -> Tensor | None:
        """int64 [sequences, context], or None for rows that did not come from a language model."""
        file = self.path / "tokens.safetensors"
        return load_file(file)["tokens"].long() if file.exists() else None

    @property
    def provenance(self) -> dict[str, str]:
        """What an SAE that is trained on these rows says of them: "model" and "hook", of a cache that has them."""
        return {name: str(self.manifest[name]) for name in ("model", "hook") if name in self.manifest}

    @cached_property
    def attention_mask(self) -> Tensor | None:
        """bool [sequences, context], or None where every token was real."""
        if "attention_mask_sha256" not in self.manifest:
            return None
        return load_file(self.path / "tokens.safetensors")["attention_mask"].bool()

    @cached_property
    def positions(self) -> Tensor:
        """int64 [rows]: the place of each row's token in `tokens.flatten()`."""
        return kept_positions(self._need_tokens(), self.manifest, self.attention_mask).flatten().nonzero()[:, 0]

    @cached_property
    def _vocabulary(self) -> dict[str, str]:
        return json.loads((self.path / "vocabulary.json").read_text())

    def _need_tokens(self) -> Tensor:
        if self.tokens is None:
            raise ValueError(f"{self.path}: this cache holds no tokens")
        return self.tokens

    def mean(self) -> Tensor:
        """The mean row, float32 [D], accumulated in float64."""
        total = torch.zeros(self.width, dtype=torch.float64)
        for shard in self.shards:
            for start in range(0, len(shard), 65536):
                total += shard[start : start + 65536].double().sum(0)
        return (total / len(self)).float()

    def snippet(self, row: int, before: int = 24, after: int = 8) -> tuple[str, str, str]:
        """The text before a row's token, the token, and the text after it, within its sequence (no excluded BOS)."""
        tokens = self._need_tokens()
        if not 0 <= row < len(self):
            raise IndexError(f"row: expected 0 to {len(self) - 1}, got {row}")
        sequence, position = divmod(int(self.positions[row]), tokens.shape[1])
        line = tokens[sequence].tolist()
        first = max(position - before, 1 if self.manifest["exclude_bos"] else 0)
        if self.attention_mask is not None:  # padding may stand on either side
            real = self.attention_mask[sequence].nonzero()[:, 0]
            first = max(first, int(real[0]) + self.manifest["exclude_bos"])
            line = line[: int(real[-1]) + 1]
        return (
            self.text(line[first:position]),
            self.text(line[position : position + 1]),
            self.text(line[position + 1 : position + 1 + after]),
        )

    def text(self, tokens: list[int]) -> str:
        """Consecutive tokens as they read."""
        if self.manifest["text"] == "bytes":
            return bytes(tokens).decode("utf-8", errors="replace")
        if self.manifest["text"] == "vocabulary":
            return "".join(self._vocabulary[str(token)] for token in tokens)
        return "".join(f" {token}" for token in tokens)

    def verify(self) -> None:
        """Checks every shard against the manifest again.

        Raises:
            FileNotFoundError, ValueError: a missing, truncated or altered shard, or a row that is not finite.
        """
        for index, expected in enumerate(self.manifest["shards"]):
            shard = open_shard(self.path, self.manifest, index)
            for start in range(0, expected, 65536):
                if not torch.isfinite(shard[start : start + 65536]).all():
                    raise ValueError(f"{self.path / shard_name(index)}: rows that are not finite")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest and the shards' sizes: changes when what was harvested changes."""
        digest = hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode())
        for index in range(len(self.manifest["shards"])):
            digest.update(f" {(self.path / shard_name(index)).stat().st_size}".encode())
        return digest.hexdigest()


def open_cache(path: str | Path) -> ActivationCache:
    """Opens a cache that `harvest` finished; nothing is read but headers.

    Raises:
        FileNotFoundError: no manifest there, or shards missing because the harvest did not finish.
        ValueError: another format or a newer version, a truncated shard.
    """
    path = Path(path)
    manifest = read_manifest(path)
    count = len(manifest["shards"])
    missing = [index for index in range(count) if not (path / shard_name(index)).exists()]
    if missing:
        raise FileNotFoundError(
            f"{path}: {count - len(missing)} of {count} shards are there; run the same harvest again to continue it"
        )
    return ActivationCache(path, manifest, [open_shard(path, manifest, index) for index in range(count)])


def read_manifest(path: Path) -> dict:
    file = path / "manifest.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no activation cache there")
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{file}: expected format {FORMAT!r}")
    if manifest["version"] > VERSION:
        raise ValueError(f"{file}: version {manifest['version']} is newer than {VERSION}: update saekern to read it")
    return manifest


def open_shard(path: Path, manifest: dict, index: int) -> Tensor:
    file = path / shard_name(index)
    shard = map_shard(file, "rows")
    expected = (manifest["shards"][index], manifest["width"])
    dtype = str(shard.dtype).removeprefix("torch.")
    if tuple(shard.shape) != expected or dtype != manifest["dtype"]:
        raise ValueError(
            f"{file}: expected {manifest['dtype']} {list(expected)}, found {dtype} {list(shard.shape)}; delete it and"
            " run the same harvest again"
        )
    return shard


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def kept_positions(tokens: Tensor, manifest: dict, attention_mask: Tensor | None = None) -> Tensor:
    """True where a token's activation is a row of the cache, [sequences, context]."""
    kept = ~torch.isin(tokens, torch.tensor(manifest["excluded_tokens"], dtype=torch.int64))
    if attention_mask is not None:
        kept &= attention_mask
    return kept & ~first_positions(kept, attention_mask) if manifest["exclude_bos"] else kept


def first_positions(like: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """bool [B, T], True at the first real token of every row: where a BOS stands if there is one."""
    real = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    if attention_mask is not None:
        real &= attention_mask.to(like.device) != 0
    return real & (real.cumsum(1) == 1)


def write_atomically(path: Path, data: bytes) -> None:
    """All of the file or nothing: a temporary name, flushed to disk, renamed.

    Raises:
        OSError: as the system reports it (disk full, permissions), with the file's name; the temporary file is removed.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        message = f"{error.strerror} while writing {path} ({len(data) / 2**20:.1f} MiB); earlier files are intact"
        raise OSError(error.errno, message) from error
