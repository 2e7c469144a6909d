"""Runs over training: shared starts, identical and permuted runs, planted birth and lock-in, the intervals."""

import json

import pytest
import torch

from saekern.stability import dictionary_distance, over_pairs, over_runs, trajectories
from saekern.stability.jackknife import leave_one_run_out

F, D = 40, 24
STEPS = (0, 1, 2, 4, 8)
SHARED = "shared initialisation: D(0) = 0, agreement is not stabilisation"


def course(*states):
    return [state.clone() for state in states]


def independent(runs=3, steps=STEPS):
    return [[torch.randn(F, D) for _ in steps] for _ in range(runs)]


def geometry():
    rows = torch.randn(500, D) @ torch.randn(D, D) + 3
    return {"mean": rows.mean(0), "covariance": torch.cov(rows.T)}


def test_shared_start_is_detected_and_said():
    """Runs that begin at one dictionary, in any order of its atoms, and end alike: D(0) = 0 in all geometries.
    Planted: `shared_pairs` from `distance` instead of `distance_all`; caught by the next test."""
    start, end = torch.randn(F, D), torch.randn(F, D)
    runs = [[start[p], (start + end)[p], end[p] + 0.01 * torch.randn(F, D)] for p in map(torch.randperm, [F] * 3)]
    found = trajectories(runs, (0, 1, 2), **geometry())
    assert found.shared
    assert found.verdict == SHARED
    assert found.to_json()["verdict"] == SHARED
    assert list(found.geometries) == ["raw", "centered", "whitened"]
    for one in found.geometries.values():
        assert one.distance_all[0].tolist() == [0.0, 0.0, 0.0]
        assert one.same.tolist() == [1.0, 1.0, 1.0]
        assert one.index is None
        assert float(one.between.mean[-1]) < 0.01


def test_masks_that_differ_do_not_hide_a_shared_start():
    start = torch.randn(F, D)
    runs = [[start, torch.randn(F, D)] for _ in range(3)]
    dead = [torch.arange(F) < 10, torch.arange(F) >= 30, torch.arange(F) % 4 == 0]
    found = trajectories(runs, (0, 1), dead=dead)
    raw = found.geometries["raw"]
    assert float(raw.distance[0, 0]) > 0.05  # the live latents of the two runs are not the same ones
    assert bool(found.shared_pairs.all())
    assert raw.index is None
    assert raw.live.sum(1).tolist() == [30, 30, 30]


def test_one_shared_pair_and_shared_atoms():
    a, b, end = torch.randn(F, D), torch.randn(F, D), torch.randn(F, D)
    found = trajectories([[a, end], [b, end], [a, end]], (0, 1))
    assert found.verdict == SHARED + " (1 of 3 pairs)"
    half = [torch.cat([a[: F // 2], torch.randn(F // 2, D)]) for _ in range(3)]
    found = trajectories([[start, end] for start in half], (0, 1))
    assert not found.shared
    assert found.geometries["raw"].same.tolist() == [0.5] * 3
    assert found.verdict.startswith("50% of the atoms are shared at step 0; runs end closer together")


def test_an_offset_is_not_a_shared_start():
    """Independent atoms about a mean a thousand times as long: raw distances round to 0, centred ones do not."""
    mean = 1000 * torch.randn(D)
    runs = [[mean + torch.randn(F, D) for _ in range(2)] for _ in range(3)]
    found = trajectories(runs, (0, 1), mean=mean)
    assert float(found.geometries["raw"].between.mean[0]) < 1e-5
    assert not found.shared
    assert "no stabilisation" in found.verdict or "than they began" in found.verdict


def test_identical_runs_are_at_distance_0_at_every_step():
    run = course(*torch.randn(len(STEPS), F, D))
    found = trajectories([run, run, run], STEPS, **geometry())
    assert found.verdict == SHARED + "; the runs are identical at every step"
    for one in found.geometries.values():
        assert torch.equal(one.distance, torch.zeros(5, 3, dtype=torch.float64))
        assert bool((one.lock_in(1.0) == 0).all())
        assert one.locked_share.tolist() == [1.0] * 5


def test_permuted_copies_are_matched_to_0():
    """Another order at every snapshot: the assignment finds each; lock-in, which is about a latent's number, does not.
    Planted: the matching by position, without an assignment; caught."""
    run = course(*torch.randn(len(STEPS), F, D))
    other = [state[torch.randperm(F)] for state in run]
    for one in trajectories([run, other], STEPS, **geometry()).geometries.values():
        assert torch.equal(one.distance, torch.zeros(5, 1, dtype=torch.float64))
    order = torch.randperm(F)
    one = trajectories([run, [state[order] for state in run]], STEPS).geometries["raw"]
    assert torch.equal(one.distance, torch.zeros(5, 1, dtype=torch.float64))
    assert torch.equal(one.lock_in(), torch.zeros(2, F, dtype=torch.int64))


def test_distances_are_those_of_matchings_that_start_anew():
    """Planted: the prices' matching kept in place of a new one; caught."""
    runs = independent()
    for name, value in (("distance", runs), ("movement", [[run[0]] * len(STEPS) for run in runs])):
        found = getattr(trajectories(runs, STEPS).geometries["raw"], name)
        pairs = [(0, 1), (0, 2), (1, 2)] if name == "distance" else [(0, 0), (1, 1), (2, 2)]
        for column, (i, j) in enumerate(pairs):
            for t in range(len(STEPS)):
                assert float(found[t, column]) == pytest.approx(dictionary_distance(runs[i][t], value[j][t]), abs=1e-6)


def test_planted_birth_and_lock_in_are_found():
    """Latent i of run s stands still from snapshot b[s, i] on, at random places before; all runs end at one dictionary,
    in their own order. It has locked in to a run once both are there, to half of three others by the second of them.
    Planted: times counted forwards, the first snapshot with cosine ≥ θ instead of the last run of them; caught."""
    runs, steps = 4, torch.tensor(STEPS)
    end = torch.nn.functional.normalize(torch.randn(F, 200), dim=1)  # at D = 200 no chance cosine reaches θ
    age = torch.randint(0, len(STEPS), (runs, F))
    orders = [torch.randperm(F) for _ in range(runs)]
    snapshots = []
    for s in range(runs):
        states = [torch.where((t >= age[s])[:, None], end, torch.randn(F, 200)) for t in range(len(STEPS))]
        states[1][age[s] == 4] = end[age[s] == 4]  # there once before, and left again
        snapshots.append([state[orders[s]] for state in states])
    one = trajectories(snapshots, STEPS, threshold=0.9).geometries["raw"]
    together = torch.maximum(age[:, None], age[None])  # [S, S, F] when both are there
    for s in range(runs):
        assert torch.equal(one.birth[s], steps[age[s]][orders[s]])
        others = together[s, [o for o in range(runs) if o != s]].sort(0).values
        assert torch.equal(one.lock_in(0.5)[s], steps[others[1]][orders[s]])
        assert torch.equal(one.lock_in(1.0)[s], steps[others[2]][orders[s]])
    assert one.null_locked.tolist() == [0.0] * 5
    assert one.locked_share[-1] == 1
    assert float(one.between.mean[-1]) < 1e-7


def test_dead_latents_have_no_times_and_no_part():
    """Latents that are the same corpse in both runs from the first step: distance 0 among all, not among the live.
    Planted: masks not passed on; caught."""
    corpse = torch.randn(20, D)
    runs = [[torch.cat([torch.randn(20, D), corpse]) for _ in range(3)] for _ in range(2)]
    dead = [torch.arange(F) >= 20] * 2
    one = trajectories(runs, (0, 1, 2), dead=dead).geometries["raw"]
    alive = trajectories([[state[:20] for state in run] for run in runs], (0, 1, 2)).geometries["raw"]
    assert torch.allclose(one.distance, alive.distance)
    assert bool((one.distance_all < 0.7 * one.distance).all())
    assert bool((one.birth[:, 20:] == -1).all())
    assert bool((one.birth[:, :20] >= 0).all())
    assert int(one.locked[:, :, 20:].sum()) == 0
    assert one.same.tolist() == [0.5]


def test_independent_runs_that_meet_have_stabilised():
    """By hand: D(t) of runs (1−t) a_s + t b, T = 1, and M(t) of it."""
    end = torch.randn(F, D)
    starts = [torch.randn(F, D) for _ in range(4)]
    found = trajectories([[start, (start + 3 * end) / 4, end] for start in starts], (0, 5, 10), null_pairs=3)
    raw = found.geometries["raw"]
    assert float(raw.index.mean) == pytest.approx(1.0, abs=1e-6)
    assert bool((raw.between.mean.diff() < 0).all())
    assert raw.movement[0].tolist() == [0.0] * 4
    assert bool((raw.moved.mean.diff() > 0).all())
    assert found.verdict.startswith("independent initialisation: runs end closer together")
    # Rotated pairs stay where independent ones began.
    assert torch.allclose(raw.null.mean(1), raw.between.mean[:1].expand(3), atol=0.05)
    assert bool((raw.between.low <= raw.between.mean).all())
    assert raw.null.shape == (3, 3)


def test_runs_that_stay_apart_have_not():
    found = trajectories(independent(5), STEPS)
    index = found.geometries["raw"].index
    assert abs(float(index.mean)) < 0.1
    assert "index" in found.verdict


def test_latents_chosen_by_their_end_do_not_make_a_stabilisation():
    """Runs that begin near one pool; each keeps another half of it alive, so that the living of two runs begin apart.
    They end together, and the dead anywhere: no stabilisation.
    Planted: the verdict of the live latents alone; caught."""
    pool, end = torch.randn(F, D), torch.randn(F // 2, D)
    runs, dead = [], []
    for _ in range(4):
        alive = torch.randperm(F) < F // 2
        last = torch.randn(F, D)
        last[alive] = end
        runs.append([pool + 0.6 * torch.randn(F, D), last])
        dead.append(~alive)
    found = trajectories(runs, (0, 1), dead=dead)
    raw = found.geometries["raw"]
    assert float(raw.index.low) > 0.9
    assert float(raw.index_all.high) < 0
    assert found.verdict.startswith("independent initialisation: no stabilisation seen")


def test_zero_atoms_at_the_start_are_set_aside():
    """Half of the atoms exactly zero at step 0, as one published initialisation has."""
    start = torch.zeros(F, D)
    start[: F // 2] = torch.randn(F // 2, D)
    one = trajectories([[start, torch.randn(F, D)] for _ in range(2)], (0, 1))
    assert one.shared
    assert one.geometries["raw"].live.all()


def test_summary_is_json():
    for runs in (2, 3):
        found = trajectories(independent(runs), STEPS, null_pairs=0)
        json.dumps(found.to_json(), allow_nan=False)
        assert found.arrays()["raw.locked"].shape == (5, runs, F)
    json.dumps(trajectories(independent(3), STEPS, dead=[torch.ones(F).bool()] * 3).to_json(), allow_nan=False)


def test_jackknife_by_hand():
    """S = 3: leaving one run out leaves one pair; m = 2, m₋ₛ = 3, 2, 1, SE² = 2/3 · 2, t₂ = 4.303."""
    values = torch.tensor([1.0, 2.0, 3.0])
    mean, without = leave_one_run_out(values, 3)
    assert mean == 2
    assert without.tolist() == [3.0, 2.0, 1.0]
    found = over_pairs(values, 3)
    assert float(found.high) == pytest.approx(2 + 4.30265 * (4 / 3) ** 0.5, rel=1e-5)
    assert over_pairs(values[:1], 2).low.isnan()
    known = over_runs(torch.tensor([1.0, 2.0, 4.0, float("nan")])[:3])
    assert float(known.high) == pytest.approx(7 / 3 + 4.30265 * (7 / 9) ** 0.5, rel=1e-4)  # sd² = 7/3, n = 3


@pytest.mark.parametrize("runs", [3, 5, 12])
@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_coverage_over_pairs(runs, shared):
    """Pairs that share what their runs have (and pairs that share nothing): the interval holds the truth in 95 % of
    4,000 studies, or more. Student's interval over pairs holds it in 70 % at S = 5.
    Planted: pairs taken as independent; caught."""
    index = torch.combinations(torch.arange(runs))
    effect = shared * torch.randn(4000, runs, dtype=torch.float64)
    values = effect[:, index].sum(-1) + torch.randn(4000, len(index), dtype=torch.float64)
    found = over_pairs(values, runs)
    covered = float(((found.low <= 0) & (found.high >= 0)).double().mean())
    assert covered > 0.95 - 3 * (0.05 * 0.95 / 4000) ** 0.5


def test_mean_atom_takes_a_shared_offset_away():
    """Independent dictionaries with an offset of 4, another at each step: alike in raw cosine, as far apart as without
    it once each has lost its mean atom; zero atoms neither count nor move. Σ = I whitens nothing.
    Planted: zero atoms counted in the mean; caught."""
    generator = torch.Generator().manual_seed(3)
    plain = [[torch.randn(40, 16, generator=generator) / 4 for _ in range(2)] for _ in range(3)]
    offsets = torch.randn(2, 16, generator=generator)
    far = [
        [torch.cat([rows + offset, torch.zeros(5, 16)]) for rows, offset in zip(run, offsets, strict=True)]
        for run in plain
    ]
    own = [[rows - rows.mean(0) for rows in run] for run in plain]
    found = trajectories(far, (0, 1), mean="atoms", covariance=torch.eye(16, dtype=torch.float64)).geometries
    wanted = trajectories(own, (0, 1)).geometries["raw"].distance
    assert float(found["raw"].distance.max()) < 0.1 < float(wanted.min())
    for name in ("centered", "whitened"):
        assert torch.allclose(found[name].distance, wanted, atol=1e-5)


def test_errors():
    runs = independent()
    with pytest.raises(ValueError, match=r"steps: expected at least two ascending steps, the first 0, got \[1, 2"):
        trajectories(runs, (1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"snapshots: expected at least 2 runs, got 1"):
        trajectories(runs[:1], STEPS)
    with pytest.raises(ValueError, match=r"snapshots\[1\]: expected 5 snapshots, one a step, got 4"):
        trajectories([runs[0], runs[1][:4]], STEPS)
    with pytest.raises(
        ValueError, match=r"snapshots\[1\]: expected shape \[40, 24\] like the first run's, got \[3, 24\]"
    ):
        trajectories([runs[0], [torch.randn(3, D)] * 5], STEPS)
    with pytest.raises(ValueError, match=r"dead: expected 3 masks, one a run, got 1"):
        trajectories(runs, STEPS, dead=[None])
    with pytest.raises(ValueError, match=r"covariance: expected the mean with it, got none"):
        trajectories(runs, STEPS, covariance=torch.eye(D))
    with pytest.raises(ValueError, match=r"expected threshold in -1..1, confidence in 0..1 and null_pairs >= 0"):
        trajectories(runs, STEPS, threshold=2)
    with pytest.raises(ValueError, match=r"share: expected 0 < share <= 1, got 0"):
        trajectories(runs, STEPS).geometries["raw"].lock_in(0)
    with pytest.raises(ValueError, match=r"values: expected 3 pairs of 3 runs last, got \[2\]"):
        over_pairs(torch.ones(2), 3)
