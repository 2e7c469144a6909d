"""Random shapes, types and contents for every op on the CPU, against float64, for a minute each. `make test-slow`.

The seed of a failing case is in its message; `case(seed)` makes it again.
"""

import itertools
import random
import time

import numpy as np
import pytest
import scipy.sparse
import torch
from bounds import UNIT, assert_within_bound
from scipy.optimize import linear_sum_assignment as scipy_assignment

import saekern
from saekern import ops, reference

SECONDS = 60
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def seeds():
    """Counts up from a number that differs each day, until the time is over."""
    end, start = time.monotonic() + SECONDS, int(time.time()) // 86400 * 1_000_000
    return itertools.takewhile(lambda _: time.monotonic() < end, itertools.count(start))


def size(rng: random.Random, most: int) -> int:
    """Small, around a power of two, or anything; all equally often."""
    power = 2 ** rng.randrange(most.bit_length())
    return max(1, min(most, rng.choice([rng.randint(1, 5), power + rng.randint(-1, 1), rng.randint(1, most)])))


def content(rng: random.Random, *shape: int) -> torch.Tensor:
    """Gaussian, few values with many ties, constant, mostly zero, or of widely different scales."""
    kind = rng.randrange(5)
    if kind == 1:
        return torch.randint(-2, 3, shape).float()
    if kind == 2:
        return torch.full(shape, rng.choice([-1.5, 0.0, 2.0]))
    if kind == 3:
        return torch.randn(shape) * (torch.rand(shape) < 0.1)
    return torch.randn(shape) * (10 ** (4 * torch.rand(shape) - 2) if kind == 4 else 1)


def assert_chosen(values, indices, score, eps):
    """The k largest within ε of the float64 scores: in if above the k-th by 2ε, out if below by 2ε, values within ε."""
    chosen, bound = score.gather(1, indices), 2 * eps.amax(1, keepdim=True)
    assert all(len(set(row.tolist())) == indices.shape[1] for row in indices)
    rounding = torch.finfo(values.dtype).eps * chosen.abs() + torch.finfo(values.dtype).tiny
    assert bool(((values.double() - chosen).abs() <= eps.gather(1, indices) + rounding).all())
    kth = score.topk(indices.shape[1]).values[:, -1:]
    assert bool((chosen >= kth - bound).all())
    assert torch.equal((score > kth + bound).sum(1), (chosen > kth + bound).sum(1))


def topk_encode(rng):
    b, d, f = size(rng, 70), size(rng, 300), size(rng, 6000)
    k, dtype = size(rng, f), rng.choice(DTYPES[:2])
    x, weight, bias, pre = (content(rng, *s).to(dtype) for s in ((b, d), (f, d), (f,), (d,)))
    values, indices = ops.topk_encode(x, weight, bias, k, pre_bias=pre, relu=False)
    score = (x.double() - pre.double()) @ weight.double().T + bias.double()
    magnitude = (x.double().abs() + pre.double().abs()) @ weight.double().abs().T + bias.double().abs()
    assert_chosen(values, indices, score, (d + 4) * UNIT * magnitude)


def row_topk(rng):
    scores = content(rng, size(rng, 40), size(rng, 20_000))
    scores[torch.rand(scores.shape) < rng.choice([0, 0, 0.01])] = torch.nan
    k = size(rng, scores.shape[1])
    for got, want in zip(ops.row_topk(scores, k), reference.row_topk(scores, k), strict=True):
        assert torch.equal(got.nan_to_num(7), want.nan_to_num(7))


def decode(rng):
    b, k, d, f = size(rng, 300), size(rng, 40), size(rng, 300), size(rng, 3000)
    dtype = rng.choice(DTYPES)
    indices = torch.randint(f, (b, k)) if rng.random() < 0.5 else (torch.rand(b, k) ** 8 * f).long()
    tensors = [content(rng, *s).to(dtype) for s in ((b, k), (f, d), (d,), (b, d))]

    def run(function, values, weight, bias, upstream):
        leaves = [t.detach().clone().requires_grad_() for t in (values, weight, bias)]
        out = function(leaves[0], indices, *leaves[1:])
        out.backward(upstream)
        return out.detach(), *(leaf.grad for leaf in leaves)

    got = run(ops.decode, *tensors)
    want = run(reference.decode, *(t.double() for t in tensors))
    magnitude = run(reference.decode, *(t.double().abs() for t in tensors))
    most = int(torch.bincount(indices.flatten()).max())
    names = ("out", "values", "weight", "bias")
    for name, g, w, m, terms in zip(names, got, want, magnitude, (k + 1, d, most, b), strict=True):
        if dtype != torch.float16 or w.abs().max() < 6e4:
            assert_within_bound(name, g, w, m, terms)


def nearest(rng):
    d = size(rng, 300)
    a, b = content(rng, size(rng, 700), d), content(rng, size(rng, 700), d)
    got = ops.nearest(a, b)
    cosine = reference.nearest(a.double(), b.double())
    unit = [torch.nn.functional.normalize(t.double(), dim=1) for t in (a, b)]
    table = unit[0] @ unit[1].T
    for value, index, want, scores in ((*got[:2], cosine[0], table), (*got[2:], cosine[2], table.T)):
        bound = (2 * d + 12) * UNIT
        assert float((value.double() - want).abs().max()) <= bound
        assert float((scores.gather(1, index[:, None])[:, 0] - want).abs().max()) <= 2 * bound


def assignment(rng):
    shape = size(rng, 200), size(rng, 200)
    cost = content(rng, *shape).double().numpy()
    maximize = rng.random() < 0.5
    rows, columns = saekern.linear_sum_assignment(cost, maximize=maximize)
    want = cost[scipy_assignment(cost, maximize=maximize)].sum()
    assert abs(cost[rows, columns].sum() - want) <= 1e-9 * max(1.0, abs(cost).sum())


def sparse_assignment(rng):
    shape = size(rng, 60), size(rng, 60)
    cost = content(rng, *shape).double().numpy()
    stored = torch.rand(shape).numpy() < rng.choice([0.1, 0.5, 1])
    given = scipy.sparse.coo_array((cost[stored], stored.nonzero()), shape=shape)
    try:
        want = scipy_assignment(np.where(stored, cost, np.inf))
    except ValueError:
        with pytest.raises(ValueError, match="infeasible"):
            saekern.linear_sum_assignment(given)
        return
    rows, columns = saekern.linear_sum_assignment(given)
    assert stored[rows, columns].all()
    assert abs(cost[rows, columns].sum() - cost[want].sum()) <= 1e-9 * max(1.0, abs(cost).sum())


def vector_assignment(rng):
    d, dtype = size(rng, 100), rng.choice([torch.float32, torch.float64])
    a, b = (content(rng, size(rng, 400), d).to(dtype) for _ in "ab")
    b[torch.rand(len(b)) < 0.5] = a[torch.randint(len(a), (1,))]
    metric = rng.choice(["cosine", "dot", "sqeuclidean"])
    found = saekern.match(a, b, "assignment", metric=metric, verify=True)
    a, b = a[(a != 0).any(1)].double(), b[(b != 0).any(1)].double()
    if metric == "cosine":
        a, b = (torch.nn.functional.normalize(x, dim=1, eps=1e-300) for x in (a, b))
    table = (a @ b.T if metric != "sqeuclidean" else -torch.cdist(a, b).square()).numpy()
    best = table[scipy_assignment(table, maximize=True)].sum()
    largest = (a.norm(dim=1).amax() + b.norm(dim=1).amax()).square().item() if table.size else 0.0
    assert found.certificate.exact
    assert abs(found.certificate.primal - best) <= 2 * torch.finfo(dtype).eps * largest * max(len(a), 1) * (d + 4)


def kron_encode(rng):
    heads, m, n, d = size(rng, 60), size(rng, 6), size(rng, 9), size(rng, 60)
    b, k = size(rng, 70), rng.randint(1, min(heads * m * n, 40))
    activation = rng.choice(["mand", "relu", "product"])
    x, p, q = content(rng, b, d), content(rng, heads, m, d), content(rng, heads, n, d)
    bias_p, bias_q = content(rng, heads, m), content(rng, heads, n)
    values, indices = ops.kron_encode(x, p, q, bias_p, bias_q, k, activation=activation)
    wide = [t.double() for t in (x, p, q, bias_p, bias_q)]
    u, v = reference.kron_factors(*wide)
    size_u, size_v = reference.kron_factors(*(t.abs() for t in wide))
    eps_u, eps_v = (2 * (d + 4) * UNIT * t[..., None] for t in (size_u, size_v))
    eps = eps_u * (v.abs()[..., None, :] + eps_v.transpose(-1, -2)) + u.abs()[..., None] * eps_v.transpose(-1, -2)
    score = reference.kron_products(u, v, activation)
    eps = eps.flatten(1) + 2 * UNIT * score.abs()
    products = values.double().square() if activation == "mand" else values.double()
    chosen, bound = score.gather(1, indices), eps.gather(1, indices)
    assert all(len(set(row.tolist())) == k for row in indices)
    assert bool(((products - chosen.clamp(min=0)).abs() <= bound + 8 * UNIT * products + 1e-37).all())
    kth, most = score.topk(k).values[:, -1:], eps.amax(1, keepdim=True)
    assert bool((chosen >= kth - 2 * most).all())


def hierarchical_loss(rng):
    b, d, f = size(rng, 60), size(rng, 200), size(rng, 500)
    k = rng.randint(1, min(f, 30))
    budgets = sorted(rng.sample(range(1, k + 1), rng.randint(1, k)))
    indices = torch.rand(b, f).argsort(1)[:, :k]
    tensors = [content(rng, *s) for s in ((b, k), (f, d), (d,), (b, d))]

    def run(values, weight, bias, target):
        leaves = [t.detach().clone().requires_grad_() for t in (values, weight, bias, target)]
        loss = ops.hierarchical_loss(leaves[0], indices, *leaves[1:], budgets).loss
        loss.backward()
        return loss.detach(), *(leaf.grad for leaf in leaves)

    got, want = run(*tensors), run(*(t.double() for t in tensors))
    size_of = (tensors[0].double().abs().sum(1).amax() * tensors[1].abs().amax() + tensors[2].abs().amax()) * d + 1
    largest = float(size_of + tensors[3].abs().amax()) * max(1.0, float(max(t.abs().amax() for t in tensors)))
    for name, g, w in zip(("loss", "values", "weight", "bias", "target"), got, want, strict=True):
        assert float((g.double() - w).abs().max()) <= 8 * (k + d + b) * UNIT * largest**2, name


def ragged_encoders(rng):
    b, d, f = size(rng, 50), size(rng, 100), size(rng, 3000)
    x, weight, bias = content(rng, b, d), content(rng, f, d), content(rng, f)
    score = x.double() @ weight.double().T + bias.double()
    eps = 2 * (d + 4) * UNIT * (x.double().abs() @ weight.double().abs().T + bias.double().abs())

    def dense(codes):
        rows = torch.arange(b).repeat_interleave(codes.offsets.diff())
        chosen = torch.zeros(b, f, dtype=torch.bool)
        chosen[rows, codes.indices] = True
        assert int(chosen.sum()) == codes.indices.numel()
        values = torch.zeros(b, f, dtype=torch.float64)
        values[rows, codes.indices] = codes.values.double()
        return chosen, values

    threshold = rng.choice([-1.0, 0.0, 0.5, 3.0])
    chosen, values = dense(ops.threshold_encode(x, weight, bias, threshold))
    assert not bool((chosen & (score < threshold - eps)).any())
    assert not bool((~chosen & (score > threshold + eps)).any())
    assert bool(((values - score).abs() <= eps + 1e-37)[chosen].all())
    total = rng.randint(0, min(b * f, 20 * b))
    chosen, values = dense(ops.batch_topk_encode(x, weight, bias, total))
    assert int(chosen.sum()) == total
    if 0 < total < b * f:
        least = score.relu().flatten().topk(total).values[-1]
        assert not bool((chosen & (score.relu() < least - 2 * eps.amax())).any())
        assert not bool((~chosen & (score.relu() > least + 2 * eps.amax())).any())
    assert bool(((values - score.relu()).abs() <= eps + 1e-37)[chosen].all())


CASES = [
    topk_encode,
    kron_encode,
    ragged_encoders,
    row_topk,
    decode,
    hierarchical_loss,
    nearest,
    assignment,
    sparse_assignment,
    vector_assignment,
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_random_cases(case):
    count = 0
    for seed in seeds():
        torch.manual_seed(seed)
        try:
            case(random.Random(seed))
        except Exception as error:
            raise AssertionError(f"{case.__name__}: seed {seed}: {error}") from error
        count += 1
    assert count > 20, f"only {count} cases in {SECONDS} s"
