"""JumpReLU sparse autoencoder: a learned threshold for each latent, trained through straight-through estimators."""

from typing import Any

import torch
from torch import Tensor, nn

from saekern import ops
from saekern.sae.base import SAE, Loss, SparseCodes
from saekern.sae.initial import check_sizes, seed_or_new, unit_directions
from saekern.sae.penalty import Warmup, check_coefficient


class JumpReLUSAE(SAE):
    """s = (x − b_dec) W_enc + b_enc;  z_i = s_i · 1[s_i > θ_i];  x̂ = z W_dec + b_dec.

    Loss: FVU(x, x̂) + λ · L0, or FVU(x, x̂) + λ (L0/target − 1)² with `target_l0`; L0 = mean_b Σ_i 1[s_bi > θ_i], FVU is
    the fraction of variance unexplained: the source's ‖x − x̂‖² divided by the rows' variance, so that λ is the source's
    for rows of unit variance (which it normalises to), and does not have to follow the scale of other rows. θ and ε do:
    they are in units of s.

    θ learns through pseudo-derivatives with the rectangle kernel K(u) = 1[|u| < 1/2] and bandwidth ε:
        ∂z_i/∂θ_i := −(θ_i/ε) K((s_i − θ_i)/ε),    ∂1[s_i > θ_i]/∂θ_i := −(1/ε) K((s_i − θ_i)/ε);
    ∂z_i/∂s_i = 1[s_i > θ_i], and the indicator has no gradient to s. Scores within ε/2 below θ thus take part, with
    z = 0: the loss's codes hold them too. θ itself is the parameter (the source has log θ), never below 0, and float32
    also under autocast and in a half-precision module. Latents with s ≤ 0 are not clamped to 0 before the kernel.

    W_dec has unit rows; encoder rows start equal to them, biases at 0 (b_dec: see `init_pre_bias_`).
    `subtract_b_dec=False` leaves −b_dec out, as Gemma Scope's SAEs do.

    While about half of all latents are active, as at the start, sparse codes are slower than a dense product.

    Shapes: W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D], threshold [F]; x [..., D].

    Args:
        d_in, d_sae: D and F.
        l0_coefficient: λ.
        target_l0: aim at so many active latents a row instead of few; None: the source's penalty.
        bandwidth: ε.
        initial_threshold: θ at the start.
        warmup_steps: λ rises linearly over so many training losses (counted in a saved buffer).
        subtract_b_dec: the encoder reads x − b_dec.
        init_seed: same seed, same initial bits on every device; None draws one. Kept in `sae.init_seed`.
        dtype, device: of the parameters.

    Source: Rajamanoharan et al. 2024b (arXiv 2407.14435), sections 3 and 4; the target: SAEBench's trainer (Karvonen).

    Raises:
        ValueError: sizes or coefficients out of range.
    """

    architecture = "jumprelu"
    arguments = (
        "d_in",
        "d_sae",
        "l0_coefficient",
        "target_l0",
        "bandwidth",
        "initial_threshold",
        "warmup_steps",
        "subtract_b_dec",
        "init_seed",
    )
    shown = ("d_in", "d_sae", "l0_coefficient", "target_l0")
    unit_norm_rows = ("W_dec",)
    half_weights = ("W_enc", "W_dec")
    wide = ("threshold",)

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        l0_coefficient: float = 1e-3,
        target_l0: float | None = None,
        bandwidth: float = 1e-3,
        initial_threshold: float = 1e-3,
        warmup_steps: int = 0,
        subtract_b_dec: bool = True,
        init_seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d_in, d_sae)
        check_coefficient("l0_coefficient", l0_coefficient)
        check_coefficient("initial_threshold", initial_threshold)
        for name, value in (("bandwidth", bandwidth), ("target_l0", target_l0)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected more than 0, got {value}")
        self.d_in, self.d_sae, self.l0_coefficient, self.target_l0 = d_in, d_sae, l0_coefficient, target_l0
        self.bandwidth, self.initial_threshold = bandwidth, initial_threshold
        self.warmup_steps, self.subtract_b_dec = warmup_steps, subtract_b_dec
        self.init_seed = seed_or_new(init_seed)
        rows = unit_directions(d_sae, d_in, self.init_seed, device).to(dtype or torch.get_default_dtype())
        self.tie_(rows)
        exact = torch.promote_types(rows.dtype, torch.float32)
        self.threshold = nn.Parameter(rows.new_full((d_sae,), initial_threshold, dtype=exact))
        self.warmup = Warmup(warmup_steps, device)

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """The latents above their thresholds: x [..., D], as B rows -> ragged codes."""
        return SparseCodes(*self._scores_above(self.flat(x), self.threshold)[:3])

    def loss(self, x: Tensor, dead: Tensor | None = None) -> Loss:
        """Terms "fvu" and "l0" for rows x [..., D]; `dead` is not used. Codes of value 0 are those just below θ."""
        rows = self.flat(x)
        found = self._scores_above(rows, self.threshold - self.bandwidth / 2)
        threshold = ops.latent_gather(self.threshold, found)
        values, active = JumpReLU.apply(found.values, threshold, self.bandwidth)
        x_hat = ops.decode(values, found.indices, self.W_dec, self.b_dec, found.offsets, order=found.order)
        fvu = ops.unexplained_variance(rows, x_hat)
        count = active.sum() / max(1, rows.shape[0])
        penalty = count if self.target_l0 is None else (count / self.target_l0 - 1).square()
        l0 = self.l0_coefficient * self.warmup(penalty)
        codes = SparseCodes(values, found.indices, found.offsets)
        return Loss(fvu + l0, {"fvu": fvu, "l0": l0}, x_hat.reshape(x.shape), codes)

    @torch.no_grad()
    def project_parameters_(self, *, fused: bool = False) -> None:
        """After the optimiser's step: unit decoder rows, and θ ≥ 0."""
        super().project_parameters_(fused=fused)
        self.threshold.clamp_(min=0)

    def _scores_above(self, rows: Tensor, threshold: Tensor) -> ops.RaggedCodes:
        return ops.threshold_encode(rows, self.W_enc.T, self.b_enc, threshold, pre_bias=self.pre_bias)


class JumpReLU(torch.autograd.Function):
    """s, θ, ε -> s · 1[s > θ] and 1[s > θ], element by element, with the pseudo-derivatives to θ."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(score, threshold)
        ctx.bandwidth = bandwidth
        active = ~(score <= threshold)  # NaN is active
        return torch.where(active, score, 0), active.to(threshold.dtype)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_active: Tensor) -> tuple[Tensor, Tensor, None]:
        score, threshold = ctx.saved_tensors
        near = (score - threshold).abs() < ctx.bandwidth / 2
        slope = (threshold * grad_value + grad_active) / ctx.bandwidth
        return torch.where(score <= threshold, 0, grad_value), torch.where(near, -slope, 0), None
