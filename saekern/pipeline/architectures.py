"""From the settings of an SAE to the module."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from saekern.activations import Rows
from saekern.sae import SAE
from saekern.sae.files import ARCHITECTURES

if TYPE_CHECKING:
    from saekern.pipeline.config import SAEConfig

# What SAEConfig has a field of its own for, or the caller gives.
FIELDS = ("d_in", "d_sae", "k", "k_aux", "aux_coefficient", "init_seed", "dtype", "device")


def make_sae(config: "SAEConfig", rows: Rows, init_seed: int, device: torch.device | str) -> SAE:
    """The SAE of `config` for rows of their width.

    Raises:
        ValueError: what the architecture refuses.
    """
    accepted = _arguments(config.arch)
    given = {"k": config.k, "k_aux": config.k_aux, "aux_coefficient": config.aux_coefficient}
    arguments = {name: value for name, value in given.items() if name in accepted} | config.options
    cls = ARCHITECTURES[config.arch]
    return cls(rows.width, config.d_sae, **arguments, init_seed=init_seed, device=device)


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
    for name in options:
        if name in FIELDS:
            raise ValueError(f"sae.options: {name} has a setting of its own, not in options")
        if name not in known:
            expected = f"expected {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"sae.options: {arch} has no {name!r}; {expected}")


def _arguments(arch: str) -> list[str]:
    return [name for name in inspect.signature(ARCHITECTURES[arch].__init__).parameters if name != "self"]
