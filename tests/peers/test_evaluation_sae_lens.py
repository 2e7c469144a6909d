"""Our losses and variances against SAELens' evaluator: its own SAE, ours with the same weights, one model, one text.

In float64 (the rows of `library_metrics` are float32 in any case) and in float32, where SAELens' KL of a position is a
sum of differences of two log-probabilities of some 20, each rounded twice.
"""

import importlib

import pytest
import torch

import saekern
from saekern.activations import TensorRows, python_source_sequences, tiny_model
from saekern.activations.harvest import activations
from saekern.evaluation import density, language_model_metrics, library_metrics, measure

pytestmark = pytest.mark.peers

sae_lens = pytest.importorskip("sae_lens")
NEAR = 1e-5
WIDTH, LATENTS, CONTEXT = 128, 192, 24
HOOKS = ("blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.1.attn.hook_z")


@pytest.fixture(scope="module", params=["float32", "float64"])
def model(request):
    return tiny_model().to(getattr(torch, request.param))


class Store:
    """What the evaluator asks of an activation store: batches of tokens, the same ones again after a reset."""

    context_size = CONTEXT

    def __init__(self, batches):
        self.batches, self.next = batches, 0
        self.store_batch_size_prompts = len(batches[0])

    def get_batch_tokens(self, size):
        self.next += 1
        return self.batches[self.next - 1]

    def reset_input_dataset(self):
        self.next = 0


def pair(kind, rows):
    """SAELens' SAE and ours with the same weights, fitted to nothing but centred and scaled to do something."""
    shape = {"d_in": WIDTH, "d_sae": LATENTS, "dtype": str(rows.dtype).removeprefix("torch.")}
    if kind == "topk":
        ours = saekern.TopKSAE(WIDTH, LATENTS, 16, init_seed=3, dtype=rows.dtype)
        theirs = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(**shape, k=16))
    else:
        ours = saekern.ReLUSAE(WIDTH, LATENTS, init_seed=3, dtype=rows.dtype)
        theirs = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**shape))
    with torch.no_grad():
        ours.b_dec.copy_(rows.mean(0))
        if kind == "relu":  # a latent is active in a row of twenty or so, and no score is 0 but for rounding
            ours.b_enc.copy_(-0.01 - 1.037 * ((rows - ours.b_dec) @ ours.W_enc).quantile(0.95, dim=0))
        ours.W_dec.mul_(0.5)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(theirs, name).copy_(getattr(ours, name))
    return ours, theirs.eval()


@pytest.mark.parametrize("kind", ["topk", "relu"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("ignored", [(), (0, 10, 32)], ids=["all", "special"])
def test_agrees(model, kind, hook, ignored):
    """`run_evals` on three batches, with and without excluded tokens (BOS, newline, space).

    Planted: excluded tokens replaced all the same; KL over all but the last position. Both were caught."""
    evals = importlib.import_module("sae_lens.evals")
    scaler = importlib.import_module("sae_lens.training.activation_scaler").ActivationScaler()
    batches = list(python_source_sequences("heldout", CONTEXT, 12, seed=1).split(4))
    tokens = torch.cat(batches)
    x = activations(model, hook, tokens)
    ours, theirs = pair(kind, x.flatten(0, 1))
    theirs.cfg.metadata.hook_name = hook
    settings = evals.EvalConfig(
        n_eval_reconstruction_batches=3,
        n_eval_sparsity_variance_batches=3,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    want, features = evals.run_evals(
        theirs, Store(batches), model, scaler, settings, exclude_special_tokens=list(ignored) or False
    )
    losses, kls = want["model_performance_preservation"], want["model_behavior_preservation"]
    got = language_model_metrics(
        model, hook, tokens, ours, batch=4, exclude_bos=False, exclude_tokens=ignored, ablate_all=True
    )
    loose = 4 * 20 * 2**-24 if x.dtype == torch.float32 else 0
    assert got.clean.ce == pytest.approx(losses["ce_loss_without_sae"], rel=NEAR)
    assert got.sae.ce == pytest.approx(losses["ce_loss_with_sae"], rel=NEAR)
    assert got.zero.ce == pytest.approx(losses["ce_loss_with_ablation"], rel=NEAR)
    assert got.ce_recovered() == pytest.approx(losses["ce_loss_score"], rel=NEAR)
    assert got.sae.kl == pytest.approx(kls["kl_div_with_sae"], rel=NEAR, abs=loose)
    assert got.zero.kl == pytest.approx(kls["kl_div_with_ablation"], rel=NEAR, abs=loose)
    assert got.kl_recovered() == pytest.approx(kls["kl_div_score"], rel=NEAR, abs=2 * loose / got.zero.kl)

    kept = ~torch.isin(tokens, torch.tensor(ignored, dtype=torch.int64))
    parts = [TensorRows(part[keep]) for part, keep in zip(x.split(4), kept.split(4), strict=True)]
    rows = TensorRows(x[kept])
    figures = library_metrics(ours, rows, batch=len(rows))
    each = [library_metrics(ours, part, batch=len(part)) for part in parts]
    names = want["reconstruction_quality"] | want["shrinkage"] | want["sparsity"]
    assert set(names) == {name.removeprefix("sae_lens.") for name in figures if name.startswith("sae_lens.")}
    for name, value in names.items():
        found = figures[f"sae_lens.{name}"]
        if name == "explained_variance_legacy":  # about the means of the evaluator's batches
            found = sum(one[f"sae_lens.{name}"] * len(part) for one, part in zip(each, parts, strict=True)) / len(rows)
        elif name == "relative_reconstruction_bias":
            found = sum(one[f"sae_lens.{name}"] for one in each) / 3
        near_zero = 1e-6 if "explained" in name else 0  # 1 − a ratio
        assert found == pytest.approx(value, rel=NEAR, abs=near_zero), name
    assert measure(ours, rows).explained_variance == pytest.approx(names["explained_variance"], rel=NEAR, abs=1e-6)
    share = density(ours, rows).double() / len(rows)
    torch.testing.assert_close(share, torch.tensor(features["feature_density"]).double(), rtol=1e-5, atol=1e-7)
