"""BatchTopK sparse autoencoder: k active latents a row on average, chosen over the whole batch."""

from typing import ClassVar

import torch
from torch import Tensor

from saekern import ops
from saekern.sae.base import SAE, Loss, SparseCodes
from saekern.sae.initial import aux_count, check_sizes, seed_or_new, unit_directions
from saekern.sae.penalty import check_coefficient


class BatchTopKSAE(SAE):
    """z = ReLU((x − b_dec) W_enc + b_enc), all but the k·B largest of the B rows set to 0;  x̂ = z W_dec + b_dec.

    Loss: FVU(x, x̂) + aux_coefficient · FVU(sg[x − x̂], z_aux W_dec), as `TopKSAE`: z_aux are the k_aux largest
    pre-activations of each row among the dead latents; FVU is the fraction of variance unexplained (the source's
    squared error divided by the rows' variance), sg[·] carries no gradient. W_dec has unit rows.

    A row's codes must not depend on the other rows once trained. So `encode_sparse`, `encode` and `forward` keep the
    scores above one number, `sae.threshold`, whatever `sae.training` says; `loss` and `encode_batch` choose over the
    batch. The threshold is the average over batches of the smallest chosen positive score: an exponential moving one
    that starts at the first batch, saved with the SAE, and moved by each `loss` in training mode with gradients
    enabled. Before that it is 0, and encoding is plain ReLU.

    Shapes: W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D], threshold []; x [..., D].

    Args:
        d_in, d_sae: D and F.
        k: active latents a row on average, 1 ≤ k ≤ F.
        k_aux: dead latents a row in the auxiliary loss; None is the power of two at or below D/2, at most F.
        aux_coefficient: weight of the auxiliary loss.
        threshold_decay: how much of the threshold a batch leaves. The smallest of k·B codes hardly varies between
            batches, but moves while training goes on: with 0.99, runs of 195 steps ended with an L0 of 0.55 to 0.7 k.
        subtract_b_dec: the encoder reads x − b_dec; False: x.
        init_seed: same seed, same initial bits on every device; None draws one. Kept in `sae.init_seed`.
        dtype, device: of the parameters. The threshold stays float32.

    Source: Bussmann, Leask, Nanda 2024 (arXiv 2412.06410), section 3; the moving average: dictionary_learning.

    Raises:
        ValueError: sizes out of range.
    """

    architecture = "batch_topk"
    arguments: ClassVar[tuple[str, ...]] = (
        "d_in",
        "d_sae",
        "k",
        "k_aux",
        "aux_coefficient",
        "threshold_decay",
        "init_seed",
    )
    shown = ("d_in", "d_sae", "k")
    unit_norm_rows = ("W_dec",)
    half_weights = ("W_enc", "W_dec")
    wide = ("threshold",)
    threshold: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int,
        *,
        k_aux: int | None = None,
        aux_coefficient: float = 1 / 32,
        threshold_decay: float = 0.9,
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
        check_coefficient("aux_coefficient", aux_coefficient)
        if not 0 <= threshold_decay < 1:
            raise ValueError(f"threshold_decay: expected 0 <= threshold_decay < 1, got {threshold_decay}")
        self.d_in, self.d_sae, self.k, self.k_aux = d_in, d_sae, k, aux_count(k_aux, d_in, d_sae)
        self.aux_coefficient, self.threshold_decay = aux_coefficient, threshold_decay
        self.init_seed = seed_or_new(init_seed)
        rows = unit_directions(d_sae, d_in, self.init_seed, device).to(dtype or torch.get_default_dtype())
        self.tie_(rows)
        self.register_buffer("threshold", rows.new_zeros((), dtype=torch.promote_types(rows.dtype, torch.float32)))

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """The latents above `sae.threshold`: x [..., D], as B rows -> ragged codes."""
        codes = ops.threshold_encode(self.flat(x), self.W_enc.T, self.b_enc, self.threshold, pre_bias=self.pre_bias)
        return SparseCodes(*codes[:3])

    def encode_batch(self, x: Tensor) -> ops.RaggedCodes:
        """The training's choice: the k·B largest of x [..., D] as B rows, sorted by latent too."""
        rows = self.flat(x)
        return ops.batch_topk_encode(rows, self.W_enc.T, self.b_enc, self.k * rows.shape[0], pre_bias=self.pre_bias)

    def loss(self, x: Tensor, dead: Tensor | None = None) -> Loss:
        """Terms "fvu" and "auxk" for rows x [..., D]; `dead` [F] (bool) marks the latents that the latter revives.

        Without dead latents "auxk" is 0. The auxiliary target is the residual without b_dec, which is in x̂ already.
        """
        rows = self.flat(x)
        codes = self.encode_batch(rows)
        if self.training and torch.is_grad_enabled():
            self.observe_(codes.values)
        x_hat = ops.decode(codes.values, codes.indices, self.W_dec, self.b_dec, codes.offsets, order=codes.order)
        fvu = ops.unexplained_variance(rows, x_hat)
        auxk = fvu.new_zeros(()) if dead is None else self.auxiliary_loss(rows, x_hat, dead)
        return Loss(fvu + auxk, {"fvu": fvu, "auxk": auxk}, x_hat.reshape(x.shape), SparseCodes(*codes[:3]))

    def auxiliary_loss(self, rows: Tensor, x_hat: Tensor, dead: Tensor) -> Tensor:
        """aux_coefficient · FVU(sg[x − x̂], z_aux W_dec), 0 if no latent is dead."""
        if dead.device.type == "cpu" and not torch.compiler.is_compiling() and not dead.any():
            return torch.zeros((), dtype=torch.promote_types(rows.dtype, torch.float32))  # without a second encode
        _, _, values, indices = ops.topk_encode_aux(
            rows, self.W_enc.T, self.b_enc, 1, dead, self.k_aux, pre_bias=self.pre_bias
        )
        estimate = ops.decode(values, indices, self.W_dec)
        auxk = self.aux_coefficient * ops.unexplained_variance((rows - x_hat).detach(), estimate)
        return torch.where(dead.any(), auxk, 0)

    @torch.no_grad()
    def observe_(self, values: Tensor) -> None:
        """Moves the threshold towards the smallest positive of a batch's codes; see the class."""
        if values.numel() == 0:
            return
        least = torch.where(values > 0, values.to(self.threshold.dtype), torch.inf).min()
        moved = torch.lerp(least, self.threshold, self.threshold_decay)
        moved = torch.where(self.threshold > 0, moved, least)
        self.threshold.copy_(torch.where(least.isfinite(), moved, self.threshold))
