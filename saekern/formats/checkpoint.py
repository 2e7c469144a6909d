"""What stands between another library's files and an SAE of ours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saekern.sae import SAE
from saekern.sae.files import ARCHITECTURES


@dataclass(frozen=True)
class Checkpoint:
    """One SAE as a format's `read` finds it, in our names."""

    format: str
    """The format's name, as `saekern.load(format=...)` takes it."""
    architecture: str
    """Ours: "topk", "jumprelu", …"""
    options: Mapping[str, Any]
    """The constructor's arguments but dtype and device. Without an `init_seed` it is 0: foreign files name none."""
    tensors: Mapping[str, Tensor]
    """The state dict: W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D], threshold, … as stored, any strides."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """JSON: what the format says beside this. It becomes `sae.provenance[format]`, from which `write` restores it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """JSON: "model" and "hook", where the format names them."""
    notes: tuple[str, ...] = ()
    """What was transposed, folded, filled in or left out, a sentence each; `saekern convert --dry-run` prints it."""


def build(checkpoint: Checkpoint, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """The SAE of a checkpoint. Sizes are checked on the tensors before anything of that size is allocated.

    Raises:
        ValueError: options that the architecture refuses, or tensors that are missing, unexpected or of other shapes.
    """
    cls = ARCHITECTURES[checkpoint.architecture]
    sae = cls(**{"init_seed": 0, **checkpoint.options}, device="meta")
    expected = sae.state_dict()
    counts = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith("warmup.count")}
    given = {**counts, **checkpoint.tensors}  # losses seen in training, which a penalty's warm-up counts: none here
    tensors = {name: tensor.to_dense() if tensor.is_sparse else tensor for name, tensor in given.items()}
    if expected.keys() != tensors.keys():
        missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
        raise ValueError(f"{checkpoint.format}: tensors missing: {missing or 'none'}, unexpected: {extra or 'none'}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(expected[name].shape)}, got {list(tensor.shape)}"
            raise ValueError(f"{checkpoint.format}: {name}: expected shape {shapes}")
    own = {name: tensor.contiguous() if name != "W_enc" else tensor for name, tensor in tensors.items()}
    sae.load_state_dict(own, assign=True)
    sae.requires_grad_()
    kept = {checkpoint.format: dict(checkpoint.kept)} if checkpoint.kept else {}
    sae.provenance = {**checkpoint.provenance, **kept}
    return sae.to(device=device, dtype=dtype)
