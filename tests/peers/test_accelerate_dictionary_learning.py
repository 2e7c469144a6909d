"""`saekern.accelerate` on dictionary_learning's own dictionaries and trainers, held to what they do alone.

float64 runs follow the same lines with our reference ops: there every gradient must agree to rounding. float32 runs go
through the kernels; their losses over 200 steps must stay within 1 %, and do within 1e-4.
"""

import copy
import importlib
import io

import pytest
import torch

import saekern
from saekern.acceleration import lazy, theirs
from saekern.bench.common import Absent
from saekern.bench.peers import load, stand_ins

pytestmark = pytest.mark.peers
D, F, K, B = 24, 160, 4, 48
TRAINERS = {
    "topk": ("top_k", "TopKTrainer", {"k": K, "threshold_start_step": 3}),
    "batch_topk": ("batch_top_k", "BatchTopKTrainer", {"k": K, "threshold_start_step": 3}),
    "matryoshka": (
        "matryoshka_batch_top_k",
        "MatryoshkaBatchTopKTrainer",
        {"k": K, "threshold_start_step": 3, "group_fractions": [0.1, 0.3, 0.6]},
    ),
    "jumprelu": ("jumprelu", "JumpReluTrainer", {"target_l0": K, "bandwidth": 0.05, "sparsity_warmup_steps": 20}),
    "relu": ("standard", "StandardTrainer", {"l1_penalty": 0.3, "sparsity_warmup_steps": 20}),
    "relu_april": ("standard", "StandardTrainerAprilUpdate", {"l1_penalty": 0.3, "sparsity_warmup_steps": 20}),
}
every_trainer = pytest.mark.parametrize("kind", TRAINERS)
with_dead = pytest.mark.parametrize("kind", ["topk", "batch_topk", "matryoshka"])


@pytest.fixture(scope="module")
def library():
    try:
        with stand_ins("nnsight"):
            load("dictionary_learning", "dictionary-learning")
            return {
                name: importlib.import_module(f"dictionary_learning.trainers.{name}")
                for name, _, _ in TRAINERS.values()
            }
    except Absent as absent:
        pytest.skip(str(absent))


@pytest.fixture
def sparse_always(monkeypatch):
    """Sparse codes however many latents are active, as they are at the start."""
    monkeypatch.setattr(theirs, "SPARSE_ENOUGH", 2.0)


@pytest.fixture
def no_dense(monkeypatch):
    def fail(self):
        raise AssertionError("dense codes were made")

    monkeypatch.setattr(lazy.LazyTensor, "dense", fail)


def trainer(library, kind, dtype=torch.float32):
    module, name, options = TRAINERS[kind]
    torch.manual_seed(0)
    sizes = {"steps": 1000, "activation_dim": D, "dict_size": F, "warmup_steps": 5, "lr": 1e-3}
    made = getattr(library[module], name)(layer=0, lm_name="", device="cpu", **sizes, **options)
    made.ae.to(dtype)
    return made


def batches(count, dtype=torch.float32):
    random = torch.Generator().manual_seed(1)
    directions = torch.randn(40, D, generator=random)
    for _ in range(count):
        on = torch.rand(B, 40, generator=random) < 0.1
        codes = torch.rand(B, 40, generator=random) * on
        yield (codes @ directions + 0.05 * torch.randn(B, D, generator=random) + 0.2).to(dtype)


def gradients(made, x, step=10):
    loss = made.loss(x, step=step)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in made.ae.named_parameters()}
    made.ae.zero_grad()
    return loss.detach(), grads


def moved(made):
    """Away from the symmetric start, some latents dead, thresholds on both sides of 0."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in made.ae.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=random))
        made.top_k_aux = 5
        if hasattr(made, "num_tokens_since_fired"):
            made.num_tokens_since_fired[::7] = made.dead_feature_threshold + 1


@every_trainer
def test_loss_and_every_gradient_in_float64(library, sparse_always, kind):
    """Planted: no decoder bias; `Step` without the codes of 0, in its value or its gradient; JumpReLU without scores
    just below their thresholds; AuxK of other rows; AuxK of one latent more; caught."""
    made = trainer(library, kind, torch.float64)
    moved(made)
    (x,) = batches(1, torch.float64)
    counters = copy.deepcopy(getattr(made, "num_tokens_since_fired", None))
    want, want_grads = gradients(made, x)
    after = copy.deepcopy(getattr(made, "num_tokens_since_fired", None))
    if counters is not None:
        made.num_tokens_since_fired.copy_(counters)
    with saekern.accelerate(made):
        got, grads = gradients(made, x)
    # AuxK, and the count of active latents in JumpReLU's loss, are float32 in their code whatever the rows are.
    rtol = {"topk": 2e-5, "batch_topk": 2e-5, "matryoshka": 2e-5, "jumprelu": 1e-7}.get(kind, 1e-10)
    torch.testing.assert_close(got, want, rtol=rtol, atol=0)
    for name, wanted in want_grads.items():
        error = (grads[name] - wanted).norm() / wanted.norm()
        assert error <= rtol, (name, error)
        assert wanted.norm() > 0
    if counters is not None:
        assert torch.equal(made.num_tokens_since_fired, after)


@every_trainer
def test_loss_curve_of_200_steps(library, sparse_always, kind):
    """Their own `update`, from the geometric median on; latents that did not fire in 600 tokens count as dead."""
    alone, ours = trainer(library, kind), trainer(library, kind)
    handle = saekern.accelerate(ours)
    curves = []
    for made in (alone, ours):
        made.dead_feature_threshold = 600
        losses = []
        for step, x in enumerate(batches(200)):
            loss = made.update(step, x)
            with torch.no_grad():
                losses.append(made.loss(x, step=step).item() if loss is None else loss)
        curves.append(torch.tensor(losses))
    assert ((curves[1] - curves[0]).abs() <= 1e-4 * curves[0].abs()).all()
    assert curves[0][-1] < 0.9 * curves[0][:5].max()
    for name in ("num_tokens_since_fired", "dead_features", "effective_l0"):
        assert torch.equal(torch.as_tensor(getattr(ours, name, 0)), torch.as_tensor(getattr(alone, name, 0)))
    handle.restore()
    state, want = ours.ae.state_dict(), alone.ae.state_dict()
    assert state.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(state[name], want[name], rtol=2e-3, atol=5e-3)


@every_trainer
def test_a_step_and_its_log_make_no_dense_codes(library, sparse_always, no_dense, kind):
    made = trainer(library, kind)
    saekern.accelerate(made)
    for step, x in enumerate(batches(6)):
        made.update(step, x)
    log = made.loss(x, step=6, logging=True)
    assert (log.f != 0).float().sum(dim=-1).mean().item() > 0


@with_dead
def test_dead_latents_are_revived_without_dense_codes(library, no_dense, kind):
    made = trainer(library, kind)
    moved(made)
    saekern.accelerate(made)
    (x,) = batches(1)
    made.update(5, x)
    assert made.dead_features > 0
    assert made.pre_norm_auxk_loss > 0


def test_rows_with_fewer_than_k_positive_count_the_same_latents_as_fired(library):
    """torch.topk of codes after ReLU names latents at 0, and they count as fired. Planted: our own indices there;
    caught."""
    alone, ours = trainer(library, "topk"), trainer(library, "topk")
    for made in (alone, ours):
        made.ae.encoder.bias.data.fill_(-1.2)
    saekern.accelerate(ours)
    for step, x in enumerate(batches(3), start=1):
        with torch.no_grad():
            few = (ours.ae.encoder(x - ours.ae.b_dec) > 0).sum(1) < K
        assert few.any()
        assert not few.all()
        want, got = alone.ae.encode(x, return_topk=True), ours.ae.encode(x, return_topk=True)
        torch.testing.assert_close(got[1].sort().values, want[1].sort().values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[0].gather(1, got[2]), got[1], rtol=0, atol=1e-6)
        for made in (alone, ours):
            made.update(step, x)
        assert torch.equal(ours.num_tokens_since_fired, alone.num_tokens_since_fired)


@every_trainer
def test_inference_and_whatever_reads_dense_codes(library, sparse_always, kind):
    made = trainer(library, kind)
    moved(made)
    sae, (x,) = made.ae, batches(1)
    x = x.view(6, 8, D)
    if kind in ("topk", "batch_topk", "matryoshka"):
        sae.threshold.fill_(0.3)
    modes = [{"use_threshold": on} for on in (True, False)] if kind in ("topk", "batch_topk", "matryoshka") else [{}]

    def run():
        f = [sae.encode(x, **mode) for mode in modes]
        shown = [made[:, :3, ::5] + made.flip(-1)[:, :3, ::5] for made in f]
        return [*shown, *(sae.decode(made) for made in f), *sae(x, output_features=True), sae.decode(f[0] * 2 + 1)]

    want = [out.detach() + 0 for out in run()]
    handle = saekern.accelerate(sae)
    got = run()
    for have, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(have + 0, wanted, rtol=1e-5, atol=2e-5)
    handle.restore()
    assert all(torch.equal(have + 0, wanted) for have, wanted in zip(run(), want, strict=True))


@every_trainer
def test_hooks_on_their_layers_see_what_they_saw(library, kind):
    """Planted: hooks not looked for; caught."""
    made = trainer(library, kind)
    if not hasattr(made.ae, "encoder"):
        pytest.skip("its weights are parameters, there is no layer to hook")
    (x,) = batches(1)
    seen = []
    hooks = [
        layer.register_forward_hook(lambda _, args, out: seen.extend([args[0].detach() + 0, out.detach() + 0]))
        for layer in (made.ae.encoder, made.ae.decoder)
    ]
    made.ae(x)
    want = seen[:]
    seen.clear()
    with saekern.accelerate(made.ae):
        made.ae(x)
        assert all(torch.equal(have, wanted) for have, wanted in zip(seen, want, strict=True))
        hooks[0].remove()
        made.ae(x)
        torch.testing.assert_close(seen[-1], want[-1], rtol=1e-5, atol=1e-5)


@with_dead
def test_the_gradient_of_codes_and_what_is_written_into_them(library, kind):
    """Planted: the sparse codes decoded all the same; caught."""
    made, (x,) = trainer(library, kind), batches(1)

    def run():
        f = made.ae.encode(x, use_threshold=False)
        f.retain_grad()
        made.ae.decode(f).square().sum().backward()
        with torch.no_grad():
            written = made.ae.encode(x, use_threshold=False)
            written[:, 3] += 1
            return f.grad, made.ae.decode(written)

    want = run()
    with saekern.accelerate(made.ae):
        got = run()
    for have, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(have, wanted, rtol=1e-5, atol=1e-4)


@every_trainer
def test_restore_gives_back_the_same_bits(library, kind):
    """Planted: strides not put back; moments changed on the way; caught."""
    alone, ours = trainer(library, kind), trainer(library, kind)
    saekern.accelerate(ours).restore()
    for step, x in enumerate(batches(12)):
        if step == 6:  # moments exist by now
            with saekern.accelerate(ours):
                assert all(p.shape == q.shape for p, q in zip(ours.ae.parameters(), alone.ae.parameters(), strict=True))
        alone.update(step, x)
        ours.update(step, x)
    assert vars(ours).keys() == vars(alone).keys()
    assert vars(ours.ae).keys() == vars(alone.ae).keys()
    for have, wanted in zip(ours.ae.state_dict().values(), alone.ae.state_dict().values(), strict=True):
        assert torch.equal(have, wanted)
        assert have.stride() == wanted.stride()


@every_trainer
def test_files_and_copies(library, kind):
    made = trainer(library, kind)
    (x,) = batches(1)
    with torch.no_grad():
        want = made.ae(x)
    saekern.accelerate(made)
    file = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in made.ae.state_dict().items()}, file)  # as trainSAE does
    file.seek(0)
    fresh = trainer(library, kind).ae
    fresh.load_state_dict(torch.load(file, weights_only=True))
    twin = copy.deepcopy(made)
    assert type(twin.ae) is type(fresh)
    with torch.no_grad():
        assert torch.equal(fresh(x), want)
        torch.testing.assert_close(twin.ae(x), want, rtol=1e-5, atol=1e-5)
        made.ae.W_enc.zero_() if hasattr(made.ae, "W_enc") else made.ae.encoder.weight.zero_()
        torch.testing.assert_close(twin.ae(x), want, rtol=1e-5, atol=1e-5)  # the copy has weights of its own


def test_what_is_not_supported_says_why(library):
    dictionary = importlib.import_module("dictionary_learning.dictionary")
    with pytest.raises(ValueError, match="GatedAutoEncoder is not supported: its gate"):
        saekern.accelerate(dictionary.GatedAutoEncoder(D, F))
    with pytest.raises(ValueError, match="IdentityDict is not supported: it has no weights"):
        saekern.accelerate(dictionary.IdentityDict(D))
    made = trainer(library, "topk")

    class Other(type(made.ae)):
        def encode(self, x, return_topk=False, use_threshold=False):
            return super().encode(x, return_topk, use_threshold)

    made.ae.__class__ = Other
    before = {name: tensor.stride() for name, tensor in made.ae.state_dict().items()}
    with pytest.raises(ValueError, match="encode is overridden by"):
        saekern.accelerate(made)
    assert before == {name: tensor.stride() for name, tensor in made.ae.state_dict().items()}
    assert "decode" not in vars(made.ae)
    assert "get_auxiliary_loss" not in vars(made)
