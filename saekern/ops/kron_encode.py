"""The Kronecker-factorised encoder: the top k of H·M·N scores from H (M + N) products, without the [B, F] matrix."""

import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library
from saekern.ops.topk_encode import LatentOrder

ACTIVATIONS = ("mand", "relu", "product")  # in the order of csrc/kron_encode.h


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
) -> tuple[Tensor, Tensor]:
    """The k largest of √(u_hm · v_hn) in each row, u = (x − pre_bias) Pᵀ + bias_p, v = (x − pre_bias) Qᵀ + bias_q.

    Equivalent to: `score = (u.relu()[..., None] * v.relu()[..., None, :]).sqrt().flatten(1)`, then `score.topk(k)`; the
    latent of (h, m, n) is (h·M + m)·N + n, and F = H·M·N.

    Args:
        x: rows [B, D].
        weight_p, weight_q: [H, M, D] and [H, N, D]; H heads.
        bias_p, bias_q: [H, M] and [H, N], or None.
        k: 1 ≤ k ≤ F.
        pre_bias: [D], subtracted from every row, or None.
        activation: "mand", √(u v) where both are positive and exactly 0 elsewhere; "relu", ReLU(u) ReLU(v); "product",
            u v, chosen by its signed value and then clamped at 0.
        eps: for "mand", √(ReLU(u) ReLU(v) + eps), as the published code has it with 1e-5: inactive latents then have
            the value √eps, and the gradient is bounded.

    Returns:
        values [B, k] descending, in x's dtype; indices [B, k] int64. The order is that of the float32 products u v (the
        root would tie neighbours), ties to the smaller latent, NaN largest. Exact for u and v computed in float32 by
        one fixed order of summation (float64 for float64 input), the same for any thread count.

    Gradients flow to x, both weights, both biases and pre_bias: 2k entries a row, never [B, H (M + N)].

    Source: KronSAE, Kurochkin et al. 2025 (arXiv 2505.22255), section 3.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, k out of range, an unknown activation, eps < 0.
    """
    values, indices, *_ = encode(
        x, weight_p, weight_q, bias_p, bias_q, k, pre_bias=pre_bias, activation=activation, eps=eps
    )
    return values, indices


def encode(
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
    k_aux: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, LatentOrder | None]:
    """What the SAE calls, as `topk_encode.encode`: the top k, the top k_aux of the dead, the order of the former."""
    checks.floating("x", x)
    checks.shape("x", x, ("B", "D"))
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight_p, weight_q = x.to(dtype), weight_p.to(dtype), weight_q.to(dtype)
        bias_p, bias_q, pre_bias = (None if t is None else t.to(dtype) for t in (bias_p, bias_q, pre_bias))
    width = x.shape[1]
    checks.shape("weight_p", weight_p, ("H", "M", width))
    checks.shape("weight_q", weight_q, (weight_p.shape[0], "N", width))
    shapes = {
        "weight_p": (weight_p, None),
        "weight_q": (weight_q, None),
        "bias_p": (bias_p, tuple(weight_p.shape[:2])),
        "bias_q": (bias_q, tuple(weight_q.shape[:2])),
        "pre_bias": (pre_bias, (width,)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None:
            if shape is not None:
                checks.shape(name, tensor, shape)
            checks.floating(name, tensor, x, "x")
            checks.same_device(name, tensor, x, "x")
    latents = weight_p.shape[0] * weight_p.shape[1] * weight_q.shape[1]
    checks.between("k", k, 1, latents, "H·M·N")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not 0 <= eps < float("inf") or (eps and activation != "mand"):
        raise ValueError(f"eps: expected a finite number >= 0, and 0 but for 'mand', got {eps} for {activation!r}")
    wanted = library.differentiable(x, weight_p, weight_q, bias_p, bias_q, pre_bias)
    values, indices, _, _, aux_values, aux_indices, _, _, entries, segments = torch.ops.saekern.kron_encode(
        x, weight_p, weight_q, bias_p, bias_q, k, pre_bias, activation, eps, dead, k_aux, wanted
    )
    return values, indices, aux_values, aux_indices, LatentOrder(entries, segments) if wanted else None


def _latents(weight_p: Tensor, weight_q: Tensor) -> int:
    return weight_p.shape[0] * weight_p.shape[1] * weight_q.shape[1]


def _reference(x, weight_p, weight_q, bias_p, bias_q, k, pre_bias, activation, eps, dead, k_aux, order):
    given = (x, weight_p, weight_q, bias_p, bias_q)
    options = {"pre_bias": pre_bias, "activation": activation, "eps": eps}
    main = reference.kron_encode(*given, k, **options)
    if dead is None:
        aux = tuple(t.new_empty(x.shape[0], 0) for t in main)
    else:
        aux = reference.kron_encode(*given, k_aux, **options, dead=dead)
    empty = main[1].new_empty(0, dtype=torch.int32)
    made = reference.latent_order(main[1], _latents(weight_p, weight_q)) if order else (empty, empty.clone())
    return *main, *aux, *made


def _cpu(x, weight_p, weight_q, bias_p, bias_q, k, pre_bias, activation, eps, dead, k_aux, order):
    if x.dtype == torch.float64:
        return _reference(x, weight_p, weight_q, bias_p, bias_q, k, pre_bias, activation, eps, dead, k_aux, order)

    def empty(count: int) -> tuple[Tensor, ...]:  # values, indices, u, v
        shape = (x.shape[0], count)
        return torch.empty(shape), torch.empty(shape, dtype=torch.int64), torch.empty(shape), torch.empty(shape)

    main, aux = empty(k), empty(k_aux)
    _C.kron_encode(
        *map(library.array, (x, weight_p, weight_q, bias_p, bias_q, pre_bias)),
        ACTIVATIONS.index(activation),
        eps,
        *(t.numpy() for t in main),
        library.array(dead),
        *(t.numpy() for t in aux),
        library.threads(),
        library.isa(),
    )
    latents = _latents(weight_p, weight_q)
    entries = torch.empty(main[1].numel() if order else 0, dtype=torch.int32)
    segments = torch.empty(latents + 1 if order else 0, dtype=torch.int32)
    if order:
        _C.latent_order(main[1].numpy(), latents, library.threads(), entries.numpy(), segments.numpy())
    return main[0].to(x.dtype), *main[1:], aux[0].to(x.dtype), *aux[1:], entries, segments


def _cuda(x, weight_p, weight_q, bias_p, bias_q, k, pre_bias, activation, eps, dead, k_aux, order):
    if x.dtype == torch.float64:
        return _reference(x, weight_p, weight_q, bias_p, bias_q, k, pre_bias, activation, eps, dead, k_aux, order)
    kernel = library.kernels("kron_encode").kron_encode
    return kernel(x, weight_p, weight_q, bias_p, bias_q, k, pre_bias, activation, eps, dead, k_aux, order)


def _fake(x, weight_p, weight_q, bias_p, bias_q, k, pre_bias, activation, eps, dead, k_aux, order):
    wide = torch.promote_types(x.dtype, torch.float32)

    def empty(count: int) -> tuple[Tensor, ...]:
        shape = (x.shape[0], count)
        index = x.new_empty(shape, dtype=torch.int64)
        return x.new_empty(shape), index, x.new_empty(shape, dtype=wide), x.new_empty(shape, dtype=wide)

    entries = x.new_empty(x.shape[0] * k if order else 0, dtype=torch.int32)
    segments = x.new_empty(_latents(weight_p, weight_q) + 1 if order else 0, dtype=torch.int32)
    return *empty(k), *empty(k_aux), entries, segments


library.define(
    "kron_encode(Tensor x, Tensor weight_p, Tensor weight_q, Tensor? bias_p, Tensor? bias_q, int k, Tensor? pre_bias,"
    " str activation, float eps, Tensor? dead, int k_aux, bool order)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    reference=_reference,
    fake=_fake,
)


def _backward_reference(grad, indices, u, v, x, weight_p, weight_q, pre_bias, activation, eps, need):
    given = (grad, indices, u, v, x, weight_p, weight_q, pre_bias, activation, eps)
    grads = reference.kron_encode_backward(*given)
    return tuple(g.to(x.dtype) if wanted else x.new_empty(0) for g, wanted in zip(grads, need, strict=True))


def _backward_cpu(grad, indices, u, v, x, weight_p, weight_q, pre_bias, activation, eps, need):
    if x.dtype == torch.float64:
        return _backward_reference(grad, indices, u, v, x, weight_p, weight_q, pre_bias, activation, eps, need)
    m, n = weight_p.shape[1], weight_q.shape[1]
    places, slopes = reference.kron_places(indices, m, n), reference.kron_slopes(grad, u, v, activation, eps)
    found = []
    for slope, at, weight, wanted in zip(slopes, places, (weight_p, weight_q), (need[1:5:2], need[2:5:2]), strict=True):
        rows = weight.flatten(0, 1)
        shapes = (x.shape, rows.shape, rows.shape[:1], x.shape[1:])
        asked = (need[0], *wanted, need[5])
        outs = [library.output(shape, one) for shape, one in zip(shapes, asked, strict=True)]
        arrays = map(library.array, (slope, slope, at, x, rows, pre_bias, None, None, None))
        _C.topk_encode_backward(*arrays, False, library.threads(), *map(library.array, outs))
        found.append(outs)
    (px, pw, pb, pp), (qx, qw, qb, qp) = found

    def summed(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else a.add_(b)

    def shaped(out: Tensor | None, shape: torch.Size) -> Tensor | None:
        return None if out is None else out.reshape(shape)

    outs = [
        summed(px, qx),
        shaped(pw, weight_p.shape),
        shaped(qw, weight_q.shape),
        shaped(pb, weight_p.shape[:2]),
        shaped(qb, weight_q.shape[:2]),
        summed(pp, qp),
    ]
    return tuple(library.rounded(out, x.dtype) for out in outs)


def _backward_cuda(grad, indices, u, v, x, weight_p, weight_q, pre_bias, activation, eps, need):
    if x.dtype == torch.float64:
        return _backward_reference(grad, indices, u, v, x, weight_p, weight_q, pre_bias, activation, eps, need)
    kernel = library.kernels("kron_encode_backward").kron_encode_backward
    return kernel(grad, indices, u, v, x, weight_p, weight_q, pre_bias, activation, eps, need)


def _backward_fake(grad, indices, u, v, x, weight_p, weight_q, pre_bias, activation, eps, need):
    shapes = (x.shape, weight_p.shape, weight_q.shape, weight_p.shape[:2], weight_q.shape[:2], x.shape[1:])
    return tuple(x.new_empty(shape if wanted else (0,)) for shape, wanted in zip(shapes, need, strict=True))


library.define(
    "kron_encode_backward(Tensor grad, Tensor indices, Tensor u, Tensor v, Tensor x, Tensor weight_p, Tensor weight_q,"
    " Tensor? pre_bias, str activation, float eps, bool[6] need) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    reference=_backward_reference,
    fake=_backward_fake,
)


def _setup_context(ctx, inputs, output):
    x, weight_p, weight_q, _, _, _, pre_bias, activation, eps, _, k_aux, _ = inputs
    _, indices, u, v, _, aux_indices, aux_u, aux_v, entries, segments = output
    ctx.mark_non_differentiable(indices, u, v, aux_indices, aux_u, aux_v, entries, segments)
    ctx.activation, ctx.eps, ctx.k_aux = activation, eps, k_aux
    ctx.save_for_backward(x, weight_p, weight_q, pre_bias, indices, u, v, aux_indices, aux_u, aux_v)


def _backward(ctx, grad, _indices, _u, _v, grad_aux, *_):
    x, weight_p, weight_q, pre_bias, indices, u, v, aux_indices, aux_u, aux_v = ctx.saved_tensors
    if ctx.k_aux:  # padding slots have factors of 0, which carry no gradient
        grad, indices = torch.cat([grad, grad_aux], 1), torch.cat([indices, aux_indices], 1)
        u, v = torch.cat([u, aux_u], 1), torch.cat([v, aux_v], 1)
    needs = ctx.needs_input_grad  # x, weight_p, weight_q, bias_p, bias_q, k, pre_bias, …
    need = [*needs[:5], needs[6]]
    grads = torch.ops.saekern.kron_encode_backward(
        grad.contiguous(), indices, u, v, x, weight_p, weight_q, pre_bias, ctx.activation, ctx.eps, need
    )
    gx, gwp, gwq, gbp, gbq, gp = (g if wanted else None for g, wanted in zip(grads, need, strict=True))
    return gx, gwp, gwq, gbp, gbq, None, gp, None, None, None, None, None


library.autograd("kron_encode", _backward, _setup_context)
