"""Weights stored by latents and put back, and when the library's own code must run. Without other libraries."""

import pytest
import torch
from torch import nn

from saekern.acceleration.layout import Layout
from saekern.acceleration.lazy import Codes
from saekern.acceleration.theirs import codes_in, fits, hooked, lazily, sparse_enough


@pytest.mark.parametrize(("dim", "stride"), [(0, (5, 1)), (1, (1, 3))])
@pytest.mark.parametrize("before", [(5, 1), (1, 3)])
def test_a_weight_and_its_moments_change_strides_and_come_back(dim, stride, before):
    """Planted: moments left behind; strides not put back; caught."""
    layer = nn.Linear(5, 3, bias=False)
    layer.weight.data = torch.empty_strided((3, 5), before).copy_(layer.weight.data)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    moments = optimizer.state[layer.weight]
    values = [tensor.detach().clone() for tensor in (layer.weight, moments["exp_avg"], moments["exp_avg_sq"])]
    parameter, strides = layer.weight, moments["exp_avg"].stride()
    layout = Layout(layer, "weight", dim, optimizer, "")

    def check(weights, others):
        assert layer.weight is parameter
        assert layer.weight.stride() == weights
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == others
        for have, want in zip((layer.weight, moments["exp_avg"], moments["exp_avg_sq"]), values, strict=True):
            assert torch.equal(have, want)

    found = layout.apply()
    assert found == before
    check(stride, stride)
    layout.undo(found)
    check(before, strides)


def test_what_our_ops_cannot_take_is_left_to_the_library():
    x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
    assert fits(x, weight, bias)
    assert fits(x, weight, None)
    assert not fits(x[0], weight, bias)
    assert not fits(x.double(), weight, bias)
    assert not fits(x.long(), weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert fits(x.bfloat16(), weight, bias)


def test_hooks_of_a_module_and_of_all_modules_are_noticed():
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert not hooked(layer, other)
    for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        hook = getattr(other, register)(lambda *_: None)
        assert hooked(layer, other)
        assert not hooked(layer)
        hook.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert hooked(layer)
    everywhere.remove()
    assert not hooked(layer)


def test_codes_are_found_until_somebody_writes_or_wants_their_gradient():
    def made():
        codes = Codes(torch.ones(6, 1, requires_grad=True), torch.arange(6)[:, None] % 4, 4)
        return codes, lazily(codes, (2, 3, 4))

    codes, lazy = made()
    assert codes_in(lazy) is codes
    assert lazy.sum() == 6  # a read leaves them valid
    assert codes_in(lazy) is codes
    with torch.no_grad():
        lazy[0, 0, 0] = 2
    assert codes_in(lazy) is None
    _, lazy = made()
    lazy.retain_grad()
    assert codes_in(lazy) is None
    assert codes_in(torch.ones(2)) is None


def test_few_or_many_active():
    x, weight = torch.eye(100), torch.eye(100)
    assert sparse_enough(x, weight, None, None, 0.5)
    assert not sparse_enough(x, weight, None, None, -0.5)
    assert not sparse_enough(x, weight, torch.ones(100), None, 0.5)
    assert not sparse_enough(x, weight, None, -torch.ones(100), torch.full((100,), 0.5))
    assert sparse_enough(x[:0], weight, None, None, 0.5)
