"""Dense scores and dense codes, for libraries whose interface is made of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saekern import ops, reference
from saekern.sae import SAE, GatedSAE, KronSAE, NormalizedSAE, SparseCodes, TopKSAE


def encode_through(sae: SAE, x: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
    """`sae.encode(x)` [..., F] from dense scores [..., F] that `hook` may look at and replace.

    The scores are what is ranked or compared with a threshold: (x − b_dec) W_enc + b_enc; of a GatedSAE the magnitudes
    before their ReLU, of a KronSAE the products of its factors. They are torch's product, in whose last bits they
    differ from the scores of our kernels.
    """
    if isinstance(sae, NormalizedSAE):
        raise TypeError("x: expected normalised rows and the base of a NormalizedSAE")
    flat = sae.flat(x)
    shape = (*x.shape[:-1], sae.d_sae)
    if isinstance(sae, KronSAE):
        weights = (sae.W_p.unflatten(0, (sae.heads, sae.m)), sae.W_q.unflatten(0, (sae.heads, sae.n)))
        biases = (sae.b_p.view(sae.heads, sae.m), sae.b_q.view(sae.heads, sae.n))
        factors = reference.kron_factors(flat, *weights, *biases, sae.pre_bias)
        products = hook(reference.kron_products(*factors, sae.activation).to(x.dtype).reshape(shape))
        best, indices = ops.row_topk(products.reshape(-1, sae.d_sae), sae.k)
        values = (best + sae.eps).sqrt() if sae.activation == "mand" else best.relu()
        return SparseCodes(values, indices).dense(sae.d_sae).reshape(shape)
    rows = flat if sae.pre_bias is None else flat - sae.pre_bias
    product = (rows @ sae.W_enc).reshape(shape)
    if isinstance(sae, GatedSAE):
        size = hook(sae.r_mag.exp() * product + sae.b_mag).relu()
        return torch.where(product + sae.b_gate <= 0, 0, size)
    scores = hook(product + sae.b_enc)
    if isinstance(sae, TopKSAE):
        values, indices = ops.row_topk(scores.reshape(-1, sae.d_sae), sae.k)
        return SparseCodes(values.relu(), indices).dense(sae.d_sae).reshape(shape)
    return torch.where(scores <= getattr(sae, "threshold", 0.0), 0, scores)  # NaN stays


class LastCodes:
    """Dense codes whose sparse form is remembered, so that decoding them need not multiply F numbers that are zero.

    Between the two calls anybody may have changed the dense tensor, in ways that autograd sees or not. So `decode`
    compares it with what was made, a pass over it where the product would be D passes, and multiplies if they differ.
    On a GPU the host waits for that answer; inside a graph's capture it multiplies.
    """

    def __init__(self) -> None:
        self.codes: SparseCodes | None = None

    def dense(self, codes: SparseCodes, d_sae: int) -> Tensor:
        """[B, F]"""
        self.codes = SparseCodes(codes.values.detach(), codes.indices, codes.offsets)
        return codes.dense(d_sae)

    def decode(self, dense: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[..., F] @ [F, D] + bias; where these are the codes that were made, by our kernel."""
        flat = dense.reshape(-1, weight.shape[0])
        if self.codes is None or not self._made(flat):
            return dense @ weight + bias
        x_hat = ops.decode(self.codes.values, self.codes.indices, weight, bias, self.codes.offsets)
        if torch.is_grad_enabled() and dense.requires_grad:
            x_hat = _Through.apply(x_hat, flat, weight)
        return x_hat.reshape(*dense.shape[:-1], weight.shape[1])

    def _made(self, flat: Tensor) -> bool:
        if torch.compiler.is_compiling() or (flat.is_cuda and torch.cuda.is_current_stream_capturing()):
            return False  # the question waits for the device
        values, indices, offsets = self.codes or SparseCodes(flat, flat)
        rows = values.shape[0] if offsets is None else offsets.numel() - 1
        if rows != flat.shape[0] or values.dtype != flat.dtype or values.device != flat.device:
            return False
        if offsets is None:
            found = flat.gather(1, indices)
        else:
            row = torch.arange(rows, device=flat.device).repeat_interleave(offsets.diff(), output_size=indices.numel())
            found = flat[row, indices]
        return torch.equal(found, values) and bool(torch.count_nonzero(flat) == torch.count_nonzero(values))


class _Through(torch.autograd.Function):
    """x̂ as it is; backwards also the dense gradient of its codes, zeros included, that the sparse sum does not have."""

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, dense: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x_hat.view_as(x_hat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (weight,) = ctx.saved_tensors
        return grad, grad @ weight.T if ctx.needs_input_grad[1] else None, None
