"""The accumulation type: float32 for every storage type but float64."""

import torch


def accumulation(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
