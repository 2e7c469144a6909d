"""SAELens' SAEs with random weights, in pairs: one to accelerate, one to leave alone."""

import importlib

import pytest
import torch

D, F, K, B = 12, 40, 4, 24

sae_lens = pytest.importorskip("sae_lens")
saes = importlib.import_module("sae_lens.saes.sae")
trainers = importlib.import_module("sae_lens.training.sae_trainer")
configs = importlib.import_module("sae_lens.config")


def make(name, dtype="float64", d_in=D, d_sae=F, **options):
    """An SAE of class `name`. Decoder norms differ, so that rescaling by them shows; no two scores are equal."""
    options = {"k": K, **options} if "TopK" in name else options
    cfg = getattr(sae_lens, f"{name}Config")(d_in=d_in, d_sae=d_sae, dtype=dtype, **options)
    sae = getattr(sae_lens, name)(cfg)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter, scale, shift in (
            ("W_enc", d_in**-0.5, 0),
            ("W_dec", d_in**-0.5, 0),
            ("b_enc", 0.1, 0 if "TopK" in name else -0.7),
            ("b_dec", 0.3, 0),
        ):
            values = getattr(sae, parameter)
            values.copy_(scale * torch.randn(values.shape, generator=random, dtype=torch.float64) + shift)
        sae.W_dec.mul_(0.5 + torch.rand(d_sae, 1, generator=random, dtype=torch.float64))
        if hasattr(sae, "threshold"):
            sae.threshold.copy_(0.05 + 0.1 * torch.rand(d_sae, generator=random))
    return sae


def pair(name, **options):
    """Equal ones. Not by deepcopy: SAELens' closures go on writing to the object that they were made for."""
    return make(name, **options), make(name, **options)


def rows(*shape, seed=2, dtype=torch.float64):
    return torch.randn(*(shape or (B, D)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def train_input(sae, x, dead=None, coefficient=0.3):
    coefficients = dict.fromkeys(sae.get_coefficients(), coefficient)
    return saes.TrainStepInput(
        sae_in=x, coefficients=coefficients, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
    )


def trainer(sae, batch=B, **options):
    cfg = configs.SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=batch,
        lr=options.pop("lr", 3e-3),
        lr_end=3e-3,
        dead_feature_window=options.pop("dead_feature_window", 20),
        feature_sampling_window=10**6,
        **options,
    )
    return trainers.SAETrainer(cfg, sae, iter([]))
