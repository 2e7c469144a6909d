"""SAELens' files without SAELens: small checkpoints that it wrote, old ones as it used to, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from same_function import Scores, assert_same_function

import saekern
from saekern import formats
from saekern.formats.saelens import sparsity
from saekern.formats.source import read_safetensors
from saekern.sae.files import write_tensors

GOLDEN = Path(__file__).parent / "golden" / "saelens"
D, F, K = 4, 10, 3
OURS = {
    "standard": "ReLUSAE",
    "topk": "TopKSAE",
    "jumprelu": "JumpReLUSAE",
    "gated": "GatedSAE",
    "layer_norm": "NormalizedSAE",
    "constant_norm": "NormalizedSAE",
    "bfloat16": "ReLUSAE",
    "training_topk": "TopKSAE",
    "training_batchtopk": "BatchTopKSAE",
    "training_matryoshka": "MatryoshkaSAE",
    "training_jumprelu": "JumpReLUSAE",
}


@pytest.mark.parametrize("name", OURS)
def test_golden(name, tmp_path):
    """Every file that SAELens wrote gives its codes and reconstructions, also by way of our own files."""
    fold = name in ("training_topk", "training_batchtopk", "training_matryoshka")
    ours = saekern.load(GOLDEN / name, fold=fold)
    assert type(ours).__name__ == OURS[name]
    want = read_safetensors(GOLDEN / f"{name}.safetensors")
    scores = Scores(want["score"], want["cut"], want["magnitude"], int(want["terms"]), want["gain"])
    saekern.save(ours, tmp_path / "native")
    for sae in (ours, saekern.load(tmp_path / "native")):
        sae = sae.float()
        assert_same_function(
            sae, want["x"], want["codes"], want["x_hat"], scores, want["decoder"], want["bias"], want["scale"]
        )


@pytest.mark.parametrize("name", [name for name in OURS if not name.startswith("training")])
def test_round_trips_are_exact(name, tmp_path):
    saekern.save(saekern.load(GOLDEN / name), tmp_path / "native")
    saekern.save(saekern.load(tmp_path / "native"), tmp_path / "back", "saelens")
    one, two = (read_safetensors(path / "sae_weights.safetensors") for path in (GOLDEN / name, tmp_path / "back"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype for key in one)
    configs = [json.loads((path / "cfg.json").read_text()) for path in (GOLDEN / name, tmp_path / "back")]
    assert configs[0] == configs[1]


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a golden one, with changes to its configuration (None removes a key) and tensors."""

    def make(name, tensors=None, **config):
        folder = tmp_path / "sae"
        if not folder.exists():
            shutil.copytree(GOLDEN / name, folder)
        content = json.loads((folder / "cfg.json").read_text())
        content |= config
        content = {key: value for key, value in content.items() if value is not None}
        (folder / "cfg.json").write_text(json.dumps(content))
        if tensors is not None:
            found = {**read_safetensors(folder / "sae_weights.safetensors"), **tensors}
            found = {key: value for key, value in found.items() if value is not None}
            write_tensors(folder / "sae_weights.safetensors", found)
        return folder

    return make


NAN = torch.tensor([float("nan")] * F)
REFUSED = [
    ("topk", {"architecture": "transcoder"}, "architecture: 'transcoder' has no counterpart here"),
    ("topk", {"architecture": "temporal"}, "architecture: 'temporal' has no counterpart here"),
    ("topk", {"architecture": None}, "architecture: None has no counterpart here"),
    ("topk", {"k": None}, "a topk without its k; pass options="),
    ("topk", {"k": 2.5}, r"k: expected a whole number in \[1, 2\*\*31\), got 2\.5"),
    ("topk", {"k": 11}, "k: expected 1 <= k <= d_sae = 10, got 11"),
    ("topk", {"k": -1}, r"k: expected a whole number in \[1, 2\*\*31\), got -1"),
    ("topk", {"k": True}, r"k: expected a whole number in \[1, 2\*\*31\), got True"),
    ("topk", {"d_in": 10**30}, r"d_in: expected a whole number in \[1, 2\*\*31\)"),
    ("topk", {"d_in": "4"}, "d_in: expected a whole number"),
    ("topk", {"d_in": 5}, r"W_enc: expected floating point of shape \[5, 10\], got float32 \[4, 10\]"),
    ("topk", {"d_sae": 10**9}, r"W_enc: expected floating point of shape \[4, 1000000000\], got float32 \[4, 10\]"),
    ("topk", {"dtype": "int8"}, "dtype: expected one of float64, float32, float16, bfloat16, got 'int8'"),
    ("topk", {"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input: expected true or false, got 'yes'"),
    ("topk", {"normalize_activations": "tanh"}, "normalize_activations: expected one of none, .*, got 'tanh'"),
    ("topk", {"normalize_activations": "covariance_whitening"}, "covariance_whitening is not read"),
    ("topk", {"reshape_activations": "hook_q"}, "reshape_activations: expected one of none, hook_z, got 'hook_q'"),
    ("topk", {"metadata": [1]}, "metadata: expected an object, got list"),
    (
        "topk",
        {"architecture": "standard", "metadata": {"sae_lens_version": "6.1.0", "activation_fn": "topk"}},
        "if it is",
    ),
    ("training_topk", {"architecture": "standard"}, "names 'topk' too, and holds no k"),
    ("topk", {"architecture": "jumprelu"}, r"tensors missing: \['threshold'\]"),
    ("jumprelu", {"architecture": "standard"}, r"unexpected: \['threshold'\]"),
    ("topk", {"tensors": {"b_enc": None}}, r"tensors missing: \['b_enc'\], unexpected: none"),
    ("topk", {"tensors": {"b_enc": torch.ones(F, dtype=torch.int64)}}, r"b_enc: expected .* got int64 \[10\]"),
    (
        "topk",
        {"tensors": {"b_enc": torch.ones(1)}},
        r"b_enc: expected floating point of shape \[10\], got float32 \[1\]",
    ),
    (
        "topk",
        {"tensors": {"scaling_factor": torch.full((F,), 2.0)}},
        "scaling_factor, of finetuning, has no counterpart",
    ),
    ("jumprelu", {"tensors": {"threshold": NAN}}, "10 thresholds are NaN"),
    ("jumprelu", {"tensors": {"threshold": torch.full((F,), -0.1)}}, "10 thresholds below 0.*pass fold=True"),
    ("training_batchtopk", {"k": 2.6}, r"pass options=\{'k': 3\}"),
    ("training_matryoshka", {"matryoshka_widths": []}, "matryoshka_widths: expected a list of numbers, got \\[\\]"),
    ("training_matryoshka", {"matryoshka_widths": [2, "x"]}, "matryoshka_widths: expected a whole number"),
    ("training_topk", {}, r"cut is made on scores times ‖W_dec‖, here .* pass fold=True"),
    (
        "training_topk",
        {"rescale_acts_by_decoder_norm": None},  # absent from a training checkpoint: its default there is true
        r"cut is made on scores times ‖W_dec‖, here .* pass fold=True",
    ),
    ("training_topk", {"tensors": {"W_dec": torch.zeros(F, D)}}, "divides by norms of W_dec, and one is 0"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_cannot_be_read_is_refused(checkpoint, name, changes, message):
    """Planted: no check of the shapes before folding (b_enc [1] broadcasts); the training default of
    rescale_acts_by_decoder_norm; NaN thresholds let through. All caught."""
    with pytest.raises(ValueError, match=f"(?is){message}"):
        saekern.load(checkpoint(name, **changes))


def test_options_answer_what_the_file_leaves_open(checkpoint):
    folder = checkpoint("topk", k=None)
    assert saekern.load(folder, options={"k": 2}).k == 2
    with pytest.raises(ValueError, match=r"options: k: expected a whole number .* got 0"):
        saekern.load(folder, options={"k": 0})
    folder = checkpoint("topk", k=3)
    with pytest.raises(ValueError, match=r"options: k = 2, but .* says 3"):
        saekern.load(folder, options={"k": 2})


def test_a_batchtopk_of_a_broken_k(checkpoint):
    folder = checkpoint("training_batchtopk", k=2.6)
    assert saekern.load(folder, options={"k": 3}, fold=True).k == 3


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "2"])
def test_scales_that_are_none(checkpoint, value):
    folder = checkpoint("topk", normalize_activations="expected_average_only_in")
    with pytest.raises(ValueError, match="scaling_factor: expected a finite number > 0"):
        saekern.load(folder, options={"scaling_factor": value}, fold=True)


def test_scale_of_the_rows(checkpoint):
    folder = checkpoint("topk", normalize_activations="expected_average_only_in")
    with pytest.raises(ValueError, match=r"pass options=\{'scaling_factor': …\}, 1 if your rows are scaled already"):
        saekern.load(folder)
    with pytest.raises(ValueError, match=r"rows are to be multiplied by 0\.3; pass fold=True"):
        saekern.load(folder, options={"scaling_factor": 0.3})
    x, scaled = torch.randn(20, D), saekern.load(folder, options={"scaling_factor": 1})
    folded = saekern.load(folder, options={"scaling_factor": 0.25}, fold=True)  # a power of two: exact
    assert torch.equal(folded(x), scaled(0.25 * x) * 4)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    assert torch.equal(saekern.load(folder, fold=True)(x), folded(x))
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(ValueError, match="pass options="):
        saekern.load(folder, fold=True)
    plain = checkpoint("topk", normalize_activations="none")
    with pytest.raises(ValueError, match=r"options: scaling_factor: .* has normalize_activations 'none'"):
        saekern.load(plain, options={"scaling_factor": 0.3})


def test_thresholds_below_zero_are_a_relu(checkpoint):
    """Planted: fold without the clamp; caught."""
    folder = checkpoint("jumprelu", tensors={"threshold": torch.linspace(-1, 1, F)})
    sae, x = saekern.load(folder, fold=True), torch.randn(50, D)
    assert bool((sae.encode(x) >= 0).all())
    assert float(sae.threshold.detach().min()) == 0


def test_checkpoints_of_old_jumprelu(checkpoint):
    threshold = read_safetensors(GOLDEN / "jumprelu" / "sae_weights.safetensors")["threshold"]
    folder = checkpoint("jumprelu", tensors={"threshold": None, "log_threshold": threshold.log()})
    torch.testing.assert_close(saekern.load(folder).threshold.detach(), threshold, rtol=1e-6, atol=0)


OLD = {"d_in": D, "d_sae": F, "dtype": "torch.float32", "device": "cuda", "hook_point": "blocks.7.hook_resid_pre"}


def old(folder, name, content):
    shutil.copytree(GOLDEN / name, folder)
    (folder / "cfg.json").write_text(json.dumps({**OLD, **content}))
    return folder


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("standard", {}, "ReLUSAE"),
        ("standard", {"activation_fn_str": "relu", "normalize_activations": False}, "ReLUSAE"),
        ("topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, "TopKSAE"),
        ("topk", {"architecture": "topk", "activation_fn_kwargs": {"k": 3}, "activation_fn": "topk"}, "TopKSAE"),
        ("jumprelu", {"architecture": "jumprelu", "activation_fn_str": "relu"}, "JumpReLUSAE"),
        ("gated", {"architecture": "gated", "normalize_activations": "none"}, "GatedSAE"),
    ],
)
def test_old_configurations(tmp_path, name, content, expected):
    """Written again they are new ones, and keep every key."""
    sae = saekern.load(old(tmp_path / "old", name, {**content, "model_name": "gpt2", "l1_coefficient": 8e-5}))
    assert type(sae).__name__ == expected
    assert sae.provenance["hook"] == "blocks.7.hook_resid_pre"
    x, like = torch.randn(20, D), saekern.load(GOLDEN / name)
    assert torch.equal(sae(x), like(x))
    saekern.save(sae, tmp_path / "new", "saelens")
    content = json.loads((tmp_path / "new" / "cfg.json").read_text())
    assert content["metadata"]["sae_lens_version"].startswith("6.")
    assert content["metadata"]["l1_coefficient"] == 8e-5
    assert content["metadata"]["hook_name"] == "blocks.7.hook_resid_pre"
    assert torch.equal(saekern.load(tmp_path / "new")(x), like(x))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # SAELens 6 reads this one as a ReLU.
        ("topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {}}, "a topk without its k"),
        ("topk", {"activation_fn_str": "topk"}, "a topk without its k"),
        ("standard", {"activation_fn_str": "tanh-relu"}, "names 'tanh-relu' too"),
        ("standard", {"normalize_activations": True}, "expected_average_only_in"),
    ],
)
def test_old_configurations_that_leave_something_open(tmp_path, name, content, message):
    """Planted: such a TopK left "standard", as SAELens has it; caught."""
    with pytest.raises(ValueError, match=message):
        saekern.load(old(tmp_path / "old", name, content))


def test_an_old_topk_with_its_k_given(tmp_path):
    folder = old(tmp_path / "old", "topk", {"activation_fn_str": "topk"})
    assert torch.equal(
        saekern.load(folder, options={"k": 3}).encode(x := torch.randn(9, D)), saekern.load(GOLDEN / "topk").encode(x)
    )


def test_old_hook_z_is_noted(tmp_path):
    folder = old(tmp_path / "old", "standard", {"hook_point": "blocks.0.attn.hook_z"})
    assert any("flattens" in note for note in formats.examine(folder).notes)
    saekern.save(saekern.load(folder), tmp_path / "new", "saelens")
    assert json.loads((tmp_path / "new" / "cfg.json").read_text())["reshape_activations"] == "hook_z"


def test_the_wider_type_wins(checkpoint):
    folder = checkpoint("bfloat16", dtype="float32")
    assert saekern.load(folder).W_dec.dtype == torch.float32
    assert any("widened from bfloat16" in note for note in formats.examine(folder).notes)


def test_weights_wider_than_their_configuration_says_stay(checkpoint):
    folder = checkpoint("standard", dtype="bfloat16")
    assert saekern.load(folder).W_dec.dtype == torch.float32
    assert any("the weights are wider and stay so" in note for note in formats.examine(folder).notes)


def test_what_is_left_out_is_said(checkpoint):
    folder = checkpoint("topk", tensors={"scaling_factor": torch.ones(F)})
    (folder / "trainer_state.pt").write_bytes(b"")
    notes = " ".join(formats.examine(folder).notes)
    assert "scaling_factor, all ones, is left out" in notes
    assert "Not read: trainer_state.pt" in notes


def test_sparsity_is_kept(checkpoint, tmp_path):
    folder, frequencies = checkpoint("topk"), torch.linspace(-10, 0, F)
    assert sparsity(saekern.load(folder)) is None
    write_tensors(folder / "sparsity.safetensors", {"sparsity": frequencies})
    sae = saekern.load(folder)
    assert torch.equal(sparsity(sae), frequencies)
    saekern.save(sae, tmp_path / "back", "saelens")
    assert torch.equal(read_safetensors(tmp_path / "back" / "sparsity.safetensors")["sparsity"], frequencies)
    write_tensors(folder / "sparsity.safetensors", {"sparsity": frequencies[1:]})
    with pytest.raises(ValueError, match=r"sparsity: expected floating point of shape \[10\], got float32 \[9\]"):
        saekern.load(folder)


def test_writing_is_refused_by_name(tmp_path):
    kron = saekern.KronSAE(D, 16, 3, m=4, n=4)
    refused = [
        (kron, {}, "saelens: KronSAE has no counterpart in SAELens"),
        (
            saekern.NormalizedSAE(D, F, eps=0.1, base_args={"k": K}),
            {},
            r"layer_norm with eps = 0\.1: SAELens has 1e-05",
        ),
        (saekern.TopKSAE(D, F, K), {"reshape_activations": "hook_q"}, "expected none or hook_z, got 'hook_q'"),
    ]
    for sae, options, message in refused:
        with pytest.raises(ValueError, match=message):
            saekern.save(sae, tmp_path / "out", "saelens", options=options)
    negative = saekern.JumpReLUSAE(D, F)
    with torch.no_grad():
        negative.threshold[3] = -1
    with pytest.raises(ValueError, match="a threshold below 0 lets negative scores through"):
        saekern.save(negative, tmp_path / "out", "saelens")
    half = saekern.JumpReLUSAE(D, F, initial_threshold=0.1).bfloat16()
    with pytest.raises(ValueError, match=r"threshold: bfloat16, .* cannot hold its values; save sae\.to"):
        saekern.save(half, tmp_path / "out", "saelens")
    assert not (tmp_path / "out").exists()


def test_the_name_of_the_model_can_be_given(tmp_path):
    saekern.save(saekern.TopKSAE(D, F, K), tmp_path, "saelens", provenance={"model": "m", "hook": "h"})
    content = json.loads((tmp_path / "cfg.json").read_text())
    assert (content["metadata"]["model_name"], content["metadata"]["hook_name"]) == ("m", "h")
    assert (content["architecture"], content["k"], content["rescale_acts_by_decoder_norm"]) == ("topk", K, False)


def test_files_of_sparsify_are_not_taken_for_these(tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": 4, "num_latents": 10, "k": 3}))
    write_tensors(tmp_path / "sae.safetensors", {"W_dec": torch.ones(10, 4)})
    assert "saelens" not in formats.detect(tmp_path)
