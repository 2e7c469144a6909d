"""Other libraries' figures: by hand, and streamed against their formulas written out for all rows."""

import math

import pytest
import torch

from saekern.activations import TensorRows
from saekern.evaluation import density_histogram, library_metrics, measure, r2


class Table:
    """x̂ is looked up: row x₀ of the input stands for itself."""

    def __init__(self, x, x_hat, codes):
        self.x, self.x_hat, self.codes = x, x_hat, codes
        self.dictionary = torch.zeros(codes.shape[1], x.shape[1])

    def encode_sparse(self, x):
        where = (x[:, None] == self.x[None]).all(2).int().argmax(1)
        codes = self.codes[where]
        indices = torch.arange(codes.shape[1]).expand(codes.shape)
        return type("Codes", (), {"values": codes, "indices": indices, "offsets": None, "where": where})

    def decode(self, codes):
        return self.x_hat[codes.where]


def test_by_hand():
    """x = (3, 4), (0, 10); x̂ = (3, 4), (0, 5). ‖e‖² = 0, 25. x̄ = (1.5, 7): ‖x − x̄‖² = 11.25 each, 22.5 together.
    e = 0, (0, 5), ē = (0, 2.5): 6.25 + 6.25. All numbers: mean 4.25, squares 125, so 125/4 − 4.25² = 13.1875."""
    x, x_hat = torch.tensor([[3.0, 4], [0, 10]]), torch.tensor([[3.0, 4], [0, 5]])
    sae = Table(x, x_hat, torch.tensor([[2.0, 0, 0], [-1, 0, 3]]))
    got = library_metrics(sae, TensorRows(x))
    want = {
        "sae_lens.explained_variance": 1 - 25 / 22.5,
        "sae_lens.explained_variance_legacy": (1 + (1 - 25 / 11.25)) / 2,
        "sae_lens.mse": 12.5,
        "sae_lens.cossim": 1,
        "sae_lens.l0": 1.5,
        "sae_lens.l1": 3,
        "sae_lens.l2_norm_in": 7.5,
        "sae_lens.l2_norm_out": 5,
        "sae_lens.l2_ratio": 0.75,
        "sae_lens.relative_reconstruction_bias": 50 / 75,
        "dictionary_learning.frac_variance_explained": 1 - 12.5 / 22.5,
        "dictionary_learning.l2_loss": 2.5,
        "dictionary_learning.frac_alive": 2 / 3,
        "overcomplete.r2_score": 1 - 6.25 / (13.1875 + 1e-6),
        "sparsify.fvu": 25 / 22.5,
    }
    assert got == pytest.approx(want)


@pytest.mark.parametrize("batch", [7, 40, 1000])
def test_streams(sae, batch):
    """In batches, the last one smaller. Planted: legacy about zero; a mean over rows where the library
    takes one over batches; fvu about zero. All three were caught."""
    x = (torch.randn(101, 6) * 8).round() / 8 + torch.arange(6)  # codes exact: the same in every batch
    rows = TensorRows(x)
    got = library_metrics(sae, rows, batch)
    x_hat = sae.decode(sae.encode_sparse(x)).double()
    parts = list(zip(x.double().split(batch), x_hat.split(batch), strict=True))
    assert got["sae_lens.explained_variance"] == pytest.approx(r2(x, x_hat, "mean"), rel=1e-9)
    assert got["sae_lens.explained_variance"] == pytest.approx(measure(sae, rows).explained_variance, rel=1e-12)
    by_row = torch.cat([1 - (a - b).square().sum(1) / (a - a.mean(0)).square().sum(1) for a, b in parts])
    assert got["sae_lens.explained_variance_legacy"] == pytest.approx(float(by_row.mean()), rel=1e-9)
    assert got["sae_lens.mse"] == pytest.approx(float((x - x_hat).square().sum(1).mean()), rel=1e-9)
    cosine = torch.nn.functional.cosine_similarity(x.double(), x_hat)
    assert got["sae_lens.cossim"] == pytest.approx(float(cosine.mean()), rel=1e-9)
    assert got["sae_lens.l0"] == measure(sae, rows).l0
    for name, about in [("dictionary_learning.frac_variance_explained", "residual"), ("sparsify.fvu", "mean")]:
        each = [r2(a, b, about) for a, b in parts]
        mean = sum(each) / len(each)
        assert got[name] == pytest.approx(1 - mean if "fvu" in name else mean, rel=1e-9)
    each = [1 - (a - b).square().mean() / ((a - a.mean()).square().mean() + 1e-6) for a, b in parts]
    assert got["overcomplete.r2_score"] == pytest.approx(float(sum(each)) / len(each), rel=1e-9)


def test_nothing_and_widths(sae):
    with pytest.raises(ValueError, match="rows: expected at least one row, got none"):
        library_metrics(sae, TensorRows(torch.zeros(0, 6)))
    with pytest.raises(ValueError, match="rows: expected the SAE's width 6, got 5"):
        library_metrics(sae, TensorRows(torch.zeros(3, 5)))


def test_density_histogram():
    """1000 rows in three bins of a decade each: 10⁻³ … 10⁻² … 10⁻¹ … 1. Planted: bins closed on the right; caught."""
    counts = torch.tensor([0, 1, 9, 10, 11, 100, 1000, 0])
    got = density_histogram(counts, 1000, bins=3)
    torch.testing.assert_close(got.edges, torch.tensor([-3.0, -2, -1, 0], dtype=torch.float64))
    assert got.latents.tolist() == [2, 2, 2]
    assert got.dead == 2
    assert density_histogram(torch.tensor([1, 0]), 1).latents.sum() == 1
    assert math.isclose(float(density_histogram(counts, 10**6).edges[0]), -6)
    with pytest.raises(ValueError, match="rows and bins: expected at least 1, got 0 and 40"):
        density_histogram(counts, 0)
