"""The settings of a training run, and how configs are read from JSON."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of `saekern.train`. Lengths are in rows of activations or in optimiser steps, as each field says."""

    rows: int = 10_000_000
    """Rows to train on, repeats included; rounded down to whole batches."""

    batch_size: int = 4096
    """Rows a step."""

    lr: float | None = None
    """Peak learning rate; None is 2e-4 · √(16384 / d_sae), the 1/√F rule of Gao et al. 2024."""

    warmup: float = 0.02
    """Fraction of the steps over which the learning rate rises from 0, linearly."""

    decay: float = 0.2
    """Fraction of the steps, the last ones, over which it falls to 0, linearly."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""

    eps: float = 6.25e-10
    """Adam's ε; the value of Gao et al. 2024."""

    clip: float | None = None
    """Largest norm of the whole gradient; None leaves it alone."""

    bf16: bool = False
    """Autocast the products to bfloat16; parameters, moments and losses stay float32."""

    dead_after: int | None = None
    """Rows without firing after which a latent counts as dead; None is 10 million or a tenth of `rows`, the smaller."""

    data_seed: int = 0
    """Order of the rows. Independent of the SAE's init_seed."""

    pre_bias_rows: int = 32_768
    """Rows, evenly spaced, whose geometric median starts b_dec; 0 leaves b_dec as it is."""

    log_every: int = 100
    """Steps between lines of the log; the first and the last step are always there."""

    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step is always one."""

    snapshots: tuple[int, ...] = ()
    """Steps after which the parameters are kept for good; 0 is the initial state."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every", "checkpoint_every"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(self.rows >= self.batch_size, "rows", f"at least batch_size = {self.batch_size}", self.rows)
        _require(self.lr is None or self.lr > 0, "lr", "a positive number or null", self.lr)
        _require(0 <= self.warmup <= 1, "warmup", "a fraction in [0, 1]", self.warmup)
        _require(
            0 <= self.decay <= 1 - self.warmup,
            "decay",
            f"a fraction in [0, 1 - warmup = {1 - self.warmup:g}]",
            self.decay,
        )
        _require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas", "two numbers in [0, 1)", self.betas
        )
        _require(self.eps > 0, "eps", "a positive number", self.eps)
        _require(self.clip is None or self.clip > 0, "clip", "a positive number or null", self.clip)
        _require(self.dead_after is None or self.dead_after > 0, "dead_after", "at least 1 or null", self.dead_after)
        _require(0 <= self.data_seed < 2**63, "data_seed", "an integer in [0, 2^63)", self.data_seed)
        _require(self.pre_bias_rows >= 0, "pre_bias_rows", "at least 0", self.pre_bias_rows)
        inside = all(0 <= step <= self.steps for step in self.snapshots)
        _require(inside, "snapshots", f"steps in [0, {self.steps}]", self.snapshots)

    @property
    def steps(self) -> int:
        """Optimiser steps in the run."""
        return self.rows // self.batch_size

    @property
    def dead_rows(self) -> int:
        """`dead_after` with its default resolved."""
        return self.dead_after if self.dead_after is not None else max(1, min(10_000_000, self.rows // 10))

    def lr_at(self, step: int, d_sae: int) -> float:
        """The learning rate of step 1 … steps: up over `warmup`, flat, down over `decay`, 0 one step after the end."""
        peak = self.lr if self.lr is not None else 2e-4 * (16384 / d_sae) ** 0.5
        rise = step / max(1.0, self.warmup * self.steps)
        fall = (self.steps + 1 - step) / max(1.0, self.decay * self.steps)
        return peak * min(1.0, rise, fall)


def _require(holds: bool, name: str, expected: str, got: Any) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def parse_config(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """A config dataclass from JSON values: unknown keys are refused with the nearest valid one, types are checked,
    lists become tuples, nested dataclasses are read the same way.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or what the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__}: expected a JSON object, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(names)}"
            raise ValueError(f"{cls.__name__}: unknown key {key!r}; {hint}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        missing = dataclasses.MISSING
        if field.name not in values and field.default is missing and field.default_factory is missing:
            raise ValueError(f"{cls.__name__}: expected {field.name!r}, got none")
    return cls(**{key: _convert(f"{cls.__name__}.{key}", value, hints[key]) for key, value in values.items()})


def _convert(name: str, value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [argument for argument in arguments if argument is not type(None)]
        if len(choices) == 1:
            return _convert(name, value, choices[0])
    elif origin is tuple and isinstance(value, (list, tuple)):
        items = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
        if len(items) == len(value):
            return tuple(_convert(f"{name}[{i}]", v, h) for i, (v, h) in enumerate(zip(value, items, strict=True)))
    elif origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    elif dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return parse_config(hint, value)  # type: ignore[arg-type]
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    expected = getattr(hint, "__name__", None) if origin is None else str(hint)
    raise ValueError(f"{name}: expected {expected}, got {value!r}")
