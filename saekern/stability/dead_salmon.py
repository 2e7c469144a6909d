"""The dead salmon: a language model that has learnt nothing, for SAEs that should find nothing."""

import copy
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch


@torch.no_grad()
def random_model(model: Any, seed: int, *, keep: Sequence[str] = ()) -> Any:
    """A copy of `model` whose parameters are Gaussian with the mean and standard deviation of the trained ones, each
    tensor its own; harvest from it and train SAEs as on the real model.

    The scales stay those of the trained model, unlike those of a fresh initialisation, so that the activations have
    similar norms. Constant tensors (biases of zero, norms of one) stay as they are. What is learnt goes, but tokens
    still differ: their random embeddings are reproducible structure, and an SAE may find one latent a token. With
    `keep` the embeddings can stay trained. Buffers are kept; tied parameters stay tied.

    Args:
        model: a torch module, TransformerLens model, or `HookedModule`; it is not changed.
        seed: the copy depends on it and on the parameters' names alone.
        keep: patterns of parameter names that are not redrawn ("*embed*").

    Raises:
        ValueError: a pattern in `keep` that matches no parameter, or nothing left to redraw.

    Source: Gerasimov et al. 2026 compare with randomly initialised transformers (their Fig. 23; the scheme is not known
    to us); matching moments tensor by tensor is ours.
    """
    made = copy.deepcopy(model)
    named = dict(sorted(made.named_parameters()))
    for pattern in keep:
        if not any(fnmatch(name, pattern) for name in named):
            raise ValueError(f"keep: expected patterns of parameter names, got {pattern!r}, which matches none")
    redrawn = [n for n, p in named.items() if p.is_floating_point() and not any(fnmatch(n, k) for k in keep)]
    if not redrawn:
        raise ValueError("keep: expected some parameters to redraw, got none")
    generator = torch.Generator().manual_seed(seed)
    for name in redrawn:
        trained = named[name].float()
        spread = float(trained.std(correction=0))
        drawn = float(trained.mean()) + spread * torch.randn(trained.shape, generator=generator)
        if spread > 0:
            named[name].copy_(drawn)
    return made
