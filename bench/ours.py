"""Our own TopK SAE in the form in which every SAE is timed."""

import torch
from torch import Tensor

import saekern
from saekern.bench.plain import LR, Adapter, fill
from saekern.bench.problems import SAEProblem
from saekern.training.optimizer import Adam


def saekern_topk(problem: SAEProblem) -> Adapter:
    latents, width = problem.w_enc.shape
    sae = saekern.TopKSAE(width, latents, problem.k, init_seed=0, device=problem.x.device)
    fill(sae.W_enc, problem.w_enc.T)
    fill(sae.b_enc, problem.b_enc)
    fill(sae.W_dec, problem.w_dec)
    fill(sae.b_dec, problem.b_dec)
    adam = Adam(sae, (0.9, 0.999), 1e-8)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        loss = sae.loss(x)
        return loss.total, loss.x_hat

    def step(x: Tensor) -> Tensor:
        """As `saekern.train` does it."""
        adam.zero_grad()
        with adam.half_weights(torch.is_autocast_enabled(x.device.type)):
            loss = sae.loss(x).total
            loss.backward()
        adam.step(LR)
        return loss.detach()

    scale = 1 / problem.total_variance()
    return Adapter(
        forward,
        step,
        list(sae.parameters()),
        sae.W_enc,
        sae.W_dec,
        scale,
        problem.x,
        encoder_transposed=True,
        step_keeps=1,  # the moments exist already
    )
