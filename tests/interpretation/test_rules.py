"""Rules by hand, and the explainer on latents that follow each kind of rule."""

import pytest
import torch

from saekern.interpretation import Example, Examples, Passage, Rule, RuleExplainer, RuleJudge
from saekern.interpretation.rules import KINDS, _Table, keys

ALPHABET = "abcde fgh ij "


def test_keys_by_hand():
    """Planted: "before" with the token in it; a word begun before the text taken for one; both caught."""
    pieces = list("ab cde")
    assert list(keys("token", 1, pieces)) == pieces
    assert list(keys("ngram", 2, pieces)) == [None, "ab", "b ", " c", "cd", "de"]
    assert list(keys("before", 2, pieces)) == [None, None, "ab", "b ", " c", "cd"]
    assert list(keys("word", 0, pieces)) == [None, None, None, "c", "cd", "cde"]
    assert list(keys("prefix", 2, pieces)) == [None, None, None, None, "cd", "cd"]


def test_keys_of_tokens_longer_than_a_letter():
    assert list(keys("word", 0, ["x the", "re", " is."])) == ["the", "there", None]
    assert list(keys("prefix", 3, [" the", "re"])) == ["the", "the"]
    assert list(keys("ngram", 2, [" the", "re"])) == [None, " there"]


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (Rule("token", 1, ("e",)), "The token is 'e'."),
        (Rule("ngram", 2, ("he", "\n\t", "x")), "The text up to and with the token ends with 'he', '\\n\\t' or 'x'."),
        (Rule("before", 1, ("(", "[")), "The text before the token ends with '(' or '['."),
        (Rule("word", 0, ("def",)), "The word up to and with the token is 'def'."),
        (Rule("prefix", 2, ("re",)), "The word up to and with the token begins with 're'."),
    ],
)
def test_sentences(rule, sentence):
    assert str(rule) == sentence


def test_judge_by_hand():
    """Marks are answered by the share of them that the rule confirms. Planted: tokens before `start` count; caught."""
    rule = Rule("token", 1, ("e",))
    pieces = list("eabee")
    judged = RuleJudge()(
        rule,
        [
            Passage(pieces, 0),
            Passage(list("eab"), 1),
            Passage(pieces, 1, (3, 4)),
            Passage(pieces, 1, (1, 4)),
            Passage(pieces, 1, (1, 2, 4)),
        ],
    )
    assert judged == [1.0, 0.0, 1.0, 0.5, pytest.approx(1 / 3)]


def made(fires, seed=0, count=160, size=30):
    """Random texts and a latent that fires where `fires(pieces)` says so; the first 8 pieces do not count."""
    generator = torch.Generator().manual_seed(seed)
    groups = ([], [])
    while min(map(len, groups)) < count // 2:
        pieces = [ALPHABET[i] for i in torch.randint(0, len(ALPHABET), (size,), generator=generator)]
        values = [None] * 8 + [float(fire) for fire in fires(pieces)[8:]]
        groups[0 if any(values[8:]) else 1].append(Example(pieces, 8, values))
    return Examples(*(group[: count // 2] for group in groups))


@pytest.mark.parametrize(
    "rule",
    [
        Rule("token", 1, ("a",)),
        Rule("token", 1, ("f", "g")),
        Rule("ngram", 2, ("ab",)),
        Rule("before", 1, ("c",)),
        Rule("word", 0, ("d",)),
        Rule("prefix", 2, ("hi", "ij", "ab", "ac", "ad")),
    ],
    ids=str,
)
def test_finds_the_rule(rule):
    """Planted: the longest of equal rules; caught."""
    found = RuleExplainer()(made(rule.fires))
    assert (found.kind, found.n, set(found.strings)) == (rule.kind, rule.n, set(rule.strings))


def test_noise_in_a_latent_is_not_explained():
    """A latent that fires on "a", and on 2 % of all tokens besides: one string still, not the accidents."""
    generator = torch.Generator().manual_seed(1)

    def fires(pieces):
        return [p == "a" or bool(torch.rand((), generator=generator) < 0.02) for p in pieces]

    assert str(RuleExplainer()(made(fires))) == "The token is 'a'."


def test_certain_strings_come_first():
    """9 of 10 is more certain than 1 of 1. Planted: shares without Wilson's bound; caught."""
    table = _Table("token", 1, [Example(list("b" + "a" * 10), 0, [1.0] * 10 + [0.0])])
    assert [table.names[i] for i in table.ranked(torch.ones(1, dtype=torch.bool))] == ["a", "b"]


def test_nothing_to_explain():
    with pytest.raises(ValueError, match="expected some in which the latent fires, got none"):
        RuleExplainer()(Examples([], [Example(["a"], 0, [0.0])]))


def test_kinds_look_back_only():
    """What follows a token changes nothing: a causal model cannot know it."""
    for kind, (sizes, _) in KINDS.items():
        for n in sizes:
            pieces = list("ab cd ef gh")
            whole = list(keys(kind, n, pieces))
            for cut in range(len(pieces)):
                assert list(keys(kind, n, pieces[:cut])) == whole[:cut]
