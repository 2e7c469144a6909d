"""overcomplete: the state dict of a model, by torch.save, in a file of the user's naming.

x̂ = z D without a decoder bias. D = n(_weights) · exp(multiplier), or of points (RA-SAE) (W C + Relax) · exp(multiplier)
with rows of W >= 0 that sum to 1 and rows of Relax no longer than delta. The library projects in the next forward pass,
not in the optimiser's step: a file from straight after a step is read with fold=True, as that forward pass sees it.

Its jump passes s >= exp(thresholds), and ours s > θ: θ is the next number below, which lets the same scores pass.

Source: github.com/KempnerInstitute/overcomplete, version 0.3.0, sae/.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern.formats import overcomplete_dictionary as dictionaries
from saekern.formats import state_dict
from saekern.formats.checkpoint import Checkpoint
from saekern.formats.overcomplete_dictionary import NORMALIZATIONS, check_number
from saekern.formats.source import read_pickle
from saekern.formats.state_dict import Names
from saekern.sae import SAE
from saekern.sae.archetypal import ArchetypalSAE, describe

NAME = "overcomplete"
OPTIONS = {
    "class": "SAE, TopKSAE, BatchTopKSAE, JumpSAE, RATopKSAE or RAJumpSAE",
    "top_k": "TopKSAE, RATopKSAE: active latents a row; BatchTopKSAE: a batch, as the library has it",
    "batch_size": "BatchTopKSAE: rows a batch in training; top_k is a multiple of it",
    "threshold": "BatchTopKSAE: float(sae.running_threshold), which no state dict holds",
    "normalization": f"of the dictionary: {', '.join(NORMALIZATIONS)}; the library's default is l2",
    "delta": "RATopKSAE, RAJumpSAE: delta; the library's default is 1.0",
}
CLASSES = {  # theirs -> our architecture, whether the dictionary is made of points, the options it needs
    "SAE": ("relu", False, ("normalization",)),
    "TopKSAE": ("topk", False, ("top_k", "normalization")),
    "BatchTopKSAE": ("batch_topk", False, ("top_k", "batch_size", "threshold", "normalization")),
    "JumpSAE": ("jumprelu", False, ("normalization",)),
    "RATopKSAE": ("topk", True, ("top_k", "delta")),
    "RAJumpSAE": ("jumprelu", True, ("delta",)),
}
ENCODERS: dict[str, Names] = {
    "linear": {"encoder.final_block.0.weight": ("W_enc", True), "encoder.final_block.0.bias": ("b_enc", False)},
    "untied": {"encoder.weight": ("W_enc", True)},
    "untied with bias": {"encoder.weight": ("W_enc", True), "encoder.bias": ("b_enc", False)},
}
PLAIN = ("_weights", "multiplier")
RELAXED = ("C", "W", "Relax", "multiplier")
LOGS = "thresholds"


def detect(path: Path) -> str | None:
    """Why the path looks like this format, or None."""
    names = state_dict.pickled_names(path)
    for found in ("dictionary._weights", "dictionary.Relax"):
        if b"encoder." in names and found.encode() in names:
            return f"a state dict with {found}"
    return None


def read(path: Path, options: Mapping[str, Any], fold: bool) -> Checkpoint:
    state = state_dict.checked(read_pickle(path), path)
    name = _class(state, options, path)
    architecture, relaxed, needed = CLASSES[name]
    for option in options.keys() - {*needed, "class"}:
        raise ValueError(f"options: {option}: a {name} has none; it takes: class, {', '.join(needed)}")
    encoder = _encoder(state, name, path)
    tensors = {
        ours: state[theirs].T if turned else state[theirs] for theirs, (ours, turned) in ENCODERS[encoder].items()
    }
    latents, width = tensors["W_enc"].shape[::-1]
    if state["dictionary.multiplier"].numel() != 1:
        raise ValueError(f"{path}: dictionary.multiplier: expected a number")
    tensors.setdefault("b_enc", tensors["W_enc"].new_zeros(latents))
    tensors["b_dec"] = tensors["W_enc"].new_zeros(width)
    state_dict.check_shapes(tensors, path)
    notes = ["Transposed: the encoder's weight.", "b_dec is 0: the library has none."]
    kept: dict[str, Any] = {"class": name, "encoder": encoder, "options": dict(options)}
    base: dict[str, Any] = {"subtract_b_dec": False}
    if architecture == "topk":
        base["k"] = check_number(options, "top_k", path, "its top_k", whole=True)
    if architecture == "batch_topk":
        base["k"], tensors["threshold"] = _batch(options, path)
        notes.append("θ is the number below running_threshold: theirs passes s >= it, ours s > θ.")
    if architecture == "jumprelu":
        tensors["threshold"] = state_dict.threshold_of(state[LOGS], True, path)
        kept[LOGS] = state_dict.packed(state_dict.wide(state[LOGS]))
        notes.append("θ is the number below exp(thresholds): theirs passes s >= it, ours s > θ.")
        notes.append(
            "Training differs: kernel and bandwidth are not in the file, and its slope is 1/bandwidth as steep."
        )
    sizes = {"d_in": width, "d_sae": latents}
    if not relaxed:
        normalization = _normalization(options, path)
        weights, multiplier = state["dictionary._weights"], state["dictionary.multiplier"]
        state_dict.check_shapes({"W_enc": tensors["W_enc"], "W_dec": weights}, path)
        tensors["W_dec"], more = dictionaries.atoms(weights, multiplier, normalization, fold, path)
        return Checkpoint(NAME, architecture, sizes | base, tensors, kept, {}, (*notes, *more))
    delta = float(check_number(options, "delta", path, "its delta, by default 1.0"))
    made, more = dictionaries.mixture(state, delta, fold, path)
    arguments = sizes | {
        "points": describe(made["points"]),
        "relaxation": delta,
        "base": architecture,
        "base_args": base,
        "init": "eye",
        "projection": "normalize",
        "multiplier": True,
    }
    notes.append(
        "Training differs for a row of W with nothing positive: theirs stays 0, ours becomes its nearest point."
    )
    return Checkpoint(NAME, "archetypal", arguments, {**tensors, **made}, kept, {}, (*notes, *more))


def write(sae: SAE, path: Path, options: Mapping[str, Any], fold: bool) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: {NAME} keeps a state dict in one file")
    known = tuple(dict.fromkeys(architecture for architecture, *_ in CLASSES.values()))
    relaxed = isinstance(sae, ArchetypalSAE)
    architecture, tensors = state_dict.exported(sae, NAME, known, fold or relaxed)
    if tensors["b_dec"].any():
        raise ValueError(f"{NAME} has no decoder bias, and b_dec of this SAE is not 0")
    kept = state_dict.kept(sae, NAME)
    default = next(
        (name for name, (ours, points, _) in CLASSES.items() if (ours, points) == (architecture, relaxed)), ""
    )
    if not default:
        raise ValueError(f"{NAME} has no archetypal SAE over {architecture!r}")
    name = options.get("class", default)
    if name != default and (name, architecture) != ("JumpSAE", "batch_topk"):
        raise ValueError(f"options: class: expected {default!r} for this SAE, got {name!r}")
    encoder = next((name for name in ENCODERS if name == kept.get("encoder")), "linear")
    encoder = "untied with bias" if encoder == "untied" and tensors["b_enc"].any() else encoder
    theirs = state_dict.named_back(tensors, ENCODERS[encoder])
    before_options = kept.get("options")
    options = {**(before_options if isinstance(before_options, dict) else {}), **options}
    if name == "BatchTopKSAE":
        _check_threshold_known(tensors["threshold"], options)
    if CLASSES[name][0] == "jumprelu":
        before = state_dict.unpacked(kept.get(LOGS), (sae.d_sae,), tensors["threshold"].dtype)
        logs = state_dict.logs_of(tensors["threshold"].expand(sae.d_sae), before, True, NAME, fold)
        theirs[LOGS] = state_dict.narrowed(logs, tensors["W_enc"].dtype)
    dtype = tensors["W_dec" if not relaxed else "W"].dtype
    if isinstance(sae, ArchetypalSAE):
        theirs |= _points(sae, tensors, options)
    else:
        normalization = _normalization({"normalization": "l2", **options}, path)
        weights, multiplier = dictionaries.split_atoms(tensors["W_dec"].cpu(), normalization, fold)
        theirs["dictionary._weights"] = weights.contiguous().clone()
        theirs["dictionary.multiplier"] = torch.tensor(multiplier, dtype=dtype)
    state_dict.write_pickle(path, theirs)


def _class(state: Mapping[str, Tensor], options: Mapping[str, Any], path: Path) -> str:
    """Named by the options; but for thresholds and points, nothing in the file tells a TopK from a ReLU."""
    has = ("jumprelu" if LOGS in state else None, "dictionary.Relax" in state)
    fitting = [
        name for name, (ours, points, _) in CLASSES.items() if points == has[1] and (ours == has[0] or not has[0])
    ]
    fitting = [name for name in fitting if has[0] or CLASSES[name][0] != "jumprelu"]
    name = options.get("class")
    if name is None and len(fitting) == 1:
        return fitting[0]
    if name is None:
        raise ValueError(
            f"{path}: the state dict does not say its class: pass options={{'class': ...}}, one of {fitting}"
        )
    if name not in CLASSES:
        raise ValueError(f"options: class: expected one of {', '.join(CLASSES)}, got {name!r}")
    if name not in fitting:
        raise ValueError(f"{path}: not a {name}: by its tensors it is one of {', '.join(fitting)}")
    return str(name)


def _encoder(state: Mapping[str, Tensor], name: str, path: Path) -> str:
    """Which of `ENCODERS`; with all other tensors accounted for."""
    architecture, relaxed, _ = CLASSES[name]
    rest = {f"dictionary.{part}" for part in (RELAXED if relaxed else PLAIN)}
    rest |= {LOGS} if architecture == "jumprelu" else set()
    missing, found = sorted(rest - state.keys()), state.keys() - rest
    if missing:
        raise ValueError(f"{path}: not a {name}: missing {missing}")
    for encoder, names in ENCODERS.items():
        if names.keys() == found:
            weight = state[next(iter(names))]
            if weight.dim() != 2:
                raise ValueError(f"{path}: {next(iter(names))}: expected a matrix, got shape {list(weight.shape)}")
            return encoder
    raise ValueError(
        f"{path}: an encoder that saekern does not have ({', '.join(sorted(found)) or 'none'}): the linear one, without"
        " normalisation layers and not tied, is read"
    )


def _batch(options: Mapping[str, Any], path: Path) -> tuple[int, Tensor]:
    top_k = check_number(options, "top_k", path, "its top_k", whole=True)
    rows = check_number(options, "batch_size", path, "the rows of a training batch", whole=True)
    threshold = check_number(options, "threshold", path, "float(sae.running_threshold)")
    if top_k % rows:
        raise ValueError(f"options: top_k = {top_k} is not a multiple of batch_size = {rows}: saekern's k is whole")
    theta = torch.tensor(float(threshold), dtype=torch.float32)
    return top_k // rows, torch.nextafter(theta, torch.tensor(-torch.inf))


def _check_threshold_known(theta: Tensor, options: Mapping[str, Any]) -> None:
    """The file cannot hold it, so whoever writes says that they know it."""
    theirs = float(torch.nextafter(theta.float().cpu(), torch.tensor(torch.inf)))
    given = options.get("threshold")
    if not isinstance(given, (int, float)) or float(torch.tensor(float(given))) != theirs:
        raise ValueError(
            f"{NAME}: no state dict holds the threshold of a BatchTopKSAE. Set sae.running_threshold ="
            f" torch.tensor({theirs!r}) after loading, and say so with options={{'threshold': {theirs!r}}}; or pass"
            " options={'class': 'JumpSAE'}, which has one for each latent"
        )


def _points(sae: ArchetypalSAE, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    delta = float(options.get("delta", sae.relaxation))
    if not delta > 0:
        raise ValueError(
            f"{NAME}: delta = 0 is 0/0 there; pass options={{'delta': 1.0}}, and Relax is written as zeros"
        )
    weights, offset = tensors["W"].cpu(), tensors.get("Lambda", torch.zeros_like(tensors["W_dec"])).cpu()
    off, long = dictionaries.off_mixture(weights, offset, delta)
    if off.any() or long.any():
        raise ValueError(
            f"{NAME} projects: {int(off.sum())} rows of W are not >= 0 with sum 1, {int(long.sum())} of Lambda are"
            f" longer than delta = {delta:g}: call sae.project_parameters_() first, or pass a larger delta in options"
        )
    multiplier = tensors.get("multiplier", torch.zeros(1, dtype=weights.dtype)).cpu().reshape(())
    theirs = {"C": tensors["points"].cpu(), "W": weights, "Relax": offset, "multiplier": multiplier}
    return {f"dictionary.{name}": tensor.contiguous().clone() for name, tensor in theirs.items()}


def _normalization(options: Mapping[str, Any], path: Path) -> str:
    name = options.get("normalization")
    if name is None:
        raise ValueError(
            f"{path}: the state dict does not hold the dictionary's normalization: pass options={{'normalization':"
            f" 'l2'}}, the library's default, or one of {', '.join(NORMALIZATIONS)}"
        )
    if name not in NORMALIZATIONS:
        raise ValueError(f"options: normalization: expected one of {', '.join(NORMALIZATIONS)}, got {name!r}")
    return str(name)
