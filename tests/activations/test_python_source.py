"""The text every installation has, the n-gram it is measured with, and rows with a known answer."""

import math
from collections import Counter, defaultdict

import pytest
import torch

import saekern
from saekern.activations import python_source_sequences, synthetic_rows
from saekern.activations.ngram import ngram_bits_per_byte
from saekern.activations.python_source import python_source_files


def test_splits_are_disjoint_files():
    train, heldout = dict(python_source_files("train")), dict(python_source_files("heldout"))
    assert len(train) > 5 * len(heldout) > 0
    assert not train.keys() & heldout.keys()
    assert not any("site-packages" in name for name in [*train, *heldout])
    with pytest.raises(ValueError, match=r"expected one of \('train', 'heldout'\), got 'test'"):
        python_source_files("test")


def test_sequences_are_windows_of_the_files():
    """Planted: windows cut from all files joined; caught."""
    sequences = python_source_sequences("heldout", 1025, 500, seed=1)
    assert sequences.shape == (500, 1025)
    assert sequences.dtype == torch.int64
    assert not sequences[:, 0].any()
    text = b"\0".join(data for _, data in python_source_files("heldout"))
    assert all(bytes(line) in text for line in sequences[:, 1:].tolist())
    assert torch.equal(sequences, python_source_sequences("heldout", 1025, 500, seed=1))
    assert not torch.equal(sequences, python_source_sequences("heldout", 1025, 500, seed=2))
    assert python_source_sequences("heldout", 33, 0, seed=1).shape == (0, 33)


def test_sequence_arguments():
    with pytest.raises(ValueError, match=r"count: the heldout split has \d+ windows of 127 bytes, got 10000000"):
        python_source_sequences("heldout", 128, 10_000_000, seed=0)
    with pytest.raises(ValueError, match="context: expected at least 2"):
        python_source_sequences("heldout", 1, 1, seed=0)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngram_against_dictionaries(order):
    """Planted: T(h) = 3 for every h; caught."""
    train, heldout = [b"abracadabra", b"abba", b""], [b"abrax", b"a"]
    counts = defaultdict(Counter)
    for data in train:
        padded = bytes(order - 1) + data
        for i in range(order - 1, len(padded)):
            for length in range(order):
                counts[length, padded[i - length : i]][padded[i]] += 1

    def probability(context, byte):
        lower = probability(context[1:], byte) if context else 1 / 256
        seen = counts[len(context), context]
        return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen)) if seen else lower

    assert sum(probability(b"abr"[: order - 1], b) for b in range(256)) == pytest.approx(1)
    bits = []
    for data in heldout:
        padded = bytes(order - 1) + data
        bits += [-math.log2(probability(padded[i - order + 1 : i], padded[i])) for i in range(order - 1, len(padded))]
    assert ngram_bits_per_byte(train, heldout, order) == pytest.approx(sum(bits) / len(bits), rel=1e-12)
    with pytest.raises(ValueError, match="order: expected 1 to 7, got 8"):
        ngram_bits_per_byte(train, heldout, 8)


def test_synthetic_rows():
    """Moments: E‖x‖² = Σ p_f E[a²] + cross terms; with orthogonal-ish directions Σ p_f + noise² up to sampling."""
    made = synthetic_rows(20_000, 64, 32, 3.0, noise=0.5, seed=4)
    x = made.rows.take(torch.arange(20_000))
    assert made.frequency.sum().item() == pytest.approx(3.0)
    assert torch.linalg.vector_norm(made.dictionary, dim=1).sub(1).abs().max() < 1e-6
    p = made.frequency.double()
    gram = (made.dictionary @ made.dictionary.T).double()
    first = (2 / math.pi) ** 0.5  # E|N(0, 1)|
    mean = (p * first) @ made.dictionary.double()
    expected = p.sum() + (torch.outer(p, p) * first**2 * (gram - torch.eye(32))).sum() + 0.25
    assert x.double().square().sum(1).mean().item() == pytest.approx(expected.item(), rel=0.05)
    assert (x.double().mean(0) - mean).abs().max() < 6 * (x.std() / 20_000**0.5)
    assert torch.equal(x, synthetic_rows(20_000, 64, 32, 3.0, noise=0.5, seed=4).rows.tensor)
    assert not torch.equal(x, synthetic_rows(20_000, 64, 32, 3.0, noise=0.5, seed=5).rows.tensor)
    zipf = synthetic_rows(1, 4, 8, 1.0, decay=1.0).frequency
    assert (zipf * torch.arange(1, 9)).std() < 1e-6
    with pytest.raises(ValueError, match="0 < active <= features"):
        synthetic_rows(1, 4, 8, 9.0)
    with pytest.raises(ValueError, match="asks for a probability of"):
        synthetic_rows(1, 4, 8, 6.0, decay=1.0)


def test_the_truth_is_not_where_an_sae_begins():
    """Planted: one generator seeded alike; caught."""
    made = synthetic_rows(10, 16, 48, 3, seed=5)
    start = saekern.TopKSAE(16, 48, 3, init_seed=5).dictionary
    assert float((made.dictionary * start).sum(1).abs().max()) < 0.99
