"""SAEs of SAELens with weights that training could have left, and its formulas in float64: what ours are held to."""

import sae_lens
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from same_function import Scores, kth


def rows(d, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, d, generator=generator) * 2 + torch.randn(d, generator=generator)


def fill(sae, seed=1, decoder_norms=None):
    """Weights that training could have left: nothing is zero, nothing has norm 1 by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(
                noise.abs() * 0.7 if name == "threshold" else noise * (0.3 if name.startswith("W") else 0.1)
            )
        if decoder_norms is not None:
            sae.W_dec.mul_(decoder_norms / sae.W_dec.norm(dim=1, keepdim=True))
    return sae


def scores(sae, x):
    """In float64, from SAELens' formulas."""
    cfg, x = sae.cfg, x.double()
    d, f = cfg.d_in, cfg.d_sae
    if cfg.normalize_activations == "layer_norm":
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.std(-1, keepdim=True) + 1e-5)
    if cfg.normalize_activations == "constant_norm_rescale":
        x = x * d**0.5 / x.norm(dim=-1, keepdim=True)
    given = {name: parameter.detach().double() for name, parameter in sae.named_parameters()}
    shift = given["b_dec"] if cfg.apply_b_dec_to_input else torch.zeros(d).double()
    bias = given["b_gate"] if "b_gate" in given else given["b_enc"]
    norms = (
        given["W_dec"].norm(dim=1) if getattr(cfg, "rescale_acts_by_decoder_norm", False) else torch.ones(f).double()
    )
    score = ((x - shift) @ given["W_enc"] + bias) * norms
    magnitude = ((x.abs() + 2 * shift.abs()) @ given["W_enc"].abs() + bias.abs()) * norms
    gain, cut = 1.0, torch.zeros(1, 1).double()
    if "threshold" in given:
        cut = given["threshold"][None]
    elif hasattr(sae, "topk_threshold"):
        cut = sae.topk_threshold.double()[None, None]
    elif hasattr(cfg, "k"):
        cut = kth(score, cfg.k)
    if "r_mag" in given:  # the other half of the encoder has a bias of its own
        gain = given["r_mag"].exp() + 1
    return Scores(score, cut, magnitude, d + 8, gain)


def decoding(sae, x):
    """The decoder and bias of the codes, and what multiplies their sum."""
    cfg, decoder, scale = sae.cfg, sae.W_dec.detach(), torch.ones(1, 1).double()
    if getattr(cfg, "rescale_acts_by_decoder_norm", False):
        decoder = decoder / decoder.norm(dim=1, keepdim=True)
    if cfg.normalize_activations == "layer_norm":
        scale = x.double().std(-1, keepdim=True)
    if cfg.normalize_activations == "constant_norm_rescale":
        scale = x.double().norm(dim=-1, keepdim=True) / cfg.d_in**0.5
    return decoder, sae.b_dec.detach(), scale


def made(sizes, architecture, **options):
    d, f, k, _ = sizes
    cls, config = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig),
    }[architecture]
    if architecture == "topk":
        options = {"k": k, **options}
    metadata = SAEMetadata(model_name="gpt2", hook_name="blocks.3.hook_resid_pre", note=["mine", 1.5])
    return cls(config(d_in=d, d_sae=f, metadata=metadata, **options))


def trained(sizes, architecture, steps=30, **options):
    """After some of SAELens' own training steps."""
    d, f, k, count = sizes
    cls, config = {
        "standard": (sae_lens.StandardTrainingSAE, sae_lens.StandardTrainingSAEConfig),
        "topk": (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig),
        "gated": (sae_lens.GatedTrainingSAE, sae_lens.GatedTrainingSAEConfig),
        "jumprelu": (sae_lens.JumpReLUTrainingSAE, sae_lens.JumpReLUTrainingSAEConfig),
        "batchtopk": (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig),
        "matryoshka": (sae_lens.MatryoshkaBatchTopKTrainingSAE, sae_lens.MatryoshkaBatchTopKTrainingSAEConfig),
    }[architecture]
    if architecture in ("topk", "batchtopk", "matryoshka"):
        options = {"k": k, **options}
    if architecture == "matryoshka":
        options["matryoshka_widths"] = [f // 4, f // 2, f]
    torch.manual_seed(0)
    sae = cls(config(d_in=d, d_sae=f, **options))

    def data():
        seed = 10
        while True:
            yield rows(d, count, seed)
            seed += 1

    settings = SAETrainerConfig(
        total_training_samples=count * steps,
        train_batch_size_samples=count,
        lr=1e-3,
        lr_end=1e-3,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=3,
    )
    trainer = SAETrainer(settings, sae, data())
    return sae, trainer
