"""SAELens' cfg.json, old and new, in one form."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekern.formats.values import choice, flag, whole

ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
NORMS = {
    "none": None,
    "expected_average_only_in": None,
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
# What SAELens has at the top level of a configuration for inference; in old files the rest describes the model.
TOP = (
    "d_in",
    "d_sae",
    "k",
    "rescale_acts_by_decoder_norm",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "architecture",
)


@dataclass(frozen=True)
class Config:
    """One SAE of SAELens, as its configuration describes it."""

    architecture: str
    d_in: int
    d_sae: int
    k: int | None
    """Of the TopK family."""
    subtract_b_dec: bool
    normalize: str
    reshape: str
    rescale: bool
    """Scores are multiplied by the decoder's norms before the cut, codes divided by them in decoding."""
    widths: list[int] | None
    """Of matryoshka_batchtopk."""
    dtype: str
    content: dict[str, Any]
    """The file in the new form, with everything that it holds."""


def parse(raw: Mapping[str, Any], where: Path, options: Mapping[str, Any]) -> Config:
    """
    Raises:
        ValueError: what the file leaves open, contradicts, or cannot be expressed here, by name.
    """
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f"{where}: metadata: expected an object, got {type(metadata).__name__}")
    content = {**raw, "metadata": metadata} if is_new(raw) else modernise(raw)
    metadata = content["metadata"]
    architecture = content.get("architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{where}: architecture: {architecture!r} has no counterpart here; read are: {known}")
    activation = str(metadata.get("activation_fn", content.get("activation_fn", "relu")))
    _check_contradictions(architecture, activation, metadata, where)
    d_sae = whole(content, "d_sae", where)
    topk = architecture in ("topk", "batchtopk", "matryoshka_batchtopk")
    widths = None
    if architecture == "matryoshka_batchtopk":
        given = content.get("matryoshka_widths")
        if not isinstance(given, list) or not given:
            raise ValueError(f"{where}: matryoshka_widths: expected a list of numbers, got {given!r:.60}")
        widths = [whole({"matryoshka_widths": width}, "matryoshka_widths", where) for width in given]
    known_norms = (*NORMS, "covariance_whitening")
    return Config(
        architecture,
        whole(content, "d_in", where),
        d_sae,
        _k(content, where, options) if topk else None,
        flag(content, "apply_b_dec_to_input", where, True),
        choice(content, "normalize_activations", where, known_norms, "none"),
        choice(content, "reshape_activations", where, ("none", "hook_z"), "none"),
        topk and flag(content, "rescale_acts_by_decoder_norm", where, architecture != "topk" or trains(content)),
        widths,
        str(content.get("dtype", "float32")).removeprefix("torch."),
        content,
    )


def is_new(raw: Mapping[str, Any]) -> bool:
    """SAELens' own rule: a version of 6 or later, at the top or in the metadata."""
    metadata = raw.get("metadata")
    version = raw.get("sae_lens_version") or (metadata.get("sae_lens_version") if isinstance(metadata, dict) else None)
    major = re.match(r"(\d+)\.", str(version))
    return major is not None and int(major[1]) >= 6


def trains(content: Mapping[str, Any]) -> bool:
    """Whether it is the configuration of a training checkpoint, whose defaults differ."""
    return "decoder_init_norm" in content


def modernise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A file from before 6.0, with the names and defaults that SAELens 6 gives it; what it has no name for is kept in
    the metadata."""
    old = {RENAMED.get(name, name): value for name, value in raw.items()}
    if old.get("activation_fn") == "topk":  # SAELens takes it for a ReLU where the k is missing; here it is asked for
        arguments = old.get("activation_fn_kwargs")
        given = {"k": arguments["k"]} if isinstance(arguments, dict) and arguments.get("k") is not None else {}
        old |= {"architecture": "topk"} | given
    normalize = old.get("normalize_activations")
    if normalize is None or isinstance(normalize, bool):
        old["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    old.setdefault("architecture", "standard")
    old.setdefault("reshape_activations", "hook_z" if "hook_z" in str(old.get("hook_name", "")) else "none")
    old.setdefault("apply_b_dec_to_input", True)
    metadata = old.pop("metadata", None)
    rest = {name: value for name, value in old.items() if name not in TOP}
    rest |= metadata if isinstance(metadata, dict) else {}
    return {name: old[name] for name in TOP if name in old} | {"metadata": rest}


def _check_contradictions(architecture: str, activation: str, metadata: Mapping[str, Any], where: Path) -> None:
    """An architecture "standard" beside signs of another activation: read as ReLU, such files gave an L0 of 600."""
    trained = metadata.get("training_architecture")
    other = trained if isinstance(trained, str) and "topk" in trained else activation
    if architecture == "standard" and other not in ("relu", "None"):
        raise ValueError(
            f'{where}: architecture "standard" (ReLU), but it names {other!r} too, and holds no k. If it is a TopK, say'
            ' so in the file: "architecture": "topk", "k": …'
        )


def _k(content: Mapping[str, Any], where: Path, options: Mapping[str, Any]) -> int:
    given, option = content.get("k"), options.get("k")
    if isinstance(given, float) and given != int(given) and content["architecture"] != "topk":
        if option is None:
            raise ValueError(
                f"{where}: k = {given}: our BatchTopK takes a whole number, which only matters when training goes on;"
                f" pass options={{'k': {max(1, round(given))}}}"
            )
        return whole({"k": option}, "k", "options")
    if given is None:
        if option is None:
            raise ValueError(f"{where}: a {content['architecture']} without its k; pass options={{'k': …}}")
        return whole({"k": option}, "k", "options")
    if option is not None and option != given:
        raise ValueError(f"options: k = {option!r}, but {where} says {given!r}")
    return whole(content, "k", where)
