"""accelerate on the real sparsify: its numbers, and its gradients where they are right."""

import copy
import importlib
import os
from unittest import mock

import pytest
import torch

import saekern
from saekern.acceleration.lazy import LazyTensor

with mock.patch.dict(os.environ, {"SPARSIFY_DISABLE_TRITON": "1"}):  # its Triton decoder fails on CPU tensors
    sparsify = pytest.importorskip("sparsify")
coders = importlib.import_module("sparsify.sparse_coder")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

D, F, K, B = 12, 40, 4, 24
DEAD = torch.arange(F) % 3 == 1


def make(dtype=torch.float64, d_in=D, d_sae=F, k=K, **options):
    coder = sparsify.SparseCoder(d_in, sparsify.SparseCoderConfig(num_latents=d_sae, k=k, **options), dtype=dtype)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter, scale in ((coder.encoder.weight, d_in**-0.5), (coder.encoder.bias, 0.1), (coder.b_dec, 0.3)):
            parameter.copy_(scale * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
        if coder.W_dec is not None:
            coder.W_dec.copy_(torch.randn(d_sae, d_in, generator=random, dtype=torch.float64))
            coder.set_decoder_norm_to_unit_norm()
        if coder.W_skip is not None:
            coder.W_skip.copy_(0.1 * torch.randn(d_in, d_in, generator=random, dtype=torch.float64))
    return coder


def pair(**options):
    plain = make(**options)
    return plain, copy.deepcopy(plain)


def rows(*shape, seed=2, dtype=torch.float64):
    return torch.randn(*(shape or (B, D)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_equal(got, want, words=""):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11, msg=lambda text: f"{words}: {text}")


def right(coder, x, dead=None):
    """sparsify's forward pass with an encoder that autograd differentiates, in the place of its fused one."""

    def plain_encoder(x, weight, bias, k, activation):
        pre_acts = torch.nn.functional.linear(x, weight, bias).relu()
        values, indices = pre_acts.topk(k, sorted=False)
        return values, indices, pre_acts

    with mock.patch.object(coders, "fused_encoder", plain_encoder):
        return coder(x, dead_mask=dead)


def total(out, auxk=0.5):
    return out.fvu + auxk * out.auxk_loss + out.multi_topk_fvu / 8


@pytest.mark.parametrize("options", [{}, {"multi_topk": True}, {"skip_connection": True}, {"k": 9}])
@pytest.mark.parametrize("dead", [None, DEAD, torch.arange(F) == 5, torch.zeros(F, dtype=torch.bool)])
def test_forward_pass(options, dead):
    """All outputs are sparsify's; gradients are those that autograd gives sparsify's forward pass, AuxK and Multi-TopK
    included. Planted: AuxK's scale left out; AuxK not detached from the residual; W_skip forgotten; caught."""
    plain, fast = pair(**options)
    want = right(plain, rows(), dead)
    theirs = copy.deepcopy(plain)(rows(), dead_mask=dead)
    with saekern.accelerate(fast):
        got = fast(rows(), dead_mask=dead)
    assert type(got) is type(theirs)
    for name in ("sae_out", "fvu", "auxk_loss", "multi_topk_fvu"):
        assert_equal(getattr(got, name), getattr(theirs, name), name)
    assert_equal(dense(got), dense(theirs))
    for out in (want, got):
        total(out).backward()
    for key, parameter in plain.named_parameters():
        assert_equal(fast.get_parameter(key).grad, parameter.grad, key)


def dense(out):
    return torch.zeros(B, F, dtype=torch.float64).scatter(1, out.latent_indices, out.latent_acts.detach())


def test_without_auxk_gradients_are_sparsify_s_own():
    """Where all chosen codes are positive, so that its unmasked ReLU does not show."""
    plain, fast = pair()
    with saekern.accelerate(fast):
        outs = [coder(rows()) for coder in (plain, fast)]
    assert (outs[0].latent_acts > 0).all()
    for out in outs:
        out.fvu.backward()
    for key, parameter in plain.named_parameters():
        assert_equal(fast.get_parameter(key).grad, parameter.grad, key)


def test_auxk_reaches_the_encoder():
    """What sparsify 1.3.3 loses; the handle says so. Planted: codes of dead latents detached; caught."""
    plain, fast = pair()
    plain(rows(), dead_mask=DEAD).auxk_loss.backward()
    assert plain.encoder.weight.grad is None or not plain.encoder.weight.grad.any(), "sparsify has it now: say so"
    with saekern.accelerate(fast) as handle:
        fast(rows(), dead_mask=DEAD).auxk_loss.backward()
    assert fast.encoder.weight.grad[DEAD].any()
    assert not fast.encoder.weight.grad[~DEAD].any()
    assert any("AuxK" in note for note in handle.notes)


def test_encode_and_decode():
    plain, fast = pair()
    x = rows(2, 3, D)
    with saekern.accelerate(fast), torch.no_grad():
        want, got = plain.encode(x), fast.encode(x)
        assert type(got) is type(want)
        assert_equal(got.top_acts, want.top_acts.sort(-1, descending=True).values)
        assert isinstance(got.pre_acts, LazyTensor)
        assert got.pre_acts.shape == want.pre_acts.shape
        assert_equal(got.pre_acts.dense(), want.pre_acts)
        flat = [part.reshape(6, K) for part in want[:2]]
        assert_equal(fast.decode(*flat), plain.decode(*flat))


def test_pre_acts_have_gradients_and_know_when_they_are_too_old():
    """Planted: no look at versions: pre_acts of the next step's weights; caught."""
    _, fast = pair()
    with saekern.accelerate(fast):
        fast.encode(rows()).pre_acts.sum().backward()
        assert fast.encoder.weight.grad.any()
        late = fast.encode(rows()).pre_acts
        with torch.no_grad():
            fast.encoder.weight.add_(1)
        with pytest.raises(RuntimeError, match="not read before the parameters changed"):
            late.sum()


def test_other_targets_and_a_given_variance():
    plain, fast = pair()
    with saekern.accelerate(fast):
        got, want = (
            coder(rows(), rows(seed=3), dead_mask=DEAD, total_variance=torch.tensor(7.0)) for coder in (fast, plain)
        )
    assert_equal(got.fvu, want.fvu)
    assert_equal(got.auxk_loss, want.auxk_loss)


@pytest.mark.parametrize("multi_topk", [False, True])
def test_loss_curve(multi_topk):
    """200 float32 steps of its own step (Adam, unit norm, projected gradient): within 1 %. Multi-TopK's gradients are
    not sparsify's, so there the right ones are followed."""
    coders_ = pair(dtype=torch.float32, d_in=24, d_sae=96, multi_topk=multi_topk)
    optimizers = [torch.optim.Adam(coder.parameters(), lr=3e-3) for coder in coders_]
    atoms = rows(96, 24, seed=5, dtype=torch.float32)
    curves = [[], []]
    with saekern.accelerate(coders_[1]):
        for step in range(200):
            x = (torch.rand(128, 96, generator=torch.Generator().manual_seed(step)) < 0.04).float() @ atoms
            for i, (coder, optimizer, curve) in enumerate(zip(coders_, optimizers, curves, strict=True)):
                coder.set_decoder_norm_to_unit_norm()
                out = right(coder, x) if multi_topk and i == 0 else coder(x)
                total(out).backward()
                coder.remove_gradient_parallel_to_decoder_directions()
                optimizer.step()
                optimizer.zero_grad()
                curve.append(float(out.fvu))
    want, got = (torch.tensor(curve).view(20, 10).mean(1) for curve in curves)
    assert want[-1] < 0.7 * want[0]
    torch.testing.assert_close(got, want, rtol=0.01, atol=0)


def test_restored_copied_saved(tmp_path):
    plain, fast = pair(dtype=torch.float32)
    x = rows(dtype=torch.float32)
    with saekern.accelerate(fast):
        fast(x)
        other = copy.deepcopy(fast)
        fast.save_to_disk(tmp_path / "ours")
    plain.save_to_disk(tmp_path / "theirs")
    for file in ("cfg.json", "sae.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    assert set(vars(fast)) == set(vars(plain))
    assert torch.equal(fast(x).sae_out, plain(x).sae_out)
    with torch.no_grad():
        other.b_dec.add_(1)
    torch.testing.assert_close(other(x).fvu, saekern_free(other)(x).fvu)


def saekern_free(coder):
    other = copy.deepcopy(coder)
    saekern.acceleration.restore(other)
    assert not set(vars(other)) & {"forward", "encode", "decode"}
    return other


def test_all_coders_of_a_trainer():
    """The trainer's own code needs no change: it calls its coders."""
    trainer = object.__new__(importlib.import_module("sparsify.trainer").Trainer)
    trainer.saes = {"h.0": make(), "h.1": make()}
    with saekern.accelerate(trainer) as handle:
        assert all("forward" in vars(coder) for coder in trainer.saes.values())
        assert len(handle.notes) == 3
    assert not any("forward" in vars(coder) for coder in trainer.saes.values())
    trainer.saes["h.2"] = make(activation="groupmax")
    with pytest.raises(ValueError, match="groupmax"):
        saekern.accelerate(trainer)
    assert not any("forward" in vars(coder) for coder in trainer.saes.values())


@pytest.mark.parametrize(
    ("options", "words"), [({"transcode": True}, "transcoders"), ({"activation": "groupmax"}, "'groupmax'")]
)
def test_refusals_leave_the_object_alone(options, words):
    coder = make(**options)
    before = dict(vars(coder))
    with pytest.raises(ValueError, match=words):
        saekern.accelerate(coder)
    assert vars(coder) == before


def test_a_coder_without_decoder_is_refused():
    coder = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(num_latents=F, k=K), decoder=False)
    with pytest.raises(ValueError, match="without its decoder"):
        saekern.accelerate(coder)
