"""Two implementations of one SAE in float32 against its float64 answer, and files that come back with the same bits."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from bounds import UNIT
from torch import Tensor

import saekern
from saekern.formats import Checkpoint, examine


def assert_answers(sae: Any, x: Tensor, codes: Tensor, x_hat: Tensor) -> float:
    """Another library's float32 codes [B, F] and x̂ [B, D], and ours, against ours in float64.

    Each within 2 ((terms + 2) 2⁻²⁴ magnitude) of a sum of so many terms, carried through the decoder. A code that only
    one of them has is one whose score is at the cut within that bound; such rows are left out for x̂, and must be few.
    Returns the largest error as a fraction of its bound.
    """
    wide = copy.deepcopy(sae).double()
    want, want_hat = wide.encode(x.double()).detach(), wide(x.double()).detach()
    near, near_hat = _bounds(wide, x.double(), want)
    worst = 0.0
    for who, got, got_hat in (("theirs", codes, x_hat), ("ours", sae.encode(x), sae(x))):
        got, got_hat = got.detach().double(), got_hat.detach().double()
        both = (got != 0) == (want != 0)
        error = torch.where(both, (got - want).abs(), 0)
        assert bool((error <= near).all()), f"{who}: codes {float((error - near).max()):.3g} beyond the bound"
        at_cut = (torch.maximum(got, want) - _cut(wide, want)).abs() <= near
        assert bool((both | at_cut).all()), f"{who}: {int((~both & ~at_cut).sum())} codes that only one has"
        clear = both.all(1)
        assert int((~clear).sum()) <= len(x) // 8, f"{who}: {int((~clear).sum())} rows choose other latents"
        error = (got_hat - want_hat).abs()[clear]
        assert bool((error <= near_hat[clear]).all()), (
            f"{who}: x̂ {float((error - near_hat[clear]).max()):.3g} beyond it"
        )
        worst = max(worst, float((error / near_hat[clear]).max()))
    assert bool((want != 0).any()), "nothing is active: the case shows nothing"
    return worst


def _cut(wide: Any, codes: Tensor) -> Tensor:
    """[B, F] the value that a code has where the smallest error decides whether it is one."""
    inner = wide.base if wide.architecture == "normalized" else wide
    if hasattr(inner, "threshold"):
        return inner.threshold.detach().expand_as(codes)
    if hasattr(inner, "k"):
        least = torch.where(codes > 0, codes, torch.inf).amin(1, keepdim=True)
        return torch.where(least.isfinite(), least, 0).expand_as(codes)
    return torch.zeros_like(codes)  # of a gate, only where its magnitude is 0 as well


def _bounds(wide: Any, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """What float32 may do to scores [B, F] and x̂ [B, D] of a float64 SAE."""
    with torch.no_grad():
        inner, scale, mean, wobble = wide, 1.0, 0.0, torch.zeros_like(x)
        if wide.architecture == "normalized":
            inner, (normal, mean, scale) = wide.base, wide.normalize(x)
            wobble = 2 * (x.shape[1] + 8) * UNIT * (x.abs() + x.abs().mean(1, keepdim=True)) / scale
            x = normal
        encoder, decoder = inner.W_enc.abs(), inner.W_dec.abs()
        size = (x.abs() + inner.b_dec.abs() * bool(inner.subtract_b_dec)) @ encoder
        biases = inner.b_enc.abs()
        if inner.architecture == "gated":
            gain = inner.r_mag.exp()
            size, biases = size * gain, inner.b_mag.abs()
            encoder = encoder * gain
        scores = 2 * (x.shape[1] + 6) * UNIT * (size + biases) + wobble @ encoder
        wrong = torch.zeros_like(decoder)
        if inner.architecture == "archetypal":
            grown = inner.W.abs() @ inner.points.abs() + inner.Lambda.abs()
            wrong = 2 * (inner.points.shape[0] + 8) * UNIT * grown * inner.multiplier.exp()
        active = (codes != 0).double()
        sums = codes.abs() @ decoder + inner.b_dec.abs()
        hat = (scores * active) @ decoder + 2 * (codes.shape[1] + 6) * UNIT * sums + codes.abs() @ wrong
        normal_hat = sums * scale + abs(mean) if wide.architecture == "normalized" else 0.0
        return scores, hat * scale + 2 * (x.shape[1] + 8) * UNIT * normal_hat


def assert_round_trip(
    path: Path, work: Path, format: str, options: dict[str, Any], write_options: dict[str, Any] | None = None
) -> Any:
    """Theirs -> ours -> theirs, and once more with our own files in between: the same bits, and the same JSON."""
    sae = saekern.load(path, options=options)
    target = work / "once" / path.name
    saekern.save(sae, target, format, options=write_options)
    assert_same_files(path, target)
    saekern.save(sae, work / "native")
    again = saekern.load(work / "native")
    assert again.provenance[format] == sae.provenance[format]
    target = work / "twice" / path.name
    saekern.save(again, target, format, options=write_options)
    assert_same_files(path, target)
    read: Checkpoint = examine(target, options=options)
    assert read.format == format
    return sae


def assert_same_files(theirs: Path, ours: Path) -> None:
    pairs = [(theirs, ours)] if theirs.is_file() else [(file, ours / file.name) for file in sorted(theirs.iterdir())]
    for before, after in pairs:
        if before.suffix == ".json":
            assert json.loads(after.read_text()) == json.loads(before.read_text())
        elif before.name != "answers.safetensors":
            assert_same_tensors(_tensors(before), _tensors(after))


def assert_same_tensors(before: Any, after: Any) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        if not isinstance(value, Tensor):
            assert after[name] == value, name
            continue
        assert (after[name].dtype, after[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(after[name], value), name


def _tensors(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, weights_only=True)
