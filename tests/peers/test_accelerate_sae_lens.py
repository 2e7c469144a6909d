"""accelerate on the real SAELens: its numbers, its gradients, its hooks, its files."""

import copy

import pytest
import torch

import saekern
from saekern.acceleration import sae_lens_codes
from saekern.acceleration.lazy import LazyTensor

pytest.importorskip("sae_lens")

from sae_lens_saes import B, D, F, K, make, pair, rows, sae_lens, train_input, trainer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

INFERENCE = ("TopKSAE", "JumpReLUSAE", "StandardSAE")
TRAINING = [
    ("TopKTrainingSAE", {"rescale_acts_by_decoder_norm": True}),
    ("TopKTrainingSAE", {"rescale_acts_by_decoder_norm": False}),
    ("TopKTrainingSAE", {"apply_b_dec_to_input": False}),
    ("TopKTrainingSAE", {"k": 35}),  # negative scores among the chosen ones
    ("BatchTopKTrainingSAE", {"k": 3.5, "rescale_acts_by_decoder_norm": True}),
    ("BatchTopKTrainingSAE", {"k": 2, "rescale_acts_by_decoder_norm": False}),
    ("BatchTopKTrainingSAE", {"k": 39}),  # fewer scores than that are positive
    ("StandardTrainingSAE", {}),
    ("StandardTrainingSAE", {"lp_norm": 2.0}),
    ("StandardTrainingSAE", {"apply_b_dec_to_input": False}),
    ("JumpReLUTrainingSAE", {}),
    ("JumpReLUTrainingSAE", {"jumprelu_bandwidth": 0.5}),
    ("JumpReLUTrainingSAE", {"jumprelu_bandwidth": 0.5, "jumprelu_ste_to_input": True}),
    ("JumpReLUTrainingSAE", {"jumprelu_bandwidth": 0.5, "jumprelu_sparsity_loss_mode": "tanh"}),
    ("JumpReLUTrainingSAE", {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 3.0, "jumprelu_bandwidth": 0.3}),
    ("JumpReLUTrainingSAE", {"pre_act_loss_coefficient": 0.2, "jumprelu_ste_to_input": True}),
]
ALL_TRAINING = pytest.mark.parametrize(("name", "options"), TRAINING)
EACH_TRAINING = pytest.mark.parametrize("name", sorted({name for name, _ in TRAINING}))
DEAD = torch.arange(F) % 3 == 1


@pytest.fixture
def always_sparse(monkeypatch):
    """At F = 40 a tenth of the latents is active, which at a size worth accelerating would be dense."""
    monkeypatch.setattr(sae_lens_codes, "DENSE_ABOVE", 1.0)


@pytest.fixture
def never_dense(monkeypatch):
    def fail(lazy):
        raise AssertionError("a dense tensor was made")

    monkeypatch.setattr(LazyTensor, "dense", fail)


def assert_equal(got, want, words=""):
    """Two float64 computations of one formula. JumpReLU's thresholds, and so their gradients, are always float32."""
    rtol, atol = (1e-10, 1e-11) if want.dtype == torch.float64 else (1e-5, 1e-7)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, msg=lambda text: f"{words}: {text}")


def run(sae, x, dead):
    """One training pass with a backward: what it returned, dense."""
    sae.zero_grad()
    out = sae.training_forward_pass(train_input(sae, x, dead))
    out.loss.backward()
    return out


@ALL_TRAINING
@pytest.mark.parametrize("dead", [None, DEAD, torch.arange(F) == 5, torch.zeros(F, dtype=torch.bool)])
def test_training_pass_has_the_library_s_numbers_and_gradients(name, options, dead, always_sparse):
    """Planted: `values_at` with scaled values; AuxK with a ReLU; AuxK's `scale` left out; the threshold's slope without
    1/bandwidth; `reach` of 0; the tanh loss of scores in the place of codes; all caught."""
    plain, fast = pair(name, **options)
    x = rows()
    with saekern.accelerate(fast):
        want, got = run(plain, x, dead), run(fast, x, dead)
    assert isinstance(got.feature_acts, LazyTensor)
    assert set(got.losses) == set(want.losses)
    for term, value in want.losses.items():
        assert_equal(got.losses[term], value, term)
    assert_equal(got.loss, want.loss)
    assert_equal(got.sae_out, want.sae_out)
    assert_equal(got.feature_acts.dense(), want.feature_acts)
    assert_equal(got.hidden_pre.dense(), want.hidden_pre)
    for key, parameter in plain.named_parameters():
        assert_equal(getattr(fast, key).grad, parameter.grad, key)
    for key, value in plain.state_dict().items():  # BatchTopK's threshold moved
        assert_equal(fast.state_dict()[key], value, key)


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale", "expected_average_only_in"])
@pytest.mark.parametrize("name", ["TopKTrainingSAE", "JumpReLUTrainingSAE"])
def test_normalisation_stays_theirs(name, normalize, always_sparse):
    plain, fast = pair(name, normalize_activations=normalize)
    with saekern.accelerate(fast):
        want, got = run(plain, rows(), None), run(fast, rows(), None)
    assert_equal(got.sae_out, want.sae_out)
    for key, parameter in plain.named_parameters():
        assert_equal(getattr(fast, key).grad, parameter.grad, key)
    if name == "TopKTrainingSAE" and normalize != "expected_average_only_in":
        with saekern.accelerate(fast), pytest.raises(ValueError, match="does not support activation normalization"):
            run(fast, rows(), DEAD)


@pytest.mark.parametrize("name", [*INFERENCE, "TopKTrainingSAE", "BatchTopKTrainingSAE", "JumpReLUTrainingSAE"])
@pytest.mark.parametrize("shape", [(B, D), (2, 3, D), (0, D), (D,)])
def test_inference(name, shape, always_sparse):
    plain, fast = pair(name)
    x = rows(*shape)
    if len(shape) == 1 and "TopK" in name:
        x = x[None]
    with saekern.accelerate(fast), torch.no_grad():
        assert_equal(fast(x), plain(x))
        codes = fast.encode(x)
        assert type(codes) is torch.Tensor
        assert_equal(codes, plain.encode(x))
        assert_equal(fast.decode(codes), plain.decode(codes))


@pytest.mark.parametrize("name", INFERENCE)
def test_gradients_of_the_inference_classes(name, always_sparse):
    plain, fast = pair(name)
    inputs = [rows().requires_grad_(), rows().requires_grad_()]
    with saekern.accelerate(fast):
        for sae, x in zip((plain, fast), inputs, strict=True):
            (sae(x) ** 3).sum().backward()
    assert_equal(inputs[1].grad, inputs[0].grad)
    for key, parameter in plain.named_parameters():
        if parameter.grad is not None:
            assert_equal(getattr(fast, key).grad, parameter.grad, key)


@pytest.mark.parametrize("name", INFERENCE)
@pytest.mark.parametrize("hook", [None, "hook_sae_recons", "hook_sae_error", "hook_sae_acts_post", "hook_sae_input"])
@pytest.mark.filterwarnings("ignore:.*use_error_term.*")
def test_error_term(name, hook, always_sparse):
    """x comes back whatever the SAE is, unless a hook intervenes. Planted: no look at hook_sae_recons; caught."""
    plain, fast = pair(name)
    with saekern.accelerate(fast):
        for sae in (plain, fast):
            sae.use_error_term = True
            if hook is not None:
                getattr(sae, hook).add_hook(lambda value, hook: 2 * value)
        got, want = fast(rows()), plain(rows())
    assert_equal(got, want)
    assert torch.allclose(got, rows()) == (hook is None)


def test_hook_z_reshaping(always_sparse):
    plain, fast = pair("TopKSAE", reshape_activations="hook_z")
    x = rows(5, 7, 3, 4)
    with saekern.accelerate(fast):
        assert_equal(fast(x), plain(x))
        assert_equal(fast.encode(x), plain.encode(x))


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
@pytest.mark.parametrize("point", ["hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons", "hook_sae_input"])
@pytest.mark.parametrize("name", ["TopKTrainingSAE", "JumpReLUTrainingSAE"])
def test_hooks_see_what_they_saw(name, point, direction, always_sparse):
    """Planted: `hooked` without backward hooks; without acts_pre; caught."""
    plain, fast = pair(name)
    seen = {}

    def read(kept):
        return lambda value, hook: kept.append((value[0] if isinstance(value, tuple) else value).detach().clone())

    with saekern.accelerate(fast):
        for label, sae in (("want", plain), ("got", fast)):
            getattr(sae, point).add_hook(read(seen.setdefault(label, [])), dir=direction)
            run(sae, rows(), DEAD)
            sae(rows())
    backwards = 0 if point == "hook_sae_input" else 1  # the rows themselves have no gradient
    assert len(seen["want"]) == (2 if direction == "fwd" else backwards)
    assert len(seen["got"]) == len(seen["want"])
    for got, want in zip(seen["got"], seen["want"], strict=True):
        assert type(got) is torch.Tensor
        assert_equal(got, want)


def test_hooks_that_change_codes_change_the_output(always_sparse):
    plain, fast = pair("TopKSAE")

    def ablate(value, hook):
        value[:, ::2] = 0
        return value

    with saekern.accelerate(fast):
        got, want = (sae.run_with_hooks(rows(), fwd_hooks=[("hook_sae_acts_post", ablate)]) for sae in (fast, plain))
        assert_equal(got, want)
        assert not torch.equal(got, fast(rows()))
        _, cache = fast.run_with_cache(rows())
        assert_equal(cache["hook_sae_acts_post"], plain.encode(rows()))


@ALL_TRAINING
def test_a_loss_on_the_codes_has_the_library_s_gradients(name, options, always_sparse):
    """A caller's own penalty reads feature_acts and hidden_pre; with rescaling both depend on the decoder's norms.
    Planted: feature_acts of detached norms; `dense` made without gradients by a log that came first; caught."""
    plain, fast = pair(name, **options)
    with saekern.accelerate(fast):
        for sae in (plain, fast):
            out = sae.training_forward_pass(train_input(sae, rows(), DEAD))
            with torch.no_grad():
                out.feature_acts.max(), out.hidden_pre.min()
            (out.loss + (out.feature_acts**2).sum() + 0.1 * out.hidden_pre.sum()).backward()
    for key, parameter in plain.named_parameters():
        assert_equal(getattr(fast, key).grad, parameter.grad, key)


@ALL_TRAINING
def test_the_trainer_s_step_makes_nothing_dense(name, options, always_sparse, never_dense):
    if options.get("lp_norm", 1) != 1:
        pytest.skip("norms with p != 1 are SAELens' own, of dense codes")
    loop = trainer(make(name, dtype="float32", **options), dead_feature_window=0)
    with saekern.accelerate(loop):
        for step in range(3):
            out = loop.step(rows(seed=step, dtype=torch.float32))
        log = loop.build_train_step_log_dict(out, 0)
    assert 0 < log["metrics/l0"] <= F
    assert int(loop.act_freq_scores.sum()) > 0


@ALL_TRAINING
def test_the_trainer_s_step_leaves_what_the_library_leaves(name, options, always_sparse):
    """Parameters, statistics and logs after three float64 steps with dead latents; codes and pre-activations of the
    last, read when the parameters have moved on. Planted: Scores with the bias itself; caught."""
    plain, fast = (trainer(sae, dead_feature_window=0) for sae in pair(name, **options))
    with saekern.accelerate(fast):
        for step in range(3):
            want, got = plain.step(rows(seed=step)), fast.step(rows(seed=step))
    assert_equal(got.feature_acts.dense(), want.feature_acts)
    assert_equal(got.hidden_pre.dense(), want.hidden_pre)
    for key, value in plain.sae.state_dict().items():
        torch.testing.assert_close(fast.sae.state_dict()[key], value, rtol=1e-7, atol=1e-8)
    assert torch.equal(fast.act_freq_scores, plain.act_freq_scores)
    assert torch.equal(fast.n_forward_passes_since_fired, plain.n_forward_passes_since_fired)
    logs = [loop.build_train_step_log_dict(out, 0) for loop, out in ((plain, want), (fast, got))]
    assert logs[0] == pytest.approx(logs[1], rel=1e-7, nan_ok=True)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "name", ["TopKTrainingSAE", "BatchTopKTrainingSAE", "StandardTrainingSAE", "JumpReLUTrainingSAE"]
)
def test_loss_curve(name, autocast, always_sparse):
    """200 steps from one start: the losses stay within 1 %. Under autocast the reconstruction's within 2 %: the AuxK
    term depends on which few latents are dead, which rounding to bfloat16 decides, in SAELens as in ours."""
    options = {"l1_coefficient": 0.05} if name.startswith("Standard") else {}
    options |= {"l0_coefficient": 0.05, "jumprelu_bandwidth": 0.2} if name.startswith("JumpReLU") else {}
    loops = [
        trainer(sae, batch=128, autocast=autocast) for sae in pair(name, dtype="float32", d_in=24, d_sae=96, **options)
    ]
    atoms = rows(96, 24, seed=5, dtype=torch.float32)
    curves = [[], []]
    with saekern.accelerate(loops[1]):
        for step in range(200):
            random = torch.Generator().manual_seed(step)
            x = (torch.rand(128, 96, generator=random) < 0.04).float() @ atoms
            for loop, curve in zip(loops, curves, strict=True):
                out = loop.step(x)
                curve.append(float(out.losses["mse_loss"] if autocast else out.loss))
                loop.n_training_steps += 1
    want, got = (torch.tensor(curve).view(20, 10).mean(1) for curve in curves)
    assert want[-1] < 0.7 * want[0]
    torch.testing.assert_close(got, want, rtol=0.02 if autocast else 0.01, atol=0)


@pytest.mark.parametrize("name", ["StandardTrainingSAE", "JumpReLUTrainingSAE", "StandardSAE", "JumpReLUSAE"])
def test_many_active_latents_run_on_the_library_s_products(name):
    plain, fast = pair(name)
    with saekern.accelerate(fast):
        assert torch.equal(fast(rows()), plain(rows()))
        if "Training" in name:
            want, got = run(plain, rows(), DEAD), run(fast, rows(), DEAD)
            assert type(got.feature_acts) is torch.Tensor
            assert torch.equal(got.loss, want.loss)
            for key, parameter in plain.named_parameters():
                assert torch.equal(getattr(fast, key).grad, parameter.grad)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["TopKTrainingSAE", "BatchTopKTrainingSAE", "JumpReLUTrainingSAE", "StandardTrainingSAE"]
)
def test_storage_types_stay(name, dtype, always_sparse):
    plain, fast = pair(name, dtype=dtype)
    with saekern.accelerate(fast):
        want, got = run(plain, rows(dtype=torch.float32), DEAD), run(fast, rows(dtype=torch.float32), DEAD)
    for key in ("sae_out", "feature_acts", "hidden_pre", "loss"):
        assert getattr(got, key).dtype == getattr(want, key).dtype, key
        assert getattr(got, key).shape == getattr(want, key).shape, key
    for key, parameter in plain.named_parameters():
        assert getattr(fast, key).grad.dtype == parameter.grad.dtype
    exact = copy.deepcopy(plain).double()
    exact.dtype = torch.float64
    truth = run(exact, rows(dtype=torch.float32), DEAD).sae_out
    off = [float((out.sae_out.double() - truth).detach().norm() / truth.detach().norm()) for out in (got, want)]
    assert off[0] <= 2 * off[1] + 1e-6, "as close to float64 as SAELens is"


def test_restored_copied_saved(tmp_path, always_sparse):
    """Bit for bit what it was; copies are accelerated on their own; files are the library's."""
    plain, fast = pair("TopKTrainingSAE", dtype="float32")
    x = rows(dtype=torch.float32)
    with saekern.accelerate(fast) as handle:
        run(fast, x, DEAD)
        other = copy.deepcopy(fast)
        fast.save_model(tmp_path / "ours")
        fast.save_inference_model(tmp_path / "inference")
        assert list(fast.state_dict()) == list(plain.state_dict())
        assert type(fast) is type(plain)
        assert all(not isinstance(p, LazyTensor) and p.is_contiguous() for p in fast.parameters())
    plain.save_model(tmp_path / "theirs")
    for file in ("sae_weights.safetensors",):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    assert not handle.active
    assert set(vars(fast)) == set(vars(plain))
    want, got = run(plain, x, DEAD), run(fast, x, DEAD)
    assert torch.equal(got.loss, want.loss)
    assert torch.equal(got.feature_acts, want.feature_acts)
    assert all(torch.equal(p.grad, getattr(fast, key).grad) for key, p in plain.named_parameters())
    with torch.no_grad():
        other.b_dec.add_(1)
    assert isinstance(run(other, x, None).feature_acts, LazyTensor)
    assert not torch.equal(other(x), fast(x))
    loaded = sae_lens.SAE.load_from_disk(tmp_path / "inference")
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), plain(x))


def test_loading_weights_into_an_accelerated_object(always_sparse):
    """`load_state_dict(assign=True)`, `.data` and `fold_W_dec_norm` change parameters behind our back: nothing of
    theirs is kept between calls."""
    plain, fast = pair("TopKTrainingSAE")
    with saekern.accelerate(fast):
        for sae in (plain, fast):
            sae(rows())
            sae.fold_W_dec_norm()
            sae.W_enc.data *= 3
        assert_equal(fast(rows()), plain(rows()))
        state = {key: value * 0.5 for key, value in plain.state_dict().items()}
        for sae in (plain, fast):
            sae.load_state_dict(state, assign=True)
        assert_equal(fast(rows()), plain(rows()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("GatedTrainingSAE", {}),
        ("GatedSAE", {}),
        ("MatryoshkaBatchTopKTrainingSAE", {"k": K, "matryoshka_widths": [10, F]}),
        ("MatchingPursuitSAE", {}),
        ("AbsTopKTrainingSAE", {"k": K}),
        ("Transcoder", {"d_out": D, "apply_b_dec_to_input": False}),
    ],
)
def test_refusals_leave_the_object_alone(name, options):
    cfg = getattr(sae_lens, f"{name}Config")(d_in=D, d_sae=F, **options)
    sae = getattr(sae_lens, name)(cfg)
    before = dict(vars(sae))
    with pytest.raises(ValueError, match=f"SAELens' {name} is not supported"):
        saekern.accelerate(sae)
    assert vars(sae) == before


def test_compiled_and_changed_ones_are_refused():
    sae = make("TopKTrainingSAE")
    sae.training_forward_pass = sae.training_forward_pass
    with pytest.raises(ValueError, match="compiled"):
        saekern.accelerate(sae)
    sae = make("TopKTrainingSAE")
    sae.activation_fn = torch.nn.ReLU()
    with pytest.raises(ValueError, match="expected TopK, got ReLU"):
        saekern.accelerate(sae)
