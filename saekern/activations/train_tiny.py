"""Trains the language model that ships with the package: `python -m saekern.activations.train_tiny`.

A byte-level transformer on the standard library's source files, in the layout of TransformerLens' native model, so that
`saekern.activations.tiny_model()` can load its weights. Killed at any moment, it continues from its last checkpoint.
Constant learning rate, then a linear decay over the last part: while the decay has not begun, a run continued with
another --steps is the same run as one started with it.
"""

import argparse
import json
import logging
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from saekern.activations.ngram import ngram_bits_per_byte
from saekern.activations.python_source import BOS, files_hash, python_source_files, python_source_sequences

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TinyConfig:
    """Field names are TransformerLens' own."""

    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_head: int = 32
    d_mlp: int = 512
    n_ctx: int = 128
    d_vocab: int = 256
    act_fn: str = "gelu_new"
    normalization_type: str = "LN"
    positional_embedding_type: str = "standard"
    eps: float = 1e-5


class Attention(nn.Module):
    def __init__(self, config: TinyConfig):
        super().__init__()
        self.heads = config.n_heads
        width = config.n_heads * config.d_head
        self.q = nn.Linear(config.d_model, width)
        self.k = nn.Linear(config.d_model, width)
        self.v = nn.Linear(config.d_model, width)
        self.o = nn.Linear(width, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))  # [B,H,T,d]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: TinyConfig):
        super().__init__()
        self.fc_in = nn.Linear(config.d_model, config.d_mlp)
        self.fc_out = nn.Linear(config.d_mlp, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(F.gelu(self.fc_in(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: TinyConfig):
        super().__init__()
        self.ln1 = nn.LayerNorm(config.d_model, eps=config.eps)
        self.attn = Attention(config)
        self.ln2 = nn.LayerNorm(config.d_model, eps=config.eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class TinyTransformer(nn.Module):
    """Same parameters under the same names, and the same function, as TransformerLens' native model."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        self.tok_embed = nn.Embedding(config.d_vocab, config.d_model)
        self.pos = nn.Embedding(config.n_ctx, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_out = nn.LayerNorm(config.d_model, eps=config.eps)
        self.head = nn.Linear(config.d_model, config.d_vocab, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("attn.o.weight", "mlp.fc_out.weight"))
                std = 0.02 if name.startswith(("tok_embed", "pos")) else 0.8 / math.sqrt(parameter.shape[1])
                nn.init.normal_(parameter, std=std / math.sqrt(2 * config.n_layers) if residual else std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embed(tokens) + self.pos.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.ln_out(x))  # [B, T, d_vocab]


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


class Windows:
    """Random windows: BOS and n_ctx consecutive bytes of one file (the model reads n_ctx tokens, predicts n_ctx)."""

    def __init__(self, files: list[bytes], width: int):
        self.data = torch.from_numpy(np.frombuffer(b"".join(files), np.uint8).copy())
        ends = np.cumsum([len(data) for data in files])
        starts = [
            np.arange(end - len(data), end - width + 1, dtype=np.int32) for end, data in zip(ends, files, strict=True)
        ]
        self.starts = torch.from_numpy(np.concatenate(starts))
        self.width = width

    def batch(self, size: int, seed: int, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        start = self.starts[torch.randint(len(self.starts), (size,), generator=generator)].long()
        tokens = self.data[start[:, None] + torch.arange(self.width)].long()
        return F.pad(tokens, (1, 0), value=BOS)  # [size, width + 1]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps, constant, then linear to 0 over the last quarter."""
    decay = 0.25 * steps
    return peak * min((step + 1) / 200, (steps - step) / decay, 1.0)


def heldout_bits(model: TinyTransformer, windows: int | None = None) -> float:
    """Bits per byte on non-overlapping windows of the held-out files (all of them for None); each window starts afresh
    after BOS."""
    width = model.pos.num_embeddings
    if windows is None:
        windows = sum(len(data) // width for _, data in python_source_files("heldout"))
    tokens = python_source_sequences("heldout", width + 1, windows, seed=0)
    with torch.no_grad():
        losses = [float(loss_of(model, part)) * len(part) for part in tokens.split(64)]
    return sum(losses) / len(tokens) / math.log(2)


def train(out: Path, steps: int, batch: int, peak: float, seed: int, checkpoint_every: int) -> None:
    torch.manual_seed(seed)
    config = TinyConfig()
    model = TinyTransformer(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    files = python_source_files("train")
    windows = Windows([data for _, data in files], config.n_ctx)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, first, seconds = out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
        log.info("continuing at step %d", first)
    began = time.monotonic() - seconds
    recent = []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = loss_of(model, windows.batch(batch, seed, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item() / math.log(2))
        if (step + 1) % 100 == 0:
            log.info(
                "step %d  bits per byte %.3f  %.0f s", step + 1, sum(recent) / len(recent), time.monotonic() - began
            )
            recent.clear()
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state | {"seconds": time.monotonic() - began}, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
            log.info("held-out bits per byte %.4f", heldout_bits(model, windows=1000))
    recipe = {
        "steps": steps,
        "batch": batch,
        "peak_learning_rate": peak,
        "seed": seed,
        "bytes_seen": steps * batch * config.n_ctx,
    }
    recipe["seconds"] = round(time.monotonic() - began)
    freeze(out, recipe)


def freeze(out: Path, recipe: dict) -> None:
    """Writes the weights of the last checkpoint and the record that goes with them."""
    train_files, heldout = python_source_files("train"), python_source_files("heldout")
    model = TinyTransformer(TinyConfig())
    model.load_state_dict(torch.load(out / "checkpoint.pt", weights_only=True)["model"])
    (out / "model.safetensors").write_bytes(save({name: t.contiguous() for name, t in model.state_dict().items()}))
    model.load_state_dict(load_file(out / "model.safetensors"))
    record = {
        "format": "saekern-tiny-model",
        "version": 1,
        "config": asdict(TinyConfig()),
        "heldout_bits_per_byte": round(heldout_bits(model), 4),
        "heldout_bits_per_byte_4gram": round(
            ngram_bits_per_byte([data for _, data in train_files], [data for _, data in heldout], order=4), 4
        ),
        "recipe": recipe,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "train": {
            "files": len(train_files),
            "bytes": sum(len(d) for _, d in train_files),
            "sha256": files_hash(train_files),
        },
        "heldout": {"files": len(heldout), "bytes": sum(len(d) for _, d in heldout), "sha256": files_hash(heldout)},
    }
    (out / "model.json").write_text(json.dumps(record, indent=1) + "\n")
    log.info("%s", json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tiny"), help="folder for checkpoint, weights and record")
    parser.add_argument("--steps", type=int, default=2680)
    parser.add_argument("--batch", type=int, default=32, help="windows a step, of 128 bytes each")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpoint-every", type=int, default=500)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    train(args.out, args.steps, args.batch, args.lr, args.seed, args.checkpoint_every)


if __name__ == "__main__":
    main()
