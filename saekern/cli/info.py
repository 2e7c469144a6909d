"""`saekern info`: what a bug report needs."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform

import torch

from saekern.ops import library
from saekern.version import __version__

LIBRARIES = ("torch", "numpy", "scipy", "safetensors", "triton", "transformer-lens", "matplotlib")


def configure(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(options: argparse.Namespace) -> int:
    for name, value in facts():
        print(f"{name:<22} {value}")
    return 0


def facts() -> list[tuple[str, str]]:
    """Name and value of each line."""
    lines = [("saekern", __version__), ("Python", f"{platform.python_version()} on {platform.platform()}")]
    lines += [(name, _version(name)) for name in LIBRARIES]
    lines += [("processor", _processor()), ("instructions", library.isa()), ("bf16 products", _bf16())]
    lines += [("threads", f"{torch.get_num_threads()} of {os.cpu_count()}"), ("GPU", _gpu())]
    for op, backends in library.BACKENDS.items():
        lines.append((op, ", ".join(f"{_present(backend)} on {device}" for device, backend in backends.items())))
    return lines


def _present(backend: str) -> str:
    missing = backend == "Triton" and importlib.util.find_spec("triton") is None
    return "Triton (not installed: an error)" if missing else backend


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _bf16() -> str:
    return "in hardware" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no instructions for them"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, capability {torch.cuda.get_device_capability()}"
