"""The randomly re-initialised copy of a model."""

import pytest
import torch

from saekern.activations.train_tiny import TinyConfig, TinyTransformer
from saekern.stability import random_model


def model():
    return TinyTransformer(TinyConfig(d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=8, d_vocab=64))


def test_moments_stay_and_weights_go():
    """Planted: the original redrawn in place of the copy; caught."""
    trained = model()
    with torch.no_grad():
        trained.layers[0].mlp.fc_in.weight.add_(0.3)
    before = {name: p.clone() for name, p in trained.named_parameters()}
    found = dict(random_model(trained, 5).named_parameters())
    for name, p in trained.named_parameters():
        assert torch.equal(p, before[name])
        if p.std() == 0:
            assert torch.equal(found[name], p)  # zero biases, unit norms
            continue
        assert torch.corrcoef(torch.stack([p.flatten(), found[name].flatten()]))[0, 1].abs() < 5 / p.numel() ** 0.5
        error = p.std().item() / p.numel() ** 0.5
        assert found[name].mean().item() == pytest.approx(p.mean().item(), abs=5 * error)
        assert found[name].std().item() == pytest.approx(p.std().item(), rel=5 / (2 * p.numel()) ** 0.5)
    assert found["layers.0.mlp.fc_in.weight"].requires_grad


def test_seeds_and_keep():
    trained = model()
    tokens = torch.arange(8)[None]
    a, b, c = (random_model(trained, seed)(tokens) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    kept = random_model(trained, 1, keep=["*embed*", "pos.*"])
    assert torch.equal(kept.tok_embed.weight, trained.tok_embed.weight)
    assert torch.equal(kept.pos.weight, trained.pos.weight)
    assert not torch.equal(kept.head.weight, trained.head.weight)


def test_tied_parameters_stay_tied():
    trained = model()
    trained.head.weight = trained.tok_embed.weight
    found = random_model(trained, 0)
    assert found.head.weight is found.tok_embed.weight
    assert not torch.equal(found.head.weight, trained.head.weight)


@pytest.mark.slow
def test_shipped_model_can_be_harvested(tmp_path):
    from saekern.activations import harvest, tiny_model

    trained = tiny_model()
    tokens = torch.randint(1, 256, (4, 16))
    caches = [
        harvest(m, "blocks.1.hook_resid_post", tokens, tmp_path / name, progress=False)
        for m, name in ((trained, "real"), (random_model(trained, 3), "salmon"))
    ]
    assert caches[0].manifest["text"] == caches[1].manifest["text"] == "bytes"
    assert caches[0].fingerprint != caches[1].fingerprint
    assert not torch.equal(caches[0].shards[0], caches[1].shards[0])


def test_errors():
    with pytest.raises(ValueError, match=r"keep: expected patterns of parameter names, got 'nothing\*', which"):
        random_model(model(), 0, keep=["nothing*"])
    with pytest.raises(ValueError, match=r"keep: expected some parameters to redraw, got none"):
        random_model(model(), 0, keep=["*"])
