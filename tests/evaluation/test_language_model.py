"""Cross entropy with the hook's activations replaced: what goes in comes out, and the ratio is that of its parts."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from saekern.activations import python_source_sequences, tiny_model
from saekern.evaluation import CrossEntropyRecovered, ce_recovered, cross_entropy


class LinearModel:
    """logits = hook(embedding) Uᵀ; the hook may have a head dimension."""

    def __init__(self, heads=None):
        generator = torch.Generator().manual_seed(2)
        self.embed = torch.randn(9, 6, generator=generator)
        self.unembed = torch.randn(9, 6, generator=generator)
        self.heads = heads
        self.hook_dict = {"h": None}
        self.cfg = SimpleNamespace(device="cpu")

    def run_with_hooks(self, tokens, return_type, fwd_hooks):
        assert return_type == "logits"
        x = self.embed[tokens]
        for _, function in fwd_hooks:
            x = function(x.unflatten(2, (self.heads, -1)) if self.heads else x, hook=None).reshape(x.shape)
        return x @ self.unembed.T


@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("exclude_bos", [True, False])
@pytest.mark.parametrize("batch", [2, 100])
def test_cross_entropy(sae, heads, exclude_bos, batch):
    """Planted: a mean of batch means (the last batch is smaller); caught for batch 2. Planted: BOS replaced; caught."""
    model, tokens = LinearModel(heads), torch.randint(9, (7, 5))
    x = model.embed[tokens].flatten(0, 1)
    reconstructed = sae.decode(sae.encode_sparse(x)).view(7, 5, 6)
    for replaced, value in [(None, model.embed[tokens]), ("zero", torch.zeros(7, 5, 6)), (sae, reconstructed)]:
        value = value.clone()
        if exclude_bos:
            value[:, 0] = model.embed[tokens][:, 0]
        logits = (value @ model.unembed.T)[:, :-1].double()
        want = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
        got = cross_entropy(model, "h", tokens, replaced, batch=batch, exclude_bos=exclude_bos)
        assert got == pytest.approx(want, rel=1e-5)


def test_ce_recovered(sae):
    model, tokens = LinearModel(), torch.randint(9, (7, 5))
    got = ce_recovered(model, "h", tokens, sae)
    clean, spliced, zero = (cross_entropy(model, "h", tokens, replaced) for replaced in (None, sae, "zero"))
    assert (got.ce_clean, got.ce_sae, got.ce_zero) == (clean, spliced, zero)
    assert got.recovered == (zero - spliced) / (zero - clean)
    assert math.isnan(CrossEntropyRecovered(1.0, 1.0, 1.0).recovered)


def test_bad_arguments(sae):
    model = LinearModel()
    with pytest.raises(ValueError, match=r"sequences: expected int64 \[>= 1, >= 2\], got torch.int64 \[3, 1\]"):
        cross_entropy(model, "h", torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="'k' is not a hook of this model"):
        cross_entropy(model, "k", torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected an SAE, \"zero\", a row or None, got 'mean'"):
        cross_entropy(model, "h", torch.zeros(3, 2, dtype=torch.int64), "mean")


@pytest.mark.lens
def test_tiny_model(make_sae):
    """A lossless SAE recovers everything, at a residual stream and at heads; zeros cost much."""
    pytest.importorskip("transformer_lens", reason="needs transformer-lens")
    model, tokens = tiny_model(), python_source_sequences("heldout", 128, 6, seed=0)

    class Identity:
        dictionary = torch.eye(128)

        def encode_sparse(self, x):
            return x

        def decode(self, codes):
            return codes

    for hook in ("blocks.1.hook_resid_post", "blocks.1.attn.hook_z"):
        got = ce_recovered(model, hook, tokens, Identity(), batch=4)
        assert got.ce_sae == pytest.approx(got.ce_clean, rel=1e-5)
        assert got.ce_zero > got.ce_clean + 0.02
        assert got.recovered == pytest.approx(1, abs=1e-3)
    with torch.no_grad():
        want = model(tokens, return_type="loss").item()
    assert got.ce_clean == pytest.approx(want, rel=1e-4)
