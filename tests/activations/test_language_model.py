"""The shipped model through TransformerLens (3.9 and 4.3), and what is said where it cannot be had."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from saekern.activations import harvest, language_model, load_model, python_source_sequences, tiny_model, tiny_record
from saekern.activations.train_tiny import TinyConfig, TinyTransformer

HOOKS = [
    "blocks.1.hook_resid_pre",
    "blocks.2.hook_resid_post",
    "blocks.2.hook_in",
    "blocks.0.hook_mlp_out",
    "blocks.1.attn.hook_z",
]


@pytest.fixture(scope="module")
def tiny():
    pytest.importorskip("transformer_lens", reason="needs transformer-lens")
    return tiny_model()


@pytest.fixture(scope="module")
def sequences():
    return python_source_sequences("heldout", 128, 40, seed=5)


def test_record_beats_the_4gram():
    record = tiny_record()
    assert record["heldout_bits_per_byte"] < record["heldout_bits_per_byte_4gram"]
    assert TinyConfig(**record["config"]) == TinyConfig()


def test_weights_are_small_and_reach_the_record(sequences):
    """Held-out text of any Python version is close to the recorded figure."""
    path = language_model._TINY / "model.safetensors"
    assert path.stat().st_size <= 4_000_000
    model = TinyTransformer(TinyConfig())
    model.load_state_dict(load_file(path))
    with torch.no_grad():
        logits = model(sequences[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())
    bits = loss.item() / math.log(2)
    record = tiny_record()
    assert abs(bits - record["heldout_bits_per_byte"]) < 0.25  # 5,080 bytes: a standard error of about 0.05
    assert bits < record["heldout_bits_per_byte_4gram"]


@pytest.mark.lens
def test_transformer_lens_computes_the_same(tiny, sequences):
    """Planted: gelu for gelu_new in TinyConfig; caught."""
    plain = TinyTransformer(TinyConfig())
    plain.load_state_dict(load_file(language_model._TINY / "model.safetensors"))
    with torch.no_grad():
        want, got = plain(sequences[:8]), tiny(sequences[:8])
    assert (want - got).abs().max() < 1e-4 * want.abs().max()
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


@pytest.mark.lens
@pytest.mark.parametrize("hook", HOOKS)
def test_harvest_equals_run_with_cache(tiny, sequences, tmp_path, hook):
    """Planted: the hook of the next layer captured; caught."""
    cache = harvest(tiny, hook, sequences[:10], tmp_path, batch=7, progress=False)
    with torch.no_grad():
        _, seen = tiny.run_with_cache(sequences[:10], names_filter=[hook])
    want = seen[hook][:, 1:].flatten(2).flatten(0, 1)
    got = cache.take(torch.arange(len(cache)))
    assert got.shape == (10 * 127, 128)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    with torch.no_grad():
        assert torch.isfinite(tiny(sequences[:1])).all()  # no hook is left behind
    before, token, after = cache.snippet(30)
    assert (before + token + after).encode()[:20] in bytes(sequences[0, 1:].tolist())
    assert cache.manifest["model"] == "saekern-tiny"


def test_missing_transformer_lens(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    monkeypatch.delitem(sys.modules, "transformer_lens.model_bridge", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'saekern\[lens\]'"):
        load_model("gpt2")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        ImportError("Could not import module 'PreTrainedModel'"),
    ],
)
def test_broken_torchvision(monkeypatch, error):
    def fail(name):
        raise error

    broken = ModuleType("transformer_lens.model_bridge")
    broken.__getattr__ = fail
    monkeypatch.setitem(sys.modules, "transformer_lens", ModuleType("transformer_lens"))
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", broken)
    with pytest.raises(ImportError, match=r"pip uninstall torchvision"):
        load_model("gpt2")


def test_offline(monkeypatch):
    def boot_transformers(name, device):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(language_model, "_bridge", lambda: SimpleNamespace(boot_transformers=boot_transformers))
    with pytest.raises(
        OSError, match=r"'gpt2' could not be loaded from the Hugging Face hub .* shipped model \"tiny\""
    ):
        load_model("gpt2")
