"""TopK sparse autoencoder: the K largest pre-activations of each row, with an auxiliary loss for dead latents."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from saekern import ops
from saekern.ops.topk_encode import encode
from saekern.sae.annealing import Annealing
from saekern.sae.base import SAE, Loss, SparseCodes
from saekern.sae.initial import aux_count, check_sizes, seed_or_new, unit_directions


class TopKSAE(SAE):
    """z = ReLU(TopK((x − b_dec) W_enc + b_enc));  x̂ = z W_dec + b_dec.

    Loss: FVU(x, x̂) + aux_coefficient · FVU(sg[x − x̂], z_aux W_dec), where z_aux are the k_aux largest pre-activations
    among the dead latents; FVU is the fraction of variance unexplained, sg[·] carries no gradient. W_dec has unit rows.

    Shapes: W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D]; x [..., D].

    Args:
        d_in, d_sae: D and F.
        k: active latents a row, 1 ≤ k ≤ F.
        k_aux: dead latents a row in the auxiliary loss; None is the power of two at or below D/2, at most F.
        aux_coefficient: weight of the auxiliary loss.
        k_start, k_steps: train with k_start ≥ k active latents at first, fewer with each loss, k from loss k_steps on.
            Encoding always uses k. None: k from the beginning.
        subtract_b_dec: the encoder reads x − b_dec; False: x.
        init_seed: same seed, same initial bits on every device; None draws one. Kept in `sae.init_seed`.
        dtype, device: of the parameters.

    Source: Gao et al. 2024 (arXiv 2406.04093), sections 2.3 and A.2.

    Raises:
        ValueError: sizes out of range.
    """

    architecture = "topk"
    arguments: ClassVar[tuple[str, ...]] = ("d_in", "d_sae", "k", "k_aux", "aux_coefficient", "init_seed")
    shown: ClassVar[tuple[str, ...]] = ("d_in", "d_sae", "k")
    unit_norm_rows = ("W_dec",)
    half_weights: ClassVar[tuple[str, ...]] = ("W_enc", "W_dec")

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int,
        *,
        k_aux: int | None = None,
        aux_coefficient: float = 1 / 32,
        k_start: int | None = None,
        k_steps: int = 0,
        subtract_b_dec: bool = True,
        init_seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d_in, d_sae)
        self.subtract_b_dec = bool(subtract_b_dec)
        if not 1 <= k <= d_sae:
            raise ValueError(f"k: expected 1 <= k <= d_sae = {d_sae}, got {k}")
        if k_start is not None and not (k <= k_start <= d_sae and k_steps >= 1):
            expected = f"k = {k} <= k_start <= d_sae = {d_sae} and k_steps >= 1"
            raise ValueError(f"k_start: expected {expected}, got {k_start} and k_steps = {k_steps}")
        k_aux = aux_count(k_aux, d_in, d_sae)
        self.d_in, self.d_sae, self.k, self.k_aux = d_in, d_sae, k, k_aux
        self.aux_coefficient, self.init_seed = aux_coefficient, seed_or_new(init_seed)
        rows = unit_directions(d_sae, d_in, self.init_seed, device).to(dtype or torch.get_default_dtype())
        self.tie_(rows)
        self.annealing = None if k_start is None else Annealing(k_start, k, k_steps, device)

    def config(self) -> dict[str, Any]:
        annealing = self.annealing
        annealed = {} if annealing is None else {"k_start": annealing.start, "k_steps": annealing.steps}
        return super().config() | annealed

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """The K active latents of each row, values descending: x [..., D] -> values, indices [..., K]."""
        values, indices, *_ = self._codes(self.flat(x))
        shape = (*x.shape[:-1], self.k)
        return SparseCodes(values.reshape(shape), indices.reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction: [..., D] -> [..., D]."""
        # As decode(encode_sparse(x)), but the codes are sorted by latent once for both backward passes.
        values, indices, _, _, order = self._codes(self.flat(x))
        return ops.decode(values, indices, self.W_dec, self.b_dec, order=order).reshape(x.shape)

    def loss(self, x: Tensor, dead: Tensor | None = None) -> Loss:
        """Terms "fvu" and "auxk" for rows x [..., D]; `dead` [F] (bool) marks the latents that the latter revives.

        Without dead latents "auxk" is 0. The auxiliary target is the residual without b_dec, which is in x̂ already.
        """
        rows = self.flat(x)
        if dead is not None and dead.device.type == "cpu" and not torch.compiler.is_compiling() and not dead.any():
            dead = None  # elsewhere the question would wait for the device or break the graph
        k_aux = 0 if dead is None else self.k_aux
        k = self.k if self.annealing is None else self.annealing.k(self.training)
        values, indices, aux_values, aux_indices, order = self._codes(rows, dead if k_aux else None, k_aux, k)
        fvu, x_hat = self._unexplained(rows, values, indices, order)
        if dead is not None and k_aux:
            estimate = ops.decode(aux_values, aux_indices, self.W_dec)
            auxk = self.aux_coefficient * ops.unexplained_variance((rows - x_hat).detach(), estimate)
            auxk = torch.where(dead.any(), auxk, 0)
        else:
            auxk = fvu.new_zeros(())
        shape = (*x.shape[:-1], k)
        codes = SparseCodes(values.reshape(shape), indices.reshape(shape))
        return Loss(fvu + auxk, {"fvu": fvu, "auxk": auxk}, x_hat.reshape(x.shape), codes)

    def _codes(
        self, rows: Tensor, dead: Tensor | None = None, k_aux: int = 0, k: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, ops.LatentOrder | None]:
        """values, indices [B, k] of all latents (k: K or fewer) and [B, k_aux] of the dead; the order of the former."""
        return encode(rows, self.W_enc.T, self.b_enc, k or self.k, pre_bias=self.pre_bias, dead=dead, k_aux=k_aux)

    def _unexplained(
        self, rows: Tensor, values: Tensor, indices: Tensor, order: ops.LatentOrder | None
    ) -> tuple[Tensor, Tensor]:
        """The first term of the loss, and x̂."""
        x_hat = ops.decode(values, indices, self.W_dec, self.b_dec, order=order)
        return ops.unexplained_variance(rows, x_hat), x_hat
