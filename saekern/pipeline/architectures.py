"""From the settings of an SAE to the module."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekern.activations import Rows
from saekern.sae import SAE, archetypal_points
from saekern.sae.files import ARCHITECTURES
from saekern.sae.geometric_median import geometric_median

if TYPE_CHECKING:
    from saekern.pipeline.config import SAEConfig

# What SAEConfig has a field of its own for, or the caller gives.
FIELDS = ("d_in", "d_sae", "k", "k_aux", "aux_coefficient", "init_seed", "dtype", "device")
OVER_A_BASE = ("archetypal", "normalized")
SAMPLE = 32_768  # rows, evenly spaced, from which the points of archetypes are made


def make_sae(
    config: "SAEConfig", rows: Rows, init_seed: int, device: torch.device | str, *, centred: bool = True
) -> SAE:
    """The SAE of `config` for rows of their width.

    Args:
        centred: whether b_dec will start at the rows' median, which the points of archetypes are then taken from.

    Raises:
        ValueError: what the architecture refuses.
    """
    options: dict[str, Any] = dict(config.options)
    if config.arch == "archetypal":
        options["points"] = _points(options, rows, init_seed, centred)
    if config.arch in OVER_A_BASE:
        base = options.get("base", "topk")
        options["base_args"] = {**_given(config, base), **options.get("base_args", {})}
    cls = ARCHITECTURES[config.arch]
    arguments = {**_given(config, config.arch), **options}
    return cls(rows.width, config.d_sae, **arguments, init_seed=init_seed, device=device)


def _given(config: "SAEConfig", arch: str) -> dict[str, Any]:
    given = {"k": config.k, "k_aux": config.k_aux, "aux_coefficient": config.aux_coefficient}
    return {name: value for name, value in given.items() if name in _arguments(arch)}


def _points(options: dict[str, Any], rows: Rows, init_seed: int, centred: bool) -> Tensor:
    """Takes `how` and `points_seed` out of the options. Without the latter each seed has its own points."""
    how, seed = options.pop("how", "kmeans"), options.pop("points_seed", init_seed)
    count = min(SAMPLE, len(rows))
    sample = rows.take(torch.arange(count) * len(rows) // count).to(torch.float32)
    if centred:
        sample = sample - geometric_median(sample).to(torch.float32)
    return archetypal_points(sample, options["points"], how, seed=seed)


def describe(config: "SAEConfig") -> str:
    """For the report's header."""
    parts = [ARCHITECTURES[config.arch].__name__.removesuffix("SAE"), f"F = {config.d_sae:,} latents"]
    if "k" in _arguments(config.arch):
        parts.append(f"K = {config.k} active")
    return ", ".join(parts + [f"{name} = {value}" for name, value in config.options.items()])


def check_options(arch: str, options: Mapping[str, Any]) -> None:
    if arch not in ARCHITECTURES:
        raise ValueError(f"sae.arch: expected one of {', '.join(sorted(ARCHITECTURES))}, got {arch!r}")
    known = [name for name in _arguments(arch) if name not in FIELDS]
    if arch == "archetypal":
        known += ["how", "points_seed"]
        for name, least in (("points", 1), ("points_seed", 0)):
            value = options.get(name, 0)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"sae.options: {name}: expected an integer of at least {least}, got {value!r}")
    if arch in OVER_A_BASE:
        if options.get("base", "topk") not in ARCHITECTURES:
            raise ValueError(f"sae.options: base: expected an architecture, got {options['base']!r}")
        if not isinstance(options.get("base_args", {}), Mapping):
            raise ValueError(f"sae.options: base_args: expected a JSON object, got {options['base_args']!r}")
    for name in options:
        if name in FIELDS:
            raise ValueError(f"sae.options: {name} has a setting of its own, not in options")
        if name not in known:
            expected = f"expected {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"sae.options: {arch} has no {name!r}; {expected}")


def _arguments(arch: str) -> list[str]:
    return [name for name in inspect.signature(ARCHITECTURES[arch].__init__).parameters if name != "self"]
