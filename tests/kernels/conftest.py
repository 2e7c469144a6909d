"""The launchers in `saekern.kernels`, called directly: in Triton's interpreter, or on a GPU where there is one."""

import pytest
import torch


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"  # without CUDA tests/conftest.py asks for the interpreter
