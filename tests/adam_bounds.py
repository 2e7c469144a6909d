"""How far a float32 Adam step may be from float64, derived from its arithmetic."""

import torch
from bounds import UNIT, output_rounding

SETTINGS = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-4}


def state(shape, dtype=torch.float32):
    """param with unit rows, grad, exp_avg, exp_avg_sq; the first row all zero, the gradient of the second too."""
    param = torch.randn(shape)
    if len(shape) == 2:
        param = torch.nn.functional.normalize(param, dim=1)
        param[:1] = 0
    tensors = param, torch.randn(shape), 0.1 * torch.randn(shape), 0.01 * torch.rand(shape)
    tensors[1][1:2] = 0
    return [t.to(dtype) for t in tensors]


def assert_step_within_bound(before, after, step, project, normalize, **settings):
    """One step from the same state in float64, and how far float32 may be from it.

    With u = 2⁻²⁴ and n columns, a sum of n products is off by (n + 2) u Σ|products|, so the projected gradient by
    dg ≤ 2u (|g| + |c w|) + (2n + 6) u |w| Σ|g w| / ‖w‖², and that error goes on through each formula; first order
    in u, doubled."""
    u = 2 * UNIT
    w, g, m, v = (t.double() for t in before)
    n = w.shape[-1]
    beta1, beta2, lr, eps = settings["beta1"], settings["beta2"], settings["lr"], settings["eps"]
    dg = torch.zeros_like(g)
    if project:
        square = w.square().sum(-1, keepdim=True)
        factor = torch.where(square > 0, 1 / square, 0)
        c = (g * w).sum(-1, keepdim=True) * factor
        dg = u * (2 * (g.abs() + (c * w).abs()) + (2 * n + 6) * w.abs() * (g * w).abs().sum(-1, keepdim=True) * factor)
        g = g - c * w
    m_size, v_new = beta1 * m.abs() + (1 - beta1) * g.abs(), beta2 * v + (1 - beta2) * g * g
    m_new = beta1 * m + (1 - beta1) * g
    dm = 3 * u * m_size + (1 - beta1) * dg
    dv = 4 * u * v_new + (1 - beta2) * (2 * g.abs() + dg) * dg
    root = v_new.sqrt() / (1 - beta2**step) ** 0.5
    # |√(v + dv) − √v| ≤ min(√dv, dv/√v)
    droot = torch.minimum(dv.sqrt(), torch.where(v_new > 0, dv / v_new.sqrt(), torch.inf)) / (1 - beta2**step) ** 0.5
    low = (root - droot).clamp(min=0) + eps
    size = lr / (1 - beta1**step)
    change = size * m_new / (root + eps)
    dw = size * (dm / low + m_new.abs() * droot / (low * (root + eps))) + 8 * u * change.abs() + u * w.abs()
    w = w - change
    if normalize:
        norm = w.norm(dim=-1, keepdim=True)
        relative = (w * dw).abs().sum(-1, keepdim=True) / norm**2 + (n + 6) * u
        safe = torch.where(norm > 0, norm, 1)
        dw = torch.where(norm > 0, dw / safe + w.abs() / safe * relative, dw)
        w = w / safe
    rounding = output_rounding(after[0].dtype)
    tiny = max(torch.finfo(torch.float32).tiny, torch.finfo(after[0].dtype).tiny * torch.finfo(after[0].dtype).eps)
    for name, got, want, bound in (
        ("exp_avg", after[2], m_new, dm),
        ("exp_avg_sq", after[3], v_new, dv),
        ("param", after[0], w, dw),
    ):
        error = (got.double() - want).abs()
        limit = bound + 2 * rounding * want.abs() + tiny
        assert not (~(error <= limit)).any(), f"{name}: worst error {(error / limit).max():.3g} of the bound"
