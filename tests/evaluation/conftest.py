"""A stand-in SAE: dense top-k in plain torch, so that evaluation is tested apart from the ops."""

from types import SimpleNamespace

import pytest
import torch


class StubSAE:
    """x̂ = relu-top-k((x − b) Eᵀ) D + b; `ragged` gives the same codes as CSR without the zeros."""

    def __init__(self, width=6, latents=11, k=3, ragged=False, dtype=torch.float32):
        generator = torch.Generator().manual_seed(1)
        # Multiples of 1/8: with such rows the codes are exact, the same bits for every batch size.
        self.encoder = torch.randn(latents, width, generator=generator).mul(8).round().div(8).to(dtype)
        self.dictionary = torch.randn(latents, width, generator=generator).mul(0.3).to(dtype)
        self.bias = torch.randn(width, generator=generator).mul(8).round().div(8).to(dtype)
        self.k, self.ragged = k, ragged

    def dense(self, x):
        scores = ((x - self.bias) @ self.encoder.T).relu()
        values, indices = scores.topk(self.k)
        return torch.zeros_like(scores).scatter(-1, indices, values)

    def encode_sparse(self, x):
        dense = self.dense(x)
        if not self.ragged:
            values, indices = dense.topk(self.k)
            return SimpleNamespace(values=values, indices=indices, offsets=None)
        row, indices = dense.nonzero(as_tuple=True)
        offsets = torch.zeros(len(x) + 1, dtype=torch.int64)
        offsets[1:] = torch.bincount(row, minlength=len(x)).cumsum(0)
        return SimpleNamespace(values=dense[row, indices], indices=indices, offsets=offsets)

    def decode(self, codes):
        if codes.offsets is None:
            row = torch.arange(len(codes.values)).repeat_interleave(self.k)
        else:
            row = torch.arange(len(codes.offsets) - 1).repeat_interleave(codes.offsets.diff())
        rows = len(codes.values) if codes.offsets is None else len(codes.offsets) - 1
        terms = codes.values.flatten()[:, None] * self.dictionary[codes.indices.flatten()]
        return torch.zeros(rows, self.dictionary.shape[1], dtype=terms.dtype).index_add(0, row, terms) + self.bias


@pytest.fixture(params=[False, True], ids=["fixed_k", "ragged"])
def sae(request):
    return StubSAE(ragged=request.param)


@pytest.fixture
def make_sae():
    return StubSAE
