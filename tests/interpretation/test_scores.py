"""Detection and fuzzing of latents whose meaning is known, by hand and against chance."""

import json

import pytest
import torch
from hand_cache import DirectSAE, write_cache
from scipy.stats import ttest_ind

from saekern.interpretation import (
    RuleExplainer,
    RuleJudge,
    compare_scores,
    interpretation_scores,
)
from saekern.interpretation.collect import collect
from saekern.interpretation.intervals import balanced_interval, wilson

ALPHABET = "abcdefghijklmnopqrstuvwxyz    "


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """400 sequences of 94 random letters and a BOS. Latent 0 fires on "e", 1 on "e" behind "h", 2 on 2 % of rows at
    random, 3 never, 4 always, 5 on "x" and "q", 6 on three rows of all."""
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(0, len(ALPHABET), (400, 94), generator=generator)
    letters[:, 1::7] = ALPHABET.index("h")
    text = torch.tensor([ord(c) for c in ALPHABET])[letters]
    tokens = torch.cat([torch.zeros(400, 1, dtype=torch.int64), text], 1)
    codes = torch.zeros(400, 94, 7)
    strength = torch.rand(400, 94, generator=generator) + 0.1
    e, h = text == ord("e"), text == ord("h")
    codes[..., 0] = strength * e
    codes[:, 1:, 1] = (strength * e)[:, 1:] * h[:, :-1]
    codes[..., 2] = strength * (torch.rand(400, 94, generator=generator) < 0.02)
    codes[..., 4] = strength
    codes[..., 5] = strength * ((text == ord("x")) | (text == ord("q")))
    codes[:3, 5, 6] = 1.0
    return write_cache(tmp_path_factory.mktemp("letters") / "cache", tokens, codes.reshape(-1, 7))


def scored(cache, latents=range(7), judge=None, seed=0, **keywords):
    chosen = torch.tensor(list(latents))
    return interpretation_scores(
        DirectSAE(7), cache, chosen, RuleExplainer(), judge or RuleJudge(), seed=seed, **keywords
    )


def test_known_latents(cache):
    """Planted: wrong marks counted as right ones, the latent's own tokens marked in mislabelled windows, codes of
    another slot; each caught."""
    found = scored(cache)
    assert found.latents.tolist() == [0, 1, 2, 5]
    assert found.skipped == {3: "dead", 4: "few negatives", 6: "few positives"}
    assert found.explanations[0] == "The token is 'e'."
    assert found.explanations[1] == "The text up to and with the token ends with 'he'."
    assert found.explanations[3] in ("The token is 'x' or 'q'.", "The token is 'q' or 'x'.")
    for i in (0, 1, 3):
        assert found.detection[i, 0] == 1.0
        assert found.fuzzing[i, 0] == 1.0
        assert found.mislabelled_caught[i] == 1.0
        assert 0.9 < found.detection[i, 1] < 1.0  # it was seen on 64 + 64 windows only
    for scores in (found.detection, found.fuzzing):
        assert scores[2, 1] < 0.5 < scores[2, 2]
    assert found.positives.tolist() == [64] * 4
    assert found.negatives.tolist() == [64] * 4
    codes = cache.take(torch.arange(len(cache)))
    assert found.firings.tolist() == (codes != 0).sum(0)[[0, 1, 2, 5]].tolist()


def test_to_json(cache):
    out = json.loads(json.dumps(scored(cache).to_json(), allow_nan=False))
    assert out["skipped"] == {"dead": 1, "few positives": 1, "few negatives": 1}
    assert out["scored"] == 4
    assert out["mean"]["detection"]["units"] == 4
    assert out["latents"][0]["detection"]["value"] == 1.0
    assert out["latents"][0]["explanation"] == "The token is 'e'."


@pytest.mark.parametrize("batch", [17, 1000])
def test_batches_change_nothing(cache, batch, monkeypatch):
    """Planted: offsets of rows not added up over batches; caught. Planted: windows ranked at each merge by those that
    waited alone; caught."""
    want = scored(cache).to_json()
    monkeypatch.setattr("saekern.interpretation.collect.MERGE", 50)
    assert scored(cache, batch=batch).to_json() == want


def test_seed_decides(cache):
    a, b, c = (scored(cache, [0, 1, 2], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.fuzzing, b.fuzzing)
    assert not torch.equal(a.fuzzing, c.fuzzing)


def test_permuted_explanations_say_nothing(cache):
    """Latents 0 and 5 know nothing of each other. Planted: the null judged by its own explanation; caught."""
    found = scored(cache, [0, 5])
    assert found.detection[:, 0].tolist() == [1.0, 1.0]
    assert bool((found.null_detection - 0.5).abs().max() < 0.15)
    assert bool((found.null_fuzzing - 0.5).abs().max() < 0.15)
    assert bool(scored(cache, [0]).null_detection.isnan().all())
    assert bool(scored(cache, [0, 5], null=False).null_detection.isnan().all())


class Recorder:
    """Notes what it is asked; says `answer`."""

    def __init__(self, answer=True):
        self.answer, self.asked = answer, []

    def __call__(self, explanation, passages):
        self.asked.append(list(passages))
        return [self.answer] * len(passages)


@pytest.mark.parametrize("answer", [True, False, 0.49, 0.5])
def test_a_judge_with_one_answer_is_at_chance(cache, answer):
    found = scored(cache, [0, 1], Recorder(answer))
    assert found.detection[:, 0].tolist() == [0.5, 0.5]
    assert found.fuzzing[:, 0].tolist() == [0.5, 0.5]
    assert found.detection[:, 3].tolist() == [float(answer >= 0.5)] * 2
    assert found.mislabelled_caught.tolist() == [float(answer < 0.5)] * 2


def test_what_the_judge_is_asked(cache):
    """Of "e": 64 + 64 windows without marks, then 64 right, 32 mislabelled and 32 random ones, at most 8 at a time and
    mixed. Planted: batches of 9; unshuffled; the tokens of negatives' lead not looked at; each caught."""
    judge = Recorder()
    scored(cache, [0], judge, null=False)
    assert all(1 <= len(part) <= 8 for part in judge.asked)
    asked = [passage for part in judge.asked for passage in part]
    detect = [p for p in asked if p.marks is None]
    fuzz = [p for p in asked if p.marks is not None]
    assert [len(detect), len(fuzz)] == [128, 128]
    says_e = ["e" in p.pieces[p.start :] for p in detect]
    assert sum(says_e) == 64
    assert 16 < sum(says_e[:64]) < 48
    assert all("e" not in p.pieces for p, e in zip(detect, says_e, strict=True) if not e)
    assert all(len(p.pieces) - p.start == 31 and p.start in (0, 8) for p in asked)
    places = [tuple(i for i, piece in enumerate(p.pieces) if piece == "e" and i >= p.start) for p in fuzz]
    right = [p.marks == where for p, where in zip(fuzz, places, strict=True)]
    wrong = [bool(where) and not set(where) & set(p.marks) for p, where in zip(fuzz, places, strict=True)]
    empty = [not where for where in places]
    assert (sum(right), sum(wrong), sum(empty)) == (64, 32, 32)
    assert all(len(p.marks) == len(where) for p, where, w in zip(fuzz, places, wrong, strict=True) if w)
    assert len({"".join(p.pieces) for p in fuzz}) == 128  # no window twice
    marks = [sum(len(p.marks) for p, chosen in zip(fuzz, side, strict=True) if chosen) for side in (right, empty)]
    assert abs(marks[0] / 64 - marks[1] / 32) < 0.5  # as many marks in wrong passages as in right ones


def test_explainer_and_judge_see_different_sequences(cache):
    """Planted: both halves for both; caught."""
    contexts = collect(DirectSAE(7), cache, torch.tensor([0]), seed=0)
    lines = [bytes(line[1:].tolist()).decode() for line in cache.tokens]
    texts = {half: set(lines[half::2]) for half in (0, 1)}
    for half, examples in enumerate((contexts.explained(0), contexts.judged(0))):
        for example in examples.positives + examples.negatives:
            text = "".join(example.pieces)
            assert any(text in line for line in texts[half])
            assert not any(text in line for line in texts[1 - half])
    assert [len(group) for group in contexts.explained(0)] == [128, 128]
    assert [len(group) for group in contexts.judged(0)] == [96, 64]


def test_windows_by_hand(tmp_path):
    """Two sequences "abcdefghi": windows abcd and efgh, i is in none. The latent fires on d and i. Planted: windows
    counted from the BOS; caught."""
    tokens = torch.tensor([[0, *b"abcdefghi"], [0, *b"ABCDEFGHI"]])
    rows = torch.zeros(18, 1)
    rows[[3, 8, 12, 17], 0] = torch.tensor([2.0, 3.0, 4.0, 5.0])
    contexts = collect(
        DirectSAE(1), write_cache(tmp_path / "c", tokens, rows), torch.tensor([0]), seed=0, size=4, lead=2
    )
    (first,) = contexts.explained(0).positives
    assert first == (list("abcd"), 0, [0, 0, 0, 2])
    assert (first.fires, first.silent, first.largest) == ((3,), (0, 1, 2), 2.0)
    assert contexts.explained(0).negatives == []  # efgh is shown with cd before it, and d fires
    assert contexts.firings.tolist() == [4]
    (second,) = contexts.judged(0).positives
    assert second == (list("ABCD"), 0, [0, 0, 0, 4])
    assert contexts.judged(0).negatives == []


def test_tokens_before_a_window_and_bytes(tmp_path):
    """The euro sign is three bytes, one piece each; what stands before a window is shown without codes."""
    tokens = torch.tensor([[0, *"ab€xyz".encode()]] * 2)
    rows = torch.zeros(16, 1)
    rows[[6, 14], 0] = 1.0
    cache = write_cache(tmp_path / "c", tokens, rows)
    contexts = collect(DirectSAE(1), cache, torch.tensor([0]), seed=0, size=4, lead=2)
    (found,) = contexts.judged(0).positives
    assert found == (["\\xe2", "\\x82", "\\xac", "x", "y", "z"], 2, [None, None, 0, 0, 1, 0])
    assert contexts.judged(0).negatives == [(["a", "b", "\\xe2", "\\x82"], 0, [0, 0, 0, 0])]


def test_errors(cache, tmp_path):
    with pytest.raises(ValueError, match="expected the SAE's width 3, got 7"):
        interpretation_scores(DirectSAE(3), cache, torch.tensor([0]), RuleExplainer(), RuleJudge(), seed=0)
    bare = write_cache(tmp_path / "bare", None, torch.ones(4, 7))
    with pytest.raises(ValueError, match="holds no tokens"):
        scored(bare, [0])
    with pytest.raises(ValueError, match="expected at least two sequences"):
        scored(write_cache(tmp_path / "one", torch.zeros(1, 5, dtype=torch.int64), torch.ones(4, 7)), [0])
    with pytest.raises(ValueError, match="least: expected at least 3, got 2"):
        scored(cache, [0], least=2)
    with pytest.raises(ValueError, match="lead: expected 0 to size = 4, got 8"):
        scored(cache, [0], size=4)
    for answer in (float("nan"), 1.5):
        with pytest.raises(ValueError, match="judge: expected 8 numbers from 0 to 1"):
            scored(cache, [0], Recorder(answer))
    with pytest.raises(ValueError, match="judge: expected 8 numbers"):
        scored(cache, [0], lambda explanation, passages: [True])
    with pytest.raises(TypeError, match="expected a Rule, got str"):
        RuleJudge()("the token is e", [])


def test_no_latent_can_be_scored(cache):
    found = scored(cache, [3, 6])
    assert found.latents.tolist() == []
    assert found.detection.shape == (0, 5)
    assert found.mean("detection").mean is None
    json.dumps(found.to_json(), allow_nan=False)


def test_only_the_first_rows(cache):
    found = scored(cache, [0], rows=94 * 200)
    assert found.rows == 94 * 200
    assert int(found.firings[0]) == int((cache.take(torch.arange(94 * 200))[:, 0] != 0).sum())


def test_comparison(cache):
    """Latents that fire on a letter against ones that fire at random: detection tells them apart; p̂ as given.
    Planted: Student's n + m − 2 degrees of freedom; caught."""
    meaning, noise = scored(cache, [0, 1, 5]), scored(cache, [2])
    found = compare_scores(meaning, noise, (torch.tensor([1.0, 0.9, 0.8, torch.nan]), torch.tensor([0.0, 0.2])))
    line = found.differences["detection"]
    assert line.first == 1.0
    assert line.difference == pytest.approx(1 - float(noise.detection[0, 0]))
    assert line.lower != line.lower  # one latent has no spread
    p = found.differences["probability"]
    want = ttest_ind([1.0, 0.9, 0.8], [0.0, 0.2], equal_var=False).confidence_interval()
    assert (p.lower, p.upper) == pytest.approx((want.low, want.high), rel=1e-5)
    assert (p.first, p.second) == (pytest.approx(0.9), pytest.approx(0.1))
    assert p.difference == pytest.approx(0.8)
    assert found.latents == {
        "detection": (3, 1),
        "fuzzing": (3, 1),
        "probability": (3, 2),
    }
    same = compare_scores(meaning, meaning).differences["fuzzing"]
    assert (same.difference, same.lower, same.upper, same.effect.value) == (0.0, 0.0, 0.0, 0.5)
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(ValueError, match="detection: expected latents in both, got 3 and 0"):
        compare_scores(meaning, scored(cache, [3]))


def test_wilson_by_hand():
    """Wilson's interval of 5 in 10 is 0.2366 to 0.7634; of 0 in 10 0 to 0.2775."""
    lower, upper = wilson(torch.tensor([5, 0, 0]), torch.tensor([10, 10, 0]))
    assert lower.tolist() == pytest.approx([0.23659, 0, 0], abs=1e-4)
    assert upper.tolist() == pytest.approx([0.76341, 0.27753, 1], abs=1e-4)


def test_interval_covers():
    """2000 scores of 64 + 64 windows at three pairs of rates: 95 % intervals hold the truth in 93.5 % or more (a
    simulation's standard error is 0.5 %). Planted: half of the interval's width; caught."""
    generator = torch.Generator().manual_seed(0)
    for p, q in ((0.5, 0.5), (0.9, 0.7), (0.98, 0.95)):
        hits = (torch.rand(2000, 2, 64, generator=generator) < torch.tensor([[p], [q]])).sum(-1).tolist()
        intervals = [balanced_interval(tuple(h), (64, 64)) for h in hits]
        covered = sum(low <= (p + q) / 2 <= high for _, low, high in intervals) / 2000
        assert covered > 0.935
