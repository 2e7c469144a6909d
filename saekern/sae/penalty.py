"""What sparsity penalties share."""

import torch
from torch import Tensor, nn


class Warmup(nn.Module):
    """Multiplies a penalty by a factor that rises linearly from 1/steps to 1 over the first `steps` losses of training.

    It counts by itself, in a buffer that is saved with the SAE, so that the training loop need not know of it: once for
    each loss in training mode with gradients enabled.
    """

    count: Tensor

    def __init__(self, steps: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        if steps < 0:
            raise ValueError(f"warmup_steps: expected at least 0, got {steps}")
        self.steps = steps
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, penalty: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.count += 1
            done = self.count
        else:
            done = self.count + 1  # of the step that would come
        return penalty * (done.to(penalty.dtype) / max(1, self.steps)).clamp(max=1)


def check_coefficient(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name}: expected at least 0, got {value}")
