"""All pairs of a finished study, by assignment."""

import json
import shutil

import pytest
import torch
from command_line import run

from saekern.matching import PairStore, match
from saekern.pipeline import match_study, study
from saekern.pipeline.measure import dead_masks
from saekern.pipeline.sources import Sources


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "study")
    return tmp_path / "study"


def test_every_pair_is_matched_and_the_study_unchanged(capsys, small_config, copied):
    """The first two seeds as the study itself matched them; its records still hold.

    Planted: written into pairs/; caught."""
    code, out, _ = run(capsys, "match", copied, "--all", "--picture", copied / "p.png")
    assert code == 0
    assert f"pairs: {copied / 'pairs-assignment'}" in out
    assert "3 pairs of 3 dictionaries (64 latents), assignment" in out
    store = PairStore.open(copied / "pairs-assignment")
    few = PairStore.open(copied / "pairs" / "assignment")
    assert (len(store), len(few)) == (3, 1)
    assert store.keys[:2] == few.keys
    for name in ("index", "cosine"):
        assert torch.equal(getattr(store[0, 1], name).nan_to_num(7), getattr(few[0, 1], name).nan_to_num(7))
    sources = Sources(small_config(), copied)
    dead = dead_masks(sources)
    assert sum(int(mask.sum()) for mask in dead) > 0
    want = match(sources.dictionaries[2], sources.dictionaries[1], dead=(dead[2], dead[1]))
    assert torch.equal(store[2, 1].index, want.index)
    assert store.seeds == [0, 1, 2]
    assert f"set aside, dead or without direction: {sum(int(mask.sum()) for mask in dead)} of 192 latents" in out
    assert study(small_config(), copied, progress=False).ran == ()


def test_continues(copied, tmp_path, monkeypatch):
    from saekern.matching import all_pairs

    done = []
    inner = all_pairs.match_both
    monkeypatch.setattr(all_pairs, "match_both", lambda *given: (done.append(1), inner(*given))[1])
    match_study(copied, progress=False)
    (copied / "pairs-assignment" / "001-002.safetensors").unlink()
    match_study(copied, progress=False)
    assert len(done) == 3 + 1
    match_study(copied, "nearest", tmp_path / "else", progress=False)
    assert PairStore.open(tmp_path / "else").method == "nearest"


def test_errors(copied, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"study\.json does not exist: expected the folder of a study"):
        match_study(tmp_path)
    record = json.loads((copied / "study.json").read_text())
    del record["steps"]["evaluate/002"]
    (copied / "study.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"evaluate/002 is not complete; `saekern study` completes it"):
        match_study(copied)
