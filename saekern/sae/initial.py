"""What constructors share: their checks, and the parameters that a seed gives."""

import torch
from torch import Tensor


def check_sizes(d_in: int, d_sae: int) -> None:
    for name, size in (("d_in", d_in), ("d_sae", d_sae)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


def aux_count(k_aux: int | None, d_in: int, d_sae: int) -> int:
    """Dead latents a row in an auxiliary loss; None: the power of two at or below D/2 (Gao et al. 2024), at most F."""
    if k_aux is None:
        return min(d_sae, 1 << max(0, (d_in // 2).bit_length() - 1))
    if not 0 <= k_aux <= d_sae:
        raise ValueError(f"k_aux: expected 0 <= k_aux <= d_sae = {d_sae}, got {k_aux}")
    return k_aux


def seed_or_new(init_seed: int | None) -> int:
    return int(torch.randint(2**62, ())) if init_seed is None else init_seed


def unit_directions(count: int, width: int, seed: int, device: torch.device | str | None) -> Tensor:
    """Uniform random unit rows [count, width], float32, from a generator of their own on the CPU."""
    if torch.device(device or torch.get_default_device()).type == "meta":
        return torch.empty(count, width, device="meta")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator, dtype=torch.float32, device="cpu")
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.to(device or torch.get_default_device())
