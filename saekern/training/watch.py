"""What the loop must learn from the numbers themselves: whether latents are dead, and whether losses are finite.

A CPU has the answer at once, and is asked every step. A GPU works behind the host; asking waits until it has caught up,
which costs more than the step. So it is asked rarely, by a rule that depends on the step alone (resume stays exact).
"""

from typing import Any

import torch
from torch import Tensor

EVERY = 16  # steps between questions for dead latents on a GPU, at least


class Watch:
    def __init__(self, device: torch.device) -> None:
        self.patient = device.type != "cpu"
        self.ask_at = 0  # the step before which dead latents are next asked for
        self.some_dead = False  # what the answer was
        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)  # the first step whose loss is not finite

    def dead(self, dead: Tensor, last_fired: Tensor, step: int, batch_size: int, dead_rows: int) -> Tensor | None:
        """`dead` [F] if any latent is (on a GPU: if any was when last asked), else None.

        Where none is, the latent that has been silent longest says before which step none can be; it is asked then,
        but not within EVERY steps: there a latent may count as dead up to EVERY − 1 steps late. Where some are, the
        loss of a mask that has become empty meanwhile is 0."""
        if not self.patient:
            return dead if dead.any() else None
        if step >= self.ask_at:
            oldest = int(last_fired.min())
            self.some_dead = step * batch_size - oldest >= dead_rows
            first_possible = -(-(oldest + dead_rows) // batch_size)
            self.ask_at = step + EVERY if self.some_dead else max(step + EVERY, first_possible)
        return dead if self.some_dead else None

    def loss(self, total: Tensor, step: int) -> bool:
        """Whether the loss of `step` is finite, as far as is known at once; a GPU's answer comes from `bad_step`."""
        if not self.patient:
            return bool(torch.isfinite(total))
        new = (self.first_bad == 0) & ~torch.isfinite(total.detach())
        self.first_bad = torch.where(new, step, self.first_bad)
        return True

    def bad_step(self) -> int:
        """The first step whose loss was not finite, or 0. To be asked before anything is written. Waits for a GPU."""
        return int(self.first_bad) if self.patient else 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint; empty on a CPU, which has nothing to remember."""
        return {"ask_at": self.ask_at, "some_dead": self.some_dead} if self.patient else {}

    def load(self, state: dict[str, Any]) -> None:
        self.ask_at, self.some_dead = state.get("ask_at", 0), state.get("some_dead", False)
