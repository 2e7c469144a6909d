"""Other libraries' TopK SAEs with our weights, run by their own code: forward, loss, backward, training step.

One function a library. Each favours its library where there is a choice (documented at the choice) and
states `scale`, with which the library's loss is scale · Σ (x − x̂)²; so that loss, reconstruction and gradients can all
be held to the float64 answer before anything is timed.

`make bench-peers` installs them: their pins conflict (SAELens wants transformer-lens < 4, dictionary_learning and
overcomplete pull a torchvision that breaks CPU builds of torch), so they go without dependencies into a folder of their
own. Modules that these libraries import only for language or vision models are replaced by empty stand-ins.
"""

import contextlib
import importlib
import importlib.metadata
import io
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.bench.common import Absent
from saekern.bench.ours import saekern_topk
from saekern.bench.plain import LR, Adapter, compiled_torch, fill, plain_torch
from saekern.bench.problems import SAEProblem

PEERS = ("torch", "torch.compile", "sparsify", "SAELens", "dictionary_learning", "overcomplete")


def adapter(name: str, problem: SAEProblem) -> Adapter:
    """Raises Absent where the library is not installed or does not run here."""
    makers = {
        "saekern": saekern_topk,
        "torch": plain_torch,
        "torch.compile": compiled_torch,
        "sparsify": sparsify,
        "SAELens": sae_lens,
        "dictionary_learning": dictionary_learning,
        "overcomplete": overcomplete,
    }
    return makers[name](problem)


def sparsify(problem: SAEProblem) -> Adapter:
    """eai-sparsify: dense pre-activations, topk, embedding_bag; its Adam option, not the default signum."""
    device = problem.x.device
    # Its Triton decoder fails on CPU tensors.
    with os_environ("SPARSIFY_DISABLE_TRITON", "1") if device.type == "cpu" else contextlib.nullcontext():
        library = load("sparsify", "eai-sparsify")
    width = problem.x.shape[1]
    config = library.SparseCoderConfig(num_latents=problem.w_enc.shape[0], k=problem.k)
    sae = library.SparseCoder(width, config, device=device)
    fill(sae.encoder.weight, problem.w_enc)
    fill(sae.encoder.bias, problem.b_enc)
    fill(sae.W_dec, problem.w_dec)
    fill(sae.b_dec, problem.b_dec)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        out = sae(x)
        return out.fvu, out.sae_out

    def step(x: Tensor) -> Tensor:
        sae.set_decoder_norm_to_unit_norm()
        loss, _ = forward(x)
        loss.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Adapter(
        forward,
        step,
        list(sae.parameters()),
        sae.encoder.weight,
        sae.W_dec,
        1 / problem.total_variance(),
        problem.x,
        version=importlib.metadata.version("eai-sparsify"),
        owner=sae,
    )


def sae_lens(problem: SAEProblem) -> Adapter:
    """SAELens' TopK training SAE and trainer, without the rescaling by decoder norms (they are 1)."""
    library = load("sae_lens", "sae-lens")
    trainers = importlib.import_module("sae_lens.training.sae_trainer")
    inputs = importlib.import_module("sae_lens.saes.sae")
    configs = importlib.import_module("sae_lens.config")
    batch, width = problem.x.shape
    latents = problem.w_enc.shape[0]
    config = library.TopKTrainingSAEConfig(
        d_in=width,
        d_sae=latents,
        k=problem.k,
        rescale_acts_by_decoder_norm=False,
        device=str(problem.x.device),
        dtype="float32",
    )
    sae = library.TopKTrainingSAE(config)
    fill(sae.W_enc, problem.w_enc.T)
    fill(sae.b_enc, problem.b_enc)
    fill(sae.W_dec, problem.w_dec)
    fill(sae.b_dec, problem.b_dec)
    trainer = trainers.SAETrainer(
        configs.SAETrainerConfig(
            total_training_samples=10**9,
            train_batch_size_samples=batch,
            lr=LR,
            lr_end=LR,
            dead_feature_window=10**6,
            feature_sampling_window=10**6,
        ),
        sae,
        iter([]),
    )

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        out = sae.training_forward_pass(
            inputs.TrainStepInput(
                sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
            )
        )
        return out.loss, out.sae_out

    def step(x: Tensor) -> Tensor:
        return trainer.step(x).loss.detach()

    return Adapter(
        forward,
        step,
        list(sae.parameters()),
        sae.W_enc,
        sae.W_dec,
        1 / batch,
        problem.x,
        encoder_transposed=True,
        version=importlib.metadata.version("sae-lens"),
        owner=trainer,
    )


def dictionary_learning(problem: SAEProblem) -> Adapter:
    """dictionary_learning's TopKTrainer; nnsight, which it imports for its activation buffers, is stood in for."""
    with stand_ins("nnsight"):
        load("dictionary_learning", "dictionary-learning")
        trainers = importlib.import_module("dictionary_learning.trainers.top_k")
    batch, width = problem.x.shape
    latents = problem.w_enc.shape[0]
    trainer = trainers.TopKTrainer(
        steps=10**6,
        warmup_steps=0,
        activation_dim=width,
        dict_size=latents,
        k=problem.k,
        layer=0,
        lm_name="",
        lr=LR,
        device=str(problem.x.device),
    )
    sae = trainer.ae
    fill(sae.encoder.weight, problem.w_enc)
    fill(sae.encoder.bias, problem.b_enc)
    fill(sae.decoder.weight, problem.w_dec.T)
    fill(sae.b_dec, problem.b_dec)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        # Without `logging` its loss keeps no reconstruction; the hook reads it, the loss code is the library's.
        kept = []
        handle = sae.decoder.register_forward_hook(lambda module, args, output: kept.append(output))
        loss = trainer.loss(x, step=0)
        handle.remove()
        return loss, kept[0] + sae.b_dec.detach()

    def step(x: Tensor) -> float:
        return trainer.update(1, x)  # step 0 would compute the geometric median

    return Adapter(
        forward,
        step,
        list(sae.parameters()),
        sae.encoder.weight,
        sae.decoder.weight,
        1 / batch,
        problem.x,
        decoder_transposed=True,
        version=importlib.metadata.version("dictionary-learning"),
        owner=trainer,
    )


def overcomplete(problem: SAEProblem) -> Adapter:
    """overcomplete's TopKSAE with its linear encoder. It has no decoder bias: it is fed centred rows and does less."""
    with stand_ins("overcomplete.models", "overcomplete.visualization", "overcomplete.optimization"):
        load("overcomplete", "overcomplete")
        modules = importlib.import_module("overcomplete.sae")
        trackers = importlib.import_module("overcomplete.sae.trackers")
    width = problem.x.shape[1]
    device = str(problem.x.device)
    sae = modules.TopKSAE(width, problem.w_enc.shape[0], top_k=problem.k, device=device)
    linear = next(module for module in sae.encoder.modules() if isinstance(module, torch.nn.Linear))
    fill(linear.weight, problem.w_enc)
    fill(linear.bias, problem.b_enc)
    fill(sae.dictionary._weights, problem.w_dec)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR)
    tracker = trackers.DeadCodeTracker(problem.w_enc.shape[0], device)

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, codes, x_hat = sae(x)
        return F.mse_loss(x_hat, x), x_hat, codes  # the criterion is the user's; this is the cheapest

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss, _, codes = run(x)
        tracker.update(codes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return Adapter(
        lambda x: run(x)[:2],
        step,
        list(sae.parameters()),
        linear.weight,
        sae.dictionary._weights,
        1 / problem.x.numel(),
        problem.x - problem.b_dec,
        shift=problem.b_dec,
        version=importlib.metadata.version("overcomplete"),
        owner=sae,
    )


def load(name: str, distribution: str) -> ModuleType:
    """Imports a library that may print, and checks that it is the one meant: several share import names."""
    try:
        importlib.metadata.version(distribution)
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise Absent(f"{distribution} is not installed; `make bench-peers` installs it") from error
    except Exception as error:  # these libraries fail to import in many ways
        raise Absent(f"{distribution} cannot be imported: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """Empty modules in the place of those that are missing, while a library is imported."""
    missing = [name for name in names if name not in sys.modules]
    for name in missing:
        sys.modules[name] = mock.MagicMock(__spec__=None, __path__=[])
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


@contextlib.contextmanager
def os_environ(name: str, value: str) -> Iterator[None]:
    """Another library's switch, set while it is imported."""
    with mock.patch.dict(os.environ, {name: value}):
        yield
