"""Rows for training tests: sparse combinations of a few directions, so that there is something to learn."""

import pytest
import torch

import saekern


class Rows:
    """What `saekern.train` needs of rows, and no more."""

    def __init__(self, tensor):
        self.tensor, self.width = tensor, tensor.shape[1]

    def __len__(self):
        return self.tensor.shape[0]

    def take(self, indices):
        return self.tensor[indices]


class Stopped(Exception):
    """Not an error that the loop knows: it ends as a killed process would."""


@pytest.fixture
def resumed(monkeypatch):
    """Trains into `out` until the rows are asked for the `stop_at`-th time, and then to the end."""

    def train(make_sae, rows, settings, out, stop_at):
        take, calls = rows.take, []

        def until(indices):
            calls.append(1)
            if len(calls) == stop_at:
                raise Stopped
            return take(indices)

        with monkeypatch.context() as patch:
            patch.setattr(rows, "take", until)
            with pytest.raises(Stopped):
                saekern.train(make_sae(), rows, settings, out=out, progress=False)
        saekern.train(make_sae(), rows, settings, out=out, progress=False)

    return train


@pytest.fixture(autouse=True)
def _one_thread():
    """At these shapes a second thread only waits; on a busy machine for 100 ms a step."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_rows():
    def make(count=512, width=8, directions=24, seed=0):
        generator = torch.Generator().manual_seed(seed)
        codes = (torch.rand(count, directions, generator=generator) - 0.85).relu()
        return Rows(codes @ torch.randn(directions, width, generator=generator) + 0.1)

    return make
