"""What formats with a state dict share: tensors checked and renamed, and what has no place in ours kept as text."""

import base64
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern.sae import SAE, files
from saekern.sae.archetypal import ArchetypalSAE

Names = Mapping[str, tuple[str, bool]]
"""Theirs -> ours, and whether it is transposed."""

NAMES_BYTES = 64 * 2**20  # the pickled part of a file holds names and shapes; the numbers lie beside it


def pickled_names(file: Path) -> bytes:
    """The pickled part of what torch.save wrote, as bytes to look for names in: nothing is unpickled. Empty if it is
    another kind of file."""
    if not file.is_file() or not zipfile.is_zipfile(file):
        return b""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.filename.endswith("data.pkl") and member.file_size <= NAMES_BYTES:
                    return archive.read(member)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, zlib.error):
        pass
    return b""


def checked(content: Any, where: Path) -> dict[str, Tensor]:
    """A state dict: names and tensors, nothing else."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a state dict, got {type(content).__name__}")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ValueError(f"{where}: expected a state dict of tensors, but {name!r} is {type(value).__name__}")
    return dict(content)


def renamed(tensors: Mapping[str, Tensor], names: Names, where: Path, kind: str) -> dict[str, Tensor]:
    """The tensors by our names; exactly those of `names`.

    Raises:
        ValueError: missing or unexpected ones, or one of another shape or type.
    """
    missing, extra = sorted(names.keys() - tensors.keys()), sorted(tensors.keys() - names.keys())
    if missing or extra:
        raise ValueError(f"{where}: not {kind}: missing {missing or 'nothing'}, unexpected {extra or 'nothing'}")
    ours = {}
    for theirs, (name, transposed) in names.items():
        if transposed and tensors[theirs].dim() != 2:
            raise ValueError(f"{where}: {theirs}: expected a matrix, got shape {list(tensors[theirs].shape)}")
        ours[name] = tensors[theirs].T if transposed else tensors[theirs]
    check_shapes(ours, where)
    return ours


def check_shapes(ours: Mapping[str, Tensor], where: Path) -> None:
    """All of floating point, and what W_enc says their sizes are: before arithmetic that would broadcast others."""
    sizes = ours["W_enc"].shape
    expected = {"W_dec": sizes[::-1], "b_dec": sizes[:1]}
    for name, tensor in ours.items():
        shape = expected.get(name, sizes[1:] if name != "W_enc" else sizes)
        if tensor.shape != shape or len(sizes) != 2 or not tensor.is_floating_point():
            got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise ValueError(f"{where}: {name}: expected floating point of shape {list(shape)}, got {got}")


def named_back(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """`renamed` the other way: contiguous, on the CPU, each with memory of its own."""
    theirs = {name: tensors[ours].T if transposed else tensors[ours] for name, (ours, transposed) in names.items()}
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in theirs.items()}


def transposed(names: Names) -> str:
    """A note."""
    return f"Transposed: {', '.join(theirs for theirs, (_, turned) in names.items() if turned)}."


def number(content: Mapping[str, Any], name: str, where: Path | str) -> int:
    """A positive whole number of a JSON object."""
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}: {name}: expected a whole number of at least 1, got {value!r}")
    return value


def kept(sae: SAE, format: str) -> dict[str, Any]:
    """What the SAE remembers of a format that it was read from, possibly through files that somebody else wrote."""
    found = sae.provenance.get(format, {})
    return dict(found) if isinstance(found, dict) else {}


def exported(sae: SAE, format: str, known: tuple[str, ...], fold: bool) -> tuple[str, dict[str, Tensor]]:
    """The architecture and the tensors of an SAE that a format writes; an archetypal one as its base, with fold.

    Raises:
        ValueError: another architecture.
    """
    tensors, architecture = {name: tensor.detach() for name, tensor in sae.state_dict().items()}, sae.architecture
    if isinstance(sae, ArchetypalSAE):
        if not fold:
            raise ValueError(
                f"{format} has no dictionary made of points; fold=True writes the atoms as they are now, and loses"
                " points and mixtures"
            )
        architecture, tensors["W_dec"] = sae.base_architecture, sae.dictionary
    if architecture not in known:
        normalized = f" (rows normalised by {sae.norm})" if architecture == "normalized" else ""
        raise ValueError(f"{format} cannot express {architecture!r}{normalized}; it has: {', '.join(known)}")
    return architecture, tensors


def subtracting(sae: SAE, tensors: dict[str, Tensor], wanted: bool, format: str, fold: bool) -> dict[str, Tensor]:
    """The tensors of the same function with an encoder that does, or does not, subtract b_dec.

    Raises:
        ValueError: it is the other way round, b_dec is not 0, and fold is not allowed.
    """
    if sae.subtract_b_dec == wanted or not tensors["b_dec"].any():
        return tensors
    if not fold:
        does, must = ("subtracts", "does not") if sae.subtract_b_dec else ("does not subtract", "does")
        raise ValueError(
            f"{format}: the encoder of this SAE {does} b_dec, and the format's {must}; fold=True puts b_dec W_enc into"
            " the encoder's bias"
        )
    shift = tensors["b_dec"].double() @ tensors["W_enc"].double() * (1 if wanted else -1)
    moved = dict(tensors)
    if sae.architecture == "gated":
        shifts = {"b_gate": shift, "b_mag": shift * tensors["r_mag"].double().exp()}
    else:
        shifts = {"b_enc": shift}
    for name, by in shifts.items():
        moved[name] = (tensors[name].double() + by).to(tensors[name].dtype)
    return moved


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In the type of the weights, if that is exact: ours keeps thresholds in float32 whatever the weights are."""
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def off_unit(norms: Tensor, terms: int, target: float = 1.0) -> Tensor:
    """Which norms, of rows of so many numbers, are not `target` up to what float32 rounding does to one."""
    return ~((norms - target).abs() <= (terms + 4) * 2.0**-24 * target)


def packed(tensor: Tensor) -> str:
    """A tensor's bytes as text, compressed: for what is kept beside the weights in JSON."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return base64.b85encode(zlib.compress(flat.view(torch.uint8).numpy().tobytes(), 6)).decode()


def unpacked(text: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """What `packed` made of a tensor of this shape and type; None for anything else."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if not isinstance(text, str) or size == 0:
        return None
    try:
        stream = zlib.decompressobj()
        raw = stream.decompress(base64.b85decode(text), size + 1)  # no more than that, whatever the text claims
    except (ValueError, zlib.error):
        return None
    if len(raw) != size or not stream.eof:
        return None
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def write_pickle(file: Path, content: Any) -> None:
    """torch.save, in place of the old file as a whole."""
    files.replace(file, lambda temporary: torch.save(content, temporary))


# Thresholds that are stored as logarithms, computed in float32, or in float64 if they are.

LIMITS = {torch.float32: (-104.0, 88.7), torch.float64: (-746.0, 709.7)}  # beyond them exp is 0, or infinite


def wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def threshold_of(logs: Tensor, inclusive: bool, where: Path) -> Tensor:
    """θ of s > θ, from its logarithm. With `inclusive` theirs is s >= exp(log): the next number below, which lets the
    same s pass; 0 where exp underflows, as theirs is a plain ReLU there.

    Raises:
        ValueError: logarithms that are not finite.
    """
    if not torch.isfinite(logs).all():
        raise ValueError(f"{where}: thresholds: {int((~torch.isfinite(logs)).sum())} logarithms are not finite")
    theta = wide(logs).exp()
    if inclusive:
        theta = torch.nextafter(theta, torch.full_like(theta, -torch.inf)).clamp(min=0)
    return theta


def logs_of(theta: Tensor, before: Tensor | None, inclusive: bool, format: str, fold: bool) -> Tensor:
    """The logarithms whose `threshold_of` is θ; those of `before` where they still are.

    Raises:
        ValueError: negative thresholds; or some have no such logarithm (they are a few units in the last place apart
            where |log θ| > 1), and fold does not allow the nearest.
    """
    theta, here = wide(theta).cpu(), Path(format)
    low, high = LIMITS[theta.dtype]
    if (theta < 0).any() or theta.isnan().any():
        raise ValueError(f"{format} keeps log θ, and {int((~(theta >= 0)).sum())} thresholds are below 0")
    up = torch.nextafter(theta, torch.full_like(theta, torch.inf)) if inclusive else theta
    best = up.double().log().to(theta.dtype).clamp(low, high)
    for _ in range(8):  # exp is a rounding or two off: look around
        error = threshold_of(best, inclusive, here) - theta
        step = torch.nextafter(best, torch.where(error > 0, -torch.inf, torch.inf))
        best = torch.where(error == 0, best, step.clamp(low, high))
    if before is not None:
        best = torch.where(threshold_of(before, inclusive, here) == theta, before, best)
    wrong = int((threshold_of(best, inclusive, here) != theta).sum())
    if wrong and not fold:
        raise ValueError(
            f"{format} keeps log θ, and {wrong} of {theta.numel()} thresholds are not the exp of a number of their"
            " type; fold=True takes the nearest"
        )
    return best
