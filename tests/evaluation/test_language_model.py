"""Cross entropy and KL divergence with a hook's activations replaced, against float64, and their ratios."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from saekern.activations import python_source_sequences, tiny_model
from saekern.evaluation import CrossEntropyRecovered, ce_recovered, cross_entropy, language_model_metrics


class LinearModel:
    """logits = hook(embedding) Uᵀ; the hook may have a head dimension."""

    def __init__(self, heads=None):
        generator = torch.Generator().manual_seed(2)
        self.embed = torch.randn(9, 6, generator=generator)
        self.unembed = torch.randn(9, 6, generator=generator)
        self.heads = heads
        self.hook_dict = {"h": None}
        self.cfg = SimpleNamespace(device="cpu")

    def run_with_hooks(self, tokens, return_type, fwd_hooks, attention_mask=None):
        x = self.embed[tokens]
        for _, function in fwd_hooks:
            x = function(x.unflatten(2, (self.heads, -1)) if self.heads else x, hook=None).reshape(x.shape)
        return x @ self.unembed.T


@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("exclude_bos", [True, False])
@pytest.mark.parametrize("batch", [2, 100])
def test_cross_entropy(sae, heads, exclude_bos, batch):
    """Planted: a mean of batch means (the last batch is smaller); caught for batch 2. Planted: BOS replaced; caught."""
    model, tokens = LinearModel(heads), torch.randint(9, (7, 5))
    x = model.embed[tokens].flatten(0, 1)
    reconstructed = sae.decode(sae.encode_sparse(x)).view(7, 5, 6)
    for replaced, value in [(None, model.embed[tokens]), ("zero", torch.zeros(7, 5, 6)), (sae, reconstructed)]:
        value = value.clone()
        if exclude_bos:
            value[:, 0] = model.embed[tokens][:, 0]
        logits = (value @ model.unembed.T)[:, :-1].double()
        want = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
        got = cross_entropy(model, "h", tokens, replaced, batch=batch, exclude_bos=exclude_bos)
        assert got == pytest.approx(want, rel=1e-5)


def test_ce_recovered(sae):
    model, tokens = LinearModel(), torch.randint(9, (7, 5))
    got = ce_recovered(model, "h", tokens, sae)
    clean, spliced, zero = (cross_entropy(model, "h", tokens, replaced) for replaced in (None, sae, "zero"))
    assert (got.ce_clean, got.ce_sae, got.ce_zero) == (clean, spliced, zero)
    assert got.recovered == (zero - spliced) / (zero - clean)
    assert math.isnan(CrossEntropyRecovered(1.0, 1.0, 1.0).recovered)


@pytest.mark.parametrize("batch", [2, 100])
@pytest.mark.parametrize("exclude_bos", [True, False])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_language_model_metrics(sae, monkeypatch, batch, exclude_bos, special, padded):
    """Every figure against dense float64 sums over the positions that count.

    Planted: KL the other way round; the mean over all positions instead of those replaced; the loss of a padding token
    counted; blocks of logits without their targets' offset. All four were caught."""
    monkeypatch.setattr("saekern.evaluation.language_model.BLOCK", 9 * 4)
    model, tokens = LinearModel(), torch.randint(9, (7, 5))
    real = torch.ones(7, 5, dtype=torch.bool)
    if padded:
        real[2, 3:] = real[4, :2] = False
    counted = real & ~torch.isin(tokens, torch.tensor([3, 4])) if special else real
    replaced = counted.clone()
    if exclude_bos:
        for row, line in zip(replaced, real, strict=True):
            row[line.nonzero()[0, 0]] = False
    x = model.embed[tokens]
    mean = x[replaced].double().mean(0)
    spliced = sae.decode(sae.encode_sparse(x.flatten(0, 1))).view(7, 5, 6)
    values = {"clean": x, "sae": spliced, "zero": torch.zeros(7, 5, 6), "mean": mean.float().expand(7, 5, 6)}
    got = language_model_metrics(
        model,
        "h",
        tokens,
        sae,
        batch=batch,
        exclude_bos=exclude_bos,
        exclude_tokens=[3, 4] if special else (),
        attention_mask=real.long() if padded else None,
    )
    predicted = counted[:, :-1] & real[:, 1:]
    assert (got.predicted, got.positions) == (int(predicted.sum()), int(counted.sum()))
    log_p = None
    for way, value in values.items():
        logits = torch.where(replaced[..., None], value, x) @ model.unembed.T
        log_q = logits.double().log_softmax(-1)
        log_p = log_q if way == "clean" else log_p
        ce = -log_q[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        loss = getattr(got, way)
        assert loss.ce == pytest.approx(ce[predicted].mean().item(), rel=1e-6)
        assert loss.kl == pytest.approx(kl[counted].mean().item(), rel=1e-6)
        by_position = torch.stack([ce[:, t][predicted[:, t]].mean() for t in range(4)])
        torch.testing.assert_close(loss.ce_by_position, by_position, rtol=1e-5, atol=1e-7, equal_nan=True)
        by_position = torch.stack([kl[:, t][counted[:, t]].mean() for t in range(5)])
        torch.testing.assert_close(loss.kl_by_position, by_position, rtol=1e-5, atol=1e-7, equal_nan=True)
    everywhere = language_model_metrics(
        model, "h", tokens, sae, batch=batch, exclude_bos=exclude_bos, mean=mean, ablate_all=True
    )
    logits = (torch.zeros(7, 5, 6) @ model.unembed.T).double()
    ce = -logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])
    assert everywhere.zero.ce == pytest.approx(float(ce.mean()), rel=1e-6)
    for ablation in ("zero", "mean"):
        ablated = getattr(got, ablation)
        assert got.ce_recovered(ablation) == (ablated.ce - got.sae.ce) / (ablated.ce - got.clean.ce)
        assert got.kl_recovered(ablation) == (ablated.kl - got.sae.kl) / ablated.kl


def test_recovered_by_hand():
    """Two tokens; the hook decides alone. p(next) = 3/4 clean, 1/2 at zero: CE log 4/3 and log 2, KL = ¾ log 3/2 +
    ¼ log 1/2. An SAE without loss recovers 1, one that gives zeros 0."""
    model = LinearModel()
    model.embed, model.unembed = torch.tensor([[math.log(3.0)]]), torch.tensor([[1.0], [0.0]])
    tokens = torch.zeros(2, 3, dtype=torch.int64)

    class Factor:
        dictionary = torch.ones(1, 1)

        def __init__(self, factor):
            self.factor = factor

        def encode_sparse(self, x):
            return x

        def decode(self, codes):
            return codes * self.factor

    for factor, recovered in [(1.0, 1), (0.0, 0)]:
        got = language_model_metrics(model, "h", tokens, Factor(factor), exclude_bos=False)
        assert got.clean.ce == pytest.approx(math.log(4 / 3))
        assert got.clean.kl == 0
        assert got.zero.ce == pytest.approx(math.log(2))
        assert got.zero.kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
        assert got.mean.kl == pytest.approx(0, abs=1e-12), "the mean of equal activations is that activation"
        assert got.ce_recovered() == pytest.approx(recovered)
        assert got.kl_recovered() == pytest.approx(recovered)
    assert math.isnan(
        language_model_metrics(model, "h", tokens, Factor(1), mean=torch.tensor([math.log(3)])).kl_recovered("mean")
    )


def test_logits_of_minus_infinity(sae):
    """A vocabulary padded with tokens that cannot be: 0 · (−∞ + ∞) counts as 0."""
    model, tokens = LinearModel(), torch.randint(8, (3, 5))
    whole = language_model_metrics(model, "h", tokens, sae)
    run = model.run_with_hooks

    def longer(*arguments, **options):
        logits = run(*arguments, **options)
        return torch.cat([logits, torch.full((*logits.shape[:2], 2), -torch.inf)], -1)

    model.run_with_hooks = longer
    padded = language_model_metrics(model, "h", tokens, sae, mean=torch.zeros(6))
    assert padded.sae.kl == pytest.approx(whole.sae.kl, rel=1e-12)
    assert padded.sae.ce == pytest.approx(whole.sae.ce, rel=1e-12)


def test_bad_arguments(sae):
    model = LinearModel()
    with pytest.raises(ValueError, match=r"sequences: expected int64 \[>= 1, >= 2\], got torch.int64 \[3, 1\]"):
        cross_entropy(model, "h", torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="'k' is not a hook of this model"):
        cross_entropy(model, "k", torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected an SAE, \"zero\", a row or None, got 'mean'"):
        cross_entropy(model, "h", torch.zeros(3, 2, dtype=torch.int64), "mean")
    with pytest.raises(ValueError, match=r"attention_mask: expected the shape of sequences, \[3, 2\], got \[3, 1\]"):
        language_model_metrics(model, "h", torch.zeros(3, 2).long(), sae, attention_mask=torch.ones(3, 1))
    with pytest.raises(ValueError, match="sequences: nothing is left to count"):
        language_model_metrics(model, "h", torch.zeros(3, 2).long(), sae, exclude_tokens=[0])
    with pytest.raises(ValueError, match='ablation: expected "zero" or "mean", got \'resample\''):
        language_model_metrics(model, "h", torch.zeros(3, 2).long(), sae).ce_recovered("resample")


@pytest.mark.lens
def test_tiny_model(make_sae):
    """A lossless SAE recovers everything, at a residual stream and at heads; zeros cost much."""
    pytest.importorskip("transformer_lens", reason="needs transformer-lens")
    model, tokens = tiny_model(), python_source_sequences("heldout", 128, 6, seed=0)

    class Identity:
        dictionary = torch.eye(128)

        def encode_sparse(self, x):
            return x

        def decode(self, codes):
            return codes

    for hook in ("blocks.1.hook_resid_post", "blocks.1.attn.hook_z"):
        got = ce_recovered(model, hook, tokens, Identity(), batch=4)
        assert got.ce_sae == pytest.approx(got.ce_clean, rel=1e-5)
        assert got.ce_zero > got.ce_clean + 0.02
        assert got.recovered == pytest.approx(1, abs=1e-3)
    metrics = language_model_metrics(model, hook, tokens, Identity(), batch=4)
    assert (metrics.clean.ce, metrics.zero.ce) == pytest.approx((got.ce_clean, got.ce_zero), rel=1e-9)
    assert metrics.kl_recovered() == pytest.approx(1, abs=1e-4)
    assert metrics.mean.ce < metrics.zero.ce
    with torch.no_grad():
        want = model(tokens, return_type="loss").item()
    assert got.ce_clean == pytest.approx(want, rel=1e-4)
