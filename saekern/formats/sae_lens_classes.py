"""SAELens' classes for our architectures. It imports sae_lens, and only `sae_lens_module` imports it, when asked to."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from sae_lens import SAE as LensSAE
from sae_lens import SAEConfig, register_sae_class
from torch import Tensor, nn

from saekern.formats.dense_codes import LastCodes, encode_through
from saekern.formats.sae_lens_module import PREFIX
from saekern.sae import SAE, NormalizedSAE
from saekern.sae.files import ARCHITECTURES, VERSION

SHARED = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "b_gate", "b_mag", "r_mag")


@dataclass
class SaekernConfig(SAEConfig):
    """SAELens' config of one of our SAEs."""

    saekern: dict[str, Any] = field(default_factory=dict)
    """What its own config.json would hold."""
    ours: ClassVar[str]

    @classmethod
    def architecture(cls) -> str:
        return PREFIX + cls.ours


class SaekernSAE(LensSAE[SaekernConfig]):
    """See `to_sae_lens`. `saekern` is the SAE, and its tensors are attributes of this module too."""

    saekern: SAE

    @classmethod
    def around(cls, sae: SAE, config: SaekernConfig) -> "SaekernSAE":
        """One that holds `sae` itself."""
        device, config.device = config.device, "meta"
        module = cls(config)
        module.cfg.device, module.device = device, torch.device(device)
        module.saekern = sae
        return module

    def initialize_weights(self) -> None:
        described = self.cfg.saekern
        if described.get("version", VERSION) > VERSION or "sae" not in described:
            raise ValueError(f"{self.cfg.architecture()}: its config is not of this or an older version of saekern")
        made = ARCHITECTURES[self.cfg.ours]
        self.saekern = made(**described["sae"], dtype=self.dtype, device=self.device)
        self.saekern.provenance = dict(described.get("provenance", {}))
        self.last = LastCodes()
        self._undo: tuple[Tensor, Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        if name in SHARED and "saekern" in self.__dict__.get("_modules", {}):
            return getattr(self.inner, name)
        return super().__getattr__(name)

    @property
    def inner(self) -> SAE:
        """What encodes rows that are normalised already."""
        return self.saekern.base if isinstance(self.saekern, NormalizedSAE) else self.saekern

    def encode(self, x: Tensor) -> Tensor:
        """Dense codes [..., F]."""
        rows = self.hook_sae_input(self.reshape_fn_in(x.to(self.dtype)))
        rows = self.run_time_activation_norm_fn_in(rows)
        if is_hooked(self.hook_sae_acts_pre):
            codes = encode_through(self.inner, rows, self.hook_sae_acts_pre)
        else:
            sparse = self.inner.encode_sparse(self.inner.flat(rows))
            codes = self.last.dense(sparse, self.cfg.d_sae).reshape(*rows.shape[:-1], self.cfg.d_sae)
        return self.hook_sae_acts_post(codes)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Dense codes [..., F] -> [..., D]."""
        x_hat = self.hook_sae_recons(self.last.decode(feature_acts, self.W_dec, self.b_dec))
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(x_hat), self.d_head)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]; without dense codes where nobody can see them."""
        between = (self.hook_sae_acts_pre, self.hook_sae_acts_post, self.hook_sae_recons)
        if self.use_error_term or any(is_hooked(hook) for hook in between):
            return super().forward(x)
        rows = self.hook_sae_input(self.reshape_fn_in(x.to(self.dtype)))
        return self.hook_sae_output(self.reshape_fn_out(self.saekern(rows), self.d_head))

    def _setup_activation_normalization(self) -> None:
        """SAELens puts functions in the place of the two methods below."""

    def run_time_activation_norm_fn_in(self, x: Tensor) -> Tensor:
        if not isinstance(self.saekern, NormalizedSAE):
            return x
        rows, mean, scale = self.saekern.normalize(x)
        self._undo = mean, scale
        return rows

    def run_time_activation_norm_fn_out(self, x: Tensor) -> Tensor:
        if not isinstance(self.saekern, NormalizedSAE):
            return x
        if self._undo is None:
            raise ValueError(
                "decode: this SAE normalises rows, whose scale it knows only after encode of the same rows"
            )
        (mean, scale), self._undo = self._undo, None
        return x * scale + mean

    def process_state_dict_for_saving(self, state_dict: dict[str, Tensor]) -> None:
        """The SAE's own names, contiguous."""
        for name in list(state_dict):
            state_dict[name.removeprefix("saekern.")] = state_dict.pop(name).contiguous()
        self._check_precision(state_dict)

    def process_state_dict_for_loading(self, state_dict: dict[str, Tensor]) -> None:
        own = self.saekern.state_dict()
        self._check_precision(own)
        for name in list(state_dict):
            tensor = state_dict.pop(name)
            state_dict[f"saekern.{name}"] = tensor.to(own[name].dtype) if name in own else tensor

    def _check_precision(self, tensors: dict[str, Tensor]) -> None:
        wide = [name for name, tensor in tensors.items() if tensor.dtype.itemsize > self.dtype.itemsize]
        if wide and self.dtype.itemsize < 4:
            raise ValueError(
                f"SAELens reads all tensors of a file in cfg.dtype, {self.dtype}, which would round {', '.join(wide)}:"
                " save and load in float32 and convert afterwards, or use saekern.save"
            )

    def fold_W_dec_norm(self) -> None:
        raise NotImplementedError("saekern's encoders do not select by decoder norms; folding them would change that")

    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        raise NotImplementedError("scales of activations are folded when a file is read: saekern.load(..., fold=True)")

    def fold_activation_whitening(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("saekern's SAEs do not fold a whitening")


def is_hooked(point: nn.Module) -> bool:
    """Whether somebody looks at what passes this hook point."""
    return bool(point._forward_hooks or point._forward_pre_hooks or point._backward_hooks or point._backward_pre_hooks)


def _config(architecture: str) -> type[SaekernConfig]:
    name = f"Saekern{architecture.title().replace('_', '')}Config"
    return type(name, (SaekernConfig,), {"ours": architecture, "__module__": __name__})


CONFIGS = {architecture: _config(architecture) for architecture in ARCHITECTURES}
for _config_class in CONFIGS.values():
    register_sae_class(_config_class.architecture(), SaekernSAE, _config_class)
