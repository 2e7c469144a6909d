"""The bookkeeping of a study: what runs again, what does not, and what a kill leaves."""

import json
import os
from pathlib import Path

import pytest

from saekern.pipeline.steps import Step, StudyFolder


class Work:
    """Two steps, `one` → `two`, that count their runs."""

    def __init__(self, root: Path, **settings):
        self.root, self.ran, self.settings = root, [], {"a": 1, "b": 1, **settings}

    def steps(self) -> list[Step]:
        return [
            Step("one", {"a": self.settings["a"]}, (), ("data/one",), self.one),
            Step("two", {"b": self.settings["b"]}, ("one",), ("two.txt",), self.two),
        ]

    def one(self, work: Path) -> None:
        self.ran.append("one")
        (work / "one").mkdir(exist_ok=True)
        (work / "one" / "x.txt").write_text(f"content {min(self.settings['a'], 2)}")

    def two(self, work: Path) -> None:
        self.ran.append("two")
        (work / "two.txt").write_text((self.root / "data/one/x.txt").read_text() * self.settings["b"])

    def go(self) -> list[str]:
        folder = StudyFolder(self.root)
        folder.repair()
        self.ran = []
        for step in self.steps():
            if folder.due(step):
                folder.run(step)
        return self.ran


def test_second_run_does_nothing(tmp_path):
    assert Work(tmp_path).go() == ["one", "two"]
    assert Work(tmp_path).go() == []


def test_only_what_depends_on_a_change_runs(tmp_path):
    """Planted: settings not compared; caught."""
    Work(tmp_path).go()
    assert Work(tmp_path, b=2).go() == ["two"]
    assert Work(tmp_path, b=2, a=2).go() == ["one", "two"]


def test_a_rerun_with_equal_bytes_stops_the_chain(tmp_path):
    """Step one runs for its new setting, leaves the same bytes, and so step two is still valid."""
    Work(tmp_path, a=2).go()
    assert Work(tmp_path, a=3).go() == ["one"]


def test_missing_output_is_made_again(tmp_path):
    Work(tmp_path).go()
    (tmp_path / "data/one/x.txt").unlink()
    assert Work(tmp_path).go() == ["one"]


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_damaged_output_is_named_and_left(tmp_path, damage):
    """Planted: compared names only; caught."""
    Work(tmp_path).go()
    path = tmp_path / "data/one/x.txt"
    path.write_text("content" if damage == "cut" else "CONTENT 1")
    with pytest.raises(ValueError, match=r"data/one/x\.txt: .*delete it to have it made again"):
        Work(tmp_path).go()
    assert path.exists()


def test_touched_but_equal_output_is_kept(tmp_path):
    Work(tmp_path).go()
    os.utime(tmp_path / "data/one/x.txt", (1, 1))
    assert Work(tmp_path).go() == []


def test_reason_names_the_setting(tmp_path):
    Work(tmp_path).go()
    folder, step = StudyFolder(tmp_path), Work(tmp_path, a=5).steps()[0]
    assert folder.due(step) == "changed: a 1 → 5"


def test_every_kill_is_survived(tmp_path, monkeypatch):
    """A kill before every single rename and every record: the next run ends like an undisturbed one.

    Planted: the record "done" written before the moves; caught."""
    replace = os.replace
    for kill_at in range(40):
        root = tmp_path / str(kill_at)
        calls = 0

        def dying(source, target, limit=kill_at):
            nonlocal calls
            calls += 1
            if calls > limit:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        try:
            Work(root).go()
        except KeyboardInterrupt:
            pass
        else:
            break  # no kill came: every place has been tried
        finally:
            monkeypatch.setattr(os, "replace", replace)
        Work(root).go()
        assert (root / "two.txt").read_text() == "content 1"
        assert Work(root).go() == []
        assert not list((root / ".partial").iterdir())
    assert kill_at >= 8


def test_interrupted_step_resumes_with_its_partial_work(tmp_path):
    seen = []

    def run(work: Path) -> None:
        seen.append(sorted(p.name for p in work.iterdir() if p.name[0] != "."))
        (work / "part").write_text("half")
        if len(seen) == 1:
            raise KeyboardInterrupt
        (work / "whole").write_text("all")

    folder = StudyFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        folder.run(Step("s", {"a": 1}, (), ("whole",), run))
    assert folder.due(Step("s", {"a": 1}, (), ("whole",), run)) == "interrupted, will resume"
    StudyFolder(tmp_path).run(Step("s", {"a": 1}, (), ("whole",), run))
    assert seen == [[], ["part"]]


def test_partial_work_of_other_settings_is_dropped(tmp_path):
    seen = []

    def run(work: Path) -> None:
        seen.append((work / "part").exists())
        (work / "part").write_text("half")
        raise KeyboardInterrupt

    for a in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            StudyFolder(tmp_path).run(Step("s", {"a": a}, (), ("part",), run))
    assert seen == [False, False]


def test_full_disk_is_one_clear_line(tmp_path):
    Work(tmp_path).go()

    def run(work: Path) -> None:
        raise OSError(28, "No space left on device", str(work / "big"))

    with pytest.raises(OSError, match=r"two: no space left on the disk of .*big; finished stages are intact"):
        StudyFolder(tmp_path).run(Step("two", {"b": 2}, ("one",), ("two.txt",), run))
    assert (tmp_path / "two.txt").read_text() == "content 1"
    assert Work(tmp_path).go() == []


def test_full_disk_while_writing_the_record(tmp_path):
    """/dev/full refuses every byte, as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    Work(tmp_path).go()
    (tmp_path / ".study.json.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="no space left"):
        Work(tmp_path, b=3).go()
    (tmp_path / ".study.json.new").unlink()
    assert Work(tmp_path).go() == []


def test_two_processes_are_refused(tmp_path):
    with (
        StudyFolder(tmp_path).locked(),
        pytest.raises(ValueError, match="another process"),
        StudyFolder(tmp_path).locked(),
    ):
        pass


def test_damaged_record_is_named(tmp_path):
    Work(tmp_path).go()
    text = (tmp_path / "study.json").read_text()
    (tmp_path / "study.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"study\.json: not a readable study record"):
        StudyFolder(tmp_path)


def test_newer_record_is_refused(tmp_path):
    Work(tmp_path).go()
    content = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        StudyFolder(tmp_path)


def test_a_step_must_leave_what_it_promised(tmp_path):
    with pytest.raises(FileNotFoundError, match="without leaving it"):
        StudyFolder(tmp_path).run(Step("s", {}, (), ("nothing",), lambda work: None))
