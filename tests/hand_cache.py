"""A cache and an SAE small enough to know every code by hand."""

import json
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from saekern.activations import open_cache
from saekern.activations.cache import FORMAT, VERSION, kept_positions


class DirectSAE:
    """A row is its own dense code: x [B, F] -> z = x, F = D. Latents with a zero code are left out of the codes."""

    architecture = "direct"

    def __init__(self, width):
        self.dictionary = torch.eye(width)
        self.W_enc = torch.eye(width)
        self.encoded = 0  # rows so far

    def encode_sparse(self, x):
        self.encoded += len(x)
        row, indices = x.nonzero(as_tuple=True)
        offsets = torch.zeros(len(x) + 1, dtype=torch.int64)
        offsets[1:] = torch.bincount(row, minlength=len(x)).cumsum(0)
        return SimpleNamespace(values=x[row, indices], indices=indices, offsets=offsets)


def write_cache(folder, tokens, rows, *, text="bytes", exclude_bos=True, excluded=(), vocabulary=None, hook="layer.0"):
    """`rows` [kept positions, D] in one shard; `tokens` int64 [sequences, context], or None."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "model": "hand",
        "hook": hook,
        "dtype": "float32",
        "width": rows.shape[1],
        "exclude_bos": exclude_bos,
        "excluded_tokens": list(excluded),
        "text": text,
        "shards": [len(rows)],
        "rows": len(rows),
    }
    if tokens is not None:
        manifest |= {"sequences": tokens.shape[0], "context": tokens.shape[1]}
        assert int(kept_positions(tokens, manifest).sum()) == len(rows)
        save_file({"tokens": tokens.to(torch.int32)}, folder / "tokens.safetensors")
    if vocabulary is not None:
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary))
    save_file({"rows": rows.contiguous()}, folder / "shard-00000.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_cache(folder)


def sentences(*lines):
    """int64 [lines, 1 + longest]: BOS (0) and the bytes of each line, which are all of one length."""
    return torch.tensor([[0, *line.encode()] for line in lines])
