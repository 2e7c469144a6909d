"""Gated sparse autoencoder: one half of the encoder decides which latents are active, the other how much."""

import torch
from torch import Tensor, nn

from saekern import ops
from saekern.sae.base import SAE, Loss, SparseCodes, latent_rows
from saekern.sae.initial import check_sizes, seed_or_new, unit_directions
from saekern.sae.penalty import Warmup, check_coefficient


class GatedSAE(SAE):
    """u = (x − b_dec) W_enc;  π = u + b_gate;  z = 1[π > 0] ⊙ ReLU(exp(r_mag) ⊙ u + b_mag);  x̂ = z W_dec + b_dec.

    Loss: FVU(x, x̂) + λ · mean_b Σ_i ReLU(π_bi) / σ + FVU(x, ReLU(π) sg[W_dec] + sg[b_dec]), where FVU is the fraction
    of variance unexplained, σ² = mean_b ‖x_b − x̄‖² and sg[·] carries no gradient; the gate 1[π > 0] has none either, so
    b_gate learns from the last two terms only. This is the source's loss divided by σ², with λ in units of σ: for rows
    of unit variance (the source normalises rows to ‖x‖² = 1 on average) λ is the source's coefficient.

    W_dec has unit rows; encoder rows start equal to them, r_mag and all biases at 0 (b_dec: see `init_pre_bias_`).
    `b_enc` is b_gate under the name that all SAEs have. Codes hold every latent with an open gate, also those of value
    0. While about half of all gates are open, as at the start, sparse codes are slower than a dense product.

    Shapes: W_enc [D, F], W_dec [F, D], b_gate, b_mag, r_mag [F], b_dec [D]; x [..., D].

    Args:
        d_in, d_sae: D and F.
        l1_coefficient: λ.
        warmup_steps: λ rises linearly over so many training losses (counted in a saved buffer).
        subtract_b_dec: the encoder reads x − b_dec; False: x.
        init_seed: same seed, same initial bits on every device; None draws one. Kept in `sae.init_seed`.
        dtype, device: of the parameters.

    Source: Rajamanoharan et al. 2024a (arXiv 2404.16014), section 3.2 and appendix G.

    Raises:
        ValueError: sizes or coefficients out of range.
    """

    architecture = "gated"
    arguments = ("d_in", "d_sae", "l1_coefficient", "warmup_steps", "init_seed")
    shown = ("d_in", "d_sae", "l1_coefficient")
    unit_norm_rows = ("W_dec",)
    half_weights = ("W_enc", "W_dec")

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
        rows = unit_directions(d_sae, d_in, self.init_seed, device).to(dtype or torch.get_default_dtype())
        self.W_enc = latent_rows(rows.clone())
        self.W_dec = nn.Parameter(rows)
        self.b_gate = nn.Parameter(rows.new_zeros(d_sae))
        self.b_mag = nn.Parameter(rows.new_zeros(d_sae))
        self.r_mag = nn.Parameter(rows.new_zeros(d_sae))
        self.b_dec = nn.Parameter(rows.new_zeros(d_in))
        self.warmup = Warmup(warmup_steps, device)

    @property
    def b_enc(self) -> nn.Parameter:  # type: ignore[override]
        return self.b_gate

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """The latents with an open gate, some of value 0: x [..., D], as B rows -> ragged codes."""
        open_ = self._open(self.flat(x))
        return SparseCodes(self._magnitudes(open_), open_.indices, open_.offsets)

    def loss(self, x: Tensor, dead: Tensor | None = None) -> Loss:
        """Terms "fvu", "l1" and "gate" for rows x [..., D]; `dead` is not used."""
        rows = self.flat(x)
        open_ = self._open(rows)
        values = self._magnitudes(open_)
        gates = (open_.values + ops.latent_gather(self.b_gate, open_)).relu()
        x_hat = ops.decode(values, open_.indices, self.W_dec, self.b_dec, open_.offsets, order=open_.order)
        fvu, spread = ops.unexplained_variance_and_spread(rows, x_hat)
        size = gates.to(fvu.dtype).sum() / max(1, rows.shape[0])
        l1 = self.l1_coefficient * self.warmup(size / spread)
        by_gates = ops.decode(
            gates, open_.indices, self.W_dec.detach(), self.b_dec.detach(), open_.offsets, order=open_.order
        )
        gate = ops.unexplained_variance(rows, by_gates)
        codes = SparseCodes(values, open_.indices, open_.offsets)
        return Loss(fvu + l1 + gate, {"fvu": fvu, "l1": l1, "gate": gate}, x_hat.reshape(x.shape), codes)

    def _open(self, rows: Tensor) -> ops.RaggedCodes:
        """u where π > 0: in floating point, too, u + b > 0 just if u > −b."""
        return ops.threshold_encode(rows, self.W_enc.T, None, -self.b_gate, pre_bias=self.pre_bias)

    def _magnitudes(self, open_: ops.RaggedCodes) -> Tensor:
        scale = ops.latent_gather(self.r_mag.exp(), open_)
        return (scale * open_.values + ops.latent_gather(self.b_mag, open_)).relu()
