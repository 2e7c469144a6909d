"""Run by test_resume.py: trains in forked children, kills them, and prints how many were killed and where.

One process imports torch and forks; a start then costs milliseconds. The parent runs no torch code before a fork, so
that the children inherit no threads.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import saekern
from saekern.sae import files
from saekern.training.checkpoint import Folder

CONFIG = saekern.TrainConfig(
    rows=120 * 16,
    batch_size=16,
    lr=3e-3,
    dead_after=64,
    log_every=2,
    checkpoint_every=3,
    snapshots=(0, 7, 50),
    pre_bias_rows=32,
    data_seed=5,
)


class Rows:
    width = 8

    def __init__(self):
        self.tensor = torch.randn(100, 8, generator=torch.Generator().manual_seed(1)) ** 3

    def __len__(self):
        return 100

    def take(self, indices):
        return self.tensor[indices]


class NoisySAE(saekern.TopKSAE):
    """Draws random numbers in its loss, which a resumed run has to draw again."""

    def loss(self, x, dead=None):
        return super().loss(x + 0.05 * torch.randn_like(x), dead)


def train(folder):
    torch.set_num_threads(1)
    saekern.train(NoisySAE(8, 32, 4, init_seed=2), Rows(), CONFIG, out=folder, progress=False)


class Executioner:
    """Ends the process at the n-th of the moments it is told about."""

    def __init__(self, moment, report):
        self.left, self.report = moment, report

    def pass_by(self, where):
        self.left -= 1
        if self.left == 0:
            os.write(self.report, where.encode())
            os.kill(os.getpid(), signal.SIGKILL)


def arm(executioner):
    """Moments: before and after each rename, in the middle of a file, in the middle of a log line, in a step."""
    if executioner is None:
        return
    replace, stream, take, write_line = os.replace, files.stream_tensors, Rows.take, Folder.write_line

    def armed_replace(source, target):
        executioner.pass_by(f"before rename of {Path(target).name}")
        replace(source, target)
        executioner.pass_by(f"after rename of {Path(target).name}")

    def armed_stream(path, tensors, metadata):
        stream(path, tensors, metadata)
        size = os.path.getsize(path)
        whole = Path(path).read_bytes()
        os.truncate(path, size // 2)
        executioner.pass_by("inside a file")
        Path(path).write_bytes(whole)

    def armed_take(self, indices):
        executioner.pass_by("in a step")
        return take(self, indices)

    def armed_write_line(self, line):
        text = json.dumps(line).encode()
        self.log.write(text[: len(text) // 2])
        self.log.flush()
        executioner.pass_by("inside a line")
        self.log.truncate(self.log.tell() - len(text) // 2)
        write_line(self, line)

    os.replace, files.stream_tensors, Rows.take, Folder.write_line = (
        armed_replace,
        armed_stream,
        armed_take,
        armed_write_line,
    )


def child(body):
    """Runs `body` in a forked process, which exits 0 when it returns and 1 when it raises."""
    pid = os.fork()
    if pid:
        return pid
    try:
        body()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def finish(pid):
    """The signal that ended a child, or 0."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        sys.exit(f"a child failed with status {os.WEXITSTATUS(status)}")
    return 0


def main(folder, seed, kills):
    draw = random.Random(seed)
    finish(child(lambda: train(folder / "whole")))
    killed, places, run = 0, [], 0
    while killed < kills or (folder / f"killed{run}").exists():
        target = folder / f"killed{run}"
        inner = draw.random() < 0.75
        reader, report = os.pipe()

        executioner = Executioner(draw.randint(1, 40), report) if inner else None
        pid = child(lambda executioner=executioner, target=target: (arm(executioner), train(target)))
        os.close(report)
        if not inner:
            time.sleep(draw.uniform(0, 0.15))
            os.kill(pid, signal.SIGKILL)
        ended = finish(pid)
        where = os.read(reader, 100).decode()
        os.close(reader)
        if ended:
            killed += 1
            places.append(where or "from outside")
        elif inner:
            run += 1  # this run reached its end; the next kills hit a new one
    print(json.dumps({"killed": killed, "places": places, "runs": run}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
