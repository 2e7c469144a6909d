"""The pool behind every C++ kernel: it comes back to where it was."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from saekern import _C


def work(threads: int) -> None:
    scores = torch.randn(64, 4096)
    _C.row_topk(scores.numpy(), torch.empty(64, 8).numpy(), torch.empty(64, 8, dtype=torch.int64).numpy(), threads, "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux threads are moved")
def test_helpers_keep_the_cores_they_may_run_on():
    """A sleeping helper is woken off its waker's core; afterwards it may run there again. Planted: `wake_up` left the
    helper where it was put; caught."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one core: nothing to keep off")
    work(3)
    for _ in range(3):
        time.sleep(0.05)  # long enough for the helpers to fall asleep
        work(3)
    time.sleep(0.05)
    threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset(allowed)}
