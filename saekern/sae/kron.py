"""KronSAE: an encoder factorised by heads, whose latents are the products of two short lists."""

from typing import Any

import torch
from torch import Tensor, nn

from saekern.ops.kron_encode import ACTIVATIONS, encode
from saekern.ops.topk_encode import LatentOrder
from saekern.sae.base import SAE
from saekern.sae.initial import aux_count, check_sizes, seed_or_new
from saekern.sae.topk import TopKSAE


class KronSAE(TopKSAE):
    """u = (x − b_dec) W_pᵀ + b_p, v = (x − b_dec) W_qᵀ + b_q, in heads of M and N;  latent (h, i, j) = √(u_hi v_hj)
    where both are positive, else 0;  z keeps the K largest;  x̂ = z W_dec + b_dec.

    Loss, decoder and dead latents as in TopKSAE. The encoder has H (M + N) rows in place of F = H·M·N: 1/M + 1/N of the
    parameters and products. There is no W_enc.

    Parameters: W_p [H·M, D], W_q [H·N, D], b_p [H·M], b_q [H·N], W_dec [F, D] with unit rows, b_dec [D]. The latent of
    (h, i, j) is (h·M + i)·N + j.

    Args:
        d_in, d_sae: D and F; F = heads·m·n.
        k: active latents a row, 1 ≤ k ≤ F.
        m, n: M and N. The source advises m ≤ n, m small.
        heads: H; None: d_sae / (m·n).
        activation: "mand", "relu" (ReLU(u) ReLU(v)) or "product" (u v); see `ops.kron_encode`.
        eps: the published code's 1e-5 inside the root, which makes every inactive latent 0.003; 0 has none.
        k_aux, aux_coefficient, init_seed, dtype, device: as in TopKSAE.

    Source: Kurochkin et al. 2025 (arXiv 2505.22255), section 3; initialisation as published: encoder rows of variance
    1/(2F), decoder rows W_p,hi + W_q,hj scaled to unit norm.

    Raises:
        ValueError: sizes out of range, F that is not heads·m·n, an unknown activation.
    """

    architecture = "kron"
    arguments = (*TopKSAE.arguments, "m", "n", "heads", "activation", "eps")
    shown = (*TopKSAE.shown, "m", "n", "heads", "activation")
    half_weights = ("W_dec",)

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int,
        *,
        m: int,
        n: int,
        heads: int | None = None,
        activation: str = "mand",
        eps: float = 0.0,
        k_aux: int | None = None,
        aux_coefficient: float = 1 / 32,
        init_seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        SAE.__init__(self)
        check_sizes(d_in, d_sae)
        for name, size in (("m", m), ("n", n)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if heads is None:
            heads = d_sae // (m * n)
        if heads < 1 or heads * m * n != d_sae:
            raise ValueError(f"d_sae: expected heads·m·n = {heads}·{m}·{n} = {heads * m * n}, got {d_sae}")
        if not 1 <= k <= d_sae:
            raise ValueError(f"k: expected 1 <= k <= d_sae = {d_sae}, got {k}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if not 0 <= eps < float("inf") or (eps and activation != "mand"):
            raise ValueError(f"eps: expected a finite number >= 0, and 0 but for 'mand', got {eps} for {activation!r}")
        self.d_in, self.d_sae, self.k, self.k_aux = d_in, d_sae, k, aux_count(k_aux, d_in, d_sae)
        self.heads, self.m, self.n, self.activation, self.eps = heads, m, n, activation, float(eps)
        self.aux_coefficient, self.init_seed, self.annealing = aux_coefficient, seed_or_new(init_seed), None
        rows = _gaussian(heads * (m + n), d_in, self.init_seed, device) / (2 * d_sae) ** 0.5
        rows = rows.to(dtype or torch.get_default_dtype())
        self.W_p, self.W_q = (nn.Parameter(part.clone()) for part in rows.split([heads * m, heads * n]))
        p, q = self.W_p.detach().view(heads, m, 1, d_in), self.W_q.detach().view(heads, 1, n, d_in)
        self.W_dec = nn.Parameter(nn.functional.normalize((p + q).reshape(d_sae, d_in), dim=1))
        self.b_p, self.b_q = (nn.Parameter(rows.new_zeros(heads * size)) for size in (m, n))
        self.b_dec = nn.Parameter(rows.new_zeros(d_in))

    def __getattr__(self, name: str) -> Any:
        if name in ("W_enc", "b_enc"):
            raise AttributeError(
                f"KronSAE has no {name}: its encoder is factorised, W_p [H·M, D], b_p, W_q [H·N, D] and b_q"
            )
        return super().__getattr__(name)

    def _codes(
        self, rows: Tensor, dead: Tensor | None = None, k_aux: int = 0, k: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, LatentOrder | None]:
        heads = self.heads
        return encode(
            rows,
            self.W_p.view(heads, self.m, self.d_in),
            self.W_q.view(heads, self.n, self.d_in),
            self.b_p.view(heads, self.m),
            self.b_q.view(heads, self.n),
            k or self.k,
            pre_bias=self.b_dec,
            activation=self.activation,
            eps=self.eps,
            dead=dead,
            k_aux=k_aux,
        )


def _gaussian(count: int, width: int, seed: int, device: torch.device | str | None) -> Tensor:
    """Standard normal [count, width], float32, from a generator of their own on the CPU."""
    if torch.device(device or torch.get_default_device()).type == "meta":
        return torch.empty(count, width, device="meta")
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")
    return rows.to(device or torch.get_default_device())
