"""Paulo and Belrose's rule: encoder and decoder agree."""

import json

import pytest
import torch

from saekern.matching import match_all
from saekern.sae import TopKSAE
from saekern.stability import encoders, shared_latents


def pairs(dictionaries, method="assignment", **options):
    return match_all(dictionaries, method, progress=False, **options)


def test_by_hand():
    """Latents 0 and 1: encoder and decoder agree. 2 and 3: the second run's decoders are swapped, so partners differ.
    4: the same partner, but the encoders' cosine is 0.6. 5: dead. Planted: `or` in place of `and`; caught. Planted:
    partners not compared; caught."""
    eye = torch.eye(8)
    decoder = eye[:6].clone()
    other = decoder[[0, 1, 3, 2, 4, 5]]
    encoder, second = eye[:6].clone(), eye[:6].clone()
    second[4] = 0.6 * eye[4] + 0.8 * eye[7]
    dead = [torch.arange(6) == 5] * 2
    found = shared_latents(pairs([encoder, second], dead=dead), pairs([decoder, other], dead=dead))
    for row, column in ((0, 1), (1, 0)):
        assert found.shared[row, column].item() == 2 / 5
        assert found.same_partner[row, column].item() == 3 / 5
        assert found.encoder[row, column].item() == 4 / 5
        assert found.decoder[row, column].item() == 1.0
        assert found.chance[row, column].item() == 1 / 5
    assert found.probability[0, :5].tolist() == [1, 1, 0, 0, 0]
    assert bool(found.probability[:, 5].isnan().all())
    assert bool(found.shared.diagonal().isnan().all())
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("method", ["assignment", "nearest"])
def test_permuted_copies_are_shared_and_random_ones_are_not(method):
    saes = [TopKSAE(24, 60, 4, init_seed=i) for i in range(3)]
    nothing = shared_latents(pairs(encoders(saes), method), pairs(saes, method))
    assert nothing.to_json()["shared"]["mean"] == 0
    a, b = torch.randn(60, 24), torch.randn(60, 24)
    orders = [torch.randperm(60) for _ in range(3)]
    found = shared_latents(pairs([a[o] for o in orders], method), pairs([b[o] for o in orders], method))
    assert found.to_json()["shared"] == {"mean": 1.0, "sd": 0.0}
    assert bool((found.probability == 1).all())
    shuffled = [torch.randperm(60) for _ in range(3)]  # encoders in another order than decoders
    broken = shared_latents(pairs([a[o] for o in shuffled], method), pairs([b[o] for o in orders], method)).to_json()
    assert broken["decoder"]["mean"] == broken["encoder"]["mean"] == 1.0
    assert broken["same_partner"]["mean"] == pytest.approx(1 / 60, abs=4 * (1 / 60 / 360) ** 0.5)


def test_unequal_sizes():
    rows = torch.randn(30, 12)
    found = shared_latents(pairs([rows, rows[:20]]), pairs([rows, rows[:20]]))
    assert found.shared[0, 1].item() == pytest.approx(20 / 30)
    assert found.shared[1, 0].item() == 1.0
    assert bool(found.probability[1, 20:].isnan().all())


def test_errors():
    a, b = torch.randn(4, 3), torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"decoder: expected the method of encoder, 'assignment', got 'nearest'"):
        shared_latents(pairs([a, a]), pairs([a, a], "nearest"))
    with pytest.raises(ValueError, match=r"decoder: expected the sizes of encoder, \[4, 4\], got \[4, 5\]"):
        shared_latents(pairs([a, a]), pairs([a, b]))
    with pytest.raises(ValueError, match=r"threshold: expected a cosine in -1\.\.1, got 2"):
        shared_latents(pairs([a, a]), pairs([a, a]), 2)
