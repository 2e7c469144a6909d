"""`saekern.accelerate` on overcomplete's own SAEs, inside its `train_sae`, held to what they do alone.

Each side runs on an SAE of its own: the dictionary layer normalises its weights at every call, which moves them.
float64 runs follow the same lines with our reference ops: there every gradient must agree to rounding. float32 runs go
through the kernels; their losses over 200 steps must stay within 1 %.
"""

import contextlib
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
MISSING = ("overcomplete.models", "overcomplete.visualization", "overcomplete.optimization")
KINDS = ("TopKSAE", "BatchTopKSAE", "JumpSAE", "SAE", "RATopKSAE", "RAJumpSAE", "tied", "mlp")
every_kind = pytest.mark.parametrize("kind", KINDS)
CRITERIA = (
    "mse",
    "mse_l1",
    "mse_hoyer",
    "mse_kappa_4",
    "mse_elastic",
    "top_k_auxiliary_loss",
    "reanimation_regularizer",
)


@pytest.fixture(scope="module")
def library():
    try:
        with stand_ins(*MISSING):
            load("overcomplete", "overcomplete")
            return importlib.import_module("overcomplete.sae")
    except Absent as absent:
        pytest.skip(str(absent))


@pytest.fixture
def sparse_always(monkeypatch):
    """Sparse codes however many latents are active, as they are at the start."""
    monkeypatch.setattr(theirs, "SPARSE_ENOUGH", 2.0)


def sae_of(library, kind, dtype=torch.float32, **options):
    torch.manual_seed(0)
    if kind == "RATopKSAE":
        made = library.RATopKSAE(D, F, points=torch.randn(30, D), top_k=K)
    elif kind == "RAJumpSAE":
        made = library.RAJumpSAE(D, F, points=torch.randn(30, D), bandwidth=0.02)
        made.thresholds.data.fill_(-0.7)
    elif kind == "BatchTopKSAE":
        made = library.BatchTopKSAE(D, F, top_k=K * B)  # of the whole batch
    elif kind == "JumpSAE":
        made = library.JumpSAE(D, F, bandwidth=0.02, **options)
        made.thresholds.data.fill_(-0.7)
    elif kind == "SAE":
        made = library.SAE(D, F)
    elif kind == "tied":
        made = library.TopKSAE(D, F, top_k=K).tied(bias=True)
    elif kind == "mlp":
        modules = importlib.import_module("overcomplete.sae.modules")
        encoder = modules.MLPEncoder(D, F, nb_blocks=3, norm_layer=torch.nn.Identity, residual=True)
        made = library.TopKSAE(D, F, top_k=K, encoder_module=encoder)
    else:
        made = library.TopKSAE(D, F, top_k=K)
    return made.to(dtype)


def batches(count, dtype=torch.float32):
    random = torch.Generator().manual_seed(1)
    directions = torch.randn(40, D, generator=random)
    made = []
    for _ in range(count):
        codes = torch.rand(B, 40, generator=random) * (torch.rand(B, 40, generator=random) < 0.1)
        made.append((codes @ directions + 0.05 * torch.randn(B, D, generator=random) + 0.2).to(dtype))
    return made


def criterion(name):
    losses = importlib.import_module("overcomplete.sae.losses")
    if name == "mse":
        return lambda x, x_hat, pre_codes, codes, dictionary: (x - x_hat).square().mean()
    if name == "reanimation_regularizer":  # a term to be added to another
        return lambda *five: losses.mse_l1(*five, penalty=1e-4) + losses.reanimation_regularizer(*five)
    return getattr(losses, name)


def trained(library, sae, name="mse", steps=200, monitoring=2):
    train_sae = importlib.import_module("overcomplete.sae.train").train_sae
    optimizer = torch.optim.Adam(sae.parameters(), 1e-3)
    with contextlib.redirect_stdout(io.StringIO()):
        return train_sae(sae, batches(steps), criterion(name), optimizer, nb_epochs=1, monitoring=monitoring)


def gradients(sae, x, name):
    pre_codes, codes, x_hat = sae(x)
    loss = criterion(name)(x, x_hat, pre_codes, codes, sae.get_dictionary())
    loss.backward()
    grads = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    sae.zero_grad(set_to_none=True)
    return loss.detach(), grads


@every_kind
@pytest.mark.parametrize("name", CRITERIA)
def test_loss_and_every_gradient_in_float64(library, sparse_always, kind, name):
    """Planted: scores not written into pre_codes; a kernel cut short; caught."""
    sae = sae_of(library, kind, torch.float64)
    (x,) = batches(1, torch.float64)
    want, want_grads = gradients(copy.deepcopy(sae), x, name)
    if name == "mse_hoyer" and kind in ("BatchTopKSAE", "JumpSAE", "RAJumpSAE"):
        # Some rows have no code; the L2 norm's gradient there is theirs to call NaN, and 0 where it is summed sparsely.
        assert any(grad.isnan().any() for grad in want_grads.values())
        return
    with saekern.accelerate(sae):
        got, grads = gradients(sae, x, name)
    # JumpSAE: the default kernel ends at 2^-40 of its height, and is rounded to float32 by its own code.
    rtol = 1e-6 if "Jump" in kind else 1e-10
    torch.testing.assert_close(got, want, rtol=rtol, atol=0)
    assert grads.keys() == want_grads.keys()
    for parameter, wanted in want_grads.items():
        assert (grads[parameter] - wanted).norm() <= rtol * wanted.norm(), parameter


@pytest.mark.parametrize(
    "kernel", ["rectangle", "gaussian", "triangular", "cosine", "epanechnikov", "quartic", "silverman"]
)
def test_pseudo_gradients_of_all_kernels(library, sparse_always, kernel):
    """Planted: a kernel cut at a quarter of its reach; the second division by the bandwidth left out; caught."""
    sae = sae_of(library, "JumpSAE", torch.float64, kernel=kernel)
    (x,) = batches(1, torch.float64)
    _, want = gradients(copy.deepcopy(sae), x, "mse_l1")
    with saekern.accelerate(sae):
        _, got = gradients(sae, x, "mse_l1")
    assert want["thresholds"].norm() > 0
    assert (got["thresholds"] - want["thresholds"]).norm() <= 1e-6 * want["thresholds"].norm()


@every_kind
def test_loss_curve_of_200_steps(library, sparse_always, kind):
    """In their `train_sae`, its statistics included."""
    alone, ours = sae_of(library, kind), sae_of(library, kind)
    handle = saekern.accelerate(ours)
    want, got = trained(library, alone, "mse_l1"), trained(library, ours, "mse_l1")
    assert want.keys() == got.keys()
    losses = torch.tensor([want["step_loss"], got["step_loss"]])
    assert ((losses[1] - losses[0]).abs() <= 0.01 * losses[0]).all()
    assert losses[0][-1] < 0.8 * losses[0][0]
    for name in ("z_sparsity", "dead_features", "r2"):
        assert got[name] == pytest.approx(want[name], rel=0.01)
    if kind == "BatchTopKSAE":
        assert float(ours.running_threshold) == pytest.approx(float(alone.running_threshold), rel=1e-4)
    handle.restore()
    assert ours.state_dict().keys() == alone.state_dict().keys()


@pytest.mark.parametrize("kind", ["TopKSAE", "BatchTopKSAE", "JumpSAE", "SAE"])
@pytest.mark.parametrize("name", ["mse", "mse_l1", "mse_hoyer", "mse_kappa_4", "mse_elastic"])
def test_their_loop_and_these_criteria_make_no_dense_codes(library, sparse_always, monkeypatch, kind, name):
    def fail(self):
        raise AssertionError("dense codes were made")

    monkeypatch.setattr(lazy.LazyTensor, "dense", fail)
    sae = sae_of(library, kind)
    saekern.accelerate(sae)
    trained(library, sae, name, steps=3)


@every_kind
def test_outputs_in_training_and_evaluation(library, sparse_always, kind):
    """Planted: the running threshold's momentum the other way round; caught."""
    alone = sae_of(library, kind)
    first, x = batches(2)
    alone(first)  # BatchTopK's running threshold
    ours, restored = copy.deepcopy(alone), copy.deepcopy(alone)
    saekern.accelerate(ours)
    saekern.accelerate(restored).restore()

    def outputs(sae):
        pre_codes, codes, x_hat = sae(x)
        return [pre_codes + 0, codes + 0, x_hat, codes[:, 3], pre_codes.T @ x, sae.decode(codes * 2 + 1)]

    def both(sae):
        out = outputs(sae.train())
        with torch.no_grad():
            return [made.detach() for made in (*out, *outputs(sae.eval()))]

    want = both(alone)
    for have, wanted in zip(both(ours), want, strict=True):
        torch.testing.assert_close(have, wanted, rtol=1e-5, atol=2e-5)
    assert all(torch.equal(have, wanted) for have, wanted in zip(both(restored), want, strict=True))


def test_ties_at_the_batch_threshold_are_all_kept(library):
    """The same rows three times: `codes >= threshold` keeps six. Planted: ties left to batch_topk_encode; caught."""
    sae = sae_of(library, "BatchTopKSAE")
    sae.top_k = 4
    x = batches(1)[0][:3].repeat(3, 1)
    _, want = sae.encode(x)
    sae.running_threshold = None
    saekern.accelerate(sae)
    _, got = sae.encode(x)
    assert (want > 0).sum() == 6
    assert torch.equal(got > 0, want > 0)


def test_a_score_equal_to_the_threshold_is_a_code(library, sparse_always):
    """Planted: the strict comparison of threshold_encode; caught."""
    sae = sae_of(library, "BatchTopKSAE").eval()
    sae.running_threshold = torch.tensor(0.1)
    saekern.accelerate(sae)
    _, codes = sae.encode(batches(1)[0])
    sae.running_threshold = codes.max()
    _, codes = sae.encode(batches(1)[0])
    assert (codes > 0).sum() == 1


@every_kind
def test_hooks_see_what_they_saw(library, kind):
    alone, ours = sae_of(library, kind), sae_of(library, kind)
    (x,) = batches(1)
    saekern.accelerate(ours)
    seen = []
    for sae in (alone, ours):
        sae.encoder.register_forward_hook(lambda _, args, out: seen.append(out[1].detach().clone()))
        sae.dictionary.register_forward_hook(lambda _, args, out: seen.append(args[0].detach().clone()))
        sae(x)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])


@every_kind
def test_copies_and_files(library, kind):
    sae = sae_of(library, kind)
    (x,) = batches(1)
    want = sae(x)[2].detach()
    names = vars(sae).keys() | {"encode", "decode"}
    saekern.accelerate(sae)
    assert vars(sae).keys() == names
    twin = copy.deepcopy(sae)
    file = io.BytesIO()
    torch.save(sae.state_dict(), file)
    file.seek(0)
    fresh = sae_of(library, kind)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x)[2], want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fresh(x)[2], want, rtol=1e-5, atol=1e-5)


def test_what_is_not_supported_says_why(library):
    modules = importlib.import_module("overcomplete.sae.modules")
    refused = {
        "MpSAE is not supported: matching pursuit": library.MpSAE(D, F),
        "QSAE is not supported: its codes are quantized": library.QSAE(D, F, 4),
        "its last layer has a LayerNorm": library.TopKSAE(D, F, encoder_module="mlp_ln_1"),
        "expected MLPEncoder or TieableEncoder, got IdentityEncoder": library.TopKSAE(
            D, F, encoder_module=modules.IdentityEncoder(D)
        ),
        "expected ReLU at its end, got GELU": library.SAE(
            D,
            F,
            encoder_module=modules.MLPEncoder(
                D, F, nb_blocks=0, norm_layer=torch.nn.Identity, output_activation=torch.nn.GELU
            ),
        ),
        "JumpSAE with cauchy_kernel is not supported: it never gets so small": library.JumpSAE(D, F, kernel="cauchy"),
    }
    for message, sae in refused.items():
        names = set(vars(sae))
        with pytest.raises(ValueError, match=message):
            saekern.accelerate(sae)
        assert set(vars(sae)) == names


def test_evaluation_before_training_is_refused_as_theirs_does(library):
    sae = sae_of(library, "BatchTopKSAE").eval()
    saekern.accelerate(sae)
    with pytest.raises(AssertionError, match="Running threshold is not initialized"):
        sae(batches(1)[0])
