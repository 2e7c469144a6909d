"""What tests/conftest.py sets up, for a machine with a GPU as for one without."""

import os

import torch


def test_poisoned_memory():
    assert bool(torch.empty(3).isnan().all())


def test_deterministic_mode_makes_no_test_fail():
    """On a GPU a matrix product warns without the variable, and some operations warn whatever it says: as put_ does
    here. Planted: no filter in pytest_configure; caught."""
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    torch.zeros(3).put_(torch.tensor([1]), torch.tensor([1.0]))
