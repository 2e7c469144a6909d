"""A stand-in for a TransformerLens model: what `harvest` needs of one, without importing it."""

from types import SimpleNamespace

import pytest
import torch


class StubModel(torch.nn.Module):
    """The hook sees embedding + position; `seen` counts forward passes."""

    def __init__(self, width: int = 6, vocabulary: int = 20):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embed = torch.nn.Parameter(torch.randn(vocabulary, width, generator=generator))
        self.hook_dict = {"blocks.0.hook_resid_post": None, "blocks.0.attn.hook_z": None}
        self.cfg = SimpleNamespace(device="cpu", model_name="stub", d_vocab=vocabulary)
        self.passes = 0

    def expected(self, tokens):
        return (self.embed[tokens] + torch.arange(tokens.shape[1])[:, None]).detach()  # [B, T, D]

    def run_with_hooks(self, tokens, return_type=None, fwd_hooks=()):
        self.passes += 1
        for name, function in fwd_hooks:
            x = self.expected(tokens)
            function(x.unflatten(2, (2, -1)) if name.endswith("hook_z") else x, hook=SimpleNamespace(name=name))
        raise AssertionError("the forward pass went beyond the hook")


@pytest.fixture
def stub():
    return StubModel()


@pytest.fixture
def sequences():
    tokens = torch.randint(1, 20, (23, 7))
    tokens[:, 0] = 0
    return tokens
