"""K that falls while training goes on."""

import torch
from torch import Tensor, nn


class Annealing(nn.Module):
    """Linearly from `start` to `end` active latents over the first `steps` losses of training.

    It counts by itself, in a buffer that is saved with the SAE, so that the training loop need not know of it: once for
    each loss in training mode with gradients enabled. Reading the count makes the host wait for the device.
    """

    count: Tensor

    def __init__(self, start: int, end: int, steps: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.start, self.end, self.steps = start, end, steps
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))

    def k(self, training: bool) -> int:
        """Of this loss; after training, or when only looking, `end`."""
        if not training or not torch.is_grad_enabled():
            return self.end
        done = int(self.count)
        self.count += 1
        return self.end + max(0, self.steps - done) * (self.start - self.end) // self.steps
