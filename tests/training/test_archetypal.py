"""Archetypal SAEs in the training loop: resumed runs end with the same bytes, and the loss is that of plain torch."""

import pytest
import torch

import saekern
from saekern.sae import archetypal_points
from saekern.training.shuffle import Shuffle


def make_sae(rows, **kwargs):
    points = archetypal_points(rows, 40, seed=0, iterations=5)
    kwargs = {"relaxation": 0.05, "points": points, "base_args": {"k": 3, "k_aux": 4}, "init_seed": 0} | kwargs
    return saekern.ArchetypalSAE(8, 48, **kwargs)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "kwargs", [{}, {"relaxation": 0.0, "init": "eye", "projection": "normalize", "multiplier": True}]
)
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, make_rows, resumed, bf16, kwargs):
    rows = make_rows()
    config = saekern.TrainConfig(
        rows=1280, batch_size=64, lr=5e-3, checkpoint_every=5, log_every=1, dead_after=128, bf16=bf16, snapshots=(0, 7)
    )
    saekern.train(make_sae(rows.tensor, **kwargs), rows, config, out=tmp_path / "whole", progress=False)
    resumed(lambda: make_sae(rows.tensor, **kwargs), rows, config, tmp_path / "parts", stop_at=14)
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, content in whole.items():
        assert parts[name] == content, name
    sae = saekern.load(tmp_path / "whole")
    assert torch.isfinite(sae.dictionary).all()
    assert ((sae.W.sum(1) - 1).abs() < 1e-5)[~sae.zero_atoms].all()
    start = saekern.load(tmp_path / "whole", weights="snapshots/00000000.safetensors")
    assert start.dictionary.shape == (48, 8)
    other = make_sae(rows.tensor, **(kwargs | {"points": torch.randn(40, 8)}))
    with pytest.raises(ValueError, match=r"another run: sae\.points\.sha256"):
        saekern.train(other, rows, config, out=tmp_path / "whole", progress=False)


def plain_loss(parameters, points, x, k):
    """FVU of the documented formulas on D = W C + Λ."""
    weights, offset, encoder, b_enc, b_dec = parameters
    decoder = weights @ points + offset
    scores = (x - b_dec) @ encoder + b_enc
    values, indices = scores.topk(k)
    x_hat = torch.zeros_like(scores).scatter(1, indices, values.relu()) @ decoder + b_dec
    return (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()


def simplex(rows):
    largest = rows.sort(1, descending=True).values
    means = (largest.cumsum(1) - 1) / torch.arange(1, rows.shape[1] + 1)
    return (rows - means.gather(1, (largest > means).sum(1, keepdim=True) - 1)).clamp(min=0)


def test_loss_follows_plain_torch_for_200_steps(make_rows):
    """Both start from the same bits; each computes for itself."""
    rows = make_rows(2048)
    sae = make_sae(rows.tensor)
    parameters = [
        p.detach().clone().contiguous().requires_grad_() for p in (sae.W, sae.Lambda, sae.W_enc, sae.b_enc, sae.b_dec)
    ]
    config = saekern.TrainConfig(
        rows=200 * 128, batch_size=128, lr=3e-3, warmup=0, decay=0, log_every=1, dead_after=10**9, pre_bias_rows=0
    )
    result = saekern.train(sae, rows, config, progress=False)
    optimizer = torch.optim.Adam(parameters, lr=3e-3, betas=config.betas, eps=config.eps)
    order = Shuffle(len(rows), config.data_seed)
    for step, line in enumerate(result.log):
        x = rows.take(order.take(step * 128, 128))
        loss = plain_loss(parameters, sae.points, x, 3)
        assert abs(line["loss"] - loss.item()) <= 0.01 * loss.item(), f"step {step + 1}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            parameters[0].copy_(simplex(parameters[0]))
            norm = parameters[1].norm(dim=1, keepdim=True)
            parameters[1].mul_((0.05 / norm).clamp(max=1))
    assert len(result.log) == 200
    assert result.log[-1]["loss"] < 0.7 * result.log[0]["loss"]
