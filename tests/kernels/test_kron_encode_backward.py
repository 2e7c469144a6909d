"""The gradients of the Triton Kronecker encoder against float64 autograd of the plain formula."""

import pytest
import torch
from bounds import assert_within_bound

from saekern.kernels.kron_encode_backward import kron_encode_backward
from saekern.kernels.segment_gradients import CHUNK

NAMES = ("x", "weight_p", "weight_q", "bias_p", "bias_q", "pre_bias")
ALL = [True] * 6
KINDS = [("mand", 0.0), ("mand", 0.3), ("relu", 0.0), ("product", 0.0)]
SHAPES = [  # B, D, M, N, H, K
    (1, 1, 1, 1, 1, 1),
    (5, 13, 3, 5, 7, 105),
    (9, 33, 1, 4, 6, 3),
    (8, 40, 4, 1, 3, 5),
    (0, 3, 2, 2, 2, 2),
]


def problem(device, batch, width, m, n, heads, k, dtype=torch.float32):
    """grad, indices, u, v, x, weight_p, weight_q, pre_bias. The factors are any numbers, a third of them ≤ 0."""
    latents = heads * m * n
    indices = torch.rand(batch, latents).argsort(1)[:, :k]
    u, v = torch.randn(2, batch, k).abs() + 0.1
    u[torch.rand(batch, k) < 0.2] = -1.0
    v[torch.rand(batch, k) < 0.2] = 0.0
    sizes = (batch, width), (heads, m, width), (heads, n, width), (width,)
    x, wp, wq, pre = (torch.randn(size).to(device, dtype) for size in sizes)
    return torch.randn(batch, k).to(device, dtype), indices.to(device), u.to(device), v.to(device), x, wp, wq, pre


def slopes(grad, u, v, activation, eps):
    """Autograd's du, dv in float64."""
    u, v = (t.double().requires_grad_() for t in (u, v))
    on = (u > 0) & (v > 0)
    product = torch.where(on, u * v, 0)
    if activation == "mand":
        value = torch.where(on, torch.where(on, product + eps, 1).sqrt(), 0)
    else:
        value = product if activation == "relu" else (u * v).relu()
    return torch.autograd.grad(value, (u, v), grad.double())


def scattered(du, dv, indices, x, wp, wq, pre):
    """The six gradients of Σ du u + dv v, dense."""
    m, n = wp.shape[1], wq.shape[1]
    head, pair = indices // (m * n), indices % (m * n)
    centred = x.double() - (0 if pre is None else pre.double())
    grads, to_x = [], torch.zeros_like(centred)
    for d, w, at in ((du, wp, head * m + pair // n), (dv, wq, head * n + pair % n)):
        dense = torch.zeros(len(x), w.shape[0] * w.shape[1], dtype=torch.float64, device=x.device)
        dense = dense.scatter_add(1, at, d)
        to_x = to_x + dense @ w.double().flatten(0, 1)
        grads.append(((dense.T @ centred).view(w.shape), dense.sum(0).view(w.shape[:2])))
    return to_x, grads[0][0], grads[1][0], grads[0][1], grads[1][1], -to_x.sum(0)


def check(got, made, activation, eps):
    grad, indices, u, v, x, wp, wq, pre = (None if t is None else t.cpu() for t in made)
    du, dv = slopes(grad, u, v, activation, eps)
    want = scattered(du, dv, indices, x, wp, wq, pre)
    sizes = [t if t is None else t.abs() for t in (du, dv)], [None if t is None else t.abs() for t in (x, wp, wq)]
    size = scattered(*sizes[0], indices, *sizes[1], None if pre is None else -pre.abs())
    batch, k = indices.shape
    terms = (2 * k, batch * k + 1, batch * k + 1, batch * k, batch * k, 2 * batch * k + wp[..., 0].numel() * 9)
    for name, g, w, s, count in zip(NAMES, got, want, size, terms, strict=True):
        assert g.dtype == x.dtype
        assert_within_bound(name, g.cpu(), w, s.abs(), count + 8)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(device, shape, kind):
    """Planted: the mask where both factors are ≤ 0 only; no eps under the root; the pre-bias not subtracted; rows of
    weight_p for v in the gradient to x; all caught."""
    made = problem(device, *shape, dtype=torch.float32 if shape[0] % 2 else torch.bfloat16)
    made = (*made[:7], None) if kind[0] == "relu" else made
    check(kron_encode_backward(*made, *kind, ALL), made, *kind)


def test_a_pre_latent_in_every_row(device):
    """Segments longer than a chunk, split and folded."""
    made = problem(device, 2 * CHUNK + 5, 21, 2, 3, 1, 1)
    check(kron_encode_backward(*made, "mand", 0.0, ALL), made, "mand", 0.0)


def test_the_forward_pass_and_back(device):
    """Against autograd of the whole formula on what the encoder chose."""
    from saekern.kernels.kron_encode import kron_encode

    _, _, _, _, x, wp, wq, pre = problem(device, 4, 9, 3, 2, 11, 1)
    bp, bq = torch.randn(11, 3).to(device), torch.randn(11, 2).to(device)
    for activation, eps in KINDS:
        got = kron_encode(x, wp, wq, bp, bq, 8, pre, activation, eps, None, 0, False)
        grad = torch.randn(4, 8).to(device)
        grads = kron_encode_backward(grad, got[1], got[2], got[3], x, wp, wq, pre, activation, eps, ALL)
        leaves = [t.double().cpu().requires_grad_() for t in (x, wp, wq, bp, bq, pre)]
        u, v = (torch.einsum("bd,hmd->bhm", leaves[0] - leaves[5], leaves[i]) + leaves[i + 2] for i in (1, 2))
        if activation != "product":
            u, v = u.relu(), v.relu()
        score = (u[..., :, None] * v[..., None, :]).flatten(1).gather(1, got[1].cpu())
        power = 0.5 if activation == "mand" else 1
        score = torch.where(score > 0, torch.where(score > 0, score + eps, 1) ** power, 0)
        for name, g, want in zip(NAMES, grads, torch.autograd.grad(score, leaves, grad.double().cpu()), strict=True):
            assert bool(((g.cpu() - want).abs() <= 1e-4 * (1 + want.abs().max())).all()), name


def test_tiny_factors_and_nan(device):
    """u v underflows where its root does not; NaN passes the mask, as in ReLU.

    Planted: the root of the product; a mask that stops NaN; both caught."""
    made = problem(device, 2, 5, 2, 2, 3, 3)
    made[2][:], made[3][:] = 1e-30, 4e-30
    check(kron_encode_backward(*made, "mand", 0.0, ALL), made, "mand", 0.0)
    made[2][1, 1] = torch.nan
    for kind in KINDS:
        grads = kron_encode_backward(*made, *kind, ALL)
        assert bool(grads[0][1].isnan().all())
        assert not grads[0][0].isnan().any()


def test_only_the_wanted_gradients(device):
    made = problem(device, 7, 11, 3, 2, 4, 5)
    full = kron_encode_backward(*made, "mand", 0.0, ALL)
    for wanted in ([i == j for i in range(6)] for j in range(1, 7)):
        some = kron_encode_backward(*made, "mand", 0.0, wanted)
        for a, b, flag in zip(full, some, wanted, strict=True):
            assert torch.equal(a, b) if flag else b.numel() == 0
