"""The training loop. It knows an SAE by its `loss` and the two projections, never by its architecture."""

import os
from contextlib import closing, nullcontext
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
from saekern.training.feed import batches
from saekern.training.loggers import open_logger
from saekern.training.optimizer import Adam
from saekern.training.shuffle import Shuffle
from saekern.training.watch import Watch


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
    snapshot_dtype: torch.dtype | None = None,
) -> TrainResult:
    """Trains `sae` in place on shuffled rows with Adam, linear warm-up and decay.

    With `out`, the run is a folder (see `saekern.training.checkpoint`): config.json, sae.safetensors,
    state.safetensors, train.jsonl, snapshots/. Calling again with the same arguments after a kill at any moment
    continues from the last checkpoint, and ends with the same bytes as an uninterrupted run on the same machine; a
    finished run is only read.

    On a GPU the rows are read one batch ahead, through pinned memory, and the host does not wait for the device between
    log lines: a loss that is not finite is noticed at the next line, snapshot or checkpoint, before it is written.

    Args:
        sae: float32 or float64 parameters on one device, where the run then computes; initialised (b_dec is set from
            the rows, see `config.pre_bias_rows`).
        rows: n rows of width sae.d_in.
        progress: a progress bar with loss, EV, L0 and the number of dead latents.
        logger: "wandb", "tensorboard", or a wandb run or SummaryWriter (see `saekern.training.loggers`).
        label: name on the progress bar.
        snapshot_dtype: the dtype of the snapshots' numbers, such as torch.float16 for half the space; None keeps the
            parameters'. Checkpoints are always whole.

    Raises:
        ValueError: rows of another width, half-precision parameters, parameters on several devices, or a folder that
            holds another run or one of another kind of device.
        FloatingPointError: a loss that is not finite; the last checkpoint is from before it, on a CPU the parameters
            as well.
        OSError: the folder cannot be written or the disk is full; the last checkpoint is intact.
    """
    run = Run(sae, rows, config, out=out, logger=logger, snapshot_dtype=snapshot_dtype)
    device = run.position.device
    # An SAE that draws random numbers resumes exactly, the caller's stay.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.data_seed)
        try:
            run.begin()
            with ops.torch_on_one_thread() if device.type == "cpu" else nullcontext():
                _follow(run, progress, label)
        finally:
            run.close()
            ops.release_memory()
    return run.result()


class Run:
    """One SAE on its way: all of `train` but for where batches come from. `train_bank` has several."""

    def __init__(
        self,
        sae: SAE,
        rows: Rows,
        config: TrainConfig,
        *,
        out: str | os.PathLike | None = None,
        logger: Any = None,
        snapshot_dtype: torch.dtype | None = None,
    ) -> None:
        _check(sae, rows)
        sae.provenance |= getattr(rows, "provenance", {})  # the model and the hook of a cache
        device = sae.b_dec.device
        last_fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
        data = {"count": len(rows), "width": rows.width, "fingerprint": getattr(rows, "fingerprint", None)}
        self.rows, self.config = rows, config
        self.position = Position(sae, Adam(sae, config.betas, config.eps), last_fired, Watch(device))
        self.folder = None if out is None else Folder(out, sae, config, data, snapshot_dtype)
        self.sink = open_logger(logger, out)
        self.log: list[dict[str, Any]] = []

    def begin(self, like: "Run | None" = None) -> None:
        """From the folder's checkpoint, or from the start. The random state is the caller's to keep.

        `like` is a run with the same rows and settings that has not moved yet: its b_dec is taken over where
        `init_pre_bias_` would find the same again, in 0.14 s at D = 128."""
        if self.folder is not None and self.folder.resume(self.position):
            self.log = self.folder.read_log()
        else:
            _start(self.position, self.rows, self.config, self.folder, None if like is None else like.position.sae)

    def advance(self, batch: Tensor) -> dict[str, Any] | None:
        """One step with all that is due after it: log, snapshot, checkpoint. The line of the log if there is one."""
        position, config, folder = self.position, self.config, self.folder
        lr = config.lr_at(position.step + 1, position.sae.d_sae)
        loss, dead, norm = _step(position, batch, config, lr, folder)
        step, line = position.step, None
        last = step == config.steps
        logs = last or step == 1 or step % config.log_every == 0
        snaps, saves = step in config.snapshots, last or step % config.checkpoint_every == 0
        if logs or (folder is not None and (snaps or saves)):
            _require_finite(position, loss, batch, folder)
        if logs:
            line = _line(step, step * config.batch_size, lr, loss, batch, dead, norm)
            self.log.append(line)
            if folder is not None:
                folder.write_line(line)
            if self.sink is not None:
                self.sink({name: value for name, value in line.items() if name != "step"}, step)
        if folder is not None and snaps:
            folder.snapshot(position)
        if folder is not None and saves:
            folder.save(position)
        return line

    def close(self) -> None:
        if self.folder is not None:
            self.folder.close()

    def result(self) -> TrainResult:
        return TrainResult(self.position.sae, self.log, None if self.folder is None else self.folder.path)


def _check(sae: SAE, rows: Rows) -> None:
    if rows.width != sae.d_in:
        raise ValueError(f"rows: expected width {sae.d_in} like the SAE's d_in, got {rows.width}")
    if len(rows) == 0:
        raise ValueError("rows: expected at least one row, got 0")
    for name, parameter in sae.named_parameters():
        if parameter.device != sae.b_dec.device:
            raise ValueError(f"{name}: expected device {sae.b_dec.device} like b_dec, got {parameter.device}")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name}: expected float32 or float64 parameters, got {parameter.dtype}; bf16=True trains float32 "
                "parameters with bfloat16 products"
            )


def _start(position: Position, rows: Rows, config: TrainConfig, folder: Folder | None, like: SAE | None) -> None:
    sample = min(config.pre_bias_rows, len(rows))
    if sample and like is not None and all(type(s).init_pre_bias_ is SAE.init_pre_bias_ for s in (position.sae, like)):
        position.sae.b_dec.detach().copy_(like.b_dec)
    elif sample:
        spaced = torch.arange(sample) * len(rows) // sample  # of the rows alone: no seed moves the initial state
        position.sae.init_pre_bias_(rows.take(spaced))
    if folder is not None and 0 in config.snapshots:
        folder.snapshot(position)


def _follow(run: Run, progress: bool, label: str) -> None:
    config, rows, first = run.config, run.rows, run.position.step
    size = config.batch_size
    order = Shuffle(len(rows), config.data_seed)
    like = run.position.sae.b_dec
    feed = batches(lambda step: rows.take(order.take(step * size, size)), range(first, config.steps), like)
    with bar(config, first, label, progress) as shown, closing(feed):
        for batch in feed:
            if (line := run.advance(batch)) is not None:
                shown.set_postfix({name: f"{line[name]:.4g}" for name in ("loss", "ev", "l0", "dead")}, refresh=False)
            shown.update(size)


def bar(config: TrainConfig, done: int, label: str, progress: bool) -> tqdm:
    """The progress bar of rows, `done` steps in."""
    return tqdm(
        total=config.steps * config.batch_size,
        initial=done * config.batch_size,
        desc=label,
        unit="row",
        unit_scale=True,
        mininterval=0.5,
        disable=not progress,
    )


def _step(
    position: Position, batch: Tensor, config: TrainConfig, lr: float, folder: Folder | None
) -> tuple[Loss, Tensor, Tensor | None]:
    """One optimiser step: the loss, the latents that were dead before it, and the gradient's norm if it was clipped."""
    sae, optimizer = position.sae, position.optimizer
    seen = position.step * config.batch_size
    dead = seen - position.last_fired >= config.dead_rows
    watched = position.watch.dead(dead, position.last_fired, position.step, config.batch_size, config.dead_rows)
    with optimizer.half_weights(config.bf16):
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=config.bf16):
            loss = sae.loss(batch, watched)
        if not position.watch.loss(loss.total, position.step + 1):
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
    step: int, seen: int, lr: float, loss: Loss, batch: Tensor, dead: Tensor, norm: Tensor | None
) -> dict[str, Any]:
    line = {"step": step, "rows": seen, "lr": lr, "loss": loss.total.item()}
    line |= {name: term.item() for name, term in loss.terms.items()}
    line["ev"] = 1 - ops.unexplained_variance(batch, loss.x_hat).item()
    line["l0"] = int((loss.codes.values > 0).sum()) / batch.shape[0]
    line["dead"] = int(dead.sum())
    if norm is not None:
        line["grad_norm"] = float(norm)
    return line


def _require_finite(position: Position, loss: Loss, batch: Tensor, folder: Folder | None) -> None:
    """On a GPU, where `_step` did not ask. The rows of a step before this one are gone."""
    bad = position.watch.bad_step()
    if bad == position.step:
        raise FloatingPointError(_explain(loss, batch, bad, folder))
    if bad:
        raise FloatingPointError(f"step {bad}: the loss is not finite (noticed at step {position.step}){_kept(folder)}")


def _explain(loss: Loss, batch: Tensor, step: int, folder: Folder | None) -> str:
    terms = ", ".join(f"{name} {term.item():g}" for name, term in loss.terms.items())
    rows = int((~torch.isfinite(batch)).any(1).sum())
    cause = f"{rows} of {batch.shape[0]} rows are not finite" if rows else "the rows are finite: try a smaller lr"
    return f"step {step}: the loss is {loss.total.item():g} ({terms}); {cause}{_kept(folder)}"


def _kept(folder: Folder | None) -> str:
    return "" if folder is None else f"; the last checkpoint in {folder.path} is intact"
