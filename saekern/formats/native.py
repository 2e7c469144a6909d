"""Our own files: `config.json` with format "saekern", and `sae.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saekern.formats.checkpoint import Checkpoint
from saekern.formats.source import read_object
from saekern.sae import SAE, files

NAME = "saekern"
OPTIONS: dict[str, str] = {}


def detect(path: Path) -> str | None:
    """Why the path looks like this format, or None."""
    config = path / files.CONFIG
    if config.is_file() and read_object(config).get("format") == files.FORMAT:
        return f'{files.CONFIG} with format "{files.FORMAT}"'
    return None


def read(path: Path, options: Mapping[str, Any], fold: bool) -> Checkpoint:
    sae = files.load(path)
    notes = ("Our own format: nothing changes.",)
    return Checkpoint(NAME, sae.architecture, sae.config(), sae.state_dict(), {}, sae.provenance, notes)


def write(sae: SAE, path: Path, options: Mapping[str, Any], fold: bool) -> None:
    files.save(sae, path)
