"""Masked latents: nothing, everything, every mask against a decoding of what is left, and a language model by hand."""

import json

import pytest
import torch
from torch import nn

import saekern
from saekern.activations import TensorRows, synthetic_rows
from saekern.evaluation import cross_entropy, measure, splice
from saekern.stability import activation_mass, mask_plan, masking
from saekern.stability.mask_plan import ARMS


def group(latents, *members):
    mask = torch.zeros(latents, dtype=torch.bool)
    mask[list(members)] = True
    return mask


def data(count=400, width=16):
    return synthetic_rows(count, width, 24, 4.0, noise=0.2, seed=1).rows


def make(kind, width=16, latents=32):
    sae = {
        "topk": lambda: saekern.TopKSAE(width, latents, 4, init_seed=0),
        "relu": lambda: saekern.ReLUSAE(width, latents, init_seed=0),
        "normalized": lambda: saekern.NormalizedSAE(width, latents, base_args={"k": 4}, init_seed=0),
    }[kind]()
    with torch.no_grad():
        sae.b_dec.copy_(0.1 * torch.randn(width))
    return sae


STABLE, UNSTABLE = range(12), range(12, 28)
GROUPS = {"stable": group(32, *STABLE), "unstable": group(32, *UNSTABLE)}
EVERY = {**GROUPS, "live": torch.ones(32, dtype=torch.bool)}


@pytest.mark.parametrize("kind", ["topk", "relu", "normalized"])
def test_every_mask_is_what_decoding_the_rest_gives(kind):
    """EV of each arm, draw and level against dense codes with the masked ones at 0, float64 sums: 2e-6 is 16 levels of
    float32 sums of 32 terms. Planted: contributions not added up over levels; caught. Planted: b_dec left in a
    contribution; caught. Planted: `decode` for `reconstruct`, caught for "normalized"."""
    sae, rows = make(kind), data()
    found = masking(sae, rows, **EVERY, draws=2, batch=170, blocks=7)
    x = rows.tensor
    codes = sae.encode(x).detach()
    total = (x - x.mean(0)).double().square().sum()
    seen = 0
    for arm, draw in found.plan.cells():
        for level, count in enumerate(found.plan.masked[arm, draw].tolist()):
            drop = float(found.ev_drop[arm, draw, level].mean())
            if count < 0:
                assert drop != drop
                continue
            gone = found.plan.when[arm, draw] <= level
            assert int(gone.sum()) == count
            x_hat = sae.reconstruct(codes.masked_fill(gone, 0), x).detach()
            ev = 1 - float((x - x_hat).double().square().sum() / total)
            assert found.ev - drop == pytest.approx(ev, abs=2e-6)
            seen += 1
    assert seen > 40


def test_nothing_masked_is_the_sae_and_everything_b_dec():
    """Known answers. Planted: the last level not masked; caught."""
    sae, rows = make("topk"), data()
    found = masking(sae, rows, **EVERY, levels=[0, 32], draws=3)
    assert found.ev == pytest.approx(measure(sae, rows).explained_variance, abs=1e-12)
    nothing, everything = found.ev_drop[ARMS.index("random")].mean(-1).T
    assert nothing.tolist() == [0, 0, 0]
    x = rows.tensor.double()
    alone = 1 - (x - sae.b_dec.detach().double()).square().sum() / (x - x.mean(0)).square().sum()
    torch.testing.assert_close(found.ev - everything, alone.expand(3), atol=1e-6, rtol=0)


def test_plan_by_hand():
    """Masses 4, 4 (stable), 1, 2, 1, 2 (unstable) and two that are neither. One stable latent has the mass of 2 or 3
    unstable ones, nearest to 4; two have 8, and all four unstable ones only 6: not matched, and said so.
    Planted: the count below the target always taken; caught by the nearest."""
    mass = torch.tensor([4.0, 4.0, 1.0, 2.0, 1.0, 2.0, 3.0, 9.0])
    live = group(8, *range(7))
    plan = mask_plan(mass, group(8, 0, 1), group(8, 2, 3, 4, 5, 7), live, levels=[1, 2, 4, 7], draws=20)
    arms = dict(zip(plan.arms, plan.masked.tolist(), strict=True))
    assert plan.groups == {"stable": 2, "unstable": 4, "random": 7}
    assert plan.dead == 1
    assert plan.group_mass["stable"] == pytest.approx(8 / 26)
    assert all(row == [1, 2, -1, -1] for row in arms["stable"])
    assert all(row == [1, 2, 4, -1] for row in arms["unstable"])
    assert all(row == [1, 2, 4, 7] for row in arms["random"])
    assert {row[0] for row in arms["unstable_equal_mass"]} == {2, 3}
    assert {row[1] for row in arms["unstable_equal_mass"]} == {-1}
    matched = plan.mass[ARMS.index("unstable_equal_mass"), :, 0] * 26
    assert set(matched.round().tolist()) <= {3.0, 4.0, 5.0}
    assert bool((plan.when[:, :, 7] == 4).all()), "a dead latent is never masked"
    sets = {tuple((plan.when[2, draw] <= 2).nonzero()[:, 0].tolist()) for draw in range(20)}
    assert len(sets) > 5, "draws differ"
    again = mask_plan(mass, group(8, 0, 1), group(8, 2, 3, 4, 5, 7), live, levels=[1, 2, 4, 7], draws=20)
    assert torch.equal(plan.when, again.when)


def test_mass_is_the_mean_code():
    sae, rows = make("relu"), data(100)
    mass, counts = activation_mass(sae, rows, 33)
    codes = sae.encode(rows.tensor).detach().double()
    torch.testing.assert_close(mass, codes.mean(0), rtol=1e-6, atol=0)
    assert torch.equal(counts, (codes > 0).sum(0))


def test_equal_masses_of_equal_latents_lose_the_same():
    """One latent a row, in turn; latents 0–3 fire on 3 of 4 rows in which 4–7 share the rest: a third as often, with
    equal codes. Equal counts: stable lose three times as much. Equal masses: the same. Planted: equal_mass by counts;
    caught."""
    dictionary = torch.eye(8)
    cycle = torch.tensor([0, 1, 2, 3] * 3 + [4, 5, 6, 7])
    rows = TensorRows(2.0 * dictionary[cycle.repeat(40)])
    sae = saekern.TopKSAE(8, 8, 1, init_seed=0)
    with torch.no_grad():
        sae.tie_(dictionary.clone())
    found = masking(sae, rows, group(8, 0, 1, 2, 3), group(8, 4, 5, 6, 7), levels=[1, 3], blocks=10)
    assert found.ev == pytest.approx(1)
    drop = {arm: found.curve(arm).mean[0].item() for arm in ARMS}
    assert drop["stable"] == pytest.approx(3 * drop["unstable"], rel=1e-6)
    assert drop["unstable_equal_mass"] == pytest.approx(drop["stable"], rel=1e-6)
    mean, lower, upper = (ends[0].item() for ends in found.difference("stable", "unstable"))
    assert lower <= mean <= upper
    assert mean == pytest.approx(drop["stable"] - drop["unstable"])


class Model(nn.Module):
    def __init__(self, width=16, vocabulary=9):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)
        self.unembed = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        return self.unembed(torch.tanh(self.mix(self.embed(tokens))))


@pytest.mark.parametrize("error_term", [False, True])
def test_cross_entropy_is_that_of_a_splice(error_term):
    """Each mask against a splice that edits dense codes. 1e-5: float32 logits of order 1.
    Planted: the first position replaced too; caught. Planted: x̂ for x with error_term; caught."""
    model, sae, tokens = Model().eval(), make("topk"), torch.randint(9, (40, 6))
    options = {"model": model, "hook": "mix", "sequences": tokens, "error_term": error_term}
    found = masking(sae, data(), **EVERY, levels=[3, 32], draws=1, **options)
    assert found.ce == pytest.approx(cross_entropy(model, "mix", tokens, sae), abs=1e-6)
    assert found.ce_rise.shape == (5, 1, 2, 40)

    def spliced(gone):
        edit = None if gone is None else (lambda codes: codes.masked_fill(gone, 0))
        with splice(model, sae, "mix", error_term=error_term, edit=edit, dense=edit is not None):
            return cross_entropy(model, "mix", tokens)

    for arm, draw in found.plan.cells():
        for level in range(2):
            rise = float(found.ce_rise[arm, draw, level].mean())
            if found.plan.masked[arm, draw, level] < 0:
                assert rise != rise
                continue
            gone = found.plan.when[arm, draw] <= level
            assert rise == pytest.approx(spliced(gone) - spliced(None), abs=1e-5)
    both = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert both["arms"]["stable"]["ce"]["mean"][1] is None
    assert both["comparisons"] == 5 * 2 * 2


def test_errors_say_what_was_expected():
    sae, rows = make("topk"), data(50)
    with pytest.raises(ValueError, match=r"stable: expected bool \[32\], got torch.bool \[31\]"):
        masking(sae, rows, group(31, 1), GROUPS["unstable"])
    with pytest.raises(ValueError, match="unstable: expected at least one live latent"):
        masking(sae, rows, GROUPS["stable"], group(32))
    with pytest.raises(ValueError, match="expected no latent in both"):
        mask_plan(torch.ones(32), EVERY["live"], EVERY["live"], EVERY["live"])
    with pytest.raises(ValueError, match="levels: expected numbers from 0 to 32"):
        masking(sae, rows, **EVERY, levels=[33])
    with pytest.raises(ValueError, match="expected all three, or none"):
        masking(sae, rows, **EVERY, hook="mix")
    with pytest.raises(ValueError, match="rows: expected the SAE's width 16, got 8"):
        masking(sae, data(50, 8), **EVERY)
    found = masking(sae, rows, **EVERY, levels=[1], draws=1)
    with pytest.raises(ValueError, match="metric: expected 'ev', got 'ce'"):
        found.curve("stable", "ce")
    with pytest.raises(ValueError, match="arm: expected one of stable"):
        found.curve("steady")
