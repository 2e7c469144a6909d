"""`to_sae_lens` in the real SAELens, on tiny models of TransformerLens: our bits, their hooks, their files."""

import copy

import pytest
import torch
from plain_sae import moved, rows
from safetensors.torch import load_file

import saekern
from saekern.formats import register_sae_lens, to_sae_lens

lens = pytest.importorskip("sae_lens", reason="needs SAELens")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

D, F, K = 32, 96, 5
HOOKS = ("input", "acts_pre", "acts_post", "recons", "error", "output")
MAKERS = {
    "topk": lambda **o: saekern.TopKSAE(D, F, K, **o),
    "topk_raw": lambda **o: saekern.TopKSAE(D, F, K, subtract_b_dec=False, **o),
    "hierarchical": lambda **o: saekern.HierarchicalTopKSAE(D, F, K, **o),
    "batch_topk": lambda **o: saekern.BatchTopKSAE(D, F, K, **o),
    "matryoshka": lambda **o: saekern.MatryoshkaSAE(D, F, K, **o),
    "relu": lambda **o: saekern.ReLUSAE(D, F, **o),
    "jumprelu": lambda **o: saekern.JumpReLUSAE(D, F, **o),
    "gated": lambda **o: saekern.GatedSAE(D, F, **o),
    "kron": lambda **o: saekern.KronSAE(D, F, K, m=2, n=4, **o),
    "kron_product": lambda **o: saekern.KronSAE(D, F, K, m=2, n=4, activation="product", **o),
    "archetypal": lambda **o: saekern.ArchetypalSAE(D, F, points=rows(20, D), base_args={"k": K}, **o),
    "layer_norm": lambda **o: saekern.sae.NormalizedSAE(D, F, base_args={"k": K}, **o),
    "constant_norm": lambda **o: saekern.sae.NormalizedSAE(D, F, norm="constant_norm", base="relu", **o),
}


def make(name, dtype=torch.float32):
    sae = moved(MAKERS[name](init_seed=0, dtype=torch.float64), scale=0.2).eval()
    with torch.no_grad():
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(0.4)
    sae.provenance = {"model": "tiny", "hook": "blocks.1.hook_resid_pre"}
    return sae.to(dtype)


@pytest.fixture(params=MAKERS)
def sae(request):
    return make(request.param)


SIZES = {"n_layers": 2, "d_model": D, "n_ctx": 16, "d_head": 8, "n_heads": 4, "d_mlp": 64, "d_vocab": 50}


def hooked_model():
    from transformer_lens import HookedTransformerConfig

    config = HookedTransformerConfig(**SIZES, act_fn="gelu", seed=1, device="cpu")
    return lens.HookedSAETransformer(config).eval(), None


def bridge_model():
    """And a bridge without SAEs: hooks by the old names, such as hook_resid_pre, do nothing in SAELens' (6.54.12)."""
    from transformer_lens.config import TransformerBridgeConfig

    config = TransformerBridgeConfig(**SIZES, act_fn="gelu", normalization_type="LN", seed=1, device="cpu")
    made, plain = (lens.SAETransformerBridge.boot_native(config, device="cpu").eval() for _ in range(2))
    made.__class__ = lens.SAETransformerBridge  # what SAELens itself does, in boot_transformers alone
    made._acts_to_saes, made._transcoder_output_hooks = {}, {}
    return made, plain


@pytest.fixture(params=[hooked_model, bridge_model])
def models(request):
    """One that takes SAEs, and one with the same weights for hooks of our own."""
    model, plain = request.param()
    return model, plain or model


@pytest.fixture
def tokens():
    return torch.randint(1, 50, (3, 9))


def test_bits_are_ours(sae):
    """Planted: the dense product in `decode`; b_dec subtracted twice in `encode`; both caught."""
    module, x = to_sae_lens(sae), rows(14, D, torch.float32).view(2, 7, D)
    with torch.no_grad():
        codes = module.encode(x)
        assert torch.equal(codes, sae.encode(x))
        assert torch.equal(module.decode(codes), sae(x))
        assert torch.equal(module(x), sae(x))
        module.use_error_term = True
        assert (module(x) - x).abs().max() < 1e-5
    assert codes.shape == (2, 7, F)
    assert isinstance(module, lens.SAE)


def test_parameters_are_shared(sae):
    module = to_sae_lens(sae)
    assert module.saekern is sae
    assert {id(p) for p in module.parameters()} == {id(p) for p in sae.parameters()}
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        if hasattr(sae, name):
            assert torch.equal(getattr(module, name), getattr(sae, name))
    assert module.W_dec.shape == (F, D)
    assert not hasattr(sae, "name")  # what TransformerLens writes on modules
    assert module.cfg.architecture() == f"saekern_{sae.architecture}"
    assert set(module.hook_dict) == {f"hook_sae_{name}" for name in HOOKS}
    module.to(torch.bfloat16)
    assert sae.b_dec.dtype == torch.bfloat16
    assert module.cfg.dtype == "bfloat16"
    assert module(rows(3, D, torch.float32)).dtype == torch.bfloat16


def test_hooked_scores_are_the_same_function(sae):
    """In float64, so that only a wrong formula shows. Planted: ReLU before the selection's hook, a gate without its
    bias, `eps` or the root of Kron left out; caught."""
    sae = sae.double()
    module, x = to_sae_lens(sae), rows(11, D)
    seen = {}
    with torch.no_grad(), module.hooks(fwd_hooks=[("hook_sae_acts_pre", lambda s, hook: seen.update(scores=s))]):
        codes = module.encode(x)
        x_hat = module.decode(codes)
    torch.testing.assert_close(codes, sae.encode(x), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(x_hat, sae(x), rtol=1e-11, atol=1e-12)
    assert seen["scores"].shape == (11, F)
    assert (seen["scores"] < 0).any() or sae.architecture == "kron"


@pytest.mark.parametrize("name", ["topk", "relu", "jumprelu", "batch_topk", "gated", "kron"])
def test_hooks_that_edit_scores(name):
    """Planted: the edited scores dropped; caught."""
    sae = make(name)
    module, x = to_sae_lens(sae), rows(6, D, torch.float32)

    def edit(scores, hook):
        scores[:, 7] = 100.0
        scores[:, 8] = 0.0
        return scores

    if name == "gated":
        sae.b_gate.data[7] = 1000.0
    with torch.no_grad(), module.hooks(fwd_hooks=[("hook_sae_acts_pre", edit)]):
        codes = module.encode(x)
    assert (codes[:, 7] == (10.0 if name == "kron" else 100.0)).all()  # √ of the product
    assert (codes[:, 8] == 0).all()


@pytest.mark.parametrize("how", ["new", "in place", "data", "numpy"])
def test_hooks_that_edit_codes(sae, how):
    """Also where autograd does not see it. Planted: codes recognised by identity and version; caught by data, numpy."""
    module, x = to_sae_lens(sae), rows(6, D, torch.float32)

    def edit(codes, hook=None):
        if how == "new":
            return torch.where(torch.arange(F) == 3, 2.0, codes)
        target = {"in place": lambda: codes, "data": lambda: codes.data, "numpy": codes.numpy}[how]()
        target[:, 3] = 2.0
        return codes

    with torch.no_grad():
        want = edit(sae.encode(x).clone()) @ sae.W_dec + sae.b_dec
        with module.hooks(fwd_hooks=[("hook_sae_acts_post", edit)]):
            got = module(x)
        if how != "new":
            assert torch.equal(module.decode(edit(module.encode(x))), got)
    if isinstance(sae, saekern.sae.NormalizedSAE):
        _, mean, scale = sae.normalize(x)
        want = want * scale + mean
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_gradients(sae):
    """Of parameters and input as ours; of codes, also of inactive ones, as of a dense product. Planted: no gradient
    through the codes in `decode`; caught."""
    sae = sae.double()
    module, x, upstream = to_sae_lens(sae), rows(8, D).requires_grad_(), rows(8, D).flip(0)
    leaves = {"x": x, **{name: p for name, p in sae.named_parameters() if name.rpartition(".")[2] != "threshold"}}
    want = torch.autograd.grad((sae(x) * upstream).sum(), list(leaves.values()), allow_unused=True)
    codes = module.encode(x)
    x_hat = module.decode(codes)
    got = torch.autograd.grad((x_hat * upstream).sum(), [codes, *leaves.values()], allow_unused=True)
    scale = sae.normalize(x)[2] if isinstance(sae, saekern.sae.NormalizedSAE) else 1
    torch.testing.assert_close(got[0], (upstream * scale) @ sae.W_dec.T)
    for name, a, b in zip(leaves, got[1:], want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_models_run_with_saes(models, sae, tokens):
    """Planted: `hook_sae_acts_post` passed by in `encode`; caught."""
    (model, plain), module, hook = models, to_sae_lens(sae), sae.provenance["hook"]
    with torch.no_grad():
        clean = model(tokens)
        want = plain.run_with_hooks(tokens, fwd_hooks=[(hook, lambda x, hook: sae(x))])
        assert torch.equal(model.run_with_saes(tokens, saes=[module]), want)
        assert (want - clean).abs().max() > 0.1
        with model.saes([module]):
            assert torch.equal(model(tokens), want)
        for use_error_term in (False, True):
            logits, cache = model.run_with_cache_with_saes(tokens, saes=[module], use_error_term=use_error_term)
            points = [f"hook_sae_{name}" for name in HOOKS if use_error_term or name != "error"]
            assert {point_in(model, module, point) for point in points} <= set(cache.keys())
            assert cache[point_in(model, module, "hook_sae_acts_post")].shape == (3, 9, F)
            torch.testing.assert_close(logits, clean if use_error_term else want, rtol=1e-3, atol=1e-4)
        assert torch.equal(model(tokens), clean)


def point_in(model, module, point):
    """The bridge renames hook_resid_pre."""
    if isinstance(model, lens.SAETransformerBridge):
        return model.get_sae_hook_name(module, point)
    return f"{module.cfg.metadata.hook_name}.{point}"


def test_ablation_in_a_model(models, tokens):
    (model, plain), sae = models, make("topk")
    module = to_sae_lens(sae)

    def ablate(codes, hook):
        return torch.where(torch.arange(F) < F // 2, 0, codes)

    def ablated(x, hook):
        return x + (ablate(sae.encode(x), None) - sae.encode(x)) @ sae.W_dec

    with torch.no_grad():
        with model.saes([module], use_error_term=True):
            got = model.run_with_hooks(tokens, fwd_hooks=[(point_in(model, module, "hook_sae_acts_post"), ablate)])
        want = plain.run_with_hooks(tokens, fwd_hooks=[(sae.provenance["hook"], ablated)])
        assert (want - plain(tokens)).abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_heads(tokens):
    model, _ = hooked_model()
    sae = make("topk")
    sae.provenance = {"model": "tiny", "hook": "blocks.1.attn.hook_z"}
    module = to_sae_lens(sae)
    assert module.cfg.reshape_activations == "hook_z"
    with torch.no_grad():
        flat = model.run_with_hooks(
            tokens, fwd_hooks=[(sae.provenance["hook"], lambda z, hook: sae(z.flatten(2)).view_as(z))]
        )
        assert torch.equal(model.run_with_saes(tokens, saes=[module]), flat)


def test_saved_and_read_by_sae_lens(sae, tmp_path):
    """Planted: names with the prefix "saekern." on disk; a step count read as float32; caught."""
    module, x = to_sae_lens(sae, metadata={"context_size": 16}), rows(9, D, torch.float32)
    module.save_model(tmp_path)
    again = lens.SAE.load_from_disk(tmp_path)
    assert type(again.saekern) is type(sae)
    assert again.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"
    assert again.cfg.metadata.context_size == 16
    assert again.saekern.provenance["model"] == "tiny"
    assert again.saekern.state_dict().keys() == sae.state_dict().keys()
    for name, tensor in sae.state_dict().items():
        assert torch.equal(again.saekern.state_dict()[name], tensor), name
        assert again.saekern.state_dict()[name].dtype == tensor.dtype
    with torch.no_grad():
        assert torch.equal(again(x), sae(x))
    names = set(load_file(tmp_path / "sae_weights.safetensors"))
    assert names == set(sae.state_dict())


def test_half_precision_that_sae_lens_would_round(tmp_path):
    sae = make("jumprelu", torch.bfloat16)
    with pytest.raises(ValueError, match=r"would round threshold, warmup.count: save and load in float32"):
        to_sae_lens(sae).save_model(tmp_path)
    to_sae_lens(make("jumprelu")).save_model(tmp_path)
    with pytest.raises(ValueError, match="would round threshold"):
        lens.SAE.load_from_disk(tmp_path, dtype="bfloat16")
    to_sae_lens(make("topk", torch.bfloat16)).save_model(tmp_path)
    assert lens.SAE.load_from_disk(tmp_path).W_dec.dtype == torch.bfloat16


def test_without_saekern_the_class_is_named(tmp_path, monkeypatch):
    from sae_lens import registry

    to_sae_lens(make("topk")).save_model(tmp_path)
    monkeypatch.delitem(registry.SAE_CLASS_REGISTRY, "saekern_topk")
    with pytest.raises(KeyError, match="saekern_topk"):
        lens.SAE.load_from_disk(tmp_path)


@pytest.mark.parametrize("name", ["topk", "relu", "jumprelu", "gated"])
def test_their_class_agrees(name):
    """The same tensors in SAELens' own class, float64."""
    sae, x = make(name, torch.float64), rows(40, D)
    theirs = {"topk": "TopK", "relu": "Standard", "jumprelu": "JumpReLU", "gated": "Gated"}[name]
    options = {"k": K} if name == "topk" else {}
    config = getattr(lens, f"{theirs}SAEConfig")(d_in=D, d_sae=F, dtype="float64", **options)
    other = getattr(lens, f"{theirs}SAE")(config)
    other.load_state_dict({key: value for key, value in sae.state_dict().items() if key in other.state_dict()})
    module = to_sae_lens(sae)
    with torch.no_grad():
        (want, theirs_seen), (got, ours_seen) = other.run_with_cache(x), module.run_with_cache(x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    assert ours_seen.keys() == theirs_seen.keys()
    for key, value in theirs_seen.items():
        torch.testing.assert_close(ours_seen[key], value, rtol=1e-10, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


def test_copies_and_empty_batches(sae):
    module = to_sae_lens(sae)
    other = copy.deepcopy(module)
    x = rows(5, D, torch.float32)
    with torch.no_grad():
        module.b_dec.add_(1)
        assert not torch.equal(module(x), other(x))
        assert torch.equal(other.decode(other.encode(x)), other.saekern(x))
        assert module(x[:0]).shape == (0, D)
        assert module.decode(module.encode(x[:0])).shape == (0, D)


def test_refused():
    module = to_sae_lens(make("layer_norm"))
    with pytest.raises(ValueError, match="only after encode of the same rows"):
        module.decode(torch.zeros(2, F))
    with pytest.raises(TypeError, match="expected one of saekern's architectures, got Linear"):
        to_sae_lens(torch.nn.Linear(2, 2))
    for fold in (module.fold_W_dec_norm, lambda: module.fold_activation_norm_scaling_factor(2.0)):
        with pytest.raises(NotImplementedError):
            fold()


def test_metadata():
    sae = make("topk")
    sae.provenance["saelens"] = {"metadata": {"context_size": 64, "sae_lens_version": "5.0.0", "hook_name": "old"}}
    module = to_sae_lens(sae, metadata={"model_name": "mine"})
    assert module.cfg.metadata.context_size == 64
    assert module.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"
    assert module.cfg.metadata.model_name == "mine"
    assert module.cfg.metadata.sae_lens_version == lens.__version__
    assert register_sae_lens() == register_sae_lens()  # twice is allowed
