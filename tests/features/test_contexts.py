"""Texts around rows and the codes in them, by hand."""

import math

import pytest
import torch
from hand_cache import DirectSAE, sentences, write_cache

from saekern.features.contexts import contexts, split, window_codes


@pytest.fixture
def cache(tmp_path):
    """Two sentences of four letters; latent 0 counts 1 … 8, latent 1 fires at "c" and "g"."""
    rows = torch.zeros(8, 3)
    rows[:, 0] = torch.arange(1.0, 9)
    rows[2, 1], rows[6, 1] = 5.0, 6.0
    return write_cache(tmp_path / "cache", sentences("abcd", "efgh"), rows)


@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_windows_stay_in_their_sequence(cache, batch):
    """Planted: windows that run into the next sequence; caught. Planted: codes of the first latent for all; caught."""
    sae = DirectSAE(3)
    rows = torch.tensor([[0, 3, 4], [2, 6, -1]])
    codes = window_codes(sae, cache, torch.tensor([0, 1]), rows, 2, 1, batch=batch)
    nan = torch.nan
    want = torch.tensor(
        [[[nan, nan, 1, 2], [2, 3, 4, nan], [nan, nan, 5, 6]], [[0, 0, 5, 0], [0, 0, 6, 0], [nan, nan, nan, nan]]]
    )
    assert torch.equal(codes.nan_to_num(-1), want.nan_to_num(-1))
    assert sae.encoded == 8  # each needed row once, though windows overlap
    first, last, second = contexts(cache, rows[0], torch.tensor([1.0, 4, 5]), codes[0], 2)
    assert first == (0, 1.0, ["a", "b"], [1, 2], 0)  # no BOS
    assert last == (3, 4.0, ["b", "c", "d"], [2, 3, 4], 2)
    assert second == (4, 5.0, ["e", "f"], [5, 6], 0)
    assert [found.row for found in contexts(cache, rows[1], torch.tensor([5.0, 6, 0]), codes[1], 2)] == [2, 6]


def test_positions_without_a_row_have_text_and_no_code(tmp_path):
    tokens = sentences("a-b-")
    cache = write_cache(tmp_path / "c", tokens, torch.tensor([[1.0], [2.0]]), excluded=[ord("-")])
    rows = torch.tensor([[1]])
    codes = window_codes(DirectSAE(1), cache, torch.tensor([0]), rows, 9, 9)
    (found,) = contexts(cache, rows[0], torch.tensor([2.0]), codes[0], 9)
    assert found == (1, 2.0, ["a", "-", "b", "-"], [1.0, None, 2.0, None], 2)


def test_bos_is_shown_where_it_has_a_row(tmp_path):
    cache = write_cache(tmp_path / "c", sentences("a"), torch.tensor([[1.0], [2.0]]), exclude_bos=False)
    rows = torch.tensor([[1]])
    codes = window_codes(DirectSAE(1), cache, torch.tensor([0]), rows, 3, 0)
    (found,) = contexts(cache, rows[0], torch.tensor([2.0]), codes[0], 3)
    assert found == (1, 2.0, ["\0", "a"], [1.0, 2.0], 1)


def test_bytes_of_one_character_stay_together(tmp_path):
    """The euro sign is three bytes; its code is the largest of theirs. Planted: focus not moved; caught."""
    tokens = sentences("a€b")  # 5 bytes
    rows = torch.tensor([[1.0], [2.0], [7.0], [3.0], [4.0]])
    cache = write_cache(tmp_path / "c", tokens, rows)
    asked = torch.tensor([[3, 4]])
    codes = window_codes(DirectSAE(1), cache, torch.tensor([0]), asked, 9, 9)
    inside, after = contexts(cache, asked[0], torch.tensor([3.0, 4.0]), codes[0], 9)
    assert inside == (3, 3.0, ["a", "€", "b"], [1.0, 7.0, 4.0], 1)
    assert (after.focus, after.pieces) == (2, ["a", "€", "b"])


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (b"ab", [("a", 1), ("b", 1)]),
        ("é😀".encode(), [("é", 2), ("😀", 4)]),
        ("€".encode()[:2], [("\ufffd", 2)]),  # cut off at the end
        ("€".encode()[1:] + b"x", [("\ufffd", 1), ("\ufffd", 1), ("x", 1)]),  # and at the beginning
        (b"\xffa", [("\ufffd", 1), ("a", 1)]),
        (b"\xe2a", [("\ufffda", 2)]),  # found bad only at the next byte
        (b"", []),
    ],
)
def test_split(cache, data, want):
    assert split(cache, list(data)) == want
    assert sum(length for _, length in want) == len(data)


def test_words_and_numbers(tmp_path):
    tokens = torch.tensor([[0, 5, 6]])
    rows = torch.ones(2, 1)
    words = write_cache(tmp_path / "a", tokens, rows, text="vocabulary", vocabulary={"0": "", "5": " the", "6": "<b>"})
    assert split(words, [5, 6]) == [(" the", 1), ("<b>", 1)]
    assert split(write_cache(tmp_path / "b", tokens, rows, text=None), [5, 6]) == [(" 5", 1), (" 6", 1)]


def test_no_tokens(tmp_path):
    cache = write_cache(tmp_path / "c", None, torch.ones(2, 1))
    with pytest.raises(ValueError, match="holds no tokens"):
        window_codes(DirectSAE(1), cache, torch.tensor([0]), torch.tensor([[0]]), 1, 1)


def test_nothing_asked(cache):
    codes = window_codes(DirectSAE(3), cache, torch.tensor([2]), torch.tensor([[-1, -1]]), 1, 1)
    assert codes.shape == (1, 2, 3)
    assert all(math.isnan(code) for code in codes.flatten().tolist())
    assert contexts(cache, torch.tensor([-1, -1]), torch.zeros(2), codes[0], 1) == []
