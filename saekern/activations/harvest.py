"""From a language model and a hook to a cache of rows: shard by shard, resumable after a kill at any moment."""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from saekern.activations.cache import (
    FORMAT,
    VERSION,
    ActivationCache,
    kept_positions,
    open_cache,
    open_shard,
    read_manifest,
    shard_name,
    write_atomically,
)
from saekern.activations.hugging_face import check_hook, hooked
from saekern.activations.language_model import TINY_NAME

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Captured(Exception):
    """Ends a forward pass at the hook: later layers are not computed."""


def harvest(
    model: Any,
    hook: str,
    sequences: Tensor,
    path: str | Path,
    *,
    batch: int = 32,
    exclude_bos: bool = True,
    exclude_tokens: Sequence[int] = (),
    attention_mask: Tensor | None = None,
    dtype: str = "float32",
    shard_rows: int = 131_072,
    progress: bool = True,
) -> ActivationCache:
    """Runs a language model over token sequences and stores what a hook sees, one row a token.

    Run again after a kill, it continues with the first shard that is missing; the layers after the hook are not run.

    Args:
        model: any TransformerLens model (`run_with_hooks`, `hook_dict`, `cfg`), or a torch module such as a Hugging
            Face model (see `HookedModule`). It runs in its own dtype.
        hook: a hook name, old or new style ("blocks.1.hook_resid_post"), or a submodule's name ("transformer.h.3");
            head dimensions are flattened into D.
        sequences: int64 [count, context].
        path: the cache's folder, made if missing.
        batch: sequences a forward pass.
        exclude_bos: leave out the first position of every sequence (attention sinks have outlying norms there).
        exclude_tokens: token ids whose positions are left out.
        attention_mask: [count, context], nonzero for real tokens. The model gets it, and the rest has no rows.
        dtype: storage, "float32", "bfloat16" or "float16".
        shard_rows: rows a shard, rounded to whole sequences.
        progress: show a progress bar.

    Returns:
        The finished cache; row order is that of `sequences`.

    Raises:
        ValueError: arguments that do not fit, an unknown hook, a folder that holds another harvest, non-finite rows.
        OSError: the disk is full or becomes full; finished shards stay, and the same call continues.
    """
    if sequences.dtype != torch.int64 or sequences.dim() != 2 or 0 in sequences.shape:
        raise ValueError(
            f"sequences: expected a non-empty int64 [count, context], got {sequences.dtype} {list(sequences.shape)}"
        )
    if attention_mask is not None and attention_mask.shape != sequences.shape:
        expected, got = list(sequences.shape), list(attention_mask.shape)
        raise ValueError(f"attention_mask: expected the shape of sequences, {expected}, got {got}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {sorted(DTYPES)}, got {dtype!r}")
    if batch < 1 or shard_rows < 1:
        raise ValueError(f"batch and shard_rows: expected at least 1, got {batch} and {shard_rows}")
    model = hooked(model)
    check_hook(model, hook)
    path, real = Path(path), None if attention_mask is None else attention_mask.cpu().bool()
    manifest = _plan(model, hook, sequences, real, exclude_bos, exclude_tokens, dtype, shard_rows)
    start(path, manifest, lambda: _beside(manifest, model, sequences, real))
    kept = kept_positions(sequences, manifest, real)
    per_shard = manifest["shard_sequences"]

    def rows_of(index: int) -> Iterator[Tensor]:
        part = slice(index * per_shard, (index + 1) * per_shard)
        masks = real[part].split(batch) if real is not None else repeat(None)
        for tokens, keep, mask in zip(sequences[part].split(batch), kept[part].split(batch), masks, strict=False):
            yield activations(model, hook, tokens, mask)[keep.to(model.cfg.device)]

    return fill(path, manifest, rows_of, progress)


def fill(
    path: Path, manifest: dict, rows_of: Callable[[int], Iterable[Tensor]], progress: bool = True
) -> ActivationCache:
    """Writes the shards that are missing, `rows_of(index)` being the blocks of one, and opens the cache."""
    missing = [index for index in range(len(manifest["shards"])) if not _finished(path, manifest, index)]
    _check_space(path, manifest, missing)
    hook, dtype = manifest["hook"], manifest["dtype"]
    with tqdm(total=manifest["rows"], unit="row", unit_scale=True, desc="harvest", disable=not progress) as bar:
        bar.update(manifest["rows"] - sum(manifest["shards"][index] for index in missing))
        for index in missing:
            rows = []
            for block in rows_of(index):
                rows.append(block.to("cpu", DTYPES[dtype]))
                bar.update(len(rows[-1]))
            shard = torch.cat(rows)
            if not torch.isfinite(shard).all():
                raise ValueError(f"{hook}: activations that are not finite in {dtype}; nothing was written for them")
            write_atomically(path / shard_name(index), save({"rows": shard}))
    return open_cache(path)


def activations(model: Any, hook: str, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """What the hook sees for tokens [B, T]: [B, T, D], head dimensions flattened. Stops the forward pass there."""
    options = {} if attention_mask is None else {"attention_mask": attention_mask.to(model.cfg.device)}
    seen = capture(model, hook, tokens, **options)
    if seen.shape[:2] != tokens.shape:
        raise ValueError(f"hook: {hook!r} gives {list(seen.shape)}, expected {list(tokens.shape)} and a width")
    return seen.flatten(2)


@torch.no_grad()
def capture(model: Any, hook: str, inputs: Tensor, **options: Any) -> Tensor:
    """What the hook sees, as it is; the forward pass ends there."""
    seen: list[Tensor] = []

    def keep(activation: Tensor, hook: Any) -> None:
        seen.append(activation.detach())
        raise _Captured

    with contextlib.suppress(_Captured):
        model.run_with_hooks(inputs.to(model.cfg.device), return_type=None, fwd_hooks=[(hook, keep)], **options)
    if not seen:
        raise ValueError(f"hook: {hook!r} was not reached in the forward pass")
    return seen[0]


def _plan(
    model: Any,
    hook: str,
    sequences: Tensor,
    real: Tensor | None,
    exclude_bos: bool,
    exclude_tokens: Sequence[int],
    dtype: str,
    shard_rows: int,
) -> dict:
    """Everything about the cache is known before the first forward pass."""
    tokenizer = getattr(model, "tokenizer", None)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "model": str(model.cfg.model_name),
        "model_sha256": model_hash(model),
        "hook": hook,
        "dataset_sha256": hashlib.sha256(sequences.contiguous().numpy().data).hexdigest(),
        "dtype": dtype,
        "width": activations(model, hook, sequences[:1]).shape[2],
        "sequences": sequences.shape[0],
        "context": sequences.shape[1],
        "exclude_bos": exclude_bos,
        "excluded_tokens": sorted(exclude_tokens),
        "text": "bytes" if model.cfg.model_name == TINY_NAME else "vocabulary" if tokenizer is not None else None,
    }
    if real is not None:
        manifest["attention_mask_sha256"] = hashlib.sha256(real.contiguous().numpy().data).hexdigest()
    kept = kept_positions(sequences, manifest, real).sum(1)
    if not int(kept.sum()):
        raise ValueError("sequences: no position is left after excluding BOS and special tokens")
    manifest["shard_sequences"] = max(1, round(shard_rows / sequences.shape[1]))
    manifest["shards"] = [int(part.sum()) for part in kept.split(manifest["shard_sequences"])]
    manifest["rows"] = int(kept.sum())
    return manifest


def start(path: Path, manifest: dict, beside: Callable[[], dict[str, bytes]]) -> None:
    """Begins a cache: the files `beside()` by their names, then the manifest. A folder that holds it already is fine.

    Raises:
        ValueError: the folder holds another harvest.
    """
    path.mkdir(parents=True, exist_ok=True)
    if (path / "manifest.json").exists():
        there = read_manifest(path)
        different = sorted(key for key in manifest | there if there.get(key) != manifest.get(key))
        if different:
            raise ValueError(f"{path}: holds another harvest (different {', '.join(different)}); choose another folder")
        return
    for name, data in beside().items():
        write_atomically(path / name, data)
    write_atomically(path / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())


def _beside(manifest: dict, model: Any, sequences: Tensor, real: Tensor | None) -> dict[str, bytes]:
    files = {}
    if manifest["text"] == "vocabulary":
        words = {str(token): model.tokenizer.decode([token]) for token in sequences.unique().tolist()}
        files["vocabulary.json"] = json.dumps(words).encode()
    tensors = {"tokens": sequences.to(torch.int32).contiguous()}
    if real is not None:
        tensors["attention_mask"] = real.to(torch.uint8).contiguous()
    files["tokens.safetensors"] = save(tensors)
    return files


def _finished(path: Path, manifest: dict, index: int) -> bool:
    if not (path / shard_name(index)).exists():
        return False
    try:
        open_shard(path, manifest, index)
    except ValueError as error:
        log.warning("%s; harvesting it again", error)
        return False
    return True


def _check_space(path: Path, manifest: dict, missing: list[int]) -> None:
    needed = sum(manifest["shards"][i] for i in missing) * manifest["width"] * DTYPES[manifest["dtype"]].itemsize
    free = shutil.disk_usage(path).free
    if needed > free:
        raise OSError(
            f"{path}: {needed / 2**20:.0f} MiB are needed for {len(missing)} shards, {free / 2**20:.0f} are free"
        )


def model_hash(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
