"""Subspaces of unstable rows: planted blocks, what chance gives, and projecting what the latents contribute."""

import json
import math

import pytest
import torch
from torch import nn

import saekern
from saekern.activations import synthetic_rows
from saekern.evaluation import cross_entropy
from saekern.stability import random_rotation, replacement, replacement_bases, subspace, subspaces

WIDTH, RANK = 48, 6


def planted(seeds, unstable=40, stable=24, rank=RANK, noise=0.0):
    """Unstable rows of every seed in one block of `rank` dimensions, other rows each time; stable rows anywhere."""
    block = random_rotation(WIDTH, torch.Generator().manual_seed(9))[:rank]
    dictionaries = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(unstable, rank, generator=generator, dtype=torch.float64) @ block
        rows = rows + noise * torch.randn(unstable, WIDTH, generator=generator, dtype=torch.float64)
        dictionaries.append(torch.cat([rows, torch.randn(stable, WIDTH, generator=generator, dtype=torch.float64)]))
    mask = torch.zeros(unstable + stable, dtype=torch.bool)
    mask[:unstable] = True
    return dictionaries, [mask] * seeds, [~mask] * seeds, block


def test_planted_block_is_shared_at_its_rank_and_not_before():
    """E_cross(r) = 1 from the block's rank on, and less before: inside the block rows are isotropic, so r of its
    directions hold about r/rank; fitted ones a little more within. Controls stay near r/D.
    Planted: norms in place of their squares; caught."""
    dictionaries, unstable, stable, block = planted(5)
    covariance = block.T @ block + 0.01 * torch.eye(WIDTH, dtype=torch.float64)
    found = subspaces(dictionaries, unstable, stable, ranks=[0, 3, 5, 6, 48], covariance=covariance)
    mean, _, upper = found.estimate()
    assert mean[0] == 0
    assert mean[1:3].tolist() == pytest.approx([3 / 6, 5 / 6], abs=0.12)
    assert float(upper[2]) < 0.95, "not before its rank"
    assert mean[3:].tolist() == pytest.approx([1, 1], abs=1e-12)
    assert found.within[:, 3:].min() == pytest.approx(1, abs=1e-12)
    assert found.estimate("angles")[0][3] == pytest.approx(1, abs=1e-12)
    assert found.estimate("pca")[0][3] == pytest.approx(1, abs=1e-12), "the control that this agreement fails"
    for name in ("random", "stable", "gaussian"):
        share = found.estimate(name)[0]
        assert share[3] == pytest.approx(RANK / WIDTH, abs=0.06)
        assert share[-1] == pytest.approx(1) or name != "random"
        assert found.excess(name)[1][3] > 0.5
        assert found.excess(name)[0][4].isnan(), "six directions are not compared with 48"
    assert found.excess("pca")[0][3] == pytest.approx(0, abs=1e-12)
    assert set(found.rank_at(0.9).tolist()) <= {5, 6}
    assert found.rank_at(1.0).tolist() == [6] * 5
    assert found.counts.tolist() == [40] * 5
    assert found.excluded.tolist() == [0] * 5
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["unstable"] == [40] * 5


def test_seeds_without_anything_in_common():
    """Isotropic rows: E_cross(r) of any r directions chosen elsewhere is r/D, E_within more, as much as for the
    Gaussian control. The share of one row in r directions is a beta variable of mean r/D and variance
    2 r (D − r) / (D² (D + 2)); 8 seeds of 60 rows count at least once each, so the error is at most √(var / 480) · √2.
    """
    dictionaries = [torch.randn(90, WIDTH, generator=torch.Generator().manual_seed(s)) for s in range(8)]
    mask = torch.arange(90) < 60
    ranks = [1, 6, 12, 24, 48]
    found = subspaces(dictionaries, [mask] * 8, [~mask] * 8, ranks=ranks)
    assert found.chance.tolist() == pytest.approx([r / WIDTH for r in ranks])
    for name in ("cross", "random", "gaussian", "stable"):
        for r, share in zip(ranks[:-1], found.estimate(name)[0].tolist(), strict=False):
            error = math.sqrt(2 * r * (WIDTH - r) / (WIDTH**2 * (WIDTH + 2)) / 480 * 2)
            directions = WIDTH if name != "stable" else 30
            assert share == pytest.approx(min(r, directions) / WIDTH, abs=5 * error), (name, r)
    assert found.within.mean(0)[2] > 1.4 * found.chance[2], "fitting alone"
    torch.testing.assert_close(found.within.mean(0), found.gaussian_within.mean(0), rtol=0.05, atol=0)
    assert found.stable_used.tolist() == [30] * 8


def test_the_random_control_has_its_expectation():
    """Rows all along one axis: their share in r random directions is beta(r/2, (D − r)/2). Each of 20 seeds has its own
    directions: the mean's standard error is √(var / 20)."""
    rows = torch.zeros(4, WIDTH)
    rows[:, 0] = 1
    rows[3, 1] = 1
    mask = torch.tensor([True, True, True, False])
    found = subspaces([rows] * 20, [mask] * 20, [~mask] * 20, ranks=[12])
    shares = found.controls["random"][~torch.eye(20, dtype=torch.bool)]
    error = math.sqrt(2 * 12 * (WIDTH - 12) / (WIDTH**2 * (WIDTH + 2)) / 20)
    assert float(shares.mean()) == pytest.approx(12 / WIDTH, abs=4 * error)
    assert float(found.cross[0, 1]) == pytest.approx(1)


def test_orthogonal_blocks_share_nothing():
    """Seed 0's rows are two each along axes 0–3 and one along 5; seed 1's two each along 4–7 and one more along 4. Four
    directions of seed 0 hold nothing of seed 1, the fifth, along 5, two of its nine rows; seed 1's four hold one of
    seed 0's nine, and there is no fifth. Planted: first and second seed exchanged; caught. Planted: directions without
    energy kept; caught."""
    a, b = torch.zeros(10, 8), torch.zeros(10, 8)
    a[:8, :4], b[:8, 4:] = torch.eye(4).repeat(2, 1), torch.eye(4).repeat(2, 1)
    a[8, 5] = b[8, 4] = a[9, 0] = b[9, 0] = 1
    mask = torch.arange(10) < 9
    found = subspaces([a, b], [mask] * 2, [~mask] * 2, ranks=[4, 5])
    assert found.cross[0, 1].tolist() == pytest.approx([0, 2 / 9])
    assert found.cross[1, 0].tolist() == pytest.approx([1 / 9, 1 / 9])
    assert found.angles[0, 1].tolist() == pytest.approx([0, 1 / 4])  # four angles: seed 1 has four directions
    assert found.estimate()[1].isnan().all(), "two seeds have no interval"


def test_subspace_by_hand():
    """Rows 3e₁, e₁, 2e₂, 0: normalised twice e₁ and once e₂, energies 2 and 1; centred they lie on one line."""
    rows = torch.tensor([[3.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 0]])
    found = subspace(rows)
    assert found.energy.tolist() == pytest.approx([2, 1])
    assert found.basis.abs().tolist() == [[1, 0], [0, 1], [0, 0]]
    centred = subspace(rows, centred=True)
    assert centred.energy.tolist() == pytest.approx([4 / 3])


def test_rank_summaries_by_hand():
    """Energies 2, 1: stable rank 3/2; effective rank exp(H(2/3, 1/3)); 90 % needs both, 60 % one."""
    rows = torch.tensor([[3.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 1]])
    mask = torch.tensor([True, True, True, False])
    found = subspaces([rows, rows], [mask] * 2, [~mask] * 2)
    assert found.ranks == [1, 2, 3]
    assert found.stable_rank.tolist() == pytest.approx([1.5] * 2)
    entropy = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert found.effective_rank.tolist() == pytest.approx([math.exp(entropy)] * 2)
    assert found.rank_at(0.9).tolist() == [2, 2]
    assert found.rank_at(0.6).tolist() == [1, 1]
    assert found.angles[0, 1].tolist() == pytest.approx([1, 1, 1])


def test_centring_takes_out_a_shared_direction():
    dictionaries, unstable, stable, _ = planted(3, noise=0.2)
    shifted = [rows + 40 * torch.eye(WIDTH, dtype=torch.float64)[0] for rows in dictionaries]
    raw = subspaces(shifted, unstable, stable, ranks=[1]).estimate()[0]
    centred = subspaces(shifted, unstable, stable, ranks=[1], centred=True).estimate()[0]
    assert raw > 0.9
    assert centred < 0.5


class Model(nn.Module):
    def __init__(self, width, vocabulary=9):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)

    def forward(self, tokens):
        return self.unembed(torch.tanh(self.embed(tokens)))


def test_replacement_is_a_projection():
    """All ranks of two bases against the projection itself, float64 but for the SAE's float32: 2e-6. Planted: the gain
    with a single inner product; caught. The whole space loses nothing, rank 0 what the unstable latents are worth."""
    width = 16
    rows = synthetic_rows(300, width, 24, 4.0, noise=0.2, seed=1).rows
    sae = saekern.TopKSAE(width, 32, 4, init_seed=0)
    # An SAE that was never trained may gain by losing latents.
    saekern.train(sae, rows, saekern.TrainConfig(rows=30_000, batch_size=300, lr=3e-3), progress=False)
    unstable = torch.arange(32) >= 20
    bases = {
        "own": [subspace(sae.dictionary[unstable]).basis],
        "random": [random_rotation(width, torch.Generator().manual_seed(s))[:, :10] for s in range(2)],
    }
    model, tokens = Model(width), torch.randint(9, (5, 6))
    texts = {"model": model, "hook": "embed", "sequences": tokens, "exclude_bos": False}
    found = replacement(sae, rows, unstable, bases, [0, 2, 10, 16], batch=110, blocks=6, **texts)
    x = rows.tensor
    codes, base = sae.encode(x).detach(), sae.b_dec.detach()
    part = (codes * unstable) @ sae.dictionary
    total = float((x - x.mean(0)).double().square().sum())
    assert found.ce == pytest.approx(cross_entropy(model, "embed", tokens, sae, exclude_bos=False), abs=1e-6)
    model.requires_grad_(False)
    inside = model.embed(tokens).detach()
    for arm, matrices in bases.items():
        for i, basis in enumerate(matrices):
            for k, r in enumerate([0, 2, 10, 16]):
                kept = basis[:, :r] @ basis[:, :r].T
                x_hat = (codes @ sae.dictionary + base).double() - part.double() + part.double() @ kept
                ev = 1 - float((x.double() - x_hat).square().sum()) / total
                assert found.ev - float(found.ev_drop[arm][i, k].mean()) == pytest.approx(ev, abs=2e-6)
                z = sae.encode(inside).detach()
                c = ((z * unstable) @ sae.dictionary).double()
                moved = (z @ sae.dictionary + base).double() - c + c @ kept
                logits = model.unembed(torch.tanh(moved.float())).double().log_softmax(-1)
                ce = -logits[:, :-1].gather(2, tokens[:, 1:, None]).mean()
                assert found.ce + float(found.ce_rise[arm][i, k].mean()) == pytest.approx(float(ce), abs=1e-5)
    assert found.curve("own")[0][-1] == pytest.approx(0, abs=1e-9)
    assert found.curve("own")[0][1] < found.curve("random")[0][1] < found.curve("random")[0][0]
    assert found.latents == 12
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["arms"]["random"]["bases"] == 2
    with pytest.raises(ValueError, match="orthonormal"):
        replacement(sae, rows, unstable, {"own": [2 * torch.eye(16)]}, [1])
    with pytest.raises(ValueError, match="arm: expected one of own, random, got 'cross'"):
        found.curve("cross")


def test_another_seeds_basis_does_for_a_planted_block():
    """Unstable latents of all seeds in one block: from its rank on another seed's basis loses nothing."""
    dictionaries, unstable, stable, _ = planted(3)
    sae = saekern.TopKSAE(WIDTH, 64, 8, init_seed=0)
    with torch.no_grad():
        sae.tie_(torch.nn.functional.normalize(dictionaries[0], dim=1).float())
    bases = replacement_bases(dictionaries, unstable, stable, covariance=torch.eye(WIDTH))
    assert {name: len(found) for name, found in bases.items()} == {
        "own": 1,
        "cross": 2,
        "random": 2,
        "stable": 2,
        "pca": 1,
    }
    rows = synthetic_rows(200, WIDTH, 60, 6.0, seed=2).rows
    found = replacement(sae, rows, unstable[0], bases, [3, RANK], blocks=5)
    cross, own = found.curve("cross")[0], found.curve("own")[0]
    assert cross[1] == pytest.approx(0, abs=1e-7)  # rounding of the SAE's rows to float32
    assert own[1] == pytest.approx(0, abs=1e-7)
    assert abs(cross[0]) > 0.01  # an SAE that was never trained may gain by losing latents
    assert abs(found.curve("random")[0][1]) > 0.01


def test_errors_say_what_was_expected():
    dictionaries, unstable, stable, _ = planted(2)
    with pytest.raises(ValueError, match="expected at least 2, got 1"):
        subspaces(dictionaries[:1], unstable, stable)
    with pytest.raises(ValueError, match=r"unstable\[0\]: expected at least 2 rows, got 0"):
        subspaces(dictionaries, [~unstable[0] & unstable[0]] * 2, stable)
    few = subspaces(dictionaries, unstable, [~unstable[0] & unstable[0], stable[1]])
    assert list(few.controls) == ["random", "gaussian"], "a seed without stable rows: no such control"
    with pytest.raises(ValueError, match=r"stable\[1\]: expected bool \[64\], got torch.bool \[3\]"):
        subspaces(dictionaries, unstable, [stable[0], stable[0][:3]])
    with pytest.raises(ValueError, match=r"ranks: expected numbers from 0 to D = 48, got \[49\]"):
        subspaces(dictionaries, unstable, stable, ranks=[49])
    with pytest.raises(ValueError, match=r"covariance: expected finite entries, shape \[48, 48\], got \[3, 3\]"):
        subspaces(dictionaries, unstable, stable, covariance=torch.eye(3))
    with pytest.raises(ValueError, match="name: expected one of cross, angles, random"):
        subspaces(dictionaries, unstable, stable).estimate("pca")
