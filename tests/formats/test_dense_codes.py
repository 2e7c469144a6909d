"""Dense scores and codes for other libraries' interfaces: the same codes, and the same sums of them."""

import sys
from types import ModuleType

import pytest
import torch
from plain_sae import moved, rows

import saekern
from saekern.formats import sae_lens_module, saebench, to_sae_lens
from saekern.formats.dense_codes import LastCodes, encode_through

D, F, K = 12, 40, 4
MAKERS = {
    "topk": lambda **o: saekern.TopKSAE(D, F, K, **o),
    "topk_raw": lambda **o: saekern.TopKSAE(D, F, K, subtract_b_dec=False, **o),
    "batch_topk": lambda **o: saekern.BatchTopKSAE(D, F, K, **o),
    "relu": lambda **o: saekern.ReLUSAE(D, F, **o),
    "jumprelu": lambda **o: saekern.JumpReLUSAE(D, F, **o),
    "gated": lambda **o: saekern.GatedSAE(D, F, **o),
    "kron": lambda **o: saekern.KronSAE(D, F, K, m=2, n=4, eps=1e-3, **o),
    "kron_relu": lambda **o: saekern.KronSAE(D, F, K, m=2, n=4, activation="relu", **o),
    "kron_product": lambda **o: saekern.KronSAE(D, F, K, m=2, n=4, activation="product", **o),
}


@pytest.fixture(params=MAKERS)
def sae(request):
    sae = moved(MAKERS[request.param](init_seed=0, dtype=torch.float64), scale=0.2)
    with torch.no_grad():
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(0.3)
    return sae


def test_encode_through_is_encode(sae):
    """In float64. Planted: the gate without its bias, Kron without its root; caught."""
    x, seen = rows(14, D).view(2, 7, D), []
    codes = encode_through(sae, x, lambda scores: seen.append(scores) or scores)
    torch.testing.assert_close(codes, sae.encode(x), rtol=1e-11, atol=1e-12)
    assert seen[0].shape == codes.shape == (2, 7, F)
    assert (encode_through(sae, x, torch.zeros_like) == (1e-3**0.5 if getattr(sae, "eps", 0) else 0)).sum(-1).min() >= K


def test_last_codes(sae):
    """Planted: the number of codes not compared; caught by a code that was added."""
    sae, x, last = sae.float(), rows(9, D, torch.float32), LastCodes()
    with torch.no_grad():
        codes = last.dense(sae.encode_sparse(x), F)
        assert torch.equal(last.decode(codes, sae.W_dec, sae.b_dec), sae(x))
        assert torch.equal(last.decode(codes.clone().view(3, 3, F), sae.W_dec, sae.b_dec).view(9, D), sae(x))
        for edited in (codes * 2, torch.where(codes == 0, 1, codes), codes[:4], codes[:0]):
            torch.testing.assert_close(last.decode(edited, sae.W_dec, sae.b_dec), edited @ sae.W_dec + sae.b_dec)
        active = codes[0].nonzero()[0, 0]
        codes.data[0, active] = 0
        torch.testing.assert_close(last.decode(codes, sae.W_dec, sae.b_dec), codes @ sae.W_dec + sae.b_dec)
        spoilt = last.dense(sae.encode_sparse(torch.full((2, D), torch.nan)), F)
        assert last.decode(spoilt, sae.W_dec, sae.b_dec).isnan().all()


def test_without_the_libraries(monkeypatch):
    sae = saekern.TopKSAE(D, F, K)
    for name in ("sae_lens", "sae_bench", "sae_bench.custom_saes.base_sae", "saekern.formats.sae_lens_classes"):
        monkeypatch.setitem(sys.modules, name, None)
    saebench._class.cache_clear()
    monkeypatch.delitem(sys.modules, "saekern.formats.sae_lens_classes")
    with pytest.raises(ImportError, match="pip install sae-lens"):
        to_sae_lens(sae)
    with pytest.raises(ImportError, match="SAEBench"):
        saebench.wrap(sae, "gpt2", 1)


def test_with_a_transformer_lens_that_sae_lens_cannot_use(monkeypatch):
    def fail(name):
        raise ImportError("HookedTransformer was removed in TransformerLens 4")

    broken = ModuleType("sae_lens")
    broken.__getattr__ = fail
    monkeypatch.setitem(sys.modules, "sae_lens", broken)
    monkeypatch.delitem(sys.modules, "saekern.formats.sae_lens_classes", raising=False)
    with pytest.raises(ImportError, match=r"older than 4; with a newer one use saekern.evaluation.splice"):
        sae_lens_module.register_sae_lens()
