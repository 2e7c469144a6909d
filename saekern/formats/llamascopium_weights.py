"""What llamascopium's weights hold, and its scales and norms folded into them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saekern.formats.folding import are_unit, fold_norms, row_norms, times
from saekern.formats.source import read_pickle, read_safetensors
from saekern.formats.values import check_tensors, check_threshold, positive, whole

# The order in which the library looks for them; .dcp, of several processes, is not read.
STEMS = ("sae_weights", "checkpoints/pruned", "checkpoints/final")
THRESHOLD, NORM = "activation_function.log_jumprelu_threshold", "dataset_average_activation_norm."


def stored(
    path: Path, d_in: int, d_sae: int, with_bias: bool, old: bool, act_fn: str, notes: list[str]
) -> tuple[dict[str, Tensor], dict[str, float], Tensor | None]:
    """Ours by name, the average norms, and log(threshold) as stored."""
    file, found = _weights(path)
    norms: dict[str, float] = {}
    for name in [name for name in found if name.startswith(NORM)]:
        scalar = found.pop(name)
        if scalar.numel() != 1 or not scalar.is_floating_point():
            raise ValueError(f"{file}: {name}: expected one number, got {list(scalar.shape)}")
        if 0 < float(scalar) < math.inf:  # what was never set is whatever lay in memory
            norms[name.removeprefix(NORM)] = float(scalar)
        else:
            notes.append(f"{name} = {float(scalar)} was never set and is left out.")
    shapes = {"W_E": [d_in, d_sae], "b_E": [d_sae], "W_D": [d_sae, d_in], "b_D": [d_in]}
    if old:
        shapes = {
            "encoder.weight": [d_sae, d_in],
            "encoder.bias": [d_sae],
            "decoder.weight": [d_in, d_sae],
            "decoder.bias": [d_in],
        }
    if not with_bias:
        shapes.popitem()
    if act_fn == "jumprelu" and not old:
        shapes[THRESHOLD] = [d_sae]
    check_tensors(found, shapes, file)
    encoder, b_enc, decoder = (found[name] for name in list(shapes)[:3])
    b_dec = found[list(shapes)[3]] if with_bias else encoder.new_zeros(d_in)
    if not with_bias:
        notes.append("No decoder bias: b_dec = 0.")
    if old:
        encoder, decoder = encoder.T, decoder.T
        notes.append("encoder.weight and decoder.weight are transposed.")
    tensors = {"W_enc": encoder, "W_dec": decoder, "b_enc": b_enc, "b_dec": b_dec}
    log_threshold = found.get(THRESHOLD)
    if log_threshold is not None:
        check_threshold(log_threshold, file)
        tensors["threshold"] = log_threshold.exp()
        notes.append("threshold = exp(log_jumprelu_threshold).")
    return tensors, norms, log_threshold


def _weights(path: Path) -> tuple[Path, dict[str, Tensor]]:
    for stem in STEMS:
        if (path / f"{stem}.safetensors").is_file():
            return path / f"{stem}.safetensors", read_safetensors(path / f"{stem}.safetensors")
        file = path / f"{stem}.pt"
        if file.is_file():
            content = read_pickle(file)
            state = content.get("sae") if isinstance(content, dict) else None
            if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
                raise ValueError(f'{file}: expected a dictionary with tensors under "sae"')
            return file, dict(state)
        if (path / f"{stem}.dcp").exists():
            raise ValueError(f"{path / stem}.dcp: distributed checkpoints are not read; save it as .safetensors")
    raise FileNotFoundError(f"{path}: no {', '.join(STEMS)} as .safetensors or .pt")


def average_scale(config: Mapping[str, Any], norms: Mapping[str, float], where: Path, old: bool) -> float:
    """√D / the average norm of the rows."""
    root = math.sqrt(whole(config, "d_model", where))
    if not old:
        hook = str(config.get("hook_point_in"))
        if hook not in norms:
            raise ValueError(f"{where}: norm_activation: dataset-wise, but the weights have no {NORM}{hook}")
        return root / norms[hook]
    given = config.get("dataset_average_activation_norm")
    if not isinstance(given, dict):
        raise ValueError(f"{where}: dataset_average_activation_norm: expected an object, got {given!r:.60}")
    inside, out = positive(given, "in", where), positive(given, "out", where)
    if inside != out:
        raise ValueError(f"{where}: dataset_average_activation_norm: in {inside} is not out {out}: a transcoder")
    return root / inside


def fold_scale(tensors: dict[str, Tensor], scale: float, fold: bool, old: bool, notes: list[str]) -> dict[str, Tensor]:
    if scale == 1:
        return tensors
    if not fold:
        raise ValueError(
            f"norm_activation: dataset-wise: rows are to be multiplied by {scale:.9g}; pass fold=True to have that"
            " folded into the weights"
        )
    # The one threshold of old files is compared with scores that are folded already.
    names = ["b_enc", "b_dec"] + ["threshold"] * ("threshold" in tensors and not old)
    notes.append(f"The rows' scale s = {scale:.9g} is folded: {', '.join(f'{name} / s' for name in names)}.")
    return {**tensors, **{name: times(tensors[name], 1 / scale) for name in names}}


def fold_decoder_norms(
    tensors: dict[str, Tensor], act_fn: str, fold: bool, old: bool, where: Path, notes: list[str]
) -> dict[str, Tensor]:
    norms = row_norms(tensors["W_dec"])
    if are_unit(norms, tensors["W_dec"]):
        return tensors
    low, high = float(norms.min()), float(norms.max())
    if not low > 0:
        raise ValueError(f"{where}: sparsity_include_decoder_norm divides by norms of W_D, and one is {low}")
    if act_fn == "relu" and not old:
        notes.append("sparsity_include_decoder_norm: a ReLU does not mind positive factors.")
        return tensors
    if not fold:
        raise ValueError(
            f"{where}: sparsity_include_decoder_norm: active is decided on scores times ‖W_D‖, here {low:.4g} to"
            f" {high:.4g}; pass fold=True to have these norms folded"
        )
    if act_fn == "jumprelu" and not old:
        notes.append(f"Decoder norms n, {low:.4g} to {high:.4g}, are folded: threshold / n.")
        return {**tensors, "threshold": times(tensors["threshold"], 1 / norms)}
    notes.append(
        f"Decoder norms n, {low:.4g} to {high:.4g}, are folded: W_enc × n, b_enc × n, W_dec / n; so codes × n."
    )
    return fold_norms(tensors, norms, "W_dec", "W_enc", "b_enc")
