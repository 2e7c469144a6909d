"""Batches for the loop: read when needed on a CPU, one ahead and through pinned memory on a GPU."""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

Read = Callable[[int], Tensor]  # step -> rows [B, D] in the host's memory


def batches(read: Read, steps: range, like: Tensor) -> Generator[Tensor, None, None]:
    """The rows of each step, on the device and in the dtype of `like`."""
    if like.device.type != "cuda":
        for step in steps:
            yield read(step).to(like)
        return
    ahead = Ahead(read, steps, like.device)
    try:
        for step in steps:
            yield ahead.take(step).to(like.dtype)
    finally:
        ahead.close()


class Ahead:
    """Reads step s + 1 while the device computes step s, and copies it there on a stream of its own.

    One thread reads; the rows must not be read by another meanwhile.
    """

    def __init__(self, read: Read, steps: range, device: torch.device) -> None:
        self.read, self.steps, self.device = read, steps, device
        self.stream = torch.cuda.Stream(device)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="saekern-rows")
        self.waiting: Future[tuple[Tensor, torch.cuda.Event]] | None = None
        if len(steps):
            self.waiting = self.pool.submit(self._send, steps.start)

    def take(self, step: int) -> Tensor:
        """The rows of `step`, safe to use on the current stream; what reading raised is raised here."""
        assert self.waiting is not None
        rows, sent = self.waiting.result()
        self.waiting = self.pool.submit(self._send, step + 1) if step + 1 in self.steps else None
        now = torch.cuda.current_stream(self.device)
        now.wait_event(sent)
        rows.record_stream(now)  # so that its memory is not given to the next copy while this step still reads it
        return rows

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def _send(self, step: int) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(self.stream):
            # Pinned, or the copy would wait for the device; torch keeps the memory until the copy is done.
            rows = self.read(step).pin_memory().to(self.device, non_blocking=True)
            return rows, self.stream.record_event()
