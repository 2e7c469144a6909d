"""HierarchicalTopK sparse autoencoder: one model for every number of active latents up to K."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saekern import ops
from saekern.ops.hierarchical_loss import check_budgets, check_weights
from saekern.sae.base import SparseCodes
from saekern.sae.topk import TopKSAE


class HierarchicalTopKSAE(TopKSAE):
    """z = ReLU(TopK((x − b_dec) W_enc + b_enc)), values descending;  x̂_j = b_dec + Σ_{i ≤ j} z_i W_dec[idx_i].

    Loss: Σ_j w_j FVU(x, x̂_j) + aux_coefficient · FVU(sg[x − x̂_K], z_aux W_dec), over the budgets j, Σ w_j = 1;
    FVU(x, x̂) = Σ_b ‖x_b − x̂_b‖² / Σ_b ‖x_b − x̄‖², whose denominator is a constant for the gradient; z_aux are the
    k_aux largest pre-activations among the dead latents; sg[·] carries no gradient. W_dec has unit rows. With the one
    budget K this is TopKSAE.

    Shapes: W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D]; x [..., D].

    Args:
        d_in, d_sae: D and F.
        k: K, the most active latents a row, 1 ≤ K ≤ F.
        budgets: the numbers of active latents that are trained, ascending in [1, K]; None is 1, 2, …, K.
        budget_weights: positive, one for each budget; divided by their sum. None: all the same.
        k_aux, aux_coefficient, subtract_b_dec, init_seed, dtype, device: as in TopKSAE.

    Source: Balagansky et al. 2025 (arXiv 2505.24473), which divides by B K D where we divide by the variance, and has
    neither AuxK nor unit rows in its released code; AuxK as in Gao et al. 2024 (arXiv 2406.04093).

    Raises:
        ValueError: sizes out of range, budgets or weights that do not fit.
    """

    architecture = "hierarchical_topk"
    arguments = (*TopKSAE.arguments, "budgets", "budget_weights")

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int,
        *,
        budgets: Sequence[int] | None = None,
        budget_weights: Sequence[float] | None = None,
        k_aux: int | None = None,
        aux_coefficient: float = 1 / 32,
        subtract_b_dec: bool = True,
        init_seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            d_in,
            d_sae,
            k,
            k_aux=k_aux,
            aux_coefficient=aux_coefficient,
            subtract_b_dec=subtract_b_dec,
            init_seed=init_seed,
            dtype=dtype,
            device=device,
        )
        self.budgets = None if budgets is None else check_budgets(budgets, k)
        if budget_weights is not None:
            check_weights(budget_weights, k if self.budgets is None else len(self.budgets))
        self.budget_weights = None if budget_weights is None else [float(w) for w in budget_weights]

    def encode_sparse(self, x: Tensor, k: int | None = None) -> SparseCodes:
        """The k active latents of each row, values descending, by default K: x [..., D] -> values, indices [..., k]."""
        k = self._count(k)
        values, indices, *_ = self._codes(self.flat(x), k=k)
        shape = (*x.shape[:-1], k)
        return SparseCodes(values.reshape(shape), indices.reshape(shape))

    def encode(self, x: Tensor, k: int | None = None) -> Tensor:
        """Dense codes with k active latents a row, by default K: x [..., D] -> [..., F]."""
        return self.encode_sparse(x, k).dense(self.d_sae)

    def forward(self, x: Tensor, k: int | None = None) -> Tensor:
        """The reconstruction from k latents a row, by default K: [..., D] -> [..., D]."""
        values, indices, _, _, order = self._codes(self.flat(x), k=self._count(k))
        return ops.decode(values, indices, self.W_dec, self.b_dec, order=order).reshape(x.shape)

    def _unexplained(
        self, rows: Tensor, values: Tensor, indices: Tensor, order: ops.LatentOrder | None
    ) -> tuple[Tensor, Tensor]:
        """The weighted mean over the budgets; x̂ is that of K latents and carries no gradient."""
        error, x_hat = ops.hierarchical_loss(
            values, indices, self.W_dec, self.b_dec, rows, self.budgets, self.budget_weights, order=order
        )
        _, variance = torch.ops.saekern.unexplained_variance(rows.detach(), x_hat)
        return error * (rows.shape[0] / variance).to(error.dtype), x_hat

    def _count(self, k: int | None) -> int:
        if k is not None and not 1 <= k <= self.k:
            raise ValueError(f"k: expected 1 <= k <= K = {self.k}, the most that this SAE was made for, got {k}")
        return self.k if k is None else k
