"""u = (x − pre_bias) Pᵀ + bias_p, v likewise by Q;  the top k of a row's √(u_hm v_hn), or of another product."""

import torch
from torch import Tensor

from saekern.reference.precision import accumulation
from saekern.reference.row_topk import row_topk
from saekern.reference.topk_encode import scores, topk_encode_backward


def kron_factors(
    x: Tensor,
    weight_p: Tensor,
    weight_q: Tensor,
    bias_p: Tensor | None,
    bias_q: Tensor | None,
    pre_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """u [B, H, M] and v [B, H, N]."""
    u, v = (
        scores(x, weight.flatten(0, 1), None if bias is None else bias.flatten(), pre_bias).unflatten(
            1, weight.shape[:2]
        )
        for weight, bias in ((weight_p, bias_p), (weight_q, bias_q))
    )
    return u, v


def kron_products(u: Tensor, v: Tensor, activation: str) -> Tensor:
    """What latents are ordered by, [B, F]. A factor that is not positive makes it 0, but for activation "product"."""
    u, v = u[..., :, None], v[..., None, :]
    product = u * v
    if activation != "product":
        product = torch.where(((u <= 0) & ~v.isnan()) | ((v <= 0) & ~u.isnan()), 0, product)
    return product.flatten(1)


def kron_encode(
    x: Tensor,
    weight_p: Tensor,
    weight_q: Tensor,
    bias_p: Tensor | None,
    bias_q: Tensor | None,
    k: int,
    *,
    pre_bias: Tensor | None = None,
    activation: str = "mand",
    eps: float = 0.0,
    dead: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """values, indices, and the factors u, v of each. Of the dead latents only, if given: where there are fewer than k,
    slots hold 0 at the smallest live ones."""
    u, v = kron_factors(x, weight_p, weight_q, bias_p, bias_q, pre_bias)
    m, n = weight_p.shape[1], weight_q.shape[1]
    product = kron_products(u, v, activation)
    if dead is not None:
        product = product.masked_fill(~dead, -torch.inf)
    best, indices = row_topk(product, k)
    values = (best + eps).sqrt() if activation == "mand" else best.relu()
    chosen_u, chosen_v = (
        u.flatten(1).gather(1, indices // n),
        v.flatten(1).gather(1, indices // (m * n) * n + indices % n),
    )
    if dead is not None:
        values, chosen_u, chosen_v = (torch.where(dead[indices], t, 0) for t in (values, chosen_u, chosen_v))
    return values.to(x.dtype), indices, chosen_u, chosen_v


def kron_slopes(grad: Tensor, u: Tensor, v: Tensor, activation: str, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients to the factors of each chosen latent, 0 where the score does not depend on them."""
    wide = accumulation(u)
    grad, u, v = grad.to(wide), u.to(wide), v.to(wide)
    off = u * v <= 0 if activation == "product" else (u <= 0) | (v <= 0)  # NaN passes
    if activation == "mand" and eps == 0:
        root_u, root_v = torch.where(off, 1, u).sqrt(), torch.where(off, 1, v).sqrt()
        du, dv = grad * root_v / (2 * root_u), grad * root_u / (2 * root_v)  # u v itself might underflow
    elif activation == "mand":
        root = (torch.where(off, 0, u * v) + eps).sqrt()
        du, dv = grad * v / (2 * root), grad * u / (2 * root)
    else:
        du, dv = grad * v, grad * u
    return torch.where(off, 0, du), torch.where(off, 0, dv)


def kron_encode_backward(
    grad: Tensor,
    indices: Tensor,
    u: Tensor,
    v: Tensor,
    x: Tensor,
    weight_p: Tensor,
    weight_q: Tensor,
    pre_bias: Tensor | None,
    activation: str,
    eps: float,
) -> tuple[Tensor, ...]:
    """Gradients to x, both weights, both biases and pre_bias."""
    (px, pw, pb, pp), (qx, qw, qb, qp) = (
        topk_encode_backward(slope, slope, at, x, weight.flatten(0, 1), pre_bias, False)
        for slope, at, weight in zip(
            kron_slopes(grad, u, v, activation, eps),
            kron_places(indices, weight_p.shape[1], weight_q.shape[1]),
            (weight_p, weight_q),
            strict=True,
        )
    )
    return (
        px + qx,
        pw.reshape(weight_p.shape),
        qw.reshape(weight_q.shape),
        pb.reshape(weight_p.shape[:2]),
        qb.reshape(weight_q.shape[:2]),
        pp + qp,
    )


def kron_places(indices: Tensor, m: int, n: int) -> tuple[Tensor, Tensor]:
    """Of each latent (h·M + i)·N + j its row in weight_p [H·M, D] and in weight_q [H·N, D]."""
    return indices // n, indices // (m * n) * n + indices % n
