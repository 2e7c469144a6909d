"""`formats.saebench.wrap` in the real SAEBench: its interface, its checks, and its core evaluation on a tiny model."""

import json
from types import SimpleNamespace

import pytest
import torch
from plain_sae import moved, rows

import saekern
from saekern.formats import saebench

pytest.importorskip("sae_bench", reason="needs SAEBench")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

D, F, K = 32, 96, 5
PLACE = {"model_name": "tiny", "hook_layer": 1, "hook_name": "blocks.1.hook_resid_pre"}
MAKERS = {
    "topk": lambda: saekern.TopKSAE(D, F, K, init_seed=0),
    "hierarchical": lambda: saekern.HierarchicalTopKSAE(D, F, K, init_seed=0),
    "batch_topk": lambda: saekern.BatchTopKSAE(D, F, K, init_seed=0),
    "matryoshka": lambda: saekern.MatryoshkaSAE(D, F, K, init_seed=0),
    "relu": lambda: saekern.ReLUSAE(D, F, init_seed=0),
    "jumprelu": lambda: saekern.JumpReLUSAE(D, F, init_seed=0),
    "gated": lambda: saekern.GatedSAE(D, F, init_seed=0),
    "kron": lambda: saekern.KronSAE(D, F, K, m=2, n=4, init_seed=0),
    "archetypal": lambda: saekern.ArchetypalSAE(
        D, F, points=rows(20, D, torch.float32), base_args={"k": K}, init_seed=0
    ),
}


def make(name, unit=True):
    sae = moved(MAKERS[name](), scale=0.2).eval()
    if unit:
        sae.project_parameters_()
    with torch.no_grad():
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(0.4)
    return sae


@pytest.fixture(params=MAKERS)
def name(request):
    return request.param


@pytest.mark.parametrize("unit", [True, False])
def test_interface(name, unit):
    """Planted: norms folded into the decoder but not the codes; codes divided by them; caught."""
    from sae_bench.custom_saes.base_sae import BaseSAE
    from sae_bench.sae_bench_utils.general_utils import check_decoder_norms, load_and_format_sae

    sae, x = make(name, unit), rows(14, D, torch.float32).view(2, 7, D)
    wrapped = saebench.wrap(sae, **PLACE)
    assert isinstance(wrapped, BaseSAE)
    assert wrapped.check_decoder_norms()
    assert check_decoder_norms(wrapped.W_dec.data)
    assert wrapped.W_dec.data.T.shape == wrapped.W_enc.shape == (D, F)
    assert wrapped.b_enc.shape == (F,)
    assert wrapped.b_dec.shape == (D,)
    with torch.no_grad():
        norms = sae.dictionary.norm(dim=1)
        torch.testing.assert_close(wrapped.encode(x), sae.encode(x) * norms, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(wrapped.decode(wrapped.encode(x)), sae(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(wrapped(x.flatten(0, 1)).view_as(x), sae(x), rtol=1e-4, atol=1e-5)
        dense = wrapped.encode(x)
        torch.testing.assert_close(wrapped.decode(dense * 2), dense * 2 @ wrapped.W_dec + wrapped.b_dec)
    identifier, same, _ = load_and_format_sae("mine", wrapped, "cpu")
    assert same is wrapped
    assert identifier == "custom_sae"
    assert wrapped.cfg.architecture_str == sae.architecture
    assert (wrapped.cfg.hook_name, wrapped.cfg.hook_layer) == ("blocks.1.hook_resid_pre", 1)
    assert json.loads(json.dumps(wrapped.cfg.to_dict()))["d_sae"] == F


def test_unit_rows_keep_their_bits():
    sae, x = make("topk"), rows(9, D, torch.float32)
    wrapped = saebench.wrap(sae, **PLACE)
    with torch.no_grad():
        assert torch.equal(wrapped.encode(x), sae.encode(x))
        assert torch.equal(wrapped(x), sae(x))


def test_a_copy_in_the_dtype_of_the_model(name):
    """Planted: the SAE itself wrapped; caught."""
    sae = make(name, unit=False)
    before = {key: tensor.clone() for key, tensor in sae.state_dict().items()}
    wrapped = saebench.wrap(sae, **PLACE).to(device="cpu", dtype=torch.bfloat16)
    assert wrapped.dtype == torch.bfloat16
    assert wrapped.cfg.dtype == "bfloat16"
    assert wrapped.check_decoder_norms()
    codes = wrapped.encode(rows(6, D, torch.float32))
    assert codes.dtype == wrapped.decode(codes).dtype == torch.bfloat16
    for key, tensor in sae.state_dict().items():
        assert torch.equal(tensor, before[key])
        assert tensor.dtype == before[key].dtype


def test_encoder_goes_with_the_norms(caplog):
    """What SAEBench reads of the encoder is that of the folded codes. Planted: W_enc left as it was; caught."""
    sae, x = make("relu", unit=False), rows(9, D, torch.float32)
    wrapped = saebench.wrap(sae, **PLACE)
    assert "norms other than 1: folded" in caplog.text
    with torch.no_grad():
        want = ((x - wrapped.b_dec) @ wrapped.W_enc + wrapped.b_enc).relu()
        torch.testing.assert_close(wrapped.encode(x), want, rtol=1e-4, atol=1e-5)


def test_names():
    sae = make("topk")
    sae.provenance = {"model": "pythia-70m-deduped", "hook": "blocks.3.hook_mlp_out"}
    wrapped = saebench.wrap(sae)
    assert (wrapped.cfg.model_name, wrapped.cfg.hook_layer) == ("pythia-70m-deduped", 3)
    assert saebench.wrap(sae, hook_layer=2).cfg.hook_name == "blocks.2.hook_resid_post"
    sae.provenance = {}
    with pytest.raises(ValueError, match="model_name: expected one"):
        saebench.wrap(sae, hook_layer=2)
    with pytest.raises(ValueError, match="hook_layer: expected one"):
        saebench.wrap(sae, "gpt2")
    with pytest.raises(ValueError, match="a NormalizedSAE cannot be wrapped"):
        saebench.wrap(saekern.sae.NormalizedSAE(D, F, base_args={"k": K}), **PLACE)


class Tokens:
    """What the core evaluation asks of an ActivationsStore."""

    context_size = 12
    store_batch_size_prompts = 4

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)

    def get_batch_tokens(self, count):
        return torch.randint(3, 50, (count, self.context_size), generator=self.generator)

    def shuffle_input_dataset(self, seed):
        self.generator.manual_seed(seed)

    def reset_input_dataset(self):
        pass


@pytest.fixture
def core(monkeypatch):
    """SAEBench's core evaluation, with a tiny model and our tokens in the place of the hub's."""
    from sae_bench.evals.core import main
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 2, "d_model": D, "n_ctx": 16, "d_head": 8, "n_heads": 4, "d_mlp": 64, "d_vocab": 50}
    model = HookedTransformer(HookedTransformerConfig(**sizes, act_fn="gelu", seed=1, device="cpu")).eval()
    model.tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=1, bos_token_id=2, padding_side="right")
    boot = SimpleNamespace(from_pretrained_no_processing=lambda name, **options: model.to(options["dtype"]))
    monkeypatch.setattr(main, "HookedTransformer", boot)
    monkeypatch.setattr(main, "ActivationsStore", SimpleNamespace(from_sae=lambda *args, **options: Tokens()))
    return main


def evaluate(core, sae, folder):
    (result,) = core.multiple_evals(
        selected_saes=[("mine", sae)],
        n_eval_reconstruction_batches=2,
        n_eval_sparsity_variance_batches=2,
        eval_batch_size_prompts=4,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        context_size=12,
        output_folder=str(folder),
        device="cpu",
    )
    (file,) = folder.glob("*.json")
    return result["metrics"], json.loads(file.read_text())


def test_core_evaluation_agrees_with_their_own_class(core, tmp_path):
    """The same TopK weights in SAEBench's class. Planted: b_dec subtracted from the input twice; caught."""
    from sae_bench.custom_saes.topk_sae import TopKSAE

    sae = make("topk")
    theirs = TopKSAE(D, F, K, "tiny", 1, torch.device("cpu"), torch.float32, hook_name=PLACE["hook_name"])
    theirs.load_state_dict(sae.state_dict(), strict=False)
    theirs.cfg.architecture = "topk"
    want, _ = evaluate(core, theirs, tmp_path / "theirs")
    got, saved = evaluate(core, saebench.wrap(sae, **PLACE), tmp_path / "ours")
    assert saved["sae_cfg_dict"]["architecture"] == "topk"
    assert want.keys() == got.keys()
    for group, values in want.items():
        for metric, value in values.items():
            assert got[group][metric] == pytest.approx(value, rel=1e-4, abs=1e-6), f"{group}/{metric}"
    assert got["sparsity"]["l0"] <= K


@pytest.mark.parametrize("unit", [True, False])
def test_core_evaluation(core, name, unit, tmp_path):
    metrics, saved = evaluate(core, saebench.wrap(make(name, unit), **PLACE), tmp_path)
    assert 0 < metrics["sparsity"]["l0"] < F
    assert saved["eval_type_id"] == "core"
