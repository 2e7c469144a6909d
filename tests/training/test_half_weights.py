"""The bfloat16 copies of the weights that the optimiser keeps: what they save, and that they are never out of date."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import saekern
from saekern.training import checkpoint
from saekern.training.optimizer import Adam

WEIGHTS = ("W_enc", "W_dec")


def small():
    return saekern.TopKSAE(8, 48, 3, init_seed=0, k_aux=4)


def step(sae, adam, x, half=True, dead=None, clip=None):
    with adam.half_weights(half):
        with torch.autocast("cpu", torch.bfloat16):
            loss = sae.loss(x, dead).total
        loss.backward()
        if clip is not None:
            adam.clip(clip)
    adam.step(1e-2)
    adam.zero_grad()
    return float(loss.detach())


def adam_of(sae):
    return Adam(sae, (0.9, 0.999), 1e-8)


def test_a_step_is_that_of_autocast(make_rows):
    """The same bits, loss by loss: the copies are what autocast would make, the gradients what it would widen."""
    x, (ours, plain) = make_rows().tensor, (small(), small())
    optimizers = adam_of(ours), adam_of(plain)
    for _ in range(5):
        assert step(ours, optimizers[0], x) == step(plain, optimizers[1], x, half=False)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    assert not optimizers[1].copies


def test_dead_latents_and_clipping_round_a_second_time(make_rows):
    """The decoder's two gradients are added in bfloat16, which moves the sum by ≤ 2⁻⁸ of itself; so moves the norm, by
    which the gradients are scaled, and so does rounding what was scaled."""
    x, (ours, plain) = make_rows().tensor, (small(), small())
    dead = torch.zeros(48, dtype=torch.bool)
    dead[::3] = True
    for clip in (None, 1e-3):
        gradients = []
        for sae, half in ((ours, True), (plain, False)):
            adam = adam_of(sae)
            with adam.half_weights(half):
                with torch.autocast("cpu", torch.bfloat16):
                    sae.loss(x, dead).total.backward()
                if clip is not None:
                    adam.clip(clip)
            gradients.append([adam._gradient(name).float() for name, _ in sae.named_parameters()])
            adam.zero_grad()
        for a, b in zip(*gradients, strict=True):
            assert ((a - b).abs() <= (1 if clip is None else 3.02) * 2.0**-8 * b.abs()).all()
        assert not torch.equal(gradients[0][1], gradients[1][1]), "no latent had two gradients"


class Casts(TorchDispatchMode):
    """Counts the casts of tensors of at least `size` elements outside the ops."""

    def __init__(self, size):
        super().__init__()
        self.size, self.seen = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        large = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.numel() >= self.size]
        if large and func._schema.name in ("aten::_to_copy", "aten::copy_"):
            self.seen.append(list(large[0].shape))
        return out


def test_no_weight_or_gradient_is_cast(make_rows):
    """Planted: the copies' version not renewed by the step, so that they are made again; caught."""
    sae, x = small(), make_rows(count=20).tensor
    adam = adam_of(sae)
    counts = []
    for half in (True, True, True, False):
        with Casts(8 * 48) as casts:
            step(sae, adam, x, half)
        counts.append(len(casts.seen))
    assert counts == [2, 0, 0, 4], "the first makes the copies; autocast rounds two weights and widens two gradients"


@torch.no_grad()
def in_place(sae):
    sae.W_enc.mul_(2)
    sae.W_dec[3] = 0


def loaded(sae):
    sae.load_state_dict(saekern.TopKSAE(8, 48, 3, init_seed=5).state_dict())


def assigned(sae):
    sae.load_state_dict(saekern.TopKSAE(8, 48, 3, init_seed=5).state_dict(), assign=True)


def there_and_back(sae):
    sae.half().float()


def replaced(sae):
    sae.W_enc = saekern.TopKSAE(8, 48, 3, init_seed=5).W_enc
    sae.W_dec = torch.nn.Parameter(2 * sae.W_dec.detach())


def nothing(sae):
    pass


@pytest.mark.parametrize("change", [nothing, in_place, loaded, assigned, there_and_back, replaced])
def test_a_copy_is_never_out_of_date(make_rows, change):
    """Planted: versions not compared, caught by `in_place` and `loaded`; addresses not compared, caught by
    `there_and_back`; the step leaves no copy but says so, caught by `nothing`."""
    sae, x = small(), make_rows().tensor
    adam = adam_of(sae)
    for _ in range(2):
        step(sae, adam, x)
    change(sae)
    held = {name: getattr(sae, name) for name in WEIGHTS}
    with adam.half_weights(True):
        for name, parameter in held.items():
            weight = getattr(sae, name)
            assert weight.dtype == torch.bfloat16
            assert weight.stride() == parameter.stride()
            assert torch.equal(weight, parameter.bfloat16()), name
    assert all(getattr(sae, name) is parameter for name, parameter in held.items())
    step(sae, adam, x)


def test_copies_belong_to_one_run(make_rows):
    """A copied SAE, its state and its names know nothing of them, not even after a failure inside."""
    sae, x = small(), make_rows().tensor
    names, adam = list(dict(sae.named_parameters())), adam_of(sae)
    step(sae, adam, x)
    twin = copy.deepcopy(sae)
    step(sae, adam, x)
    assert not torch.equal(twin.W_dec, sae.W_dec)
    assert torch.equal(twin(x), copy.deepcopy(twin)(x))
    with pytest.raises(ValueError, match="x: expected shape"):
        step(sae, adam, x[:, 1:])
    assert list(dict(sae.named_parameters())) == names
    assert all(p.dtype == torch.float32 for p in sae.state_dict().values())
    assert all(p.grad is None for p in sae.parameters())


@pytest.mark.parametrize("kill_at", [14, 33])
def test_resume_is_exact(make_rows, resumed, tmp_path, kill_at):
    """The copies are not in a checkpoint: made from the parameters they have the bits that the step left. Planted: one
    unit in the last place added to the copies by the step; caught."""
    settings = saekern.TrainConfig(
        rows=40 * 64, batch_size=64, lr=2e-3, checkpoint_every=5, log_every=1, dead_after=128, bf16=True, clip=0.05
    )
    rows = make_rows()
    whole = saekern.train(small(), rows, settings, out=tmp_path / "whole", progress=False)
    assert max(line["dead"] for line in whole.log) > 0
    resumed(small, rows, settings, tmp_path / "killed", kill_at)
    for name in (checkpoint.STATE, checkpoint.LOG):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
