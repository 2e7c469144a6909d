"""Gemma Scope's and Llama Scope's files as SAELens' own loaders read them, and as we do."""

import json

import numpy as np
import pytest
import torch
from same_function import assert_same_function

import saekern
from saekern.sae.files import write_tensors

pytestmark = pytest.mark.peers
sae_lens = pytest.importorskip("sae_lens")
models = pytest.importorskip("sae_lens_models")

D, F, ROWS = 24, 96, 200
HOOK = "blocks.20.hook_resid_post"


@pytest.fixture
def local(monkeypatch, tmp_path):
    """SAELens' loaders find the hub's files in a folder."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def download(*_, filename=None, subfolder=None, **__):
        names = [name for name in (filename, _[1] if len(_) > 1 else None) if name]
        return str(tmp_path / (subfolder or "") / names[0])

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_: {"w_enc": [D, F], "w_dec": [F, D]})
    return loaders, tmp_path


def sae_of(loaders, config, state):
    config = loaders.handle_config_defaulting(config)
    sae = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig.from_dict(config))
    sae.load_state_dict(state)
    return sae


def agree(ours, theirs):
    x = models.rows(D, ROWS)
    with torch.no_grad():
        codes, x_hat = theirs.encode(x), theirs(x)
    decoder, bias, scale = models.decoding(theirs, x)
    ties = assert_same_function(ours, x, codes, x_hat, models.scores(theirs, x), decoder, bias, scale)
    assert ties <= 2


def arrays():
    made = {"W_enc": [D, F], "W_dec": [F, D], "b_enc": [F], "b_dec": [D], "threshold": [F]}
    generator = torch.Generator().manual_seed(5)
    values = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in made.items()}
    return {**values, "threshold": values["threshold"].abs()}


@pytest.mark.parametrize("written_by_us", [False, True])
def test_gemma_scope(local, written_by_us):
    loaders, folder = local
    name = "layer_20/width_16k/average_l0_71"
    (folder / name).mkdir(parents=True)
    np.savez(folder / name / "params.npz", **{key: tensor.numpy() for key, tensor in arrays().items()})
    ours = saekern.load(folder / name)
    if written_by_us:
        saekern.save(ours, folder / name, "gemma_scope")
    sizes = {"d_in": D, "d_sae": F}
    config, state, _ = loaders.gemma_2_sae_huggingface_loader(
        "google/gemma-scope-2b-pt-res", name, "cpu", cfg_overrides=sizes
    )
    agree(ours, sae_of(loaders, config, state))


@pytest.mark.parametrize("written_by_us", [False, True])
def test_gemma_scope_2(local, written_by_us):
    loaders, folder = local
    name = "resid_post/layer_5_width_16k_l0_medium"
    lower = {key.lower() if key.startswith("W") else key: tensor for key, tensor in arrays().items()}
    write_tensors(folder / name / "params.safetensors", lower)
    config = {"architecture": "jump_relu", "model_name": "gemma-3-1b-pt", "hf_hook_point_in": "model.layers.5.output"}
    (folder / name / "config.json").write_text(json.dumps(config))
    ours = saekern.load(folder / name)
    if written_by_us:
        saekern.save(ours, folder / name, "gemma_scope")
    config, state, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-1b-pt", name, "cpu")
    theirs = sae_of(loaders, config, state)
    assert theirs.cfg.metadata.hf_hook_name == ours.provenance["hook"]
    agree(ours, theirs)


def test_llama_scope(local):
    """With unit decoder rows. SAELens leaves decoder norms out of the threshold, which published files have in it
    (sparsity_include_decoder_norm); we follow the library that wrote them. Its codes are those of rows times s."""
    loaders, folder = local
    name, given = "Llama3_1-8B-Base-L20R-8x", arrays()
    decoder = given["W_dec"] / given["W_dec"].norm(dim=1, keepdim=True)
    norm = 3.5
    hyperparams = {
        "d_model": D,
        "d_sae": F,
        "expansion_factor": 4,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.75390625,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
    }
    (folder / name / "checkpoints").mkdir(parents=True)
    (folder / name / "hyperparams.json").write_text(json.dumps(hyperparams))
    tensors = {
        "encoder.weight": given["W_enc"].T,
        "encoder.bias": given["b_enc"],
        "decoder.weight": decoder.T,
        "decoder.bias": given["b_dec"],
    }
    write_tensors(folder / name / "checkpoints" / "final.safetensors", tensors)
    config, state, _ = loaders.llama_scope_sae_huggingface_loader(
        "fnlp/Llama3_1-8B-Base-LXR-8x", name, "cpu", cfg_overrides={"dtype": "float32"}
    )
    theirs, scale = sae_of(loaders, config, state), D**0.5 / norm
    theirs.fold_activation_norm_scaling_factor(scale)
    ours, x = saekern.load(folder / name, fold=True), models.rows(D, ROWS)
    with torch.no_grad():
        scores = models.scores(theirs, x)
        clear = ((scores.score - scores.cut).abs() > 1e-5 * scores.magnitude).all(1)
        assert int(clear.sum()) >= ROWS - 5
        torch.testing.assert_close(ours.encode(x)[clear] * scale, theirs.encode(x)[clear], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(x)[clear], theirs(x)[clear], rtol=1e-4, atol=1e-4)
        assert float(ours.encode(x).count_nonzero(1).float().mean()) > 3
