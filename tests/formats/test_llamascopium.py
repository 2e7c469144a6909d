"""llamascopium's files, made here as its source writes them, against its formulas in float64 (it needs CUDA to run)."""

import json
import math

import pytest
import torch
from bounds import UNIT

import saekern
from saekern import formats
from saekern.formats.source import read_safetensors
from saekern.sae.files import write_tensors

D, F, K, HOOK = 6, 21, 4, "blocks.15.hook_resid_post"
LOG = "activation_function.log_jumprelu_threshold"


def config(**changes):
    made = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": F / D,
        "use_decoder_bias": True,
        "act_fn": "topk",
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": False,
        "top_k": K,
        "use_triton_kernel": False,
        "sparsity_threshold_for_triton_spmm_kernel": 0.996,
        "jumprelu_threshold_window": 2.0,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "use_glu_encoder": False,
    } | changes
    return {name: value for name, value in made.items() if value is not None}


def weights(act_fn="topk", unit=False, **changes):
    generator = torch.Generator().manual_seed(3)
    made = {
        "W_E": torch.randn(D, F, generator=generator),
        "b_E": torch.randn(F, generator=generator) / 4,
        "W_D": torch.randn(F, D, generator=generator) * torch.linspace(0.3, 3, F)[:, None],
        "b_D": torch.randn(D, generator=generator),
        f"dataset_average_activation_norm.{HOOK}": torch.tensor(10.8125),
    }
    if unit:
        made["W_D"] = made["W_D"] / made["W_D"].norm(dim=1, keepdim=True)
    if act_fn == "jumprelu":
        made[LOG] = torch.randn(F, generator=generator) - 1
    return {name: tensor for name, tensor in {**made, **changes}.items() if tensor is not None}


def saved(folder, tensors, name="sae_weights.safetensors", config_name="config.json", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / config_name).write_text(json.dumps(config(**changes)))
    if name.endswith(".pt"):
        torch.save({"sae": tensors, "version": "2.0.0b34"}, folder / name)
    else:
        write_tensors(folder / name, tensors)
    return folder


def plain(cfg, tensors, x):
    """x̂, its codes, the scores of the choice and their cut, as the library computes them, in float64."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    scale = 1.0
    if cfg["norm_activation"] == "dataset-wise":
        scale = math.sqrt(D) / float(w[f"dataset_average_activation_norm.{HOOK}"])
    if cfg["norm_activation"] == "token-wise":
        scale = math.sqrt(D) / x.double().norm(dim=-1, keepdim=True)
    score = x.double() * scale @ w["W_E"] + w["b_E"]
    norms = w["W_D"].norm(dim=1) if cfg["sparsity_include_decoder_norm"] else torch.ones(F).double()
    gate = score * norms
    if cfg["act_fn"] == "relu":
        active = gate > 0
    elif cfg["act_fn"] == "jumprelu":
        active = gate > w[LOG].exp()
    else:
        active = torch.zeros_like(gate, dtype=torch.bool).scatter(-1, gate.relu().topk(K).indices, True) & (gate > 0)
    codes = gate * active / norms
    return (codes @ w["W_D"] + w.get("b_D", torch.zeros(D))) / scale, codes


CASES = [
    (act_fn, norm, include)
    for act_fn in ("relu", "topk", "jumprelu")
    for norm in ("inference", "token-wise", "dataset-wise")
    for include in (False, True)
]


@pytest.mark.parametrize(("act_fn", "norm", "include"), CASES)
def test_forward_is_the_formula(tmp_path, act_fn, norm, include):
    """Rows drawn once; none lies within 1e-4 of a cut, which rounding does not reach (scores stay below 100).

    Planted: the threshold not divided by the scale, as the library's own fold has it; threshold · n for threshold / n;
    norms not folded; b_dec subtracted. All caught."""
    changes = {"act_fn": act_fn, "norm_activation": norm, "sparsity_include_decoder_norm": include}
    folder = saved(tmp_path, weights(act_fn), **changes)
    fold = norm == "dataset-wise" or (include and act_fn != "relu")
    if fold:
        with pytest.raises(ValueError, match="pass fold=True"):
            saekern.load(folder)
    sae, x = saekern.load(folder, fold=fold), torch.randn(200, D, generator=torch.Generator().manual_seed(1)) * 3
    x_hat, codes = plain(config(**changes), weights(act_fn), x)
    same = ((sae.encode(x) != 0) == (codes != 0)).all(1)
    assert int(same.sum()) >= 199  # at most a row with a tie at the cut
    bound = 64 * (D + F) * UNIT * (x.abs().amax() * 30 + 30)  # sums of at most D + F products of such size
    assert bool(((sae(x) - x_hat).abs() <= bound)[same].all())
    ratio = (sae.encode(x) / codes)[same][(codes != 0)[same]].reshape(-1)
    if act_fn != "topk" and norm != "dataset-wise":  # these keep the size of codes
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-3, atol=0)


@pytest.mark.parametrize("act_fn", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_round_trips_are_exact(tmp_path, act_fn, bias):
    """Planted: log(exp(t)) written for t; caught."""
    tensors = weights(act_fn, **({} if bias else {"b_D": None}))
    folder = saved(tmp_path / "a", tensors, act_fn=act_fn, use_decoder_bias=bias)
    saekern.save(saekern.load(folder), tmp_path / "native")
    saekern.save(saekern.load(tmp_path / "native"), tmp_path / "b", "llamascopium")
    again = read_safetensors(tmp_path / "b" / "sae_weights.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == config(act_fn=act_fn, use_decoder_bias=bias)


def test_unit_norms_need_no_fold(tmp_path):
    folder = saved(tmp_path / "a", weights(unit=True), sparsity_include_decoder_norm=True)
    sae = saekern.load(folder)
    assert torch.equal(sae.W_dec, weights(unit=True)["W_D"])
    saekern.save(sae, tmp_path / "b", "llamascopium")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["sparsity_include_decoder_norm"] is True


@pytest.mark.parametrize("name", ["sae_weights.pt", "checkpoints/pruned.safetensors", "checkpoints/final.pt"])
def test_where_weights_lie(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    assert torch.equal(saekern.load(saved(tmp_path, weights(), name)).b_dec, weights()["b_D"])


def old_config(**changes):
    made = {
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "d_model": D,
        "d_sae": F,
        "expansion_factor": 3,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.75390625,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 10.8125, "out": 10.8125},
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "top_k": K,
    } | changes
    return {name: value for name, value in made.items() if value is not None}


def old(folder, dtype=torch.float32, **changes):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(old_config(**changes)))
    w = weights()
    named = {
        "encoder.weight": w["W_E"].T,
        "encoder.bias": w["b_E"],
        "decoder.weight": w["W_D"].T,
        "decoder.bias": w["b_D"],
    }
    write_tensors(
        folder / "checkpoints" / "final.safetensors", {name: tensor.to(dtype) for name, tensor in named.items()}
    )
    return folder


def plain_old(cfg, x):
    """The library of October 2024 loading for inference: scale folded, unit decoder rows, then one threshold."""
    w = {name: tensor.double() for name, tensor in weights().items()}
    s = math.sqrt(D) / 10.8125 if cfg["norm_activation"] == "dataset-wise" else 1.0
    b_enc, b_dec = w["b_E"] / s, w["b_D"] / s
    n = w["W_D"].norm(dim=1) if cfg["sparsity_include_decoder_norm"] else torch.ones(F).double()
    given = x.double() - b_dec * cfg["apply_decoder_bias_to_pre_encoder"]
    score = (given @ w["W_E"] + b_enc) * n
    if cfg["act_fn"] == "relu":
        codes = score.relu()
    elif cfg["jump_relu_threshold"] > 0:
        codes = score * (score > cfg["jump_relu_threshold"])
    else:
        top = score.relu().topk(K)
        codes = torch.zeros_like(score).scatter(-1, top.indices, top.values)
    return codes @ (w["W_D"] / n[:, None]) + b_dec, codes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_activation": "inference"},
        {"sparsity_include_decoder_norm": False},
        {"apply_decoder_bias_to_pre_encoder": True},
        {"act_fn": "topk", "jump_relu_threshold": 0.0},
        {"act_fn": "topk"},
        {"act_fn": "relu"},
    ],
)
def test_llama_scope(tmp_path, changes):
    """Planted: threshold / s; the encoder not transposed; norms not folded. All caught."""
    sae, x = (
        saekern.load(old(tmp_path, **changes), fold=True),
        torch.randn(200, D, generator=torch.Generator().manual_seed(2)) * 3,
    )
    x_hat, codes = plain_old(old_config(**changes), x)
    same = ((sae.encode(x) != 0) == (codes != 0)).all(1)
    assert int(same.sum()) >= 199
    bound = 64 * (D + F) * UNIT * (x.abs().amax() * 30 + 30)
    assert bool(((sae(x) - x_hat).abs() <= bound)[same].all())
    assert bool(((sae.encode(x) - codes).abs() <= bound)[same].all())
    with pytest.raises(ValueError, match="pass fold=True"):
        saekern.load(tmp_path)
    saekern.save(sae, tmp_path / "new", "llamascopium", fold=True)
    torch.testing.assert_close(saekern.load(tmp_path / "new")(x)[same], sae(x)[same], rtol=1e-4, atol=1e-4)


def test_llama_scope_in_bfloat16(tmp_path):
    sae = saekern.load(old(tmp_path, torch.bfloat16), fold=True)
    assert sae.W_dec.dtype == torch.bfloat16
    assert sae.threshold.dtype == torch.float32
    assert float(sae.threshold.detach()[0]) == 0.75390625


def test_batchtopk(tmp_path):
    """Training's choice over the batch is the library's; inference needs a threshold that its files do not have."""
    folder = saved(tmp_path, weights(), act_fn="batchtopk")
    with pytest.raises(ValueError, match=r"the file has no threshold, .* pass options=\{'threshold': …\}"):
        saekern.load(folder)
    sae, x = saekern.load(folder, options={"threshold": 1.5}), torch.randn(30, D)
    assert isinstance(sae, saekern.BatchTopKSAE)
    w = {name: tensor.double() for name, tensor in weights().items()}
    scores = (x.double() @ w["W_E"] + w["b_E"]).relu()
    flat = scores.flatten().topk(K * 30)
    assert sorted(sae.encode_batch(x).values.detach().tolist()) == pytest.approx(sorted(flat.values.tolist()), rel=1e-4)
    assert torch.equal(sae.encode(x) != 0, scores > 1.5)
    with pytest.raises(ValueError, match=r"options: threshold: .* has act_fn 'topk', not batchtopk"):
        saekern.load(saved(tmp_path, weights(), act_fn="topk"), options={"threshold": 1.5})


def test_ours(tmp_path):
    x = torch.randn(40, D)
    provenance = {"hook": HOOK}
    for sae in (
        saekern.ReLUSAE(D, F, subtract_b_dec=False),
        saekern.TopKSAE(D, F, K),
        saekern.HierarchicalTopKSAE(D, F, K),
        saekern.JumpReLUSAE(D, F, initial_threshold=0.3),
        saekern.BatchTopKSAE(D, F, K),
        saekern.NormalizedSAE(D, F, norm="constant_norm", base_args={"k": K}),
    ):
        with torch.no_grad():
            sae.b_dec.copy_(torch.randn(D) / 3)
            if sae.architecture == "batch_topk":
                sae.threshold.fill_(0.3)
        saekern.save(sae, tmp_path, "llamascopium", provenance=provenance, fold=True)
        again = saekern.load(tmp_path)
        torch.testing.assert_close(again(x), sae(x), rtol=1e-4, atol=1e-4)
    saekern.save(saekern.JumpReLUSAE(D, F, initial_threshold=0.0), tmp_path, "llamascopium", provenance=provenance)
    assert float(saekern.load(tmp_path).threshold.detach().abs().max()) == 0  # exp(-inf)


@pytest.mark.parametrize(("d_in", "d_sae"), [(d, d * m + r) for d in (3, 49, 1000) for m in (1, 8) for r in (0, 1, 2)])
def test_the_expansion_factor_gives_the_size(d_in, d_sae, tmp_path):
    """int(49 · (1/49 · …)) may round down. Planted: d_sae / d_in alone; caught."""
    saekern.save(saekern.ReLUSAE(d_in, d_sae), tmp_path, "llamascopium", provenance={"hook": "h"})
    content = json.loads((tmp_path / "config.json").read_text())
    assert int(d_in * content["expansion_factor"]) == d_sae


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae_type": "crosscoder"}, "sae_type: 'crosscoder' has no counterpart here"),
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "is not hook_point_out 'blocks.15.hook_mlp_out': a transcoder"),
        ({"use_glu_encoder": True}, "use_glu_encoder: a gated linear unit"),
        ({"act_fn": "layertopk"}, "act_fn: 'layertopk' has no counterpart here"),
        ({"norm_activation": "batch-wise"}, "norm_activation: batch-wise: a row's codes depend on the rest"),
        ({"norm_activation": "max"}, "norm_activation: expected one of token-wise, .*, got 'max'"),
        ({"d_model": 2.5}, r"d_model: expected a whole number in \[1, 2\*\*31\), got 2\.5"),
        ({"expansion_factor": -1}, "expansion_factor: expected a finite number > 0, got -1"),
        (
            {"expansion_factor": 10**9},
            r"W_E: expected floating point of shape \[6, 6000000000\], got float32 \[6, 21\]",
        ),
        ({"top_k": 99}, "k: expected 1 <= k <= d_sae = 21, got 99"),
        ({"use_decoder_bias": False}, r"tensors missing: none, unexpected: \['b_D'\]"),
        ({"act_fn": "jumprelu"}, r"tensors missing: \['activation_function.log_jumprelu_threshold'\]"),
    ],
)
def test_configurations_that_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        saekern.load(saved(tmp_path, weights(), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_E": None}, r"tensors missing: \['W_E'\]"),
        ({"b_E": torch.ones(1)}, r"b_E: expected floating point of shape \[21\], got float32 \[1\]"),
        ({LOG: torch.full((F,), float("nan"))}, "21 thresholds are NaN"),
        ({f"dataset_average_activation_norm.{HOOK}": torch.ones(2)}, r"expected one number, got \[2\]"),
        ({f"dataset_average_activation_norm.{HOOK}": None}, "dataset-wise, but the weights have no dataset_average"),
        ({"W_D": torch.zeros(F, D)}, "divides by norms of W_D, and one is 0"),
    ],
)
def test_weights_that_are_refused(tmp_path, changes, message):
    both = {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "act_fn": "jumprelu"}
    with pytest.raises(ValueError, match=message):
        saekern.load(saved(tmp_path, weights("jumprelu", **changes), **both), fold=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jump_relu_threshold": -1}, "jump_relu_threshold: expected a finite number >= 0, got -1"),
        ({"jump_relu_threshold": "1"}, "jump_relu_threshold: expected a finite number >= 0, got '1'"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm: expected an object, got None"),
        ({"dataset_average_activation_norm": {"in": 0, "out": 1}}, "in: expected a finite number > 0, got 0"),
        ({"dataset_average_activation_norm": {"in": 2, "out": 1}}, r"in 2\.0 is not out 1\.0: a transcoder"),
        ({"act_fn": "batchtopk"}, "act_fn: 'batchtopk' has no counterpart here"),
    ],
)
def test_old_configurations_that_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        saekern.load(old(tmp_path, **changes), fold=True)


def test_missing_and_foreign_weights(tmp_path):
    saved(tmp_path, weights())
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no sae_weights, checkpoints/pruned, checkpoints/final as \.safetensors"
    ):
        saekern.load(tmp_path)
    (tmp_path / "sae_weights.dcp").mkdir()
    with pytest.raises(ValueError, match=r"sae_weights\.dcp: distributed checkpoints are not read"):
        saekern.load(tmp_path)
    torch.save({"model": {}}, tmp_path / "sae_weights.pt")
    with pytest.raises(ValueError, match='expected a dictionary with tensors under "sae"'):
        saekern.load(tmp_path)


def test_a_norm_that_was_never_set_is_said(tmp_path):
    folder = saved(tmp_path, weights(**{f"dataset_average_activation_norm.{HOOK}": torch.tensor(float("nan"))}))
    assert any("was never set" in note for note in formats.examine(folder).notes)


def test_writing_is_refused_by_name(tmp_path):
    plain_sae = saekern.TopKSAE(D, F, K)
    with pytest.raises(ValueError, match=r"name the hook of the rows; pass provenance=\{'hook': …\}"):
        saekern.save(plain_sae, tmp_path, "llamascopium")
    with torch.no_grad():
        plain_sae.b_dec.fill_(1)
    negative, half = saekern.JumpReLUSAE(D, F), saekern.JumpReLUSAE(D, F, initial_threshold=0.1).bfloat16()
    with torch.no_grad():
        negative.threshold[0] = -1
    for sae, message in (
        (plain_sae, "this encoder reads x − b_dec, theirs x; pass fold=True"),
        (saekern.GatedSAE(D, F), "llamascopium: GatedSAE has no counterpart there"),
        (saekern.NormalizedSAE(D, F, base_args={"k": K}), "layer_norm has no counterpart"),
        (negative, r"the file has log\(threshold\), and 1 thresholds are below 0"),
        (half, r"log\(threshold\) in bfloat16 is too coarse; save sae\.to\(torch\.float32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            saekern.save(sae, tmp_path, "llamascopium", provenance={"hook": HOOK})
