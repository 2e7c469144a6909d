"""Metrics to wandb or tensorboard, imported only when asked for."""

import os
from collections.abc import Callable, Mapping
from typing import Any

Sink = Callable[[Mapping[str, float], int], None]


def open_logger(logger: Any, folder: str | os.PathLike | None) -> Sink | None:
    """A function (metrics, step) for "wandb", "tensorboard", an object with `log(metrics, step=…)` such as a wandb run,
    or one with `add_scalar(name, value, step)` such as a SummaryWriter; None for None.

    Raises:
        ImportError: the named package is missing.
        TypeError: anything else.
    """
    if logger is None:
        return None
    if logger == "wandb":
        try:
            import wandb
        except ImportError as error:
            raise ImportError('logger "wandb" needs the package wandb: pip install wandb') from error
        logger = wandb.run or wandb.init(project="saekern", dir=folder)
    elif logger == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError('logger "tensorboard" needs the package tensorboard: pip install tensorboard') from error
        logger = SummaryWriter(folder)
    if callable(getattr(logger, "log", None)):
        return lambda metrics, step: logger.log(dict(metrics), step=step)
    if callable(getattr(logger, "add_scalar", None)):

        def add_scalars(metrics: Mapping[str, float], step: int) -> None:
            for name, value in metrics.items():
                logger.add_scalar(name, value, step)

        return add_scalars
    raise TypeError(
        'logger: expected "wandb", "tensorboard" or an object with log(metrics, step=…) or '
        f"add_scalar(name, value, step), got {logger!r}"
    )
