"""A language model of two matrices with the interface of a TransformerLens model: no import of ten seconds."""

from types import SimpleNamespace

import torch
from torch import nn

from saekern.activations.language_model import TINY_NAME

WIDTH, HOOK, BEFORE = 24, "blocks.0.hook_resid_post", "blocks.0.hook_resid_pre"


class StandIn(nn.Module):
    """Tokens are bytes. HOOK sees the embedding of a token plus half that of the one before, BEFORE the first alone."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Parameter(torch.randn(256, WIDTH, generator=generator))
        self.cfg = SimpleNamespace(model_name=TINY_NAME, device="cpu", d_model=WIDTH, n_layers=1, d_vocab=256)
        self.hook_dict = {HOOK: None, BEFORE: None}
        self.tokenizer = None

    def run_with_hooks(self, tokens, return_type="logits", fwd_hooks=(), **_):
        x = self._hooked(BEFORE, self.embed[tokens], fwd_hooks)
        x = self._hooked(HOOK, x + 0.5 * torch.roll(x, 1, dims=1), fwd_hooks)
        logits = x @ self.embed.T
        if return_type != "loss":
            return logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    def _hooked(self, point, x, fwd_hooks):
        for name, function in fwd_hooks:
            if name == point:
                changed = function(x, hook=SimpleNamespace(name=point))
                x = x if changed is None else changed
        return x

    def forward(self, tokens, return_type="logits", **_):
        return self.run_with_hooks(tokens, return_type)


def small_config(**changes):
    """Three seeds of 64 latents: a whole study in about a second."""
    from saekern.pipeline.config import (
        ActivationsConfig,
        EvaluationConfig,
        ReportConfig,
        SAEConfig,
        StabilityConfig,
        StudyConfig,
    )
    from saekern.training import TrainConfig

    settings = {
        "seeds": 3,
        "activations": ActivationsConfig(hook=HOOK, context=32, sequences=64, heldout_sequences=16, batch=16),
        "sae": SAEConfig(d_sae=64, k=4),
        "train": TrainConfig(rows=4096, batch_size=256, lr=3e-3, checkpoint_every=4, log_every=8),
        "evaluation": EvaluationConfig(rows=400, ce_sequences=4),
        "stability": StabilityConfig(assignment_seeds=2, min_firings=12),
        "report": ReportConfig(latents=3, contexts=2),
    }
    return StudyConfig(**settings | changes)


def trained_config(**changes):
    """Four seeds trained for long enough that a third of the latents is stable and a third is not: three seconds."""
    from saekern.pipeline.config import StabilityConfig
    from saekern.training import TrainConfig

    settings = {
        "seeds": 4,
        "train": TrainConfig(rows=40_960, batch_size=128, lr=3e-3, checkpoint_every=1000, log_every=100),
        "stability": StabilityConfig(assignment_seeds=2, null_seeds=2),
    }
    return small_config(**settings | changes)
