"""kron_encode in float64 with all [B, F] products, and what an exact answer is."""

import torch
from bounds import UNIT, output_rounding


def problem(batch, width, m, n, heads, dtype=torch.float32, integer=False):
    """x, weight_p, weight_q, bias_p, bias_q, pre_bias."""
    shapes = (batch, width), (heads, m, width), (heads, n, width), (heads, m), (heads, n), (width,)
    draw = (lambda shape: torch.randint(-2, 3, shape).float()) if integer else torch.randn
    return [draw(shape).to(dtype) for shape in shapes]


def factors(x, wp, wq, bp, bq, pre):
    """u [B, H, M] and v [B, H, N] in float64."""
    x = x.double() - (0 if pre is None else pre.double())
    pairs = ((wp, bp), (wq, bq))
    return [torch.einsum("bd,hmd->bhm", x, w.double()) + (0 if b is None else b.double()) for w, b in pairs]


def products(u, v, activation):
    """The score that orders, [B, F]."""
    u, v = u[..., :, None], v[..., None, :]
    score = u * v
    if activation != "product":
        score = torch.where(((u <= 0) & ~v.isnan()) | ((v <= 0) & ~u.isnan()), 0, score)
    return score.flatten(1)


def value(score, activation, eps):
    return {"mand": lambda: (score + eps).sqrt(), "relu": lambda: score, "product": score.relu}[activation]()


def places(latents, m, n):
    head, pair = latents // (m * n), latents % (m * n)
    return head * m + pair // n, head * n + pair % n


def brute(made, k, activation, eps=0.0, dead=None):
    """values, indices, u, v from all products in float64; padding as the contract says."""
    u, v = factors(*made)
    score = products(u, v, activation)
    if dead is not None:
        score = score.masked_fill(~dead, -torch.inf)
    best, latent = score.sort(dim=1, descending=True, stable=True)
    best, latent = best[:, :k], latent[:, :k]
    at_u, at_v = places(latent, u.shape[2], v.shape[2])
    got = value(best, activation, eps), u.flatten(1).gather(1, at_u), v.flatten(1).gather(1, at_v)
    if dead is not None:
        got = tuple(torch.where(dead[latent], t, 0) for t in got)
    return got[0], latent, got[1], got[2]


def assert_exact(got, made, activation, eps=0.0, dead=None, storage=1):
    """Each u and v within its rounding bound; values are those of u and v, within `storage` roundings of their type; no
    latent that is clearly better is left out, none that is clearly worse is in; the order is that of the float32
    products."""
    k = got[1].shape[1] if dead is None else min(got[1].shape[1], int(dead.sum()))
    values, indices, u, v = (t[:, :k] for t in got)
    u64, v64 = factors(*made)
    absolute = [None if t is None else t.abs() for t in made]
    absolute[5] = None if absolute[5] is None else -absolute[5]
    eu, ev = ((made[0].shape[1] + 4) * UNIT * s for s in factors(*absolute))
    at_u, at_v = places(indices, u64.shape[2], v64.shape[2])
    for name, own, exact, e, at in (("u", u, u64, eu, at_u), ("v", v, v64, ev, at_v)):
        assert own.dtype == torch.float32
        assert bool(((own.double() - exact.flatten(1).gather(1, at)).abs() <= e.flatten(1).gather(1, at)).all()), name
    assert all(len(set(row.tolist())) == k for row in indices), "an index twice in one row"
    chosen = u * v if activation == "product" else torch.where((u <= 0) | (v <= 0), 0, u * v)
    assert bool((chosen.diff(dim=1) <= 0).all()), "not descending"
    assert bool((indices.diff(dim=1)[chosen.diff(dim=1) == 0] > 0).all()), "ties not to the smaller latent"
    want = value(chosen.double(), activation, eps)
    rounding = storage * output_rounding(values.dtype) + 4 * UNIT
    assert bool(((values.double() - want).abs() <= rounding * want + 1e-38).all())
    error = eu[..., :, None] * v64.abs()[..., None, :] + ev[..., None, :] * u64.abs()[..., :, None]
    error = (error + eu[..., :, None] * ev[..., None, :]).flatten(1)
    score = products(u64, v64, activation)
    error = error + UNIT * score.abs()
    if dead is not None:
        score = score.masked_fill(~dead, -torch.inf)
    kth, slack = score.topk(k).values[:, -1:], 2 * error.amax(1, keepdim=True)
    taken = score.gather(1, indices)
    assert bool((taken >= kth - slack).all())
    assert torch.equal((score > kth + slack).sum(1), (taken > kth + slack).sum(1))
