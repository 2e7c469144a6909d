"""An SAE in the place of activations: on plain torch modules here, on TransformerLens (3.9 and 4.3) where marked."""

import copy
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import nn

import saekern
from saekern.activations import HookedModule, python_source_sequences, tiny_model
from saekern.evaluation import Splice, splice

HOOKS = ("blocks.1.hook_resid_post", "blocks.1.hook_in", "blocks.0.hook_mlp_out", "blocks.2.attn.hook_z")


class Block(nn.Module):
    """As many Hugging Face layers: a tuple goes out, its second part is not a tensor of interest."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, hidden_states, scale=1.0):
        return hidden_states + torch.tanh(self.mix(hidden_states)) * scale, "cache"


class Model(nn.Module):
    def __init__(self, width=6, vocabulary=9):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.unembed = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(hidden_states=x)[0]
        return self.unembed(x)


@pytest.fixture
def model():
    return Model().eval()


@pytest.fixture
def tokens():
    return torch.randint(9, (4, 5))


@pytest.fixture(params=["topk", "relu"])
def sae(request):
    """Codes of a fixed number, and ragged ones."""
    if request.param == "topk":
        return saekern.TopKSAE(6, 12, 3, init_seed=0)
    return saekern.ReLUSAE(6, 12, init_seed=0)


def by_hand(model, tokens, places):
    """The forward pass with functions of the whole [B, T, D] after some blocks."""
    x = model.embed(tokens)
    for i, block in enumerate(model.blocks):
        x = block.forward(x)[0]  # past the hooks
        x = places.get(i, lambda x: x)(x)
    return model.unembed.forward(x)


@pytest.mark.parametrize("exclude_bos", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_reconstruction_replaces_the_activation(model, tokens, sae, exclude_bos, masked):
    """Padding on either side; with it the first real position is the one without a replacement.

    Planted: position 0 kept instead of the first real one; caught. Planted: the mask inverted; caught."""
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]]) if masked else None

    def place(x):
        replaced = torch.ones(4, 5, dtype=torch.bool) if mask is None else mask.bool()
        if exclude_bos:
            replaced = replaced.clone()
            for row in replaced:
                row[row.nonzero()[0, 0]] = False
        return torch.where(replaced[..., None], sae(x), x)

    with splice(model, sae, "blocks.1", exclude_bos=exclude_bos, mask=mask):
        got = model(tokens)
    torch.testing.assert_close(got, by_hand(model, tokens, {1: place}))
    assert (got != model(tokens)).any()
    assert torch.equal(model(tokens), by_hand(model, tokens, {})), "a hook stayed"


def test_two_saes_nest(model, tokens, sae):
    other = saekern.TopKSAE(6, 8, 2, init_seed=1)
    both = by_hand(model, tokens, {0: sae, 2: other})
    with splice(model, other, "blocks.2", exclude_bos=False):
        with splice(model, sae, "blocks.0", exclude_bos=False):
            torch.testing.assert_close(model(tokens), both)
        torch.testing.assert_close(model(tokens), by_hand(model, tokens, {2: other}))
    assert torch.equal(model(tokens), by_hand(model, tokens, {}))


def test_two_saes_at_one_hook(model, tokens, sae):
    """The inner context sees what the outer one puts there."""
    with splice(model, sae, "blocks.0", exclude_bos=False), splice(model, "zero", "blocks.0", exclude_bos=False):
        torch.testing.assert_close(model(tokens), by_hand(model, tokens, {0: torch.zeros_like}))


def test_hooks_go_after_an_exception(model, tokens, sae):
    """Planted: the handles removed only after a clean pass; caught."""

    def fail(codes):
        raise RuntimeError("edit failed")

    with pytest.raises(RuntimeError, match="edit failed"), splice(model, sae, "blocks.1", edit=fail):
        model(tokens)
    assert torch.equal(model(tokens), by_hand(model, tokens, {}))
    with (
        pytest.raises(ValueError, match="has 6 dimensions, the SAE 5"),
        splice(model, saekern.TopKSAE(5, 8, 2, init_seed=0), "blocks.1"),
    ):
        model(tokens)
    assert torch.equal(model(tokens), by_hand(model, tokens, {}))


def test_input_of_a_submodule(model, tokens, sae):
    """By position (`mix`) and by keyword (`blocks.1`)."""
    with splice(model, sae, "blocks.1:input", exclude_bos=False):
        got = model(tokens)
    torch.testing.assert_close(got, by_hand(model, tokens, {0: sae}))
    with splice(model, sae, "unembed:input", exclude_bos=False):
        torch.testing.assert_close(model(tokens), by_hand(model, tokens, {2: sae}))


def test_heads_are_flattened_and_restored(sae):
    x = torch.randn(2, 4, 3, 2)
    want = sae(x.flatten(2)).view(2, 4, 3, 2)
    got = Splice(sae, exclude_bos=False)(x)
    torch.testing.assert_close(got, want)
    got = Splice(sae)(x)
    torch.testing.assert_close(got[:, 1:], want[:, 1:])
    assert torch.equal(got[:, 0], x[:, 0])


def test_error_term_and_edits(model, tokens, sae):
    """With the error term nothing changes but for an edit, whose effect is the difference of two reconstructions.

    Planted: the error of the edited reconstruction added, which undoes every edit; caught."""
    clean = model(tokens)
    with splice(model, sae, "blocks.1", error_term=True):
        torch.testing.assert_close(model(tokens), clean, rtol=1e-5, atol=1e-5)

    def without(x, latent):
        z = sae.encode(x)
        z[..., latent] = 0
        return sae.decode(z)

    active = int(sae.encode(by_hand_activation(model, tokens)).sum((0, 1)).argmax())

    def switch_off(codes):
        codes[..., active] = 0

    want = by_hand(model, tokens, {1: lambda x: without(x, active) + (x - sae(x))})
    with splice(model, sae, "blocks.1", error_term=True, exclude_bos=False, edit=switch_off, dense=True):
        got = model(tokens)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (got - clean).abs().max() > 0.01
    want = by_hand(model, tokens, {1: lambda x: without(x, active)})

    def sparse(codes):
        return codes._replace(values=torch.where(codes.indices == active, 0, codes.values))

    with splice(model, sae, "blocks.1", exclude_bos=False, edit=sparse) as spliced:
        torch.testing.assert_close(model(tokens), want, rtol=1e-5, atol=1e-5)
        spliced.edit = None
        torch.testing.assert_close(model(tokens), by_hand(model, tokens, {1: sae}), rtol=1e-5, atol=1e-5)


def by_hand_activation(model, tokens):
    x = model.embed(tokens)
    return model.blocks[1](model.blocks[0](x)[0])[0]


def test_gradients_flow_through_the_codes(model, tokens, sae):
    """(x − x̂) carries none: the gradient to the embedding is that of x̂ alone, at the value of x. Planted: the error
    term not detached (the gradient is that of the clean model); caught."""

    def gradient(place):
        model.zero_grad()
        by_hand(model, tokens, {1: place}).square().sum().backward()
        return model.embed.weight.grad.clone()

    want = gradient(lambda x: sae(x) + (x - sae(x)).detach())
    model.zero_grad()
    with splice(model, sae, "blocks.1", error_term=True, exclude_bos=False):
        model(tokens).square().sum().backward()
    torch.testing.assert_close(model.embed.weight.grad, want, rtol=1e-4, atol=1e-5)
    assert (want - gradient(lambda x: x)).abs().max() > 0.01
    seen = []

    def watch(codes):
        codes.retain_grad()
        seen.append(codes)

    with splice(model, sae, "blocks.1", error_term=True, edit=watch, dense=True):
        model(tokens).square().sum().backward()
    assert seen[0].shape == (4, 5, 12)
    assert seen[0].grad.abs().sum() > 0, "attribution to latents"


def test_half_precision_stays(model, tokens, sae):
    """A bfloat16 model with a float32 SAE: the error term brings back the bfloat16 activation itself."""
    model = model.to(torch.bfloat16)
    clean = model(tokens)
    with splice(model, sae, "blocks.1", error_term=True, exclude_bos=False):
        got = model(tokens)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, clean)
    with splice(model, sae, "blocks.1", exclude_bos=False):
        got = model(tokens)
    want = by_hand(model, tokens, {1: lambda x: sae(x.float()).bfloat16()})
    assert torch.equal(got, want)
    with splice(model, sae.to(torch.bfloat16), "blocks.1"):
        assert model(tokens).dtype == torch.bfloat16


def test_generation_step(sae):
    """One position alone is a step with earlier ones cached, not a BOS; a mask may change between passes."""
    x = torch.randn(2, 1, 6)
    torch.testing.assert_close(Splice(sae)(x), sae(x))
    rows = torch.randn(7, 6)
    torch.testing.assert_close(Splice(sae)(rows), sae(rows))
    spliced = Splice(sae, mask=torch.tensor([[1, 1, 1], [0, 1, 1]]))
    x = torch.randn(2, 3, 6)
    assert torch.equal(spliced(x)[1, :2], x[1, :2])
    with pytest.raises(ValueError, match=r"mask: expected the activation's \[2, 4\], got \[2, 3\]"):
        spliced(torch.randn(2, 4, 6))
    spliced.mask = None
    torch.testing.assert_close(spliced(x)[:, 1:], sae(x)[:, 1:])


def test_a_row(model, tokens):
    row = torch.arange(6.0)
    with splice(model, row, "blocks.2", exclude_bos=False):
        torch.testing.assert_close(model(tokens), by_hand(model, tokens, {2: lambda x: row.expand(x.shape)}))


def test_which_hook(model, tokens, sae):
    with (
        pytest.raises(ValueError, match=r"hook: this SAE does not know where its rows came from; pass the hook"),
        splice(model, sae),
    ):
        pass
    sae.provenance = {"hook": "blocks.1"}
    with splice(model, sae, exclude_bos=False):
        torch.testing.assert_close(model(tokens), by_hand(model, tokens, {1: sae}))
    with (
        pytest.raises(ValueError, match=r"'blocks.9' is not a hook of this model; for example blocks.0, blocks.1"),
        splice(model, sae, "blocks.9"),
    ):
        pass
    with (
        pytest.raises(TypeError, match="model: expected a TransformerLens model or a torch module, got dict"),
        splice({}, sae, "blocks.1"),
    ):
        pass
    silent = nn.Sequential(nn.Identity())
    with (
        pytest.raises(TypeError, match="hook: expected a module that passes on a tensor, got str"),
        splice(silent, sae, "0"),
    ):
        silent("word")


def test_named_tuples_and_mappings(sae):
    class Pair(NamedTuple):
        loss: None
        hidden: torch.Tensor

    x = torch.randn(2, 3, 6)

    class Says(nn.Module):
        def __init__(self, output):
            super().__init__()
            self.inner = nn.Identity()
            self.output = output

        def forward(self, x):
            return self.inner(self.output(x))

    for output, kind in [
        (lambda x: Pair(None, x), Pair),
        (lambda x: OrderedDict(loss=None, hidden=x, more=x), OrderedDict),
        (lambda x: [x, x], list),
    ]:
        model = Says(output)
        with splice(model, sae, "inner", exclude_bos=False):
            got = model(x)
        assert type(got) is kind
        hidden = got["hidden"] if kind is OrderedDict else got[1] if kind is Pair else got[0]
        torch.testing.assert_close(hidden, sae(x))
        if kind is OrderedDict:
            assert torch.equal(got["more"], x)


def test_hooked_module_protocol(model, tokens):
    wrapped = HookedModule(model, name="mine")
    assert wrapped.cfg.model_name == "mine"
    assert wrapped.cfg.device == torch.device("cpu")
    assert torch.equal(wrapped(tokens), model(tokens))
    assert wrapped(tokens, return_type=None) is None
    with pytest.raises(ValueError, match='return_type: expected "logits" or None'):
        wrapped(tokens, return_type="loss")
    with pytest.raises(ValueError, match=r"attention_mask: Model.forward takes none"):
        wrapped(tokens, attention_mask=torch.ones(4, 5))


@pytest.fixture(scope="module")
def tiny():
    pytest.importorskip("transformer_lens", reason="needs transformer-lens")
    return tiny_model()


@pytest.mark.lens
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("compatible", [False, True])
def test_transformer_lens(tiny, hook, compatible, monkeypatch):
    """Plain calls, run_with_hooks and run_with_cache all see the SAE, once, whatever a hook's names; nothing stays."""
    monkeypatch.setattr(tiny, "compatibility_mode", compatible)
    sae = saekern.TopKSAE(128, 512, 8, init_seed=0)
    tokens = python_source_sequences("heldout", 32, 2, seed=0)
    calls = []

    def count(codes):
        calls.append(codes)

    with torch.no_grad():
        clean = tiny(tokens)
        want = tiny.run_with_hooks(tokens, fwd_hooks=[(tiny.hook_dict[hook].name, Splice(sae))])
        assert (want - clean).abs().max() > 1e-3
        seen = []

        def look(activation, hook):
            seen.append(activation)

        with splice(tiny, sae, hook, edit=count):
            assert torch.equal(tiny(tokens), want)
            assert torch.equal(tiny.run_with_hooks(tokens, fwd_hooks=[(hook, look)]), want)
            _, cache = tiny.run_with_cache(tokens, names_filter=[hook])
        assert len(calls) == 3
        x = tiny.run_with_cache(tokens, names_filter=[hook])[1][hook]
        x_hat = sae(x.flatten(2)).view(x.shape)
        torch.testing.assert_close(cache[hook][:, 1:], x_hat[:, 1:])
        assert torch.equal(cache[hook][:, 0], x[:, 0])
        torch.testing.assert_close(seen[0], cache[hook])
        assert torch.equal(tiny(tokens), clean), "a hook stayed"
        with splice(tiny, sae, hook, error_term=True):
            torch.testing.assert_close(tiny(tokens), clean, rtol=1e-4, atol=1e-4)
        with splice(tiny, sae, hook), splice(tiny, "zero", "blocks.0.hook_out"):
            both = tiny(tokens)
        assert (both - want).abs().max() > 1e-3
        with pytest.raises(RuntimeError), splice(tiny, sae, hook):
            raise RuntimeError
        assert torch.equal(tiny(tokens), clean), "a hook stayed"


@pytest.mark.lens
def test_transformer_lens_half_precision(tiny):
    model = copy.deepcopy(tiny).to(torch.bfloat16)
    sae = saekern.TopKSAE(128, 512, 8, init_seed=0)
    tokens = python_source_sequences("heldout", 32, 2, seed=0)
    with torch.no_grad(), splice(model, sae, HOOKS[0]):
        _, cache = model.run_with_cache(tokens, names_filter=[HOOKS[0]])
        assert cache[HOOKS[0]].dtype == torch.bfloat16
        assert model(tokens).dtype == torch.bfloat16
