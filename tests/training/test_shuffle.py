"""The order of rows: permutations, readable from any position, different for each seed and epoch."""

import pytest
import torch

from saekern.training import Shuffle


@pytest.mark.parametrize("count", [1, 2, 7, 64, 101])
def test_each_epoch_is_a_permutation(count):
    order = Shuffle(count, seed=3).take(0, 5 * count).reshape(5, count)
    assert order.dtype == torch.int64
    for epoch in order:
        assert sorted(epoch.tolist()) == list(range(count))


def test_any_position_gives_the_same_rows():
    """Batches that span epochs, and more than one. Planted: the epoch not advanced inside a batch; caught."""
    whole = Shuffle(11, seed=5).take(0, 200)
    for start, length in ((0, 4), (9, 5), (10, 1), (11, 11), (3, 40), (150, 50), (20, 0)):
        assert torch.equal(Shuffle(11, seed=5).take(start, length), whole[start : start + length])
    reused = Shuffle(11, seed=5)
    assert torch.equal(torch.cat([reused.take(i, 8) for i in range(0, 200, 8)]), whole)
    assert torch.equal(reused.take(0, 8), whole[:8])


def test_seeds_and_epochs_differ():
    """Planted: seed + epoch as the seed, which makes (0, 1) and (1, 0) equal; caught."""
    orders = [Shuffle(1000, seed).take(epoch * 1000, 1000) for seed in range(4) for epoch in range(3)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert int((a == b).sum()) < 12  # 1 is expected; 12 has probability below 1e-8


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    Shuffle(100, 1).take(0, 250)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_rows():
    with pytest.raises(ValueError, match="count: expected at least one row, got 0"):
        Shuffle(0, 1)
