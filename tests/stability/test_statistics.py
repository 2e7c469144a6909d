"""Statistics of activations: by hand, against brute force, and what shuffled tokens leave."""

import json
import math

import pytest
import torch
from scipy.stats import mannwhitneyu

from saekern.activations import TensorRows
from saekern.sae import SparseCodes
from saekern.stability import activation_statistics


class Given:
    """An SAE whose codes are its rows."""

    def __init__(self, latents, ragged=False):
        self.dictionary, self.ragged = torch.eye(latents), ragged

    def encode_sparse(self, x):
        if not self.ragged:
            return SparseCodes(x, torch.arange(x.shape[1]).expand(x.shape))
        row, latent = x.nonzero(as_tuple=True)
        offsets = torch.bincount(row, minlength=len(x)).cumsum(0)
        return SparseCodes(x[row, latent], latent, torch.cat([torch.zeros(1, dtype=torch.int64), offsets]))


def sample(count=600, latents=12, vocabulary=9, length=25):
    """Latents 0–3 follow the token, 4–7 partly, 8–10 do not at all, 11 is nearly dead."""
    tokens = torch.randint(0, vocabulary, (count,))
    fires = torch.rand(count, latents) < 0.15
    for i in range(4):
        fires[:, i] = tokens == i
    for i in range(4, 8):
        fires[:, i] &= tokens < i
    fires[:, 11] &= torch.rand(count) < 0.1
    codes = torch.where(fires, torch.rand(count, latents) + 0.1, 0.0)
    return codes, tokens, torch.arange(count) // length


def test_by_hand():
    """Two sequences of 4 rows, tokens abab and abbb. Latent 0 fires on every a: entropy 0, ratios 1/2 and 1/4, AUROC 1.
    Latent 1 on row 0 and both rows 1 and 5: p(a) = 1/3; ratio (2/4 + 1/4)/2; trained: a 1/2, b 1/2, so 0.5. Planted:
    ratio over all sequences; caught below. Planted: held-out half used in training; caught by latent 1."""
    codes = torch.zeros(8, 3)
    codes[[0, 2, 4], 0] = torch.tensor([1.0, 2.0, 6.0])
    codes[[0, 1, 5], 1] = 1.0
    codes[[6, 7], 2] = -1.0
    tokens = torch.tensor([0, 1, 0, 1, 0, 1, 1, 1])
    found = activation_statistics(Given(3), TensorRows(codes), tokens, torch.arange(8) // 4, min_firings=1)
    assert found.counts.tolist() == [3, 3, 2]
    assert found.frequency.tolist() == [3 / 8, 3 / 8, 2 / 8]
    assert found.mean_activation.tolist() == [3, 1, -1]
    third = -math.log(1 / 3) / 3 - 2 * math.log(2 / 3) / 3
    assert found.token_entropy.tolist() == pytest.approx([0, third, 0])
    assert found.multi_token_ratio.tolist() == [3 / 8, 3 / 8, 1 / 2]
    assert found.surface_score[:2].tolist() == [1.0, 0.5]
    # Latent 2 never fired in training: every token has rate 0 and is a tie.
    assert found.surface_score[2].item() == 0.5
    assert found.table()["log_frequency"][0].item() == pytest.approx(math.log10(3 / 8))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch", [7, 64, 600])
def test_against_brute_force(batch, ragged):
    """For batches that cut sequences. Planted: sequences that two batches share counted twice; caught."""
    codes, tokens, sequences = sample()
    sae = Given(12, ragged)
    found = activation_statistics(sae, TensorRows(codes), tokens, 3 * sequences, min_firings=5, batch=batch)
    fires, held = codes != 0, sequences % 2 == 1
    for i in range(12):
        f = fires[:, i]
        if not found.live[i]:
            assert i == 11 or int(f.sum()) < 5
            assert found.token_entropy[i].isnan()
            continue
        p = torch.bincount(tokens[f], minlength=9).double() / f.sum()
        assert found.token_entropy[i].item() == pytest.approx(float(-(p[p > 0] * p[p > 0].log()).sum()))
        inside = torch.stack([f[sequences == s].double().mean() for s in sequences.unique()])
        assert found.multi_token_ratio[i].item() == pytest.approx(inside[inside > 0].mean().item())
        assert found.mean_activation[i].item() == pytest.approx(codes[f, i].mean().item(), rel=1e-5)
        rate = torch.tensor([float(f[(tokens == t) & ~held].double().mean()) for t in range(9)])
        x, y = rate[tokens[f & held]], rate[tokens[~f & held]]
        want = mannwhitneyu(x.numpy(), y.numpy()).statistic / (len(x) * len(y))
        assert found.surface_score[i].item() == pytest.approx(want, abs=1e-9)
    assert found.surface_score[:4].tolist() == [1.0] * 4
    assert bool((found.surface_score[4:7] > 0.6).all())
    assert bool((found.surface_score[8:11] - 0.5).abs().max() < 0.2)
    json.dumps(found.to_json(), allow_nan=False)


def test_tied_rates_are_one_group():
    """Both tokens have the rate 1/2 in training; held out one fires on 3 of 4, the other on 1 of 4. Planted: each token
    a group of its own; caught."""
    tokens = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1] * 2)
    codes = torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0])[:, None]
    found = activation_statistics(Given(1), TensorRows(codes), tokens, torch.arange(16) // 8, min_firings=1)
    assert found.surface_score.item() == 0.5


def test_shuffled_tokens_say_nothing():
    codes, tokens, sequences = sample(6000)
    sae, rows = Given(12), TensorRows(codes)
    null = activation_statistics(sae, rows, tokens, sequences, shuffle_seed=0)
    real = activation_statistics(sae, rows, tokens, sequences)
    # Of 300 held-out firings or more the area's standard error is at most √(1/12/300) = 0.017.
    assert (null.surface_score - 0.5)[null.live].abs().max() < 4 * 0.017
    assert bool((null.token_entropy[:4] > real.token_entropy[:4] + 1).all())
    assert torch.equal(null.multi_token_ratio.nan_to_num(7), real.multi_token_ratio.nan_to_num(7))


def test_merging_changes_nothing(monkeypatch):
    codes, tokens, sequences = sample()
    a = activation_statistics(Given(12), TensorRows(codes), tokens, sequences, min_firings=5)
    monkeypatch.setattr("saekern.stability.statistics.MERGE", 10)
    b = activation_statistics(Given(12), TensorRows(codes), tokens, sequences, min_firings=5, batch=50)
    for name, values in a.table().items():
        torch.testing.assert_close(values, b.table()[name], equal_nan=True)


def test_errors():
    codes, tokens, sequences = sample(20)
    sae, rows = Given(12), TensorRows(codes)
    with pytest.raises(ValueError, match=r"tokens: expected int64 \[20\] >= 0, got torch.int64 \[19\]"):
        activation_statistics(sae, rows, tokens[1:], sequences)
    with pytest.raises(ValueError, match=r"sequences: expected int64 \[20\] >= 0, got torch.float32 \[20\]"):
        activation_statistics(sae, rows, tokens, sequences.float())
    with pytest.raises(ValueError, match=r"sequences: expected ascending numbers"):
        activation_statistics(sae, rows, tokens, torch.arange(20).flip(0))
    with pytest.raises(ValueError, match=r"rows: expected the SAE's width 3, got 12"):
        activation_statistics(Given(3), rows, tokens, sequences)
