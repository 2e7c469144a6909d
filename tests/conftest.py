"""Shared test set-up: Triton's interpreter without a GPU, poisoned uninitialised memory, fixed seeds."""

import os
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

# Without it deterministic mode warns at every matrix product on a GPU, and warnings are errors. Read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Also fills torch.empty with NaN (floats) or the largest integer: an element a kernel forgot to write shows.
torch.use_deterministic_algorithms(True, warn_only=True)


def pytest_configure(config):
    # The mode is on for the filling alone; a reference may use operations without a deterministic form on a GPU.
    config.addinivalue_line("filterwarnings", "ignore:.*does not have a deterministic implementation.*:UserWarning")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_sessionfinish():
    folder = Path(__file__).parent.parent / "kernels"  # tests/kernels bears that name too, and may
    if str(folder) in getattr(sys.modules.get("kernels"), "__path__", ()):
        raise RuntimeError("a test imported the folder kernels/ itself: import saekern.kernels instead")
