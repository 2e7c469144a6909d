"""Decoder rows through the unembedding, against the product in float64 and against a model's own logits."""

from types import SimpleNamespace

import pytest
import torch
from bounds import UNIT

from saekern.features import Unembedding, logit_lens, unembedding_of
from saekern.features.logit_lens import why_not


@pytest.mark.parametrize("batch", [1, 3, 256])
@pytest.mark.parametrize(("gained", "centred"), [(False, False), (True, True), (True, False)])
def test_against_float64(batch, gained, centred):
    """Planted: no mean over the vocabulary subtracted; caught. Planted: gain left out; caught."""
    directions, weight = torch.randn(7, 12), torch.randn(12, 31)
    gain = torch.rand(12) + 0.5 if gained else None
    got = logit_lens(directions, Unembedding(weight, gain, centred), 5, bins=10, batch=batch)
    d = directions.double()
    d = (d - d.mean(1, keepdim=True) if centred else d) * (1 if gain is None else gain.double())
    logits = d @ weight.double()
    size = d.abs() @ weight.double().abs()
    logits -= logits.mean(1, keepdim=True)
    # 12 products, the direction's centring (12 more terms), gain, and the vocabulary's mean: each below one rounding
    bound = 2 * (12 + 12 + 4) * UNIT * (size + size.mean(1, keepdim=True))
    for tokens, values in ((got.top_tokens, got.top_values), (got.bottom_tokens, got.bottom_values)):
        error = (values.double() - logits.gather(1, tokens)).abs()
        assert bool((error <= bound.gather(1, tokens)).all())
    slack = 2 * bound.max()
    assert bool((got.top_values[:, -1:] >= logits.topk(6).values[:, 5:] - slack).all())
    assert bool((got.bottom_values[:, -1:] <= -(-logits).topk(6).values[:, 5:] + slack).all())
    assert got.histogram.sum(1).tolist() == [31] * 7
    low, high = logits.amin(1, keepdim=True), logits.amax(1, keepdim=True)
    place = (logits - low) / (high - low) * 10
    sure = (place - place.round()).abs() > 1e-4
    want = torch.stack([torch.bincount(row[keep].long(), minlength=10) for row, keep in zip(place, sure, strict=True)])
    assert bool((got.histogram >= want).all())


def test_ties_go_to_the_smaller_token():
    weight = torch.tensor([[1.0, 3, 3, -2, -2, 3]])
    got = logit_lens(torch.tensor([[1.0]]), Unembedding(weight, None, False), 2)
    assert got.top_tokens.tolist() == [[1, 2]]
    assert got.bottom_tokens.tolist() == [[3, 4]]
    assert got.top_values.tolist() == [[2.0, 2.0]]  # 3 − mean 1


def test_small_vocabulary_zero_direction_and_none():
    lens = Unembedding(torch.randn(3, 2), None, False)
    got = logit_lens(torch.zeros(1, 3), lens, 10)
    assert got.top_tokens.tolist() == [[0, 1]]
    assert not got.top_values.any()
    assert int(got.histogram.sum()) == 2
    assert logit_lens(torch.empty(0, 3), lens, 10).top_tokens.shape == (0, 2)


def norm(**fields):
    return SimpleNamespace(cfg=SimpleNamespace(normalization_type=None), W_U=torch.ones(4, 9), **fields)


def test_norms_of_all_kinds():
    weight = torch.arange(4.0)
    assert unembedding_of(norm()).gain is None
    old = norm(ln_final=SimpleNamespace(w=weight))
    old.cfg.normalization_type = "LN"
    assert torch.equal(unembedding_of(old).gain, weight)
    assert unembedding_of(old).centred
    folded = norm(ln_final=SimpleNamespace())
    folded.cfg.normalization_type = "LNPre"
    assert unembedding_of(folded)[1:] == (None, True)
    rms = norm(ln_final=SimpleNamespace(weight=weight, uses_rms_norm=True, uses_weight_offset=True))
    assert torch.equal(unembedding_of(rms).gain, weight + 1)
    assert not unembedding_of(rms).centred
    with pytest.raises(ValueError, match="expected a language model with an unembedding W_U, got Linear"):
        unembedding_of(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("hook", "reads"),
    [
        ("blocks.1.hook_resid_post", True),
        ("blocks.1.hook_out", True),
        ("blocks.0.hook_mlp_out", True),
        ("blocks.0.mlp.hook_out", True),
        ("blocks.0.hook_attn_out", True),
        ("blocks.0.attn.hook_out", True),
        (None, True),
        ("blocks.0.attn.hook_z", False),
        ("blocks.0.attn.o.hook_in", False),
        ("blocks.0.attn.q.hook_out", False),
        ("blocks.0.mlp.hook_post", False),
        ("blocks.0.mlp.hook_in", False),
        ("blocks.0.ln1.hook_normalized", False),
    ],
)
def test_hooks_outside_the_residual_stream_have_no_lens(hook, reads):
    reason = why_not(hook, 4, Unembedding(torch.ones(4, 9), None, True))
    assert (reason is None) == reads
    assert reads or hook in reason
    assert "8 wide and the unembedding reads 4" in why_not(hook, 8, Unembedding(torch.ones(4, 9), None, True))


@pytest.mark.lens
def test_the_shipped_model_reads_the_stream_so():
    """From the last residual stream to the logits by our rule, up to the norm's scale and its bias.
    Planted: the unembedding without the gain; caught."""
    from saekern.activations import tiny_model

    model = tiny_model()
    lens = unembedding_of(model)
    tokens = torch.randint(1, 128, (1, 16))
    seen = {}
    logits = model.run_with_hooks(
        tokens, fwd_hooks=[("blocks.3.hook_resid_post", lambda x, hook: seen.update(x=x.clone()))]
    )
    x = seen["x"][0].double()  # [16, D]
    assert lens.gain is not None
    assert lens.centred
    flat = x - x.mean(1, keepdim=True)
    scale = (flat.square().mean(1, keepdim=True) + 1e-5).sqrt()
    mine = (flat / scale * lens.gain.double()) @ lens.weight.double()
    rest = logits[0].double() - mine  # the norm's bias through the unembedding: the same at every position
    torch.testing.assert_close(rest, rest[:1].expand_as(rest), atol=2e-4, rtol=0)
    assert float(mine.std()) > 1
