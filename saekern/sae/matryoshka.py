"""Matryoshka sparse autoencoder: each of several prefixes of the dictionary reconstructs by itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saekern import ops
from saekern.ops.hierarchical_loss import check_weights
from saekern.sae.base import Loss, SparseCodes
from saekern.sae.batch_topk import BatchTopKSAE


class MatryoshkaSAE(BatchTopKSAE):
    """z as in BatchTopKSAE, chosen over the whole dictionary;  x̂_m = b_dec + Σ_{i < p_m} z_i W_dec,i.

    Loss: Σ_m w_m FVU(x, x̂_m) + aux_coefficient · FVU(sg[x − x̂], z_aux W_dec) over the prefixes p_1 < … < p_M = F of
    the dictionary, Σ w_m = 1; x̂ = x̂_M, the rest as in BatchTopKSAE. The first latents serve in every prefix, so they
    become the general ones. (The source adds the squared errors; a mean keeps the weight of the auxiliary loss.)

    Shapes: W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D], threshold []; x [..., D].

    Args:
        d_in, d_sae: D and F.
        k: active latents a row on average, 1 ≤ k ≤ F.
        prefixes: p_1 … p_M, ascending, the last one F; None: F/16, F/8, F/4, F/2, F.
        prefix_weights: positive, one a prefix; divided by their sum. None: all the same.
        k_aux, aux_coefficient, threshold_decay, subtract_b_dec, init_seed, dtype, device: as in BatchTopKSAE.

    Source: Bussmann, Nabeshima, Karvonen, Nanda 2025 (arXiv 2503.17547), section 3.

    Raises:
        ValueError: sizes out of range, prefixes or weights that do not fit.
    """

    architecture = "matryoshka"
    arguments = (*BatchTopKSAE.arguments, "prefixes", "prefix_weights")

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int,
        *,
        prefixes: Sequence[int] | None = None,
        prefix_weights: Sequence[float] | None = None,
        k_aux: int | None = None,
        aux_coefficient: float = 1 / 32,
        threshold_decay: float = 0.9,
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
            threshold_decay=threshold_decay,
            subtract_b_dec=subtract_b_dec,
            init_seed=init_seed,
            dtype=dtype,
            device=device,
        )
        if prefixes is None:
            prefixes = sorted({max(1, d_sae // part) for part in (16, 8, 4, 2, 1)})
        self.prefixes = [int(prefix) for prefix in prefixes]
        ascending = all(a < b for a, b in zip([0, *self.prefixes], self.prefixes, strict=False))
        if not self.prefixes or not ascending or self.prefixes[-1] != d_sae:
            raise ValueError(
                f"prefixes: expected ascending lengths, the last one d_sae = {d_sae}, got {list(prefixes)}"
            )
        if prefix_weights is not None:
            check_weights(prefix_weights, len(self.prefixes))
        self.prefix_weights = None if prefix_weights is None else [float(weight) for weight in prefix_weights]

    def loss(self, x: Tensor, dead: Tensor | None = None) -> Loss:
        """Terms "fvu", the weighted mean over the prefixes, and "auxk", of the residual of the whole dictionary.

        x̂ is that of the whole dictionary and carries no gradient."""
        rows = self.flat(x)
        codes = self.encode_batch(rows)
        if self.training and torch.is_grad_enabled():
            self.observe_(codes.values)
        error, x_hat = ops.hierarchical_loss(
            codes.values,
            codes.indices,
            self.W_dec,
            self.b_dec,
            rows,
            weights=self.prefix_weights,
            offsets=codes.offsets,
            cuts=self._cuts(codes.indices, codes.offsets),
            order=codes.order,
        )
        spread = ops.unexplained_variance_and_spread(rows.detach(), x_hat)[1]
        fvu = error / spread.square()
        auxk = fvu.new_zeros(()) if dead is None else self.auxiliary_loss(rows, x_hat, dead)
        return Loss(fvu + auxk, {"fvu": fvu, "auxk": auxk}, x_hat.reshape(x.shape), SparseCodes(*codes[:3]))

    def _cuts(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """[B, M] how many of a row's codes, which ascend by latent, lie in each prefix."""
        count, parts = offsets.numel() - 1, len(self.prefixes)
        ends = torch.tensor(self.prefixes[:-1], device=indices.device)
        row = torch.arange(count, device=indices.device).repeat_interleave(offsets.diff(), output_size=indices.numel())
        places = row * parts + torch.bucketize(indices, ends, right=True)
        return torch.bincount(places, minlength=count * parts).reshape(count, parts).cumsum(1)
