"""ReLU sparse autoencoder with an L1 penalty that counts the decoder's norms."""

import torch
from torch import Tensor

from saekern import ops
from saekern.sae.base import SAE, Loss, SparseCodes
from saekern.sae.initial import check_sizes, seed_or_new, unit_directions
from saekern.sae.penalty import Warmup, check_coefficient


class ReLUSAE(SAE):
    """z = ReLU((x − b_dec) W_enc + b_enc);  x̂ = z W_dec + b_dec.

    Loss: FVU(x, x̂) + λ · mean_b Σ_i z_bi ‖W_dec,i‖ / σ, where FVU is the fraction of variance unexplained and
    σ² = mean_b ‖x_b − x̄‖². This is the source's ‖x − x̂‖² + λ' Σ z_i ‖W_dec,i‖ divided by σ², with λ' = λσ: for rows of
    unit variance λ is the source's coefficient, and it does not have to follow the scale of other rows. (The source
    scales rows to ‖x‖ ≈ √D and takes λ' = 5, which is λ ≈ 5/√D here.) W_dec is not constrained.

    The source has no −b_dec in the encoder, which only shifts b_enc; here it makes training start from centred rows.
    Decoder rows start with norm 0.1, encoder rows equal to them, biases at 0 (b_dec: see `init_pre_bias_`).

    While about half of all latents are active, as at the start, sparse codes are slower than a dense product.

    Shapes: W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D]; x [..., D].

    Args:
        d_in, d_sae: D and F.
        l1_coefficient: λ.
        warmup_steps: λ rises linearly over so many training losses (counted in a saved buffer).
        subtract_b_dec: the encoder reads x − b_dec; False: x.
        init_seed: same seed, same initial bits on every device; None draws one. Kept in `sae.init_seed`.
        dtype, device: of the parameters.

    Source: Conerly, Templeton, Bricken, Marcus, Henighan, "Update on how we train SAEs", Anthropic, April 2024.

    Raises:
        ValueError: sizes or coefficients out of range.
    """

    architecture = "relu"
    arguments = ("d_in", "d_sae", "l1_coefficient", "warmup_steps", "init_seed")
    shown = ("d_in", "d_sae", "l1_coefficient")
    half_weights = ("W_enc",)

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        l1_coefficient: float = 0.1,
        warmup_steps: int = 0,
        subtract_b_dec: bool = True,
        init_seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d_in, d_sae)
        self.subtract_b_dec = bool(subtract_b_dec)
        check_coefficient("l1_coefficient", l1_coefficient)
        self.d_in, self.d_sae, self.l1_coefficient = d_in, d_sae, l1_coefficient
        self.init_seed, self.warmup_steps = seed_or_new(init_seed), warmup_steps
        rows = 0.1 * unit_directions(d_sae, d_in, self.init_seed, device).to(dtype or torch.get_default_dtype())
        self.tie_(rows)
        self.warmup = Warmup(warmup_steps, device)

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """The positive latents: x [..., D], as B rows -> ragged codes."""
        return SparseCodes(*self._codes(self.flat(x))[:3])

    def loss(self, x: Tensor, dead: Tensor | None = None) -> Loss:
        """Terms "fvu" and "l1" for rows x [..., D]; `dead` is not used."""
        rows = self.flat(x)
        codes = self._codes(rows)
        x_hat = ops.decode(codes.values, codes.indices, self.W_dec, self.b_dec, codes.offsets, order=codes.order)
        fvu, spread = ops.unexplained_variance_and_spread(rows, x_hat)
        norms = torch.linalg.vector_norm(self.W_dec, dim=1)
        size = (codes.values.to(fvu.dtype) * ops.latent_gather(norms, codes)).sum() / max(1, rows.shape[0])
        l1 = self.l1_coefficient * self.warmup(size / spread)
        return Loss(fvu + l1, {"fvu": fvu, "l1": l1}, x_hat.reshape(x.shape), SparseCodes(*codes[:3]))

    def _codes(self, rows: Tensor) -> ops.RaggedCodes:
        return ops.threshold_encode(rows, self.W_enc.T, self.b_enc, 0.0, pre_bias=self.pre_bias)
