"""Counts, histograms, the strongest rows and the sample, against the dense codes."""

import pytest
import torch
from hand_cache import DirectSAE

from saekern.activations import TensorRows
from saekern.evaluation.kept_rows import KeptRows
from saekern.features import collect
from saekern.features.collect import scattered
from saekern.features.histogram import BINS, Histograms


def stream(n=200, width=7, seed=0):
    """Codes of every kind: many ties, zeros, negative ones, scales from 1e-30 to 1e30, a latent that never fires."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator).mul(4).round().div(4)
    x[:, 1] *= 1e-30
    x[:, 2] *= 1e30
    x[:, 3] = 0
    x[:, 4] = x[:, 4].abs()
    x[:-1, 5] = 0  # fires late, or not at all
    return x


@pytest.mark.parametrize("batch", [1, 7, 64, 4096])
def test_against_the_dense_codes(batch):
    """Planted: rows of a batch counted from its start; caught. Planted: negative codes in the histogram; caught."""
    x = stream()
    latents = torch.tensor([4, 0, 1, 2, 3, 6])
    seen = collect(DirectSAE(7), TensorRows(x), latents, top=5, sample=9, batch=batch)
    assert seen.rows == 200
    assert torch.equal(seen.counts, (x != 0).sum(0))
    for i, latent in enumerate(latents.tolist()):
        code = x[:, latent]
        fires = (code > 0).nonzero()[:, 0]
        order = code.argsort(descending=True, stable=True)[:5]
        order = order[code[order] > 0]
        assert seen.top_rows[i].tolist() == order.tolist() + [-1] * (5 - len(order))
        assert torch.equal(seen.top_values[i, : len(order)], code[order])
        chosen = fires[scattered(fires).argsort(descending=True)][:9]
        assert seen.sample_rows[i].tolist() == chosen.tolist() + [-1] * (9 - len(chosen))
        assert torch.equal(seen.sample_values[i, : len(chosen)], code[chosen])
        assert seen.largest[i] == (code[fires].max() if len(fires) else 0)
        assert int(seen.histogram[i].sum()) == len(fires)
        active = int((code != 0).sum())
        assert active == 0 or float(seen.mean[i]) == pytest.approx(float(code.double().sum()) / active, rel=1e-14)


def test_batches_change_no_bit():
    x = torch.randn(300, 5)
    one, other = (
        collect(DirectSAE(5), TensorRows(x), torch.arange(5), top=3, sample=8, batch=batch) for batch in (300, 11)
    )
    for a, b in zip(one, other, strict=True):
        assert a == b if isinstance(a, int) else torch.equal(a, b)


def test_every_activation_is_in_its_bin():
    """Planted: floor of the bin's exponent one too high; caught (bins above the middle stay empty)."""
    values = torch.cat([torch.rand(500).double(), torch.tensor([1.0, 0.5, 2.0**-7, 2.0**-149])]).float()
    values = values[values > 0]
    made = Histograms(1)
    for part in values.sort().values.split(50):  # ascending: as many doublings as there can be
        made.add(torch.zeros(len(part), dtype=torch.int64), part)
    width = float(made.width[0])
    assert width == 2 / BINS  # 1.0 itself does not fit below 64 · 2⁻⁶
    want = torch.bincount((values.double() / width).floor().long(), minlength=BINS)
    assert torch.equal(made.counts[0], want)


def test_the_largest_lies_in_the_upper_half():
    for value in (1e-44, 3e-39, 0.7, 1.0, 63.999, 64.0, 3e38):
        made = Histograms(2)
        made.add(torch.tensor([1]), torch.tensor([value]))
        place = int(made.counts[1].argmax())
        width = float(made.width[1])
        exact = float(torch.tensor(value).double())
        assert BINS // 2 <= place < BINS
        assert place * width <= exact < (place + 1) * width
        assert float(made.width[0]) == 0
        assert not made.counts[0].any()


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_one_row_a_group(batch):
    """Planted: the group's first row instead of its best; caught. Planted: no look at what was kept; caught."""
    values = torch.tensor([3.0, 5, 5, 1, 4, 4, 2, 7, 7, 6]).repeat(4)
    groups = torch.arange(40) // 5
    kept = KeptRows(1, 3, groups)
    for part in torch.arange(40).split(batch):
        kept.add(torch.zeros(len(part), dtype=torch.int64), part, values[part])
    assert kept.rows.tolist() == [[7, 17, 27]]
    kept = KeptRows(1, 6, groups)
    for part in torch.arange(40).split(batch):
        kept.add(torch.zeros(len(part), dtype=torch.int64), part, values[part])
    assert kept.rows.tolist() == [[7, 17, 27, 37, 1, 11]]
    assert kept.values.tolist() == [[7, 7, 7, 7, 5, 5]]


def test_fewer_groups_than_places():
    kept = KeptRows(2, 4, torch.zeros(10, dtype=torch.int64))
    kept.add(torch.tensor([1, 1, 1]), torch.tensor([2, 3, 4]), torch.tensor([1.0, 2, 2]))
    kept.add(torch.tensor([1]), torch.tensor([5]), torch.tensor([9.0]))
    assert kept.rows.tolist() == [[-1] * 4, [5, -1, -1, -1]]


def test_scattered_numbers_differ_and_look_even():
    numbers = scattered(torch.arange(200_000))
    assert len(numbers.unique()) == 200_000
    assert scattered(torch.tensor([2**32 - 1, 2**31])).min() >= 0
    counts = torch.histc(numbers.float(), 16, 0, 2**32)
    assert (counts - 12_500).abs().max() < 6 * 12_500**0.5


def test_errors():
    x = TensorRows(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"latents: expected 0 to 3, got 1 to 4"):
        collect(DirectSAE(4), x, torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="rows: expected the SAE's width 5, got 4"):
        collect(DirectSAE(5), x, torch.tensor([1]))
    with pytest.raises(ValueError, match="expected at least one row"):
        collect(DirectSAE(4), TensorRows(torch.ones(0, 4)), torch.tensor([1]))
    bad = torch.ones(3, 4)
    bad[2, 2] = torch.nan
    with pytest.raises(ValueError, match="codes of rows 2 to 2 are not finite"):
        collect(DirectSAE(4), TensorRows(bad), torch.tensor([1]), batch=2)
