"""What the tests of the SAE modules share: comparison with a loss written in plain PyTorch."""

import copy

import torch

import saekern

STEPS = 200


def fvu(target, estimate):
    return (target - estimate).square().sum() / (target - target.mean(0)).square().sum().detach()


def spread(x):
    return (x - x.mean(0)).square().sum(1).mean().sqrt().detach()


def moved(sae, seed=7, scale=0.3):
    """Away from the initial state, where zero biases and tied weights hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name != "threshold":
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return sae


def rows(count, width, dtype=torch.float64):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def assert_is_formula(sae, plain_loss, x, dead=None):
    """Terms, reconstruction and every gradient in float64, so that only a wrong formula shows."""
    x = x.requires_grad_()
    want, x_hat = plain_loss(sae, x, dead)  # first: our loss may move a buffer
    got = sae.loss(x, dead)
    assert got.terms.keys() == want.keys()
    for name, term in want.items():
        torch.testing.assert_close(got.terms[name], term, rtol=1e-11, atol=0, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(got.total, sum(want.values()), rtol=1e-11, atol=0)
    torch.testing.assert_close(got.x_hat, x_hat, rtol=1e-10, atol=1e-11)
    leaves = {"x": x, **dict(sae.named_parameters())}
    ours = torch.autograd.grad(got.total, list(leaves.values()))
    theirs = torch.autograd.grad(sum(want.values()), list(leaves.values()))
    for name, a, b in zip(leaves, ours, theirs, strict=True):
        assert bool(b.any()), f"{name}: no gradient in the reference"
        atol = 1e-11 * float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=1e-8, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    return got


def losses(sae, loss_of, steps=STEPS):
    """Trains in place on sparse combinations of directions; the loss at each step."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(3 * sae.d_in, sae.d_in, generator=generator) / sae.d_in**0.5
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    history = []
    for _ in range(steps):
        codes = torch.rand(128, 3 * sae.d_in, generator=generator)
        loss = loss_of(sae, torch.where(codes < 0.1, 10 * codes, 0) @ directions)
        optimizer.zero_grad()
        loss.backward()
        sae.project_gradient_()
        optimizer.step()
        sae.project_parameters_()
        history.append(loss.item())
    return history


def assert_follows_plain_torch(sae, plain_loss):
    """Within 1 % at every one of 200 steps in float32, and two runs of ours with the same bits."""
    again, plain = copy.deepcopy(sae), copy.deepcopy(sae)
    ours = losses(sae, lambda sae, x: sae.loss(x).total)
    assert ours == losses(again, lambda sae, x: sae.loss(x).total)
    assert all(torch.equal(a, again.state_dict()[name]) for name, a in sae.state_dict().items())
    theirs = losses(plain, lambda sae, x: sum(plain_loss(sae, x, None)[0].values()))
    assert ours[-1] < 0.8 * ours[0], "it did not learn"
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert abs(a - b) <= 0.01 * b, f"step {step}: {a} against {b}"


def assert_saves_and_loads(sae, path):
    saekern.save(sae, path)
    loaded = saekern.load(path)
    assert type(loaded) is type(sae)
    assert loaded.config() == sae.config()
    state = loaded.state_dict()
    assert state.keys() == sae.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in sae.state_dict().items())
    half = saekern.load(path, dtype=torch.bfloat16)
    assert half.W_dec.dtype == torch.bfloat16
    for name in sae.wide:
        assert torch.equal(getattr(half, name), getattr(sae, name))
    x = rows(5, sae.d_in, sae.W_dec.dtype)
    assert torch.equal(loaded(x), sae(x))
