"""The gradients of `kron_encode`: 2 K entries a row into the pre-latents, sorted by pre-latent and summed as a
decoder's are. No [B, H (M + N)] gradient.

With score z the factors get du = g ∂z/∂u: mand g v / 2z, relu and product g v; 0 where the forward pass made the score
0 (u or v not positive; of products u v ≤ 0). Without eps, v / 2z = √v / (2 √u) does not fail where u v underflows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels import decode as decoder
from saekern.kernels import segment_gradients as segments_of
from saekern.kernels.decode import decode
from saekern.kernels.form import Form
from saekern.kernels.latent_order import latent_order
from saekern.kernels.segment_gradients import segment_gradients
from saekern.kernels.topk_encode_backward import weighted_row_sum

BLOCK = 1024
WARPS = 4


@triton.jit(do_not_specialize=["nnz", "eps"])
def kron_slope_kernel(
    grad,  # [nnz]
    indices,  # [nnz] int64
    u,  # [nnz] float32
    v,
    du,  # [nnz] float32 out
    dv,
    p_index,  # [nnz] int64 out: head · M + m
    q_index,  # head · N + n
    nnz,
    eps,
    M: tl.constexpr,
    N: tl.constexpr,
    ROOT: tl.constexpr,
    LEAKS: tl.constexpr,  # eps > 0
    SIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < nnz
    latent = tl.load(indices + at, mask=inside, other=0)
    head = latent // (M * N)
    pair = latent - head * (M * N)
    tl.store(p_index + at, head * M + pair // N, mask=inside)
    tl.store(q_index + at, head * N + pair % N, mask=inside)
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    own_u = tl.load(u + at, mask=inside, other=1.0)
    own_v = tl.load(v + at, mask=inside, other=1.0)
    if SIGNED:
        off = own_u * own_v <= 0
    else:
        off = (own_u <= 0) | (own_v <= 0)  # NaN passes
    if ROOT:
        # Where there is no gradient, 1: a root of a negative number or a division by 0 would be NaN before it is left.
        own_u, own_v = tl.where(off, 1.0, own_u), tl.where(off, 1.0, own_v)
        if LEAKS:
            twice = 2 * tl.sqrt_rn(own_u * own_v + eps)
            own_u, own_v = tl.div_rn(own_u, twice), tl.div_rn(own_v, twice)
        else:
            root_u, root_v = tl.sqrt_rn(own_u), tl.sqrt_rn(own_v)
            own_u, own_v = 0.5 * tl.div_rn(root_u, root_v), 0.5 * tl.div_rn(root_v, root_u)
    tl.store(du + at, tl.where(off, 0.0, g * own_v), mask=inside)
    tl.store(dv + at, tl.where(off, 0.0, g * own_u), mask=inside)


def slopes(
    grad: Tensor, indices: Tensor, u: Tensor, v: Tensor, m: int, n: int, activation: str, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """du, dv [B, k] float32, and which u and v they belong to, int64."""
    grad, indices, u, v = (t.contiguous() for t in (grad, indices, u, v))
    outs = *(torch.empty_like(u) for _ in range(2)), *(torch.empty_like(indices) for _ in range(2))
    if grad.numel():
        root, signed = activation == "mand", activation == "product"
        kron_slope_kernel[(triton.cdiv(grad.numel(), BLOCK),)](
            grad, indices, u, v, *outs, grad.numel(), eps, m, n, root, root and eps > 0, signed, BLOCK,
            num_warps=WARPS,
        )  # fmt: skip
    return outs


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
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x [B, D], weight_p [H, M, D], weight_q [H, N, D], bias_p [H, M], bias_q [H, N] and pre_bias [D];
    empty where `need` says no."""
    need_x, *needs, need_pre_bias = need
    (heads, m, width), n = weight_p.shape, weight_q.shape[1]
    x, none = x.contiguous(), x.new_empty(0)
    shift = None if pre_bias is None else pre_bias.contiguous()
    p, q = (weight.contiguous().view(heads * size, width) for weight, size in ((weight_p, m), (weight_q, n)))
    with torch.cuda.device_of(x):
        du, dv, p_index, q_index = slopes(grad, indices, u, v, m, n, activation, eps)
    grad_x = none
    if need_x:  # one sum, one rounding
        both = torch.cat([p_index, q_index + heads * m], 1)
        grad_x = decode(torch.cat([du, dv], 1), both, torch.cat([p, q]), None, None)
    grads: list[tuple[Tensor, Tensor]] = []
    moved = torch.zeros(width, device=x.device) if need_pre_bias else none
    for coefficients, index, weight, shape, need_weight, need_bias in (
        (du, p_index, p, weight_p.shape, needs[0], needs[2]),
        (dv, q_index, q, weight_q.shape, needs[1], needs[3]),
    ):
        grad_weight = torch.empty_like(weight) if need_weight else None
        sums = torch.empty(len(weight), device=x.device) if need_bias or need_pre_bias else None
        if grad_weight is not None or sums is not None:
            segment_gradients(
                *latent_order(index, len(weight)), index, x, codes_per_row=index.shape[1], coefficients=coefficients,
                shift=shift, row_sums=grad_weight, sums=sums,
            )  # fmt: skip
        if need_pre_bias and sums is not None:
            moved = moved - weighted_row_sum(sums, weight)
        grads.append(
            (
                none.clone() if grad_weight is None else grad_weight.view(shape),
                sums.to(x.dtype).view(shape[:2]) if need_bias and sums is not None else none.clone(),
            )
        )
    (grad_p, grad_bias_p), (grad_q, grad_bias_q) = grads
    return grad_x, grad_p, grad_q, grad_bias_p, grad_bias_q, moved.to(x.dtype)


def forms() -> list[Form]:
    made = [_slope("bf16", 4, 8, True, False), _slope("fp32", 3, 5, True, True), _slope("bf16", 4, 8, False, False)]
    # Coefficients and the biases' sums are float32 whatever the rows are.
    wide = dict.fromkeys(("coefficients", "sums", "values"), "*fp32")
    for form in (*segments_of.forms(), *decoder.forms()[:2]):
        names = set(form.signature) & set(wide)
        if ("sums" in names and form.kernel is segments_of.segment_kernel) or "values" in names:
            made.append(form._replace(signature=form.signature | {name: wide[name] for name in names}))
    return made


def _slope(name: str, m: int, n: int, root: bool, leaks: bool) -> Form:
    signature = {"grad": f"*{name}", "indices": "*i64", "p_index": "*i64", "q_index": "*i64"}
    signature |= dict.fromkeys(("u", "v", "du", "dv"), "*fp32")
    aligned = tuple(signature)
    constants = {"M": m, "N": n, "ROOT": root, "LEAKS": leaks, "SIGNED": not root, "BLOCK": BLOCK}
    return Form(kron_slope_kernel, signature | {"nnz": "i32", "eps": "fp32"}, constants, WARPS, aligned=aligned)
