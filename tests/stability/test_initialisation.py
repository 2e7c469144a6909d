"""Distance at initialisation: shared starts, zero atoms, dead latents that never moved."""

import json

import pytest
import torch

from saekern.stability import dictionary_distance, feature_stability, initial_distance, stabilisation_index


def runs(count, size=60, width=24):
    return [torch.randn(size, width) for _ in range(count)]


@pytest.mark.parametrize("method", ["assignment", "nearest"])
def test_shared_start_is_reported_and_never_called_stable(method):
    """D(0) = 0, though every latent of one run is found in all others after training.
    Planted: the note dropped and the masks left as they were; caught."""
    start = torch.randn(60, 24)
    final = [start + 0.01 * torch.randn(60, 24) for _ in range(3)]
    distance = initial_distance([start, start[torch.randperm(60)], start], final, method=method)
    assert distance.initial.tolist() == [0.0, 0.0, 0.0]
    assert distance.shared
    assert distance.index is None
    assert distance.verdict == "shared initialisation in 3 of 3 pairs: agreement says nothing"
    unaware, result = feature_stability(final), feature_stability(final, initial=distance)
    assert bool(unaware.stable.all())
    assert bool((result.probability == 1).all())
    assert not result.stable.any()
    assert "no latent is called stable" in result.note
    assert result.to_json()["shared_init"] is True
    assert unaware.to_json()["shared_init"] is None


def test_independent_starts_that_meet_have_stabilised():
    end = torch.randn(60, 24)
    final = [end[torch.randperm(60)] + 0.02 * torch.randn(60, 24) for _ in range(3)]
    distance = initial_distance(runs(3), final)
    assert distance.initial.shape == (3,)
    assert not distance.shared
    assert distance.index == pytest.approx(1.0, abs=0.01)
    assert "closer together" in distance.verdict
    assert feature_stability(final, initial=distance).stable.all()
    apart = initial_distance(runs(3), runs(3))
    assert apart.index == pytest.approx(0.0, abs=0.05)


def test_one_shared_pair_is_enough():
    a, b = runs(2)
    distance = initial_distance([a, b, a])
    assert distance.shared_pairs == 1
    assert "1 of 3 pairs" in distance.verdict
    assert distance.final is None


def test_zero_atoms_at_initialisation_are_set_aside():
    """100 of 200 atoms exactly zero, as one published initialisation has: finite, and 0 for a shared start."""
    start = torch.zeros(200, 16)
    start[:100] = torch.randn(100, 16)
    assert initial_distance([start, start]).initial.tolist() == [0.0]


def test_dead_latents_that_never_moved_do_not_count_as_agreement():
    """Planted: dead masks ignored; caught."""
    corpse = torch.randn(30, 24)
    final = [torch.cat([torch.randn(30, 24), corpse]) for _ in range(2)]
    dead = [torch.arange(60) >= 30] * 2
    distance = initial_distance(runs(2), final, dead=dead)
    living = dictionary_distance(final[0][:30], final[1][:30])
    assert distance.final.item() == pytest.approx(living)
    assert distance.final_all.item() < 0.6 * living
    assert torch.equal(initial_distance(runs(2), final).final, distance.final_all)


def test_distance_is_symmetric_and_the_hungarian_mean():
    a, b = torch.eye(3), torch.eye(3)[[2, 0, 1]]
    assert dictionary_distance(a, b) == 0.0
    assert dictionary_distance(a, -b) == pytest.approx(1.0)  # signed: an opposite atom is no partner
    c, d = torch.randn(20, 8), torch.randn(30, 8)
    for method in ("assignment", "nearest"):
        assert dictionary_distance(c, d, method) == pytest.approx(dictionary_distance(d, c, method), abs=1e-6)
    nothing = dictionary_distance(c, torch.zeros(4, 8))
    assert nothing != nothing


def test_index():
    assert stabilisation_index(0.8, 0.2) == pytest.approx(0.75)
    assert stabilisation_index(0.0, 0.2) is None


def test_summary_is_json():
    for distance in (initial_distance(runs(2)), initial_distance(runs(3), runs(3))):
        json.dumps(distance.to_json(), allow_nan=False)


def test_errors():
    with pytest.raises(ValueError, match=r"final: expected 2 dictionaries like initial, got 3"):
        initial_distance(runs(2), runs(3))
    with pytest.raises(ValueError, match=r"dictionaries: expected at least 2, got 1"):
        initial_distance(runs(1))
