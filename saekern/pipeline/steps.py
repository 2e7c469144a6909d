"""Steps with memory: each runs when its settings, its inputs or its outputs are not those of the last time.

`study.json` holds one record a step: the settings it ran with, the fingerprints of the steps it read, and size, time
and SHA-256 of every file it left. A step works in `.partial/<step>/`, its own key beside it. Finishing takes three
writes, each atomic, so that a kill between any two is repaired on the next start: record with state "moving", renames
into place, record with state "done".
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from saekern.version import __version__

log = logging.getLogger(__name__)
FORMAT, VERSION = "saekern-study", 1


@dataclass(frozen=True)
class Step:
    """One unit of work that is done or not done."""

    name: str
    """Unique; "train/003" belongs to the stage "train"."""
    settings: dict[str, Any]
    """The part of the config that its results depend on."""
    reads: tuple[str, ...]
    """Steps whose outputs it reads."""
    outputs: tuple[str, ...]
    """Files and folders that it leaves, relative to the study's folder."""
    run: Callable[[Path], None]
    """Gets its work folder. What it writes there under an output's last name is moved into place; an output may also be
    written in place by something that is itself atomic and resumable."""
    external: str | None = None
    """Fingerprint of something outside the folder that it reads."""

    @property
    def stage(self) -> str:
        return self.name.split("/")[0]


class StudyFolder:
    """The folder of a study: its records, and what runs under them."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.file = self.path / "study.json"
        self.config: dict[str, Any] = {}
        self.records: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            self._read()

    def _read(self) -> None:
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r}")
            version, self.config, self.records = content["version"], content["config"], content["steps"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.file}: not a readable study record ({error}); move it away to start anew"
            ) from error
        if version > VERSION:
            raise ValueError(f"{self.file}: version {version}; this saekern reads up to {VERSION}")

    def save(self) -> None:
        content = {"format": FORMAT, "version": VERSION, "config": self.config, "steps": self.records}
        write_json(self.file, content)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse a second process in the same folder. The lock goes with the process, however it ends."""
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path}: another process is running a study in this folder") from None
            yield

    def fingerprint(self, name: str) -> str | None:
        """Hash of all that a finished step left; None before it has finished."""
        record = self.records.get(name)
        if record is None or record["state"] != "done":
            return None
        return _digest({path: entry["sha256"] for path, entry in record["outputs"].items()})

    def due(self, step: Step) -> str | None:
        """Why the step must run, or None: it is complete and its inputs are unchanged.

        Raises:
            ValueError: an output that was complete is cut short or altered. It is left for a person to look at.
        """
        record = self.records.get(step.name)
        if record is None:
            return "interrupted, will resume" if self._resumable(step) else "not run yet"
        if record["settings"] != step.settings:
            return "changed: " + ", ".join(_differences(record["settings"], step.settings))
        if record["external"] != step.external:
            return "its source changed"
        changed = [name for name in step.reads if record["inputs"].get(name) != self.fingerprint(name)]
        if changed or set(record["inputs"]) != set(step.reads):
            return f"{', '.join(changed) or 'the list of its inputs'} changed"
        if record["state"] != "done":
            return "interrupted while finishing"
        return self._check(record)

    def _check(self, record: dict[str, Any]) -> str | None:
        for relative, entry in record["outputs"].items():
            path = self.path / relative
            if not path.exists():
                return f"{relative} is missing"
            status = path.stat()
            if status.st_size != entry["size"]:
                problem = f"{status.st_size} bytes, {entry['size']} when it was written: cut short or altered"
            elif status.st_mtime_ns != entry["mtime_ns"] and sha256(path) != entry["sha256"]:
                problem = "not the content that was written: altered"
            else:
                continue
            raise ValueError(f"{path}: {problem}; delete it to have it made again")
        return None

    def run(self, step: Step) -> None:
        """Run the step, resuming what an interrupted run with the same settings and inputs left.

        Raises:
            OSError: the disk is full or a file cannot be written; what earlier steps left is intact.
        """
        work, key = self._work(step), self.key(step)
        if not self._resumable(step):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            write_json(work / ".key", key)
        started = time.time()
        with plain_errors(step.name, self.path):
            step.run(work)
            files: dict[str, Any] = {}
            for output in step.outputs:
                source = work / Path(output).name
                files |= _outputs(source if source.exists() else self.path / output, output)
            self.records[step.name] = {
                "state": "moving",
                "settings": step.settings,
                "external": step.external,
                "inputs": {name: self.fingerprint(name) for name in step.reads},
                "outputs": files,
                "moves": [output for output in step.outputs if (work / Path(output).name).exists()],
                "seconds": round(time.time() - started, 2),
                "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                "saekern": __version__,
            }
            self.save()
            self._move(step.name)

    def repair(self) -> None:
        """Finish the moves that a kill interrupted."""
        for name, record in self.records.items():
            if record["state"] == "moving":
                self._move(name)

    def forget(self, keep: set[str]) -> None:
        """Drop the records of steps that the study no longer has. Their files stay."""
        self.records = {name: record for name, record in self.records.items() if name in keep}

    def _move(self, name: str) -> None:
        record = self.records[name]
        work = self.path / ".partial" / name.replace("/", "-")
        for output in record["moves"]:
            source, target = work / Path(output).name, self.path / output
            if not source.exists():  # moved before the kill
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(source, target)
        record["state"] = "done"
        self.save()
        shutil.rmtree(work, ignore_errors=True)

    def key(self, step: Step) -> dict[str, Any]:
        inputs = {name: self.fingerprint(name) for name in step.reads}
        return {"settings": step.settings, "external": step.external, "inputs": inputs}

    def _work(self, step: Step) -> Path:
        return self.path / ".partial" / step.name.replace("/", "-")

    def _resumable(self, step: Step) -> bool:
        try:
            return json.loads((self._work(step) / ".key").read_text(encoding="utf-8")) == self.key(step)
        except (OSError, ValueError):
            return False


@contextmanager
def plain_errors(step: str, folder: Path) -> Iterator[None]:
    """Say which step ran out of space or met a damaged file, and that the rest is intact."""
    rest = "finished stages are intact, the same command continues"
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{step}: {error}; {rest}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC, f"{step}: no space left on the disk of {error.filename or folder}; {rest}"
            ) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all, and on the disk before it takes the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _outputs(path: Path, relative: str) -> dict[str, dict[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: a step ended without leaving it")
    members = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    entries = {}
    for member in members:
        name = relative if member == path else f"{relative}/{member.relative_to(path).as_posix()}"
        status = member.stat()
        entries[name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256(member)}
    return entries


def sha256(path: Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    return [] if old == new else [f"{name} {json.dumps(old)} → {json.dumps(new)}"]
