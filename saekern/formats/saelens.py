"""SAELens: `cfg.json` and `sae_weights.safetensors`, of inference and of training checkpoints, before and since 6.0."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern.formats.checkpoint import Checkpoint
from saekern.formats.folding import are_unit, fold_norms, not_negative, row_norms, times
from saekern.formats.saelens_config import NORMS, Config, is_new, parse
from saekern.formats.source import read_object, read_safetensors
from saekern.formats.values import check_tensors, check_threshold, exactly, packed, positive, unpacked
from saekern.sae import SAE, ArchetypalSAE, NormalizedSAE
from saekern.sae.files import write_json, write_tensors

NAME = "saelens"
OPTIONS = {
    "k": "k of a TopK whose file has none, or of a batchtopk whose k is not whole",
    "scaling_factor": "√D / mean ‖x‖ of the rows it was trained on, where the file has expected_average_only_in and no"
    " activation_scaler.json lies beside it; 1 if your rows are scaled already",
    "reshape_activations": 'to write: "hook_z" for rows that SAELens shall flatten from [..., heads, d_head]',
}
CONFIG, WEIGHTS, SPARSITY, RUNNER = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "runner_cfg.json"
SCALER = "activation_scaler.json"
VERSION = "6.54.12"  # whose files these are; a reader takes what has none below 6 for the old form
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
OURS = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "batch_topk",
    "matryoshka_batchtopk": "matryoshka",
}
THEIRS = {
    "relu": "standard",
    "topk": "topk",
    "hierarchical_topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
}
TRAINED_AS = {"batch_topk": "batchtopk", "matryoshka": "matryoshka_batchtopk"}


def detect(path: Path) -> str | None:
    """Why the path looks like this format, or None."""
    if not (path / CONFIG).is_file():
        return None
    content = read_object(path / CONFIG)
    if "d_in" in content and "d_sae" in content and (path / WEIGHTS).is_file():
        return f"{CONFIG} with d_in and d_sae, and {WEIGHTS}"
    return None


def read(path: Path, options: Mapping[str, Any], fold: bool) -> Checkpoint:
    """The threshold of a batchtopk checkpoint is float64 there and float32 here, as in SAELens' own inference files."""
    raw = read_object(path / CONFIG)
    config = parse(raw, path / CONFIG, options)
    notes = [] if is_new(raw) else [f"{CONFIG} is from before SAELens 6; it is read as SAELens 6 reads it."]
    tensors = _tensors(path, config, notes)
    tensors = _fold_scale(tensors, _scale(path, config, options), config, fold, notes)
    tensors = _fold_decoder_norms(tensors, config, fold, path, notes)
    if config.architecture == "jumprelu":
        tensors["threshold"] = not_negative(tensors["threshold"], fold, path / WEIGHTS, notes)
    if "topk_threshold" in tensors:
        exact = torch.promote_types(tensors["W_enc"].dtype, torch.float32)
        tensors["threshold"] = tensors.pop("topk_threshold").to(exact)
        notes.append("topk_threshold is the threshold of inference.")
    if config.reshape == "hook_z":
        notes.append("SAELens flattens [..., heads, d_head] for this SAE; here rows come flattened, [..., d_in].")
    architecture, arguments, tensors = _ours(config, tensors)
    metadata = config.content["metadata"]
    known = {"model": metadata.get("model_name"), "hook": metadata.get("hook_name")}
    provenance = {name: value for name, value in known.items() if isinstance(value, str)}
    return Checkpoint(NAME, architecture, arguments, tensors, _kept(path, config, notes), provenance, tuple(notes))


def write(sae: SAE, path: Path, options: Mapping[str, Any], fold: bool) -> None:
    """BatchTopK and Matryoshka become "jumprelu" at their threshold, which is SAELens' own form of them for inference;
    HierarchicalTopK a "topk" of its K; Archetypal its base, with the atoms as they are now."""
    base, normalize = _base(sae)
    architecture = base.base_architecture if isinstance(base, ArchetypalSAE) else base.architecture
    if architecture not in THEIRS:
        raise ValueError(f"{NAME}: {type(sae).__name__} has no counterpart in SAELens")
    dtype = base.W_enc.dtype
    tensors: dict[str, Tensor] = {"W_enc": base.W_enc, "W_dec": base.W_dec, "b_dec": base.b_dec}
    if architecture == "gated":
        tensors |= {name: getattr(base, name) for name in ("b_gate", "b_mag", "r_mag")}
    else:
        tensors["b_enc"] = base.b_enc
    theirs = THEIRS[architecture]
    if theirs == "jumprelu":
        threshold: Tensor = getattr(base, "threshold").detach()  # noqa: B009
        if bool((threshold < 0).any()):
            raise ValueError(
                f"{NAME}: a threshold below 0 lets negative scores through, which SAELens' JumpReLU cuts off"
            )
        tensors["threshold"] = exactly(threshold, dtype, "threshold").expand(base.d_sae)
    kept = dict(sae.provenance.get(NAME, {}))
    before = kept.get("cfg", {})
    content = {
        **{name: value for name, value in before.items() if name not in ("k", "rescale_acts_by_decoder_norm")},
        "architecture": theirs,
        "d_in": base.d_in,
        "d_sae": base.d_sae,
        "dtype": str(dtype).removeprefix("torch."),
        "device": before.get("device", "cpu"),
        "apply_b_dec_to_input": base.subtract_b_dec,
        "normalize_activations": normalize,
        "reshape_activations": options.get("reshape_activations", before.get("reshape_activations", "none")),
        "metadata": _metadata(sae, architecture, before.get("metadata", {})),
    }
    if theirs == "topk":
        content |= {"k": getattr(base, "k"), "rescale_acts_by_decoder_norm": False}  # noqa: B009
    if content["reshape_activations"] not in ("none", "hook_z"):
        raise ValueError(
            f"options: reshape_activations: expected none or hook_z, got {content['reshape_activations']!r}"
        )
    write_tensors(path / WEIGHTS, {name: tensor.detach() for name, tensor in tensors.items()})
    write_json(path / CONFIG, content)
    frequencies = sparsity(sae)
    if frequencies is not None:
        write_tensors(path / SPARSITY, {"sparsity": frequencies})
    if "runner_cfg" in kept:
        write_json(path / RUNNER, kept["runner_cfg"])


def sparsity(sae: SAE) -> Tensor | None:
    """log10(frequency + 1e-10) [F] of each latent, which SAELens' training left beside the weights."""
    text = sae.provenance.get(NAME, {}).get("sparsity")
    return None if text is None else unpacked(text)


def _ours(config: Config, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Our architecture, its arguments and its state."""
    sizes: dict[str, Any] = {"d_in": config.d_in, "d_sae": config.d_sae}
    arguments: dict[str, Any] = {"subtract_b_dec": config.subtract_b_dec}
    if config.k is not None:
        arguments["k"] = config.k
    if config.widths is not None:
        arguments["prefixes"] = sorted({*config.widths, config.d_sae})
    architecture, norm = OURS[config.architecture], NORMS[config.normalize]
    if norm is None:
        return architecture, sizes | arguments, tensors
    inner = {f"base.{name}": tensor for name, tensor in tensors.items()}
    return "normalized", {**sizes, "norm": norm, "base": architecture, "base_args": arguments}, inner


def _tensors(path: Path, config: Config, notes: list[str]) -> dict[str, Tensor]:
    """Checked against the configuration, with today's names, in the wider of the two types that the files name."""
    file = path / WEIGHTS
    tensors = read_safetensors(file)
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None:
        if not bool((scaling == 1).all()):
            raise ValueError(f"{file}: scaling_factor, of finetuning, has no counterpart here or in SAELens 6")
        notes.append("scaling_factor, all ones, is left out.")
    d, f = config.d_in, config.d_sae
    shapes = {"W_enc": [d, f], "W_dec": [f, d], "b_dec": [d]}
    if config.architecture == "gated":
        shapes |= {"b_gate": [f], "b_mag": [f], "r_mag": [f]}
    else:
        shapes["b_enc"] = [f]
    if config.architecture == "jumprelu":
        shapes["log_threshold" if "log_threshold" in tensors else "threshold"] = [f]
    elif config.architecture in ("batchtopk", "matryoshka_batchtopk"):
        shapes["topk_threshold"] = []
    check_tensors(tensors, shapes, file)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
        notes.append("threshold = exp(log_threshold).")
    for name in ("threshold", "topk_threshold"):
        if name in tensors:
            check_threshold(tensors[name], file)
    if config.dtype not in DTYPES:
        raise ValueError(f"{path / CONFIG}: dtype: expected one of {', '.join(DTYPES)}, got {config.dtype!r}")
    stored, named = tensors["W_enc"].dtype, DTYPES[config.dtype]
    if torch.promote_types(stored, named) != stored:
        notes.append(f"{CONFIG} says {config.dtype}: widened from {str(stored).removeprefix('torch.')}.")
        wide = torch.promote_types(stored, named)
        return {name: tensor.to(torch.promote_types(tensor.dtype, wide)) for name, tensor in tensors.items()}
    if stored != named:
        notes.append(f"{CONFIG} says {config.dtype}, the weights are wider and stay so; SAELens would round them.")
    return tensors


def _scale(path: Path, config: Config, options: Mapping[str, Any]) -> float:
    """By which rows must be multiplied before this SAE reads them."""
    if config.normalize == "covariance_whitening":
        raise ValueError(
            f"{path / CONFIG}: normalize_activations: covariance_whitening is not read; SAELens folds it into the"
            " weights at the end of training"
        )
    if config.normalize != "expected_average_only_in":
        if "scaling_factor" in options:
            raise ValueError(f"options: scaling_factor: {path / CONFIG} has normalize_activations {config.normalize!r}")
        return 1.0
    if "scaling_factor" in options:
        return positive(options, "scaling_factor", "options")
    scaler = read_object(path / SCALER) if (path / SCALER).is_file() else {}
    if scaler.get("scaling_factor") is None:
        raise ValueError(
            f"{path / CONFIG}: normalize_activations: expected_average_only_in: this SAE wants its rows multiplied by a"
            " number that is not in the file, √D / mean ‖x‖; pass options={'scaling_factor': …}, 1 if your rows are"
            " scaled already"
        )
    return positive(scaler, "scaling_factor", path / SCALER)


def _fold_scale(
    tensors: dict[str, Tensor], scale: float, config: Config, fold: bool, notes: list[str]
) -> dict[str, Tensor]:
    if scale == 1:
        return tensors
    if not fold:
        raise ValueError(
            f"normalize_activations: expected_average_only_in: rows are to be multiplied by {scale:.9g}; pass fold=True"
            " to have that folded into the weights"
        )
    folded = {"W_enc": times(tensors["W_enc"], scale)}
    # Scores that the decoder's norms multiply shrink with them.
    with_norms = ("topk_threshold",) if config.rescale and "topk_threshold" in tensors else ()
    folded |= {name: times(tensors[name], 1 / scale) for name in ("W_dec", "b_dec", *with_norms)}
    changes = f"W_enc × s, W_dec / s, b_dec / s{', topk_threshold / s' if with_norms else ''}"
    notes.append(f"The rows' scale s = {scale:.9g} is folded: {changes}.")
    return {**tensors, **folded}


def _fold_decoder_norms(
    tensors: dict[str, Tensor], config: Config, fold: bool, path: Path, notes: list[str]
) -> dict[str, Tensor]:
    if not config.rescale:
        return tensors
    norms = row_norms(tensors["W_dec"])
    if are_unit(norms, tensors["W_dec"]):
        notes.append("rescale_acts_by_decoder_norm: all norms are 1, nothing to do.")
        return tensors
    low, high = float(norms.min()), float(norms.max())
    if not low > 0:
        raise ValueError(f"{path / WEIGHTS}: rescale_acts_by_decoder_norm divides by norms of W_dec, and one is {low}")
    if not fold:
        raise ValueError(
            f"{path / CONFIG}: rescale_acts_by_decoder_norm: the cut is made on scores times ‖W_dec‖, here {low:.4g} to"
            f" {high:.4g}; pass fold=True to have these norms folded into the weights"
        )
    notes.append(f"Decoder norms n, {low:.4g} to {high:.4g}, are folded: W_enc × n, b_enc × n, W_dec / n.")
    return fold_norms(tensors, norms, "W_dec", "W_enc", "b_enc")


def _kept(path: Path, config: Config, notes: list[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {"cfg": config.content}
    if (path / RUNNER).is_file():
        kept["runner_cfg"] = read_object(path / RUNNER)
    if (path / SPARSITY).is_file():
        tensors = read_safetensors(path / SPARSITY)
        check_tensors(tensors, {"sparsity": [config.d_sae]}, path / SPARSITY)
        kept["sparsity"] = packed(tensors["sparsity"])
    used = {CONFIG, WEIGHTS, SPARSITY, RUNNER, SCALER}
    left = sorted(file.name for file in path.iterdir() if file.is_file() and file.name not in used)
    if left:
        notes.append(f"Not read: {', '.join(left[:12])}.")
    return kept


def _base(sae: SAE) -> tuple[SAE, str]:
    """The SAE that has the weights, and SAELens' name of what is done to rows before it."""
    if not isinstance(sae, NormalizedSAE):
        return sae, "none"
    if sae.norm == "layer_norm" and sae.eps != 1e-5:
        raise ValueError(f"{NAME}: layer_norm with eps = {sae.eps}: SAELens has 1e-05 only")
    return sae.base, next(theirs for theirs, ours in NORMS.items() if ours == sae.norm)


def _metadata(sae: SAE, architecture: str, before: Mapping[str, Any]) -> dict[str, Any]:
    metadata = dict(before)
    for theirs, ours in (("model_name", "model"), ("hook_name", "hook")):
        if ours in sae.provenance:
            metadata[theirs] = sae.provenance[ours]
    if not is_new({"metadata": metadata}):
        metadata["sae_lens_version"] = VERSION
    if architecture in TRAINED_AS:
        metadata.setdefault("training_architecture", TRAINED_AS[architecture])
    return metadata
