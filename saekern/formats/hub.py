"""Where a path or the name of a Hugging Face repository lies on this machine."""

import os
import re
from pathlib import Path
from typing import Any

from saekern.formats.source import child

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights and configurations; no optimizers, no activations, no pictures.
PATTERNS = ("*.json", "*.safetensors", "*.npz", "*.pt", "*.pth")


def locate(path: str | os.PathLike, subfolder: str | None = None, revision: str | None = None) -> Path:
    """The local folder or file of `path`, downloaded into the hub's cache if it names a repository.

    A path that exists is never looked for on the hub.

    Raises:
        FileNotFoundError: neither a local path nor the form of a repository's name, or no such subfolder.
        OSError: the hub cannot be reached or has no such repository.
        ImportError: a repository, and huggingface_hub is not installed.
        ValueError: a subfolder that leads outside.
    """
    local = Path(path)
    if not local.exists():
        name = os.fspath(path)
        if not REPOSITORY.fullmatch(name):
            raise FileNotFoundError(f"{path} does not exist, and is not the name of a repository (owner/name)")
        local = Path(_download(name, subfolder, revision))
    elif revision is not None:
        raise ValueError(f"revision: {path} is a local path, which has none")
    found = local if subfolder is None else child(local, subfolder)
    if not found.exists():
        there = ", ".join(sorted(p.name for p in local.iterdir())[:12]) if local.is_dir() else local.name
        raise FileNotFoundError(f"{local}: no {subfolder!r}; it has {there or 'nothing'}")
    return found


def _download(name: str, subfolder: str | None, revision: str | None) -> Any:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{name} does not exist here; as the name of a repository it needs: pip install huggingface_hub"
        ) from error
    inside = [] if subfolder is None else [f"{subfolder}/{pattern}" for pattern in PATTERNS] + [f"{subfolder}*"]
    try:
        return snapshot_download(name, revision=revision, allow_patterns=inside or list(PATTERNS))
    except Exception as error:  # offline, unknown and gated repositories differ by version: OSError, httpx, requests
        raise OSError(
            f"{name} does not exist here and could not be had from the Hugging Face hub ({type(error).__name__}:"
            f" {str(error).splitlines()[0] if str(error) else ''}). Offline, pass a local folder, or a repository"
            " that is in the hub's local cache."
        ) from error
