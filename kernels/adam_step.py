"""One Adam step in place; with gradient projection and row normalisation in the same pass over the parameters."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.form import Form

BLOCK = 1024  # elements a program of the elementwise step
WIDEST = 8_192  # columns: a row lives in the registers of its program; at 16,384 they spill


@triton.jit
def _adam(w, g, m, v, size, beta1, beta2, root_correction, eps):
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g
    denominator = tl.div_rn(tl.sqrt_rn(v), root_correction) + eps
    return w - size * tl.div_rn(m, denominator), m, v


@triton.jit
def row_kernel(
    param,  # [R, C], like the next three
    grad,  # in any dtype
    exp_avg,
    exp_avg_sq,
    rounded,  # [R, C] out: the new param in another dtype; or None
    positions,  # [R]: the row of grad that is a row's gradient, −1 for zeros; or None: the row itself
    C,
    size,  # lr / (1 − β₁ᵗ)
    beta1,
    beta2,
    root_correction,  # √(1 − β₂ᵗ)
    eps,
    PROJECT: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    row = tl.program_id(0).to(tl.int64)
    at = row * C + columns
    w = tl.load(param + at, mask=inside, other=0.0).to(tl.float32)
    if positions is None:
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    else:
        position = tl.load(positions + row).to(tl.int64)
        g = tl.load(grad + position * C + columns, mask=inside & (position >= 0), other=0.0).to(tl.float32)
    m = tl.load(exp_avg + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0).to(tl.float32)
    if PROJECT:
        square = tl.sum(w * w, 0)
        along = tl.sum(g * w, 0)
        # A zero row has no direction. Its quotient is never 0/0, which would spread NaN through the choice.
        g -= tl.where(square > 0, tl.div_rn(along, tl.where(square > 0, square, 1.0)), 0.0) * w
    w, m, v = _adam(w, g, m, v, size, beta1, beta2, root_correction, eps)
    if NORMALIZE:
        norm = tl.sqrt_rn(tl.sum(tl.where(inside, w * w, 0.0), 0))
        w = tl.where(norm > 0, tl.div_rn(w, tl.where(norm > 0, norm, 1.0)), w)
    # The copy last: between the others ptxas spills 8 bytes for it on sm_80.
    tl.store(exp_avg + at, m.to(param.dtype.element_ty), mask=inside)
    tl.store(exp_avg_sq + at, v.to(param.dtype.element_ty), mask=inside)
    stored = w.to(param.dtype.element_ty)
    tl.store(param + at, stored, mask=inside)
    if rounded is not None:
        tl.store(rounded + at, stored.to(rounded.dtype.element_ty), mask=inside)


@triton.jit
def element_kernel(
    param,  # [count], like the next three
    grad,
    exp_avg,
    exp_avg_sq,
    rounded,  # [count] out, or None
    count,
    size,
    beta1,
    beta2,
    root_correction,
    eps,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    w = tl.load(param + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(exp_avg + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0).to(tl.float32)
    w, m, v = _adam(w, g, m, v, size, beta1, beta2, root_correction, eps)
    tl.store(exp_avg + at, m.to(param.dtype.element_ty), mask=inside)
    tl.store(exp_avg_sq + at, v.to(param.dtype.element_ty), mask=inside)
    stored = w.to(param.dtype.element_ty)
    tl.store(param + at, stored, mask=inside)
    if rounded is not None:
        tl.store(rounded + at, stored.to(rounded.dtype.element_ty), mask=inside)


def row_warps(block: int) -> int:
    return min(32, max(1, block // 256))  # 8 elements of each tensor a thread


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    project: bool,
    normalize: bool,
    latents: Tensor | None = None,
    rounded: Tensor | None = None,
) -> None:
    """In place on param, exp_avg and exp_avg_sq; 7 accesses an element, whatever is fused. [R, C], or any shape where
    neither project nor normalize is set. With `latents` [M] grad is [M, C], and what is not listed has gradient zero;
    they are trusted to be different and to lie in [0, R). `rounded` gets the new param in its own dtype, as an eighth.

    Raises:
        ValueError: more than WIDEST columns with project, normalize or latents.
    """
    if param.numel() == 0:
        return
    tensors = (param, grad, exp_avg, exp_avg_sq, rounded)
    by_rows = project or normalize or latents is not None
    if not by_rows and param.dim() == 2 and all(t is None or t.t().is_contiguous() for t in tensors):
        tensors = tuple(None if t is None else t.t() for t in tensors)  # an encoder [D, F] stored by latents: no copy
    dense = [None if t is None else t.contiguous() for t in tensors]
    numbers = (lr / (1 - beta1**step), beta1, beta2, (1 - beta2**step) ** 0.5, eps)
    with torch.cuda.device_of(param):
        if by_rows:
            rows, width = param.shape
            if width > WIDEST:
                allowed = f"expected at most {WIDEST} columns with project, normalize or latents"
                raise ValueError(f"param: {allowed}, got {width}")
            block = max(16, triton.next_power_of_2(width))
            positions = None if latents is None else _positions(latents, rows)
            row_kernel[(rows,)](
                *dense, positions, width, *numbers, project, normalize, block, num_warps=row_warps(block)
            )
        else:
            grid = (triton.cdiv(param.numel(), BLOCK),)
            element_kernel[grid](*dense, param.numel(), *numbers, BLOCK, num_warps=4)
    for tensor, written in zip((tensors[0], *tensors[2:]), (dense[0], *dense[2:]), strict=True):
        if tensor is not None and written is not None and written is not tensor:
            tensor.copy_(written)


def _positions(latents: Tensor, rows: int) -> Tensor:
    order = torch.arange(latents.shape[0], dtype=torch.int32, device=latents.device)
    return torch.full((rows,), -1, dtype=torch.int32, device=latents.device).scatter_(0, latents, order)


def forms() -> list[Form]:
    state = ("param", "exp_avg", "exp_avg_sq")
    numbers = dict.fromkeys(("size", "beta1", "beta2", "root_correction", "eps"), "fp32")
    made = []
    for wide, half in (("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16")):  # the last: parameters with bf16 copies
        signature = dict.fromkeys(state, f"*{wide}") | {"grad": f"*{half}"}
        absent: dict[str, object] = {"rounded": None}
        if wide != half:
            signature, absent = signature | {"rounded": f"*{half}"}, {}
        pointers = tuple(signature)
        elements, constants = signature | numbers | {"count": "i64"}, absent | {"BLOCK": BLOCK}
        made.append(Form(element_kernel, elements, constants, 4, aligned=(*pointers, "count"), gather=True))
        for width in (768, 4096, WIDEST):
            block = triton.next_power_of_2(width)
            rows = signature | numbers | {"C": "i32"}
            for listed in (False, True):
                constants = absent | {"PROJECT": True, "NORMALIZE": True, "BLOCK_C": block}
                constants |= {} if listed else {"positions": None}
                form = rows | ({"positions": "*i32"} if listed else {})
                aligned = (*pointers, *(["positions"] if listed else []), "C")
                made.append(Form(row_kernel, form, constants, row_warps(block), aligned=aligned, gather=True))
    return made
