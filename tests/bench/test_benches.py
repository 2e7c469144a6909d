"""Every bench at its small shapes: our answer passes its own check, and a spoilt one does not."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saekern.bench import peak
from saekern.bench.common import Absent, WrongAnswer, step, verify, words
from saekern.bench.layer import check as check_layer
from saekern.bench.layer import setup as setup_layer
from saekern.bench.peers import PEERS
from saekern.bench.plain import plain_torch
from saekern.bench.problems import sae_problem
from saekern.bench.roof import GEMMS
from saekern.bench.table import all_benches

CASES = [
    pytest.param(bench, shape, id=f"{bench.op}-{bench.mode}-{words(shape)}")
    for bench in all_benches()
    for shape in bench.quick
]


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """A folder like that of `--data`, with two small dictionaries."""
    folder = tmp_path_factory.mktemp("real")
    for seed in (0, 1):
        rows = torch.randn(256, 384, generator=torch.Generator().manual_seed(seed))
        save_file({"W_dec": rows.half()}, folder / f"seed{seed}.safetensors")
    return folder


@pytest.mark.parametrize(("bench", "shape"), CASES)
def test_our_answer_passes(bench, shape, real):
    problem = bench.problem(shape, real)
    verify(bench.setup(problem, "saekern"))


def spoil(result):
    """The same result with every number 0.1 % off, or one partner of a permutation given to two rows."""
    if isinstance(result, list):
        return [*result[:-1], spoil(result[-1])]
    if dataclasses.is_dataclass(result):
        return dataclasses.replace(result, index=torch.as_tensor(spoil(result.index.numpy())))
    if isinstance(result, tuple):
        return (
            tuple(spoil(part) for part in result) if not hasattr(result, "_make") else result._make(map(spoil, result))
        )
    if isinstance(result, np.ndarray):
        return result[np.r_[1, 1 : len(result)]]
    return result * 1.001 if isinstance(result, torch.Tensor) and result.is_floating_point() else result


@pytest.mark.parametrize(("bench", "shape"), CASES)
def test_a_spoilt_answer_is_refused(bench, shape, real):
    """Planted in each bench in turn: a check that returns at once; caught."""
    run = bench.setup(bench.problem(shape, real), "saekern")
    result = step(run).result
    if bench.op == "adam_step":  # works in place: a second step is not the first one's answer
        step(run)
    else:
        result = spoil(result)
    with pytest.raises(WrongAnswer):
        run.check(result)


PROBLEM = {"B": 64, "D": 64, "F": 512, "K": 8}


@pytest.mark.parametrize("provider", [*GEMMS, "torch", *(name for name in PEERS if not name.startswith("torch"))])
def test_peers_compute_the_same(provider):
    """Reconstruction, loss and gradients of the same weights, by the peer's code."""
    try:
        run = setup_layer(sae_problem(PROBLEM), provider)
    except Absent as reason:
        pytest.skip(str(reason))
    verify(run)


def test_a_lost_gradient_is_refused():
    """The layer's check looks at gradients, not only at what forward returns. Planted: gradients unchecked; caught."""
    problem = sae_problem(PROBLEM)
    sae = plain_torch(problem)
    loss, x_hat = sae.forward(sae.x)
    with pytest.raises(WrongAnswer, match="got no gradient"):
        check_layer(problem, sae, (loss.detach(), x_hat.detach()))
    loss.backward()
    check_layer(problem, sae, (loss.detach(), x_hat.detach()))
    sae.encoder.grad[problem.answer.indices[0, 0]] = 0
    with pytest.raises(WrongAnswer, match="encoder gradient: off by"):
        check_layer(problem, sae, (loss.detach(), x_hat.detach()))


def test_problem_leaves_no_doubt_about_the_choice():
    """float32 and float64 choose the same latents in every row."""
    problem = sae_problem(PROBLEM)
    scores = (problem.x - problem.b_dec) @ problem.w_enc.T + problem.b_enc
    assert torch.equal(scores.topk(problem.k).indices.sort(1).values, problem.answer.indices.sort(1).values)


def test_gradients_of_the_problem_are_autograds():
    problem = sae_problem(PROBLEM)
    x, w_enc, w_dec = (
        problem.x.double(),
        problem.w_enc.double().requires_grad_(),
        problem.w_dec.double().requires_grad_(),
    )
    top = ((x - problem.b_dec) @ w_enc.T + problem.b_enc).topk(problem.k)
    x_hat = torch.einsum("bk,bkd->bd", top.values.relu(), w_dec[top.indices]) + problem.b_dec
    (x - x_hat).square().sum().backward()
    for got, want in zip(problem.squared_error_gradients, (w_enc.grad, w_dec.grad), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_what_a_step_keeps_is_not_its_peak():
    """Ours makes Adam's moments when built, torch in its first step: both figures are above state, never below zero.

    Planted: moments subtracted that setup had made already; caught (−119 MiB)."""
    bench = next(bench for bench in all_benches() if bench.op == "train_step")
    shape = {"B": 32, "D": 512, "F": 16384, "K": 8}
    for provider in ("saekern", "torch"):
        assert 0 < peak.measure(bench, shape, provider) < 400
