"""The dictionary of an ArchetypalSAE is kept between calls, and nothing goes stale."""

import copy
import pickle

import pytest
import torch
from archetypal_example import dead_latents, example

from saekern.sae import mixing


def test_a_loss_makes_one_dictionary_and_one_gradient_of_it(monkeypatch):
    """Planted: loss without the shared dictionary; caught (2 gradients with dead latents)."""
    sae, x = example(torch.float32)
    made, backward = [], []
    monkeypatch.setattr(mixing, "atoms", lambda *a, f=mixing.atoms: made.append(1) or f(*a))
    monkeypatch.setattr(
        mixing.Atoms, "backward", staticmethod(lambda c, g, f=mixing.Atoms.backward: backward.append(1) or f(c, g))
    )
    sae.loss(x, dead_latents()).total.backward()
    assert (len(made), len(backward)) == (1, 1)
    sae.loss(x, dead_latents())
    sae(x), sae.encode(x), sae.decode(sae.encode_sparse(x)), sae.dictionary
    with torch.inference_mode():
        sae(x)
    sae.loss(x).total.backward()
    assert len(made) == 1, "nothing had changed"
    sae.project_parameters_()
    sae(x)
    assert len(made) == 2


CHANGES = {
    "W in place": lambda sae: sae.W.mul_(0.5),
    "one entry of W": lambda sae: sae.W[3, 4].add_(0.1),
    "Lambda in place": lambda sae: sae.Lambda.add_(0.1),
    "multiplier": lambda sae: sae.multiplier.add_(0.1),
    "points": lambda sae: sae.points.mul_(2),
    "the dictionary itself": lambda sae: sae.dictionary.zero_(),
    "load_state_dict": lambda sae: sae.load_state_dict(
        example(sae.W.dtype, multiplier=True, init_seed=9)[0].state_dict()
    ),
    "load_state_dict, assign": lambda sae: sae.load_state_dict(
        example(sae.W.dtype, multiplier=True, init_seed=9)[0].state_dict(), assign=True
    ),
    "to": lambda sae: sae.to(torch.float64),
    "half": lambda sae: sae.bfloat16(),
    "another parameter": lambda sae: setattr(sae, "W", torch.nn.Parameter(sae.W.flip(0))),
    "projection": lambda sae: (sae.W.add_(0.3), sae.Lambda.mul_(100), sae.project_parameters_()),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_the_dictionary_is_never_stale(change):
    """Planted: versions left out of the comparison ("in place" caught), addresses left out ("another parameter",
    "assign"), the result's own version left out ("the dictionary itself"), no `_apply` (not caught: addresses
    differ)."""
    sae, x = example(torch.float32, multiplier=True)
    sae(x)
    CHANGES[change](sae)
    want = mixing.atoms(sae.W, sae.points, sae.Lambda, sae.multiplier)
    assert torch.equal(sae.W_dec, want)
    assert sae.W_dec.dtype == sae.W.dtype
    assert torch.equal(sae.loss(x.to(sae.W.dtype)).x_hat, sae(x.to(sae.W.dtype)))


def test_a_copy_does_not_share_what_is_kept():
    """The copy's versions count from 0 again. Planted: the kept dictionary copied along; not caught, as addresses
    differ."""
    for duplicate in (copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))):
        sae, x = example(torch.float32)
        with torch.no_grad():
            for _ in range(3):
                sae.W.mul_(1.0)
            sae(x)
            for changes in range(2 * sae.W._version):
                other = duplicate(sae)
                assert type(other) is type(sae)
                for name, tensor in other._parameters.items():
                    while tensor is not None and name != "W" and tensor._version < sae._parameters[name]._version:
                        tensor.mul_(1.0)
                for _ in range(changes):
                    other.W.mul_(0.9)
                assert torch.equal(other.W_dec, mixing.atoms(other.W, other.points, other.Lambda, None))


@pytest.mark.parametrize("step", ["torch", "ours"])
def test_an_optimiser_step_reaches_the_dictionary(step):
    sae, x = example(torch.float32)
    for _ in range(3):
        before = sae.dictionary.clone()
        loss = sae.loss(x)
        assert torch.equal(loss.x_hat, sae(x))
        if step == "torch":
            optimizer = torch.optim.Adam(sae.parameters())
            loss.total.backward()
            optimizer.step()
        else:
            from saekern.training.optimizer import Adam

            optimizer = Adam(sae, (0.9, 0.999), 1e-8)
            loss.total.backward()
            optimizer.step(1e-3)
        sae.project_parameters_(fused=True)
        optimizer.zero_grad()
        assert not torch.equal(sae.dictionary, before)
        assert torch.equal(sae.dictionary, mixing.atoms(sae.W, sae.points, sae.Lambda, None))
