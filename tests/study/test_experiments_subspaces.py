"""Subspaces of unstable latents, as a stage of a study and in its report."""

from types import SimpleNamespace

import pytest
import torch

from saekern.pipeline.experiments.subspaces import SubspacesSettings, run
from saekern.report.sections import subspaces as page
from saekern.stability import random_rotation

pytest.importorskip("matplotlib")
WIDTH, RANK = 48, 6


def planted_lab(noise=0.0, hidden=True):
    """Five seeds without SAEs: 40 unstable rows of each in one block of 6 dimensions, other rows each time, 24 stable
    ones anywhere; `hidden`: the data vary everywhere alike, else in the block."""
    generator = torch.Generator().manual_seed(9)
    block = random_rotation(WIDTH, generator)[:RANK]
    seeds = []
    for _ in range(5):
        rows = torch.randn(40, RANK, generator=generator, dtype=torch.float64) @ block
        rows = rows + noise * torch.randn(40, WIDTH, generator=generator, dtype=torch.float64)
        seeds.append(torch.cat([rows, torch.randn(24, WIDTH, generator=generator, dtype=torch.float64)]))
    unstable = (torch.arange(64) < 40).expand(5, 64)
    other = random_rotation(WIDTH, generator)
    covariance = other.T @ torch.diag(torch.arange(1.0, WIDTH + 1).double()) @ other
    return SimpleNamespace(
        seeds=5,
        dictionaries=seeds,
        unstable=unstable,
        stable=~unstable,
        rows=SimpleNamespace(width=WIDTH),
        sample=torch.zeros(7, WIDTH),
        covariance=covariance if hidden else block.T @ block + 0.01 * torch.eye(WIDTH, dtype=torch.float64),
    )


def test_planted_block_is_found_at_its_rank_and_not_before(tmp_path):
    """Results and words: all of the energy in 6 directions, not in 4; more than the data's unless those are the same
    directions. Planted: the verdict's word from the mean and not from the interval; caught (the data's are equal)."""
    found = run(planted_lab(), SubspacesSettings(others=0, rank=RANK), tmp_path)
    raw = found["raw"]
    at = {rank: i for i, rank in enumerate(raw["ranks"])}
    assert raw["share"]["cross"]["mean"][at[RANK]] == pytest.approx(1, abs=1e-12)
    assert raw["share"]["cross"]["upper"][at[4]] < 0.9
    assert raw["gap"]["mean"][at[RANK]] == pytest.approx(0, abs=1e-12)
    said = page.section(found, None).verdict
    assert f"{RANK} of {WIDTH} directions of another seed's unstable latents hold 100.0 %" in said
    assert "That is more than principal directions of the data hold" in said
    assert "That is more than random directions hold" in said
    same = page.section(run(planted_lab(hidden=False), SubspacesSettings(others=0, rank=RANK), tmp_path), None)
    assert "That is not measurably different from what principal directions of the data hold" in same.verdict


def test_page_has_all_of_it(experiment):
    """The small study: 60 latents a seed, some unstable in all four."""
    found, text, ran = experiment("subspaces", SubspacesSettings(sequences=4))
    assert ran == ("subspaces", "report")
    assert found["rank"] == 6
    assert found["replacement"]["arms"]["own"]["ev"]["mean"][-1] == pytest.approx(0, abs=1e-9)
    assert found["replacement"]["ce"] is not None
    assert found["replacement"]["arms"]["cross"]["bases"] == 3
    assert '<section id="subspaces">' in text
    for name in ("subspaces_energy", "subspaces_excess", "subspaces_replacement", "subspaces_raw", "subspaces_centred"):
        assert f'id="{name}"' in text
    assert "Projecting what unstable latents add" in text


def test_too_few_unstable_latents_are_said(tmp_path):
    lab = planted_lab()
    lab.unstable = torch.zeros(5, 64, dtype=torch.bool)
    assert run(lab, SubspacesSettings(), tmp_path) == {"skipped": "0 of 5 seeds have two unstable latents or more"}
    with pytest.raises(ValueError, match=r"subspaces\.rank: expected at least 1 or null, got 0"):
        SubspacesSettings(rank=0)
