"""No kernel lets a thread load what another has just stored without a barrier between, nor the like (tests/races.py).

Planted: each barrier of streaming_select, topk_screen, group_maxima, kron_select left out, one by one; all caught."""

import os

import pytest
import torch
from races import Race, watched

from saekern.kernels import (
    adam_step,
    decode,
    decode_backward,
    group_maxima,
    kron_encode,
    kron_encode_backward,
    kron_select,
    nearest,
    nearest_top,
)
from saekern.kernels import hierarchical_loss as hierarchical
from saekern.kernels import hierarchical_loss_backward as hierarchical_backward
from saekern.kernels import topk_encode as encoder

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="watches Triton's interpreter")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(encoder, "TILES", {9: 1})
    monkeypatch.setattr(group_maxima, "ROWS", 16)
    monkeypatch.setattr(group_maxima, "LATENTS", 128)


def problems():
    """Lists that are cut again and again, by scores that ascend; some that overflow, by scores that tie."""
    latents = 1600
    ramp = torch.arange(1.0, latents + 1).sqrt()[:, None]
    return torch.tensor([[1.0], [-1.0]]), torch.cat([ramp, torch.ones(300, 1)]), torch.zeros(latents + 300)


@pytest.mark.parametrize("path", ["screen", "stream", "maxima"])
def test_topk_encode(path, monkeypatch):
    monkeypatch.setattr(encoder, "NARROW", 1024 if path == "maxima" else -1)
    x, weight, bias = (t.to(torch.float32 if path == "screen" else torch.bfloat16) for t in problems())
    dead = None if path == "maxima" else torch.arange(len(weight)) % 3 > 0
    with watched():
        encoder.topk_encode(x, weight, bias, 20, None, True, dead, 0 if dead is None else 7, False)
        if path == "screen":
            encoder.topk_encode(x, torch.ones_like(weight) + 1e-7, bias, 20, None, True, None, 0, False)  # overflows


def test_kron_encode(monkeypatch):
    """Several chunks and blocks of heads; products that ascend, so that lists are cut, and that descend, so that a
    chunk brings nothing."""
    monkeypatch.setattr(kron_encode, "TILES", {9: 1})
    monkeypatch.setattr(kron_select, "MOST_HEADS", 16)
    x, weight_p, weight_q = torch.tensor([[1.0]]), torch.arange(1.0, 145).sqrt().view(72, 2, 1), torch.ones(72, 3, 1)
    inputs = x, weight_p, weight_q, None, None
    with watched():
        got = kron_encode.kron_encode(*inputs, 20, None, "mand", 0.0, torch.arange(432) % 3 > 0, 7, False)
        kron_encode.kron_encode(x, weight_p.flip(0), weight_q, None, None, 3, None, "mand", 0.0, None, 0, False)
        grad = torch.randn(1, 20)
        kron_encode_backward.kron_encode_backward(grad, *got[1:4], *inputs[:3], None, "mand", 0.0, [True] * 6)


def test_nearest():
    a, b = torch.randn(2, 5, 20), torch.randn(1, 7, 20)
    with watched():
        nearest.nearest(a[0], b[0])
        nearest_top.nearest_top(a[0], b[0], 3)


def test_decode():
    indices = torch.randint(3, (300, 4))  # split into several chunks a latent
    values, weight = torch.randn(300, 4), torch.randn(9, 33)
    with watched():
        decode.decode(values, indices, weight, None, None)
        decode_backward.decode_backward(torch.randn(300, 33), values, indices, weight, None, None, None, [True] * 3)


@pytest.mark.parametrize("cuts", [[1, 3], [1, 2, 3, 4, 5]])
def test_hierarchical_loss(cuts, monkeypatch):
    """Planted: the inner products of the slices added in place; S stored for codes before a row's first. Caught."""
    monkeypatch.setattr(hierarchical_backward, "BUFFER", 1000)  # two slices
    indices = torch.randint(2, (40, 5))  # split into several chunks a latent
    inputs = (torch.randn(40, 5), indices, torch.randn(9, 50), None, torch.randn(40, 50))
    last = (torch.tensor(cuts), torch.ones(len(cuts)), None, None, None)
    with watched():
        loss, x_hat = hierarchical.hierarchical_loss(*inputs, *last)
        hierarchical_backward.hierarchical_loss_backward(loss, *inputs, x_hat, *last, [True] * 4)


def test_adam_step():
    tensors = [torch.rand(5, 40) for _ in range(4)]
    with watched(in_place=True):
        adam_step.adam_step(*tensors, 1, 0.1, 0.9, 0.999, 1e-8, True, True)
        adam_step.adam_step(*tensors, 1, 0.1, 0.9, 0.999, 1e-8, False, False)
    with pytest.raises(Race), watched():
        adam_step.adam_step(*tensors, 1, 0.1, 0.9, 0.999, 1e-8, False, False)
