"""Any other SAE on rows that are normalised one by one, as some libraries' SAEs are."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saekern.sae.base import SAE, Loss, SparseCodes

NORMS = ("layer_norm", "constant_norm")


class NormalizedSAE(SAE):
    """z = base.encode(n(x));  x̂ = n⁻¹(base.decode(z)), with n⁻¹ by the mean and scale of the row x itself.

    "layer_norm": n(x) = (x − mean(x)) / (std(x) + ε), n⁻¹(y) = y std(x) + mean(x), with the unbiased standard deviation
    (D − 1) of the row; that ε is not in n⁻¹ is how OpenAI's code, SAELens and the BatchTopK repository have it;
    "constant_norm": n(x) = x √D / ‖x‖, and rows of zeros stay.

    `decode` gives rows in the base's scale; `forward` and `reconstruct` know x and go back to its scale. The loss is
    the base's, on normalised rows: its FVU is that of n(x). `dictionary` and the parameters are the base's.

    Args:
        d_in, d_sae: D and F.
        norm: "layer_norm" or "constant_norm".
        eps: ε, of "layer_norm".
        base: the architecture of the inner SAE, a name such as "topk".
        base_args: its other arguments.
        init_seed: of the base.
        dtype, device: of the parameters.

    Source: Gao et al. 2024 (arXiv 2406.04093), section 3.1 ("layer_norm"); SAELens' `normalize_activations` (both).

    Raises:
        ValueError: an unknown norm or base; what the base refuses.
    """

    architecture = "normalized"
    arguments = ("d_in", "d_sae", "norm", "eps", "init_seed")
    shown = ("norm",)

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        norm: str = "layer_norm",
        eps: float = 1e-5,
        base: str = "topk",
        base_args: Mapping[str, Any] | None = None,
        init_seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        from saekern.sae.files import ARCHITECTURES  # which lists this file's class

        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
        if not 0 <= eps < float("inf"):
            raise ValueError(f"eps: expected a finite number >= 0, got {eps}")
        known = sorted(name for name in ARCHITECTURES if name not in (self.architecture, "archetypal"))
        if base not in known:
            raise ValueError(f"base: expected one of {', '.join(known)}, got {base!r}")
        self.norm, self.eps = norm, float(eps)
        made = ARCHITECTURES[base]
        self.base: SAE = made(d_in, d_sae, **(base_args or {}), init_seed=init_seed, dtype=dtype, device=device)
        self.d_in, self.d_sae, self.init_seed = d_in, d_sae, self.base.init_seed

    def __getattr__(self, name: str) -> Any:
        if name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            return getattr(self.base, name)
        return super().__getattr__(name)

    def config(self) -> dict[str, Any]:
        own = ("d_in", "d_sae", "init_seed")
        inner = {name: value for name, value in self.base.config().items() if name not in own}
        return super().config() | {"base": self.base.architecture, "base_args": inner}

    @property
    def dictionary(self) -> Tensor:
        return self.base.dictionary

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """The base's codes of n(x)."""
        return self.base.encode_sparse(self.normalize(x)[0])

    def decode(self, codes: Tensor | SparseCodes) -> Tensor:
        """In the scale of normalised rows; see `reconstruct`."""
        return self.base.decode(codes)

    def reconstruct(self, codes: Tensor | SparseCodes, x: Tensor) -> Tensor:
        """x̂ [..., D] in the scale of x."""
        _, mean, scale = self.normalize(x)
        return self.base.reconstruct(codes, x) * scale + mean

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction: [..., D] -> [..., D]."""
        rows, mean, scale = self.normalize(x)
        return self.base(rows) * scale + mean

    def loss(self, x: Tensor, dead: Tensor | None = None) -> Loss:
        """The base's, on normalised rows; x̂ in the scale of x."""
        rows, mean, scale = self.normalize(x)
        loss = self.base.loss(rows, dead)
        return loss._replace(x_hat=loss.x_hat * scale + mean)

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """n(x), and the mean and scale [..., 1] with which n⁻¹(y) = y · scale + mean."""
        if x.dim() == 0 or x.shape[-1] != self.d_in:
            raise ValueError(f"x: expected shape [..., {self.d_in}], got {list(x.shape)}")
        if self.norm == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            scale = (x - mean).std(-1, keepdim=True)
            return (x - mean) / (scale + self.eps), mean, scale
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.where(norm > 0, norm, 1) / self.d_in**0.5
        return x / scale, torch.zeros_like(scale), scale

    @torch.no_grad()
    def init_pre_bias_(self, rows: Tensor) -> None:
        self.base.init_pre_bias_(self.normalize(rows)[0])

    def project_gradient_(self, *, fused: bool = False) -> None:
        self.base.project_gradient_()  # this SAE names no `unit_norm_rows`, so that nobody fuses the base's

    def project_parameters_(self, *, fused: bool = False) -> None:
        self.base.project_parameters_()
