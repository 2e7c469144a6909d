"""Tiny random Hugging Face models by the names of their submodules: harvested, padded, loaded from a folder."""

import sys
from itertools import pairwise

import pytest
import torch

from saekern.activations import HookedModule, harvest, hugging_face, load_hugging_face, load_model
from saekern.activations.harvest import activations
from saekern.evaluation import cross_entropy, language_model_metrics, splice
from saekern.sae import TopKSAE

transformers = pytest.importorskip("transformers")


def gpt2(dtype=torch.float32):
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=16, n_embd=12, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval().to(dtype)


def llama(dtype=torch.float32):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=31,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return transformers.LlamaForCausalLM(config).eval().to(dtype)


MODELS = pytest.mark.parametrize(
    ("make", "layers"), [(gpt2, "transformer.h"), (llama, "model.layers")], ids=["gpt2", "llama"]
)


def tokens(count=5, context=7):
    drawn = torch.randint(1, 31, (count, context))
    drawn[:, 0] = 0
    return drawn


def hidden(model, sequences, layer, **options):
    with torch.no_grad():
        return model(sequences, output_hidden_states=True, **options).hidden_states[layer]


@MODELS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_harvest_is_the_hidden_state(make, layers, dtype, tmp_path):
    """The model's own hidden states; a bfloat16 model stays one, its rows widen exactly. Layers after the hook are not
    run. Planted: the output of the next layer; caught."""
    model, sequences = make(getattr(torch, dtype)), tokens()
    late = []
    model.get_submodule(f"{layers}.2").register_forward_hook(lambda *_: late.append(1))
    cache = harvest(model, f"{layers}.1", sequences, tmp_path, batch=2, progress=False)
    assert not late
    assert not model.get_submodule(f"{layers}.1")._forward_hooks, "a hook stayed"
    want = hidden(model, sequences, 2)[:, 1:].flatten(0, 1)
    assert want.dtype == getattr(torch, dtype)
    torch.testing.assert_close(cache.take(torch.arange(len(cache))), want.float(), rtol=1e-5, atol=1e-5)
    assert cache.manifest["hook"] == f"{layers}.1"


@MODELS
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_moves_nothing(make, layers, side, tmp_path):
    """Rows of padded sequences are those of the sequences alone, in their order, without the first token.

    Planted: positions counted from the padding (left); the mask not given to the model (left). Both were caught."""
    model, lengths = make(), [7, 3, 5]
    alone = [tokens(1, length) for length in lengths]
    padded, mask = torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, 7, dtype=torch.int64)  # padded with BOS
    for i, (line, length) in enumerate(zip(alone, lengths, strict=True)):
        part = slice(7 - length, 7) if side == "left" else slice(length)
        padded[i, part], mask[i, part] = line[0], 1
    cache = harvest(model, f"{layers}.1", padded, tmp_path, attention_mask=mask, batch=2, shard_rows=7, progress=False)
    want = torch.cat([hidden(model, line, 2)[0, 1:] for line in alone])
    torch.testing.assert_close(cache.take(torch.arange(len(cache))), want, rtol=1e-4, atol=1e-5)
    assert torch.equal(cache.attention_mask, mask.bool())
    before, token, after = cache.snippet(6, before=9, after=9)  # the first row of the second sequence
    assert (before, token) == ("", f" {int(alone[1][0, 1])}")
    assert after == f" {int(alone[1][0, 2])}"
    with pytest.raises(ValueError, match=r"different attention_mask_sha256"):
        harvest(model, f"{layers}.1", padded, tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"attention_mask: expected the shape of sequences, \[3, 7\], got \[3, 6\]"):
        harvest(model, f"{layers}.1", padded, tmp_path, attention_mask=mask[:, 1:], progress=False)

    sae = TopKSAE(12, 24, 4, init_seed=0)
    got = language_model_metrics(model, f"{layers}.1", padded, sae, attention_mask=mask, batch=2)
    each = [language_model_metrics(model, f"{layers}.1", line, sae, mean=torch.zeros(12)) for line in alone]
    assert got.predicted == sum(one.predicted for one in each) == sum(lengths) - 3
    for way in ("clean", "sae", "zero"):
        losses = [getattr(one, way) for one in each]
        ce = sum(loss.ce * one.predicted for loss, one in zip(losses, each, strict=True)) / got.predicted
        kl = sum(loss.kl * one.positions for loss, one in zip(losses, each, strict=True)) / got.positions
        assert getattr(got, way).ce == pytest.approx(ce, rel=1e-5)
        assert getattr(got, way).kl == pytest.approx(kl, rel=1e-4, abs=1e-9)


@MODELS
def test_head_outputs_and_splices(make, layers):
    """hook_z is the input of the attention's output projection."""
    model, sequences = make(), tokens()
    projection = f"{layers}.1." + ("attn.c_proj" if make is gpt2 else "self_attn.o_proj")
    z = activations(HookedModule(model), f"{projection}:input", sequences)
    out = activations(HookedModule(model), projection, sequences)
    torch.testing.assert_close(model.get_submodule(projection)(z).detach(), out)
    sae = TopKSAE(12, 24, 4, init_seed=0)
    with torch.no_grad():
        clean = model(sequences).logits
        with splice(model, sae, f"{projection}:input", exclude_bos=False):
            got = model(sequences).logits
            assert torch.equal(activations(HookedModule(model), f"{projection}:input", sequences), sae(z))
        with splice(model, sae, f"{layers}.1", error_term=True):
            torch.testing.assert_close(model(sequences).logits, clean, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(sequences).logits, clean)
    assert (got - clean).abs().max() > 1e-5


def test_base_model_and_generation():
    """A ModelOutput passes on with its first tensor replaced; generation with a cache is spliced at every new token."""
    model, sae = gpt2(), TopKSAE(12, 24, 4, init_seed=0)
    sequences = tokens(2, 4)
    with torch.no_grad(), splice(model, sae, "transformer", exclude_bos=False):
        got = model(sequences).logits
    want = model.lm_head(sae(model.transformer(sequences).last_hidden_state))
    torch.testing.assert_close(got, want.detach())
    seen = []
    model.generation_config.pad_token_id = 0
    with splice(model, sae, "transformer.h.1", edit=lambda codes: seen.append(codes.values.shape[1])):
        model.generate(sequences, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert seen == [4, 1, 1]


def test_cross_entropy_is_the_models_own():
    model, sequences = gpt2(), tokens()
    with torch.no_grad():
        want = model(sequences, labels=sequences).loss.item()
    assert cross_entropy(model, "transformer.h.1", sequences, batch=2) == pytest.approx(want, rel=1e-5)


def test_a_folder_by_name(tmp_path):
    """`load_model("hf:…")` keeps the dtype on disk and has a tokenizer, whose words stand beside the rows."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = str(tmp_path / "model")
    gpt2(torch.bfloat16).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(31)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    model = load_model(f"hf:{folder}")
    assert isinstance(model, HookedModule)
    assert model.model.dtype == torch.bfloat16
    assert model.cfg.model_name == folder
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    sequences = tokens()
    cache = harvest(model, "transformer.h.0", sequences, tmp_path / "rows", progress=False)
    assert cache.snippet(0)[1] == f"w{int(sequences[0, 1])}"
    with pytest.raises(ValueError, match=r"'blocks.1.hook_resid_post' is not a hook .* for example transformer.h.0"):
        harvest(model, "blocks.1.hook_resid_post", sequences, tmp_path / "other", progress=False)


def test_what_is_said_where_there_is_no_model(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=r"model '.*nothing' could not be loaded"):
        load_hugging_face(str(tmp_path / "nothing"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="need transformers: pip install transformers"):
        hugging_face.import_transformers()


def test_any_torch_module(tmp_path):
    """No config, no tokenizer, one unnamed input."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(31, 6), torch.nn.Tanh(), torch.nn.Linear(6, 31))
    sequences = tokens()
    cache = harvest(model, "1", sequences, tmp_path, exclude_bos=False, progress=False)
    want = torch.tanh(model[0](sequences)).flatten(0, 1).detach()
    assert torch.equal(cache.take(torch.arange(len(cache))), want)
    assert all(a < b for a, b in pairwise(cache.starts.tolist()))
    assert cache.manifest["model"] == "Sequential"
