"""Language models through TransformerLens, which is imported only when one is asked for."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from saekern.activations.hugging_face import PREFIX, load_hugging_face

TINY_NAME = "saekern-tiny"
_TINY = Path(__file__).parent / "tiny"


def tiny_model() -> Any:
    """The byte-level transformer that ships with saekern, as a TransformerLens model; tokens are bytes, BOS is 0.

    Raises:
        ImportError: TransformerLens is missing or cannot be imported.
        FileNotFoundError: the weights are not installed.
    """
    for name in ("model.json", "model.safetensors"):
        if not (_TINY / name).is_file():
            raise FileNotFoundError(f"{_TINY / name}: the shipped model is not installed; reinstall saekern")
    bridge = _bridge()
    from transformer_lens.config import TransformerBridgeConfig

    config = json.loads((_TINY / "model.json").read_text())["config"]
    # TransformerLens 3.9 and 4.3 both build the same native model, and both wrap its modules under the original names.
    model = bridge.boot_native(
        TransformerBridgeConfig(**config, device="cpu", init_weights=False), device="cpu", model_name=TINY_NAME
    )
    weights = load_file(_TINY / "model.safetensors")
    parameters = {n.replace("._original_component", ""): p for n, p in model.original_model.named_parameters()}
    if "head.bias" in parameters:  # TransformerLens 3.9 has one, 4.3 has none
        weights["head.bias"] = torch.zeros_like(parameters["head.bias"])
    if parameters.keys() != weights.keys():
        raise RuntimeError(f"unexpected parameters in TransformerLens: {sorted(parameters.keys() ^ weights.keys())}")
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name])
    return model.eval().requires_grad_(False)


def tiny_record() -> dict:
    """How the shipped model was trained, and its held-out bits per byte beside a smoothed 4-gram's."""
    return json.loads((_TINY / "model.json").read_text())


def weights_hash(name: str) -> str | None:
    """SHA-256 of the shipped model's weights for "tiny". None for a model from the hub, whose name stands for it."""
    return hashlib.sha256((_TINY / "model.safetensors").read_bytes()).hexdigest() if name == "tiny" else None


def load_model(name: str, device: str = "cpu") -> Any:
    """A model by name: "tiny" is the shipped one, others come from the Hugging Face hub.

    "gpt2" is a TransformerLens model, "hf:gpt2" the Hugging Face model itself, whose hooks are names of submodules.

    Raises:
        ImportError: TransformerLens is missing or cannot be imported.
        OSError: the hub cannot be reached, or has no such model.
    """
    if name == "tiny":
        return tiny_model().to(device)
    if name.startswith(PREFIX):
        return load_hugging_face(name.removeprefix(PREFIX), device)
    bridge = _bridge()
    try:
        return bridge.boot_transformers(name, device=device).eval()
    except ImportError as error:
        raise ImportError(_explain(error)) from error
    except Exception as error:  # offline shows as OSError, a httpx or a requests error, depending on versions
        raise OSError(
            f"model {name!r} could not be loaded from the Hugging Face hub ({type(error).__name__}: {error}). Offline,"
            ' use the shipped model "tiny", or a model that is already in the hub\'s local cache.'
        ) from error


def _bridge() -> Any:
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except (ImportError, RuntimeError) as error:
        raise ImportError(_explain(error)) from error
    return TransformerBridge


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("transformer_lens"):
        return "language models need TransformerLens 3.9 or newer: pip install 'saekern[lens]'"
    if "torchvision" in str(error) or "PreTrainedModel" in str(error):
        return (
            f"TransformerLens cannot be imported ({error}). An installed torchvision does not fit this PyTorch;"
            " nothing here needs it: pip uninstall torchvision"
        )
    return f"TransformerLens cannot be imported: {error}"
