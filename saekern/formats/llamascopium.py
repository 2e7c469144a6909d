"""llamascopium (OpenMOSS, once lm-saes): `config.json` and `sae_weights`, or Llama Scope's older `hyperparams.json`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern.formats.checkpoint import Checkpoint
from saekern.formats.folding import are_unit, row_norms, without_pre_bias
from saekern.formats.llamascopium_weights import NORM, THRESHOLD, average_scale, fold_decoder_norms, fold_scale, stored
from saekern.formats.source import read_object
from saekern.formats.values import choice, flag, packed, positive, unpacked, whole
from saekern.sae import SAE, ArchetypalSAE, NormalizedSAE
from saekern.sae.files import write_json, write_tensors

NAME = "llamascopium"
OPTIONS = {
    "threshold": "for act_fn batchtopk, whose own choice depends on the batch: the score above which a latent is active"
}
CONFIG, OLD_CONFIG, WEIGHTS = "config.json", "hyperparams.json", "sae_weights.safetensors"
NORMS = ("token-wise", "batch-wise", "dataset-wise", "inference", "none")
THEIRS = {
    "relu": "relu",
    "topk": "topk",
    "hierarchical_topk": "topk",
    "jumprelu": "jumprelu",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
}


def detect(path: Path) -> str | None:
    """Why the path looks like this format, or None."""
    for name in (CONFIG, OLD_CONFIG):
        if (path / name).is_file():
            content = read_object(path / name)
            if (
                "d_model" in content
                and "expansion_factor" in content
                and ("act_fn" in content or "sae_type" in content)
            ):
                return f"{name} with d_model and expansion_factor"
    return None


def read(path: Path, options: Mapping[str, Any], fold: bool) -> Checkpoint:
    """s = x W_E + b_E, chosen on s ‖W_D‖ if sparsity_include_decoder_norm, z = s where chosen; x̂ = z W_D + b_D.

    A scale of the rows ("dataset-wise") is folded as in the library, b_E / s, b_D / s, and JumpReLU's threshold too,
    which it leaves: threshold / s. hyperparams.json: as the library of 2024 loads it for inference, with unit decoder
    rows and its one jump_relu_threshold on the scores that these give.
    """
    old = not (path / CONFIG).is_file()
    config_file = path / (OLD_CONFIG if old else CONFIG)
    config = read_object(config_file)
    notes: list[str] = []
    _check_kind(config, config_file)
    act_fn, threshold = _activation(config, config_file, options, old)
    d_in = whole(config, "d_model", config_file)
    d_sae = (
        whole(config, "d_sae", config_file)
        if config.get("d_sae")
        else int(d_in * positive(config, "expansion_factor", config_file))
    )
    with_bias = flag(config, "use_decoder_bias", config_file, True)
    tensors, norms, log_threshold = stored(path, d_in, d_sae, with_bias, old, act_fn, notes)
    if threshold is not None:
        tensors["threshold"] = torch.full((d_sae,), threshold)
    subtract = old and with_bias and flag(config, "apply_decoder_bias_to_pre_encoder", config_file, True)
    norm = choice(config, "norm_activation", config_file, NORMS, "token-wise" if old else "dataset-wise")
    if norm == "batch-wise":
        raise ValueError(f"{config_file}: norm_activation: batch-wise: a row's codes depend on the rest of its batch")
    if norm == "dataset-wise":
        tensors = fold_scale(tensors, average_scale(config, norms, config_file, old), fold, old, notes)
    if flag(config, "sparsity_include_decoder_norm", config_file, True):
        tensors = fold_decoder_norms(tensors, act_fn, fold, old, config_file, notes)
    arguments: dict[str, Any] = {"subtract_b_dec": subtract}
    if act_fn in ("topk", "batchtopk"):
        arguments["k"] = whole({"top_k": config.get("top_k", 50)}, "top_k", config_file)
    if act_fn == "batchtopk":
        tensors["threshold"] = tensors["threshold"][0]
    architecture, sizes = {"batchtopk": "batch_topk"}.get(act_fn, act_fn), {"d_in": d_in, "d_sae": d_sae}
    if norm == "token-wise":
        arguments = {"norm": "constant_norm", "base": architecture, "base_args": arguments}
        architecture, tensors = "normalized", {f"base.{name}": tensor for name, tensor in tensors.items()}
    hook = config.get("hook_point_in")
    kept: dict[str, Any] = {"config": config, "dataset_average_activation_norm": norms}
    if log_threshold is not None:
        kept["log_threshold"] = packed(log_threshold)
    provenance = {"hook": hook} if isinstance(hook, str) else {}
    return Checkpoint(NAME, architecture, sizes | arguments, tensors, kept, provenance, tuple(notes))


def write(sae: SAE, path: Path, options: Mapping[str, Any], fold: bool) -> None:
    """The form of `save_pretrained`, for inference: norm_activation "inference", no norms in the gate. BatchTopK and
    Matryoshka are written as jumprelu, HierarchicalTopK as a topk of its K. The file has log(threshold): exp gives the
    threshold up to rounding, and exactly where the same file was read. An encoder that subtracts b_dec needs fold."""
    norm = "inference"
    base: SAE = sae
    if isinstance(sae, NormalizedSAE):
        if sae.norm != "constant_norm":
            raise ValueError(f"{NAME}: {sae.norm} has no counterpart; token-wise normalisation is constant_norm")
        base, norm = sae.base, "token-wise"
    architecture = base.base_architecture if isinstance(base, ArchetypalSAE) else base.architecture
    if architecture not in THEIRS:
        raise ValueError(f"{NAME}: {type(sae).__name__} has no counterpart there")
    hook = sae.provenance.get("hook")
    if not isinstance(hook, str):
        raise ValueError(f"{NAME}: its files name the hook of the rows; pass provenance={{'hook': …}}")
    kept = sae.provenance.get(NAME, {})
    before, dtype = kept.get("config", {}), base.W_enc.dtype
    b_enc = base.b_enc.detach()
    if base.subtract_b_dec and bool((base.b_dec != 0).any()):
        if not fold:
            raise ValueError(
                f"{NAME}: this encoder reads x − b_dec, theirs x; pass fold=True to have b_enc − b_dec W_enc written"
            )
        b_enc = without_pre_bias(b_enc, base.b_dec.detach(), base.W_enc.detach())
    tensors: dict[str, Tensor] = {"W_E": base.W_enc, "b_E": b_enc, "W_D": base.W_dec}
    with_bias = before.get("use_decoder_bias", True) is not False or bool((base.b_dec != 0).any())
    if with_bias:
        tensors["b_D"] = base.b_dec
    if THEIRS[architecture] == "jumprelu":
        threshold: Tensor = getattr(base, "threshold").detach()  # noqa: B009
        tensors[THRESHOLD] = _log(threshold.expand(base.d_sae), dtype, kept.get("log_threshold"))
    for name, value in kept.get("dataset_average_activation_norm", {}).items():
        tensors[f"{NORM}{name}"] = torch.tensor(value, dtype=dtype)
    config = {
        "jumprelu_threshold_window": 2.0,
        "use_triton_kernel": False,
        "sparsity_threshold_for_triton_spmm_kernel": 0.996,
        "top_k": 50,
        **before,
        "sae_type": "sae",
        "d_model": base.d_in,
        "expansion_factor": _expansion(base.d_in, base.d_sae, before.get("expansion_factor")),
        "use_decoder_bias": with_bias,
        "act_fn": THEIRS[architecture],
        "norm_activation": norm,
        "sparsity_include_decoder_norm": False,
        "use_glu_encoder": False,
        "hook_point_in": hook,
        "hook_point_out": hook,
    }
    if before.get("sparsity_include_decoder_norm") is True and are_unit(row_norms(base.W_dec.detach()), base.W_dec):
        config["sparsity_include_decoder_norm"] = True  # says the same
    if THEIRS[architecture] == "topk":
        config["top_k"] = getattr(base, "k")  # noqa: B009
    write_tensors(path / WEIGHTS, {name: tensor.detach() for name, tensor in tensors.items()})
    write_json(path / CONFIG, config)


def _check_kind(config: Mapping[str, Any], where: Path) -> None:
    kind = config.get("sae_type", "sae")
    if kind != "sae":
        raise ValueError(f"{where}: sae_type: {kind!r} has no counterpart here; an SAE is 'sae'")
    inside, out = config.get("hook_point_in"), config.get("hook_point_out")
    if out is not None and inside != out:
        raise ValueError(f"{where}: hook_point_in {inside!r} is not hook_point_out {out!r}: a transcoder")
    if flag(config, "use_glu_encoder", where, False):
        raise ValueError(f"{where}: use_glu_encoder: a gated linear unit in the encoder has no counterpart here")


def _activation(
    config: Mapping[str, Any], where: Path, options: Mapping[str, Any], old: bool
) -> tuple[str, float | None]:
    """The name, and the one threshold of all latents where there is such."""
    act_fn = str(config.get("act_fn", "relu")).lower()
    if act_fn not in ("relu", "jumprelu", "topk") and (old or act_fn != "batchtopk"):
        raise ValueError(f"{where}: act_fn: {act_fn!r} has no counterpart here")
    if "threshold" in options and act_fn != "batchtopk":
        raise ValueError(f"options: threshold: {where} has act_fn {act_fn!r}, not batchtopk")
    if act_fn == "batchtopk":
        if "threshold" not in options:
            raise ValueError(
                f"{where}: act_fn batchtopk: the file has no threshold, and the library's choice of active latents"
                " depends on the batch; pass options={'threshold': …}, such as the mean of the least chosen scores"
            )
        return act_fn, positive(options, "threshold", "options")
    if not old or act_fn == "relu":
        return act_fn, None
    threshold = config.get("jump_relu_threshold", 0.0)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < math.inf:
        raise ValueError(f"{where}: jump_relu_threshold: expected a finite number >= 0, got {threshold!r}")
    if act_fn == "topk" and threshold == 0:
        return act_fn, None
    return "jumprelu", float(threshold)  # a topk with a threshold is run as jumprelu by the library


def _log(threshold: Tensor, dtype: torch.dtype, kept: str | None) -> Tensor:
    if bool((threshold < 0).any()):
        raise ValueError(
            f"{NAME}: the file has log(threshold), and {int((threshold < 0).sum())} thresholds are below 0"
        )
    if kept is not None:
        stored = unpacked(kept).to(dtype)
        if stored.shape == threshold.shape and torch.equal(stored.exp().to(threshold.dtype), threshold):
            return stored
    if dtype.itemsize < 4:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"{NAME}: log(threshold) in {kind} is too coarse; save sae.to(torch.float32)")
    return threshold.double().log().to(dtype)


def _expansion(d_in: int, d_sae: int, kept: object) -> float:
    """Such that int(d_in · factor) is d_sae: the library computes it so, and rounds down."""
    if isinstance(kept, int | float) and not isinstance(kept, bool) and int(d_in * kept) == d_sae:
        return kept
    factor = d_sae / d_in
    return factor if int(d_in * factor) == d_sae else math.nextafter(factor, math.inf)
