"""SAELens' own files through `saekern.load`, and ours through SAELens: same codes, same reconstructions."""

import json

import pytest
import torch
from same_function import assert_same_function

import saekern
from saekern.formats.saelens import sparsity

pytestmark = pytest.mark.peers
sae_lens = pytest.importorskip("sae_lens")
models = pytest.importorskip("sae_lens_models")

D, F, K, ROWS = 24, 96, 5, 200
SIZES = (D, F, K, ROWS)


def rows(seed=0):
    return models.rows(D, ROWS, seed)


def made(architecture, **options):
    return models.made(SIZES, architecture, **options)


def trained(architecture, **options):
    return models.trained(SIZES, architecture, **options)


fill = models.fill


def agree(ours, theirs, x):
    with torch.no_grad():
        codes, x_hat = theirs.encode(x), theirs(x)
    decoder, bias, scale = models.decoding(theirs, x)
    return assert_same_function(ours, x, codes, x_hat, models.scores(theirs, x), decoder, bias, scale)


def tensors(path):
    return saekern.formats.source.read_safetensors(path / "sae_weights.safetensors")


def same_files(a, b):
    one, two = tensors(a), tensors(b)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)
    assert json.loads((a / "cfg.json").read_text()) == json.loads((b / "cfg.json").read_text())


INFERENCE = [
    (architecture, options)
    for architecture in ("standard", "topk", "jumprelu", "gated")
    for options in (
        {},
        {"apply_b_dec_to_input": False},
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "constant_norm_rescale"},
    )
]


@pytest.mark.parametrize(("architecture", "options"), INFERENCE)
def test_inference_files(tmp_path, architecture, options):
    """Read by us, written again, read by SAELens; through our own files too. Tensors and configuration stay the same,
    bit by bit.

    Planted: a standard read as "jumprelu"; b_dec subtracted all the same; ε in the inverse of layer_norm; thresholds a
    thousandth lower; b_gate and b_mag exchanged in writing. All caught."""
    theirs = fill(made(architecture, **options))
    theirs.save_model(tmp_path / "theirs")
    ours, x = saekern.load(tmp_path / "theirs"), rows()
    assert agree(ours, theirs, x) <= 2
    agree(ours, theirs, x / 100)  # where the ε of layer_norm is a thousandth
    assert ours.provenance["model"] == "gpt2"
    assert ours.provenance["hook"] == "blocks.3.hook_resid_pre"
    saekern.save(ours, tmp_path / "native")
    saekern.save(saekern.load(tmp_path / "native"), tmp_path / "back", "saelens")
    same_files(tmp_path / "theirs", tmp_path / "back")
    again = sae_lens.SAE.load_from_disk(tmp_path / "back")
    assert type(again) is type(theirs)
    with torch.no_grad():
        assert torch.equal(again(x), theirs(x))


@pytest.mark.parametrize("norms", [1.0, 1.5])
def test_topk_with_decoder_norms_in_the_cut(tmp_path, norms):
    decoder_norms = 1.0 if norms == 1 else torch.linspace(0.3, 3, F)[:, None]
    theirs = fill(made("topk", rescale_acts_by_decoder_norm=True), decoder_norms=decoder_norms)
    theirs.save_model(tmp_path)
    if norms != 1:
        with pytest.raises(ValueError, match=r"scores times ‖W_dec‖, here 0\.3 to 3; pass fold=True"):
            saekern.load(tmp_path)
    agree(saekern.load(tmp_path, fold=norms != 1), theirs, rows())


def test_ties_at_the_cut(tmp_path):
    """Pairs of equal latents, and an odd k: the cut goes through a pair in every row with enough positive scores."""
    theirs = fill(made("topk"))
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec"):
            tensor = getattr(theirs, name)
            dimension = tensor.shape.index(F)
            tensor.narrow(dimension, F // 2, F // 2).copy_(tensor.narrow(dimension, 0, F // 2))
    theirs.save_model(tmp_path)
    assert agree(saekern.load(tmp_path), theirs, rows()) > ROWS / 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "float16"])
def test_other_types(tmp_path, dtype):
    theirs = fill(made("jumprelu", dtype=dtype))
    theirs.save_model(tmp_path / "theirs")
    ours = saekern.load(tmp_path / "theirs")
    assert ours.W_enc.dtype == getattr(torch, dtype)
    saekern.save(ours, tmp_path / "back", "saelens")
    same_files(tmp_path / "theirs", tmp_path / "back")
    agree(ours.float(), theirs.to(torch.float32), rows())


@pytest.mark.parametrize("architecture", ["standard", "topk", "gated", "jumprelu", "batchtopk", "matryoshka"])
def test_training_checkpoints(tmp_path, architecture):
    """What SAELens' trainer leaves: our SAE of it is the one that SAELens makes of it for inference."""
    theirs, trainer = trained(architecture)
    trainer.fit()
    theirs.save_model(tmp_path / "training")
    theirs.save_inference_model(tmp_path / "inference")
    inference = sae_lens.SAE.load_from_disk(tmp_path / "inference")
    fold = architecture in ("topk", "batchtopk", "matryoshka")
    if fold:
        with pytest.raises(ValueError, match="pass fold=True to have these norms folded"):
            saekern.load(tmp_path / "training")
    ours, x = saekern.load(tmp_path / "training", fold=fold), rows()
    names = {"standard": "relu", "batchtopk": "batch_topk"}
    assert ours.architecture == names.get(architecture, architecture)
    agree(ours, inference, x)
    if fold:
        torch.testing.assert_close(ours.W_dec, inference.W_dec, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(ours.W_enc, inference.W_enc, rtol=1e-6, atol=1e-9)
    agree(saekern.load(tmp_path / "inference", fold=False), inference, x)
    saekern.save(ours, tmp_path / "back", "saelens")
    again = sae_lens.SAE.load_from_disk(tmp_path / "back")
    assert type(again) is type(inference)
    agree(ours, again, x)
    metadata = again.cfg.metadata
    assert metadata.training_architecture == inference.cfg.metadata.training_architecture


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_checkpoints_that_want_scaled_rows(tmp_path, architecture):
    """A checkpoint from the middle of training with expected_average_only_in, and what SAELens folds at its end.

    Planted: W_dec not divided; topk_threshold not divided; norms folded before the scale. All caught."""
    theirs, trainer = trained(architecture, normalize_activations="expected_average_only_in")
    trainer.cfg.n_checkpoints = 0
    seen = {}
    original = theirs.fold_activation_norm_scaling_factor

    def spy(factor):
        theirs.save_model(tmp_path / "training")
        trainer.activation_scaler.save(str(tmp_path / "training" / "activation_scaler.json"))
        seen["factor"] = factor
        original(factor)

    theirs.fold_activation_norm_scaling_factor = spy
    trainer.fit()
    theirs.save_inference_model(tmp_path / "inference")
    inference = sae_lens.SAE.load_from_disk(tmp_path / "inference")
    with pytest.raises(ValueError, match=r"rows are to be multiplied by .* pass fold=True"):
        saekern.load(tmp_path / "training")
    ours = saekern.load(tmp_path / "training", fold=True)
    assert seen["factor"] != 1
    agree(ours, inference, rows())
    scaler = tmp_path / "training" / "activation_scaler.json"
    scaler.unlink()
    with pytest.raises(ValueError, match="pass options="):
        saekern.load(tmp_path / "training", fold=True)
    agree(saekern.load(tmp_path / "training", fold=True, options={"scaling_factor": seen["factor"]}), inference, rows())


def ours_of(architecture):
    options = {
        "hierarchical_topk": {"k": K},
        "topk": {"k": K},
        "batch_topk": {"k": K},
        "matryoshka": {"k": K},
        "archetypal": {"points": rows(5), "base_args": {"k": K}, "relaxation": 0.5},
        "normalized": {"base_args": {"k": K}},
    }.get(architecture, {})
    cls = saekern.sae.files.ARCHITECTURES[architecture]
    sae = cls(D, F, **options, init_seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name not in ("W", "threshold"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(0.7)
    return sae


@pytest.mark.parametrize(
    "architecture",
    ["relu", "topk", "hierarchical_topk", "jumprelu", "gated", "batch_topk", "matryoshka", "archetypal", "normalized"],
)
def test_ours_in_sae_lens(tmp_path, architecture):
    """Planted: Archetypal's W_dec without its relaxation; caught."""
    ours = ours_of(architecture)
    saekern.save(ours, tmp_path, "saelens", provenance={"model": "m", "hook": "blocks.0.hook_resid_pre"})
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    assert theirs.cfg.metadata.model_name == "m"
    agree(ours, theirs, rows())
    agree(saekern.load(tmp_path), theirs, rows())


def test_hook_z(tmp_path):
    """SAELens flattens heads itself; ours takes flattened rows, and the setting comes back."""
    theirs = fill(made("topk", reshape_activations="none"))
    theirs.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    theirs.cfg.reshape_activations = "hook_z"
    theirs.save_model(tmp_path / "theirs")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "theirs")
    ours, x = saekern.load(tmp_path / "theirs"), rows()
    with torch.no_grad():
        heads = theirs(x.reshape(ROWS, 4, D // 4)).reshape(ROWS, D)
    torch.testing.assert_close(ours(x), heads, rtol=1e-4, atol=1e-5)
    saekern.save(ours, tmp_path / "back", "saelens")
    same_files(tmp_path / "theirs", tmp_path / "back")


def test_sparsity_and_runner_settings_are_kept(tmp_path):
    from safetensors.torch import save_file

    theirs = fill(made("standard"))
    theirs.save_model(tmp_path / "theirs")
    frequencies = torch.log10(torch.rand(F) + 1e-10)
    save_file({"sparsity": frequencies}, tmp_path / "theirs" / "sparsity.safetensors")
    (tmp_path / "theirs" / "runner_cfg.json").write_text('{"lr": 0.1}')
    saekern.save(saekern.load(tmp_path / "theirs"), tmp_path / "native")
    ours = saekern.load(tmp_path / "native")
    assert torch.equal(sparsity(ours), frequencies)
    saekern.save(ours, tmp_path / "back", "saelens")
    for name in ("sparsity.safetensors", "runner_cfg.json"):
        assert (tmp_path / "back" / name).exists()
    assert torch.equal(
        saekern.formats.source.read_safetensors(tmp_path / "back" / "sparsity.safetensors")["sparsity"], frequencies
    )


REFUSED = {
    "transcoder": {"d_out": D, "apply_b_dec_to_input": False},
    "skip_transcoder": {"d_out": D, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"d_out": D, "apply_b_dec_to_input": False},
    "matching_pursuit": {},
    "abstopk": {"k": K},
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(tmp_path, architecture):
    from sae_lens.registry import get_sae_class

    cls, config = get_sae_class(architecture)
    cls(config(d_in=D, d_sae=F, **REFUSED[architecture])).save_model(tmp_path)
    with pytest.raises(ValueError, match=f"architecture: '{architecture}' has no counterpart here"):
        saekern.load(tmp_path)


def test_old_configurations(tmp_path):
    """As SAELens reads them; but a TopK without a k is no ReLU."""
    from sae_lens.loading.pretrained_sae_loaders import handle_pre_6_0_config

    from saekern.formats.saelens_config import modernise

    common = {"d_in": D, "d_sae": F, "dtype": "torch.float32", "device": "cpu", "hook_point_head_index": None}
    for old in (
        common | {"hook_point": "blocks.1.hook_resid_pre", "model_name": "gpt2", "normalize_activations": False},
        common | {"hook_name": "blocks.1.attn.hook_z", "activation_fn_str": "relu", "architecture": "gated"},
        common | {"hook_name": "h", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}},
        common | {"hook_name": "h", "normalize_activations": True, "apply_b_dec_to_input": False},
        common | {"hook_name": "h", "normalize_activations": "layer_norm", "architecture": "jumprelu"},
    ):
        want, got = handle_pre_6_0_config(old), modernise(old)
        for name, value in want.items():
            if name == "metadata":
                assert all(got["metadata"][key] == value[key] for key in value if key in got["metadata"])
            else:
                assert got[name] == value, name
