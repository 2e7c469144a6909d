"""One small ArchetypalSAE with rows."""

import torch

import saekern

D, LATENTS, K, POINTS = 13, 47, 5, 20


def points(count=POINTS, dtype=torch.float64):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(11), dtype=torch.float64).to(dtype)


def example(dtype=torch.float64, **kwargs):
    kwargs = {"relaxation": 0.1, "init_seed": 1, "points": points()} | kwargs
    sae = saekern.ArchetypalSAE(D, LATENTS, base_args={"k": K, "k_aux": 4}, dtype=dtype, **kwargs)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name not in ("W", "Lambda"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        if sae.Lambda is not None:
            sae.Lambda.normal_(generator=generator).mul_(0.01)
    return sae, torch.randn(29, D, generator=generator, dtype=torch.float64).to(dtype)


def dead_latents():
    return torch.arange(LATENTS) % 3 == 0
