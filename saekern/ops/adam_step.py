"""The optimiser step of a weight matrix in one pass over memory."""

import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    project: bool = False,
    normalize: bool = False,
    latents: Tensor | None = None,
    rounded: Tensor | None = None,
) -> None:
    """One Adam step in place, with the row operations of unit-norm decoders fused in. All tensors [R, C] or [R].

    grad may have another dtype than param and its moments. With `rounded`, of param's shape and any dtype, the new
    param is also left there: bfloat16 weights for the next step's products, without a pass of their own.

    With `latents` [M] (int64, ascending), grad is [M, C]: the rows of these latents, as `decode_row_gradients` returns
    them; all other rows have gradient zero, and no dense gradient is ever made.

    Per row w of param with gradient g, t = step ≥ 1:
        project:    g ← g − ⟨g, w⟩ w / ‖w‖²        (the component along the row is removed; zero rows are left alone)
        Adam:       m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  w ← w − lr/(1−β₁ᵗ) · m / (√(v/(1−β₂ᵗ)) + eps)
        normalize:  w ← w / ‖w‖                    (zero rows are left alone)

    Dense semantics: a row with zero gradient still decays its moments and moves. `grad` is only read.

    Equivalent to: the projection, `torch.optim.Adam` and `F.normalize` one after the other.
    Source: Kingma & Ba 2015, algorithm 1; the projection and normalisation of Gao et al. 2024, section A.1.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, step < 1, or on CPU latents that do not ascend in [0, R).
    """
    checks.floating("param", param)
    if step < 1:
        raise ValueError(f"step: expected step >= 1, got {step}")
    shape = tuple(param.shape)
    if latents is not None:
        checks.shape("param", param, ("R", "C"))
        checks.shape("latents", latents, ("M",))
        checks.integer("latents", latents)
        checks.same_device("latents", latents, param, "param")
        shape = (latents.shape[0], shape[1])
    for name, tensor in (("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        checks.shape(name, tensor, shape if name == "grad" else tuple(param.shape))
        checks.floating(name, tensor, *((param, "param") if name != "grad" else ()))
        checks.same_device(name, tensor, param, "param")
    if rounded is not None:
        checks.shape("rounded", rounded, tuple(param.shape))
        checks.floating("rounded", rounded)
        checks.same_device("rounded", rounded, param, "param")
    if (project or normalize) and param.dim() != 2:
        raise ValueError(f"param: expected shape [R, C] for project or normalize, got {list(param.shape)}")
    torch.ops.saekern.adam_step(
        param, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, project, normalize, latents, rounded
    )


def _reference(
    param, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, project, normalize, latents=None, rounded=None
):
    reference.adam_step(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        step,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        project=project,
        normalize=normalize,
        latents=latents,
        rounded=rounded,
    )
    _changed(param, exp_avg, exp_avg_sq, rounded)


def _changed(*tensors: Tensor | None) -> None:
    """So that autograd refuses stale saved copies: the dispatcher does not count changes made inside an op."""
    torch.autograd.graph.increment_version([t for t in tensors if t is not None])


def _cpu(param, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, project, normalize, latents=None, rounded=None):
    options = (step, lr, beta1, beta2, eps, project, normalize)
    if param.dtype == torch.float64:
        return _reference(param, grad, exp_avg, exp_avg_sq, *options, latents, rounded)
    tensors = (param, grad, exp_avg, exp_avg_sq)
    if (
        not (project or normalize)
        and latents is None
        and param.dim() == 2
        and all(t.t().is_contiguous() for t in tensors)
    ):
        tensors = tuple(t.t() for t in tensors)  # an encoder [D, F] stored by latents: no copy, the step is elementwise
    arrays = [library.array(t) for t in tensors]
    _C.adam_step(*arrays, library.array(latents), *options, library.threads())
    for tensor, array in zip(tensors, arrays, strict=True):
        if tensor is not tensors[1] and tensor.data_ptr() != array.ctypes.data:
            tensor.copy_(torch.from_numpy(array))  # other dtypes round here, once
    if rounded is not None:
        rounded.copy_(param)
    _changed(param, exp_avg, exp_avg_sq, rounded)


def _cuda(
    param, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, project, normalize, latents=None, rounded=None
):
    options = (step, lr, beta1, beta2, eps, project, normalize)
    if param.dtype == torch.float64:
        return _reference(param, grad, exp_avg, exp_avg_sq, *options, latents, rounded)
    library.kernels("adam_step").adam_step(param, grad, exp_avg, exp_avg_sq, *options, latents, rounded)
    _changed(param, exp_avg, exp_avg_sq, rounded)


def _fake(
    param, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, project, normalize, latents=None, rounded=None
):
    return None


library.define(
    "adam_step(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, int step, float lr,"
    " float beta1, float beta2, float eps, bool project, bool normalize, Tensor? latents=None,"
    " Tensor(d!)? rounded=None) -> ()",
    cpu=_cpu,
    cuda=_cuda,
    reference=_reference,
    fake=_fake,
)
