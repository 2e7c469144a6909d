"""The training loop. It knows an SAE by its `loss` and the two projections, never by its architecture."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from saekern import ops
from saekern.activations import Rows
from saekern.sae import SAE, Loss
from saekern.training.checkpoint import Folder, Position
from saekern.training.config import TrainConfig
from saekern.training.loggers import open_logger
from saekern.training.optimizer import Adam
from saekern.training.shuffle import Shuffle


class TrainResult(NamedTuple):
    """A finished run."""

    sae: SAE  # the trained module, the one passed in
    log: list[dict[str, Any]]  # one entry a logged step
    path: Path | None  # the run's folder


def train(
    sae: SAE,
    rows: Rows,
    config: TrainConfig,
    *,
    out: str | os.PathLike | None = None,
    progress: bool = True,
    logger: Any = None,
    label: str = "train",
) -> TrainResult:
    """Trains `sae` in place on shuffled rows with Adam, linear warm-up and decay.

    With `out`, the run is a folder (see `saekern.training.checkpoint`): config.json, sae.safetensors,
    state.safetensors, train.jsonl, snapshots/. Calling again with the same arguments after a kill at any moment
    continues from the last checkpoint, and ends with the same bytes as an uninterrupted run on the same machine; a
    finished run is only read.

    Args:
        sae: float32 or float64 parameters, initialised (b_dec is set from the rows, see `config.pre_bias_rows`).
        rows: n rows of width sae.d_in.
        progress: a progress bar with loss, EV, L0 and the number of dead latents.
        logger: "wandb", "tensorboard", or a wandb run or SummaryWriter (see `saekern.training.loggers`).
        label: name on the progress bar.

    Raises:
        ValueError: rows of another width, half-precision parameters, or a folder that holds another run.
        FloatingPointError: a loss that is not finite; the parameters and the last checkpoint are those before it.
        OSError: the folder cannot be written or the disk is full; the last checkpoint is intact.
    """
    _check(sae, rows)
    device = sae.b_dec.device
    position = Position(
        sae, Adam(sae, config.betas, config.eps), torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    )
    data = {"count": len(rows), "width": rows.width, "fingerprint": getattr(rows, "fingerprint", None)}
    folder = None if out is None else Folder(out, sae, config, data)
    sink = open_logger(logger, out)
    log: list[dict[str, Any]] = []
    with torch.random.fork_rng(devices=[]):  # an SAE that draws random numbers resumes exactly, the caller's stay
        torch.manual_seed(config.data_seed)
        try:
            if folder is not None and folder.resume(position):
                log = folder.read_log()
            else:
                _start(position, rows, config, folder)
            with ops.torch_on_one_thread():
                _run(position, rows, config, folder, sink, log, progress, label)
        finally:
            if folder is not None:
                folder.close()
            ops.release_memory()
    return TrainResult(sae, log, None if folder is None else folder.path)


def _check(sae: SAE, rows: Rows) -> None:
    if rows.width != sae.d_in:
        raise ValueError(f"rows: expected width {sae.d_in} like the SAE's d_in, got {rows.width}")
    if len(rows) == 0:
        raise ValueError("rows: expected at least one row, got 0")
    for name, parameter in sae.named_parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name}: expected float32 or float64 parameters, got {parameter.dtype}; bf16=True trains float32 "
                "parameters with bfloat16 products"
            )


def _start(position: Position, rows: Rows, config: TrainConfig, folder: Folder | None) -> None:
    sample = min(config.pre_bias_rows, len(rows))
    if sample:
        spaced = torch.arange(sample) * len(rows) // sample  # of the rows alone: no seed moves the initial state
        position.sae.init_pre_bias_(rows.take(spaced))
    if folder is not None and 0 in config.snapshots:
        folder.snapshot(position)


def _run(
    position: Position,
    rows: Rows,
    config: TrainConfig,
    folder: Folder | None,
    sink: Any,
    log: list[dict[str, Any]],
    progress: bool,
    label: str,
) -> None:
    sae, size = position.sae, config.batch_size
    order = Shuffle(len(rows), config.data_seed)
    done = position.step * size
    bar = tqdm(
        total=config.steps * size,
        initial=done,
        desc=label,
        unit="row",
        unit_scale=True,
        mininterval=0.5,
        disable=not progress,
    )
    with bar:
        while position.step < config.steps:
            batch = rows.take(order.take(position.step * size, size)).to(sae.b_dec)
            lr = config.lr_at(position.step + 1, sae.d_sae)
            loss, dead, norm = _step(position, batch, config, lr, folder)
            step = position.step
            last = step == config.steps
            if last or step == 1 or step % config.log_every == 0:
                line = _line(step, step * size, lr, loss, batch, dead, norm)
                log.append(line)
                bar.set_postfix({name: f"{line[name]:.4g}" for name in ("loss", "ev", "l0", "dead")}, refresh=False)
                if folder is not None:
                    folder.write_line(line)
                if sink is not None:
                    sink({name: value for name, value in line.items() if name != "step"}, step)
            if folder is not None and step in config.snapshots:
                folder.snapshot(position)
            if folder is not None and (last or step % config.checkpoint_every == 0):
                folder.save(position)
            bar.update(size)


def _step(
    position: Position, batch: Tensor, config: TrainConfig, lr: float, folder: Folder | None
) -> tuple[Loss, Tensor, float | None]:
    """One optimiser step: the loss, the latents that were dead before it, and the gradient's norm if it was clipped."""
    sae, optimizer = position.sae, position.optimizer
    seen = position.step * config.batch_size
    dead = seen - position.last_fired >= config.dead_rows
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=config.bf16):
        loss = sae.loss(batch, dead if dead.any() else None)
    if not torch.isfinite(loss.total):
        raise FloatingPointError(_explain(loss, batch, position.step + 1, folder))
    loss.total.backward()
    norm = None if config.clip is None else optimizer.clip(config.clip)
    sae.project_gradient_(fused=True)
    optimizer.step(lr)
    sae.project_parameters_(fused=True)
    optimizer.zero_grad()
    fired_at = torch.where(loss.codes.values > 0, seen + config.batch_size, 0).reshape(-1)
    position.last_fired.scatter_reduce_(0, loss.codes.indices.reshape(-1), fired_at, "amax")
    position.step += 1
    return loss, dead, norm


@torch.no_grad()
def _line(
    step: int, seen: int, lr: float, loss: Loss, batch: Tensor, dead: Tensor, norm: float | None
) -> dict[str, Any]:
    line = {"step": step, "rows": seen, "lr": lr, "loss": loss.total.item()}
    line |= {name: term.item() for name, term in loss.terms.items()}
    line["ev"] = 1 - ops.unexplained_variance(batch, loss.x_hat).item()
    line["l0"] = int((loss.codes.values > 0).sum()) / batch.shape[0]
    line["dead"] = int(dead.sum())
    if norm is not None:
        line["grad_norm"] = norm
    return line


def _explain(loss: Loss, batch: Tensor, step: int, folder: Folder | None) -> str:
    terms = ", ".join(f"{name} {term.item():g}" for name, term in loss.terms.items())
    rows = int((~torch.isfinite(batch)).any(1).sum())
    cause = f"{rows} of {batch.shape[0]} rows are not finite" if rows else "the rows are finite: try a smaller lr"
    kept = "" if folder is None else f"; the last checkpoint in {folder.path} is intact"
    return f"step {step}: the loss is {loss.total.item():g} ({terms}); {cause}{kept}"
