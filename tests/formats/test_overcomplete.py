"""overcomplete's state dicts, made with the library by `make_golden.py`: answers, round trips, what must be passed.

Planted: θ = exp(thresholds) without the number below; thresholds taken for θ itself; multiplier forgotten in the atoms;
W not divided by its sum; top_k of a batch read as a row's; TopK read without top_k; caught.
"""

from pathlib import Path

import pytest
import torch
from format_checks import assert_answers, assert_round_trip
from safetensors.torch import load_file

import saekern
from saekern.formats import state_dict

GOLDEN = Path(__file__).parent / "golden" / "overcomplete"
L2, DELTA = {"normalization": "l2"}, {"delta": 0.5}
TOP = {"class": "TopKSAE", "top_k": 3}
BATCH = {"class": "BatchTopKSAE", "top_k": 27, "batch_size": 9, "threshold": 0.4000000059604645}
CASES = {  # folder -> options, our class, fold
    "SAE": (L2 | {"class": "SAE"}, saekern.ReLUSAE, False),
    "TopKSAE": (L2 | TOP, saekern.TopKSAE, False),
    "BatchTopKSAE": (L2 | BATCH, saekern.BatchTopKSAE, False),
    "JumpSAE": (L2, saekern.JumpReLUSAE, False),
    "RATopKSAE": (DELTA | {"class": "RATopKSAE", "top_k": 3}, saekern.ArchetypalSAE, False),
    "RAJumpSAE": (DELTA, saekern.ArchetypalSAE, False),
    "untied": (L2 | TOP, saekern.TopKSAE, False),
    "max_l2": (TOP | {"normalization": "max_l2"}, saekern.TopKSAE, False),
    "l1": (TOP | {"normalization": "l1"}, saekern.TopKSAE, False),
    "max_l1": (TOP | {"normalization": "max_l1"}, saekern.TopKSAE, False),
    "identity": (TOP | {"normalization": "identity"}, saekern.TopKSAE, False),
    "off": (L2 | TOP, saekern.TopKSAE, True),
    "RA_off": (DELTA, saekern.ArchetypalSAE, True),
}


def loaded(name, **more):
    options, _, fold = CASES[name]
    return saekern.load(GOLDEN / name / "sae.pt", options=options, **{"fold": fold, **more})


def test_every_case_is_there():
    assert sorted(CASES) == sorted(folder.name for folder in GOLDEN.iterdir())


@pytest.mark.parametrize("name", CASES)
def test_answers_of_the_library(name):
    sae, answers = loaded(name), load_file(GOLDEN / name / "answers.safetensors")
    assert isinstance(sae, CASES[name][1])
    assert_answers(sae, answers["x"], answers["codes"], answers["x_hat"])


@pytest.mark.parametrize("name", [name for name, (_, _, fold) in CASES.items() if not fold])
def test_round_trip(name, tmp_path):
    assert_round_trip(GOLDEN / name / "sae.pt", tmp_path, "overcomplete", CASES[name][0])


@pytest.mark.parametrize("name", ["off", "RA_off"])
def test_off_the_constraints(name, tmp_path):
    """Refused as they are; with fold, what is written afterwards is on them and reads without."""
    message = "rows are not yet of l2 norm 1 and it is multiplied" if name == "off" else "rows of W are not yet >= 0"
    with pytest.raises(ValueError, match=message):
        loaded(name, fold=False)
    sae, x = loaded(name), torch.randn(9, 12)
    if name == "off":
        with pytest.raises(ValueError, match=r"decoder rows have norm 1.4477\S*: fold=True makes that its multiplier"):
            saekern.save(sae, tmp_path / "sae.pt", "overcomplete")
        saekern.save(sae, tmp_path / "sae.pt", "overcomplete", fold=True)
        again = saekern.load(tmp_path / "sae.pt", options=CASES[name][0], fold=True)
    else:
        saekern.save(sae, tmp_path / "sae.pt", "overcomplete")
        again = saekern.load(tmp_path / "sae.pt", options=CASES[name][0])
    torch.testing.assert_close(again(x), sae(x))


def test_thresholds_pass_what_is_equal():
    """s >= t there, s > θ here: scores of exactly t, the number below t, and the one above."""
    logs = torch.linspace(-20, 3, 2001)
    theta, t = state_dict.threshold_of(logs, True, Path("x")), logs.exp()
    up, down = torch.nextafter(t, torch.tensor(torch.inf)), torch.nextafter(t, torch.tensor(0.0))
    assert bool((t > theta).all() and (up > theta).all() and not (down > theta).any())
    assert float(state_dict.threshold_of(torch.tensor([-200.0]), True, Path("x"))) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logarithms_come_back(dtype):
    """Those that were read exactly; of others, wherever some number has that exponential."""
    logs = torch.linspace(-20, 3, 2001, dtype=dtype)
    theta = state_dict.threshold_of(logs, True, Path("x"))
    assert torch.equal(state_dict.logs_of(theta, logs, True, "x", False), logs)
    again = state_dict.logs_of(theta, None, True, "x", False)
    assert torch.equal(state_dict.threshold_of(again, True, Path("x")), theta)
    moved = torch.nextafter(theta, torch.tensor(torch.inf, dtype=dtype))
    with pytest.raises(ValueError, match=r"keeps log θ, and \d+ of 2001 thresholds are not the exp of a number of"):
        state_dict.logs_of(moved, logs, True, "x", False)
    nearest = state_dict.threshold_of(state_dict.logs_of(moved, logs, True, "x", True), True, Path("x"))
    # One step of a logarithm of size m moves θ by m 2⁻²³, and half that is the farthest away.
    assert bool(((nearest - moved).abs() <= moved * (logs.abs() + 2) * torch.finfo(dtype).eps).all())


def test_jumps_of_ours(tmp_path):
    sae = saekern.JumpReLUSAE(6, 10, subtract_b_dec=False, initial_threshold=0.0, init_seed=0)
    saekern.save(sae, tmp_path / "sae.pt", "overcomplete")
    assert torch.equal(saekern.load(tmp_path / "sae.pt", options=L2).threshold, sae.threshold)
    sae.threshold.data[3] = -1
    with pytest.raises(ValueError, match="keeps log θ, and 1 thresholds are below 0"):
        saekern.save(sae, tmp_path / "sae.pt", "overcomplete")


def test_a_batchs_threshold_has_to_be_known(tmp_path):
    sae = loaded("BatchTopKSAE")
    assert (sae.k, float(sae.threshold)) == (3, 0.39999997615814209)
    sae.threshold.fill_(0.75)
    with pytest.raises(ValueError, match=r"no state dict holds the threshold of a BatchTopKSAE. Set .*0.75000005960"):
        saekern.save(sae, tmp_path / "sae.pt", "overcomplete")
    saekern.save(sae, tmp_path / "sae.pt", "overcomplete", options={"threshold": 0.7500000596046448})
    saekern.save(sae, tmp_path / "jump.pt", "overcomplete", options={"class": "JumpSAE"}, fold=True)
    jump, x = saekern.load(tmp_path / "jump.pt", options=L2), torch.randn(20, 12)
    assert type(jump) is saekern.JumpReLUSAE
    assert torch.equal(jump.encode(x) != 0, sae.encode(x) != 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("TopKSAE", {}, r"does not say its class: .*\['SAE', 'TopKSAE', 'BatchTopKSAE'\]"),
        ("TopKSAE", {"class": "KSAE"}, "class: expected one of SAE, TopKSAE, .*, got 'KSAE'"),
        ("TopKSAE", {"class": "JumpSAE"}, "not a JumpSAE: by its tensors it is one of SAE, TopKSAE, BatchTopKSAE"),
        ("TopKSAE", {"class": "RATopKSAE"}, "not a RATopKSAE"),
        ("JumpSAE", {"class": "TopKSAE"}, "not a TopKSAE: by its tensors it is one of JumpSAE"),
        ("TopKSAE", L2 | {"class": "TopKSAE"}, r"does not hold top_k: pass options=\{'top_k': its top_k\}"),
        ("TopKSAE", L2 | {"class": "TopKSAE", "top_k": 0}, "top_k: expected a positive whole number, got 0"),
        ("TopKSAE", L2 | {"class": "TopKSAE", "top_k": 2.5}, "top_k: expected a positive whole number, got 2.5"),
        ("TopKSAE", TOP, r"normalization: pass options=\{'normalization': 'l2'\}, the library's default"),
        ("TopKSAE", TOP | {"normalization": "l3"}, "normalization: expected one of l2, max_l2, .* got 'l3'"),
        ("TopKSAE", TOP | L2 | DELTA, "delta: a TopKSAE has none"),
        ("RATopKSAE", {"top_k": 3, "class": "RATopKSAE"}, "does not hold delta"),
        ("RATopKSAE", DELTA | {"class": "RATopKSAE", "top_k": 3} | L2, "normalization: a RATopKSAE has none"),
        ("BatchTopKSAE", L2 | {"class": "BatchTopKSAE"}, "does not hold top_k"),
        ("BatchTopKSAE", L2 | BATCH | {"batch_size": 8}, "top_k = 27 is not a multiple of batch_size = 8"),
        ("BatchTopKSAE", L2 | BATCH | {"threshold": None}, r"hold threshold: pass .*float\(sae.running_threshold\)"),
        ("BatchTopKSAE", L2 | BATCH | {"threshold": 0.0}, "threshold: expected a positive number, got 0.0"),
        ("l1", L2 | TOP, "20 rows are not yet of l2 norm 1; fold=True"),
    ],
)
def test_what_must_be_passed(name, options, message):
    with pytest.raises(ValueError, match=message):
        saekern.load(GOLDEN / name / "sae.pt", options=options)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "TopKSAE",
            lambda s: s | {"encoder.final_block.1.weight": torch.ones(20)},
            "an encoder that saekern does not have",
        ),
        ("TopKSAE", lambda s: {n: s[n] for n in s if "encoder" not in n}, r"does not have \(none\)"),
        ("TopKSAE", lambda s: s | {"encoder.final_block.0.weight": torch.ones(3)}, "expected a matrix"),
        ("TopKSAE", lambda s: {n: s[n] for n in s if "multiplier" not in n}, "not a TopKSAE: missing"),
        ("JumpSAE", lambda s: s | {"thresholds": s["thresholds"] * torch.inf}, "20 logarithms are not finite"),
        ("RAJumpSAE", lambda s: s | {"dictionary.C": s["dictionary.C"][:7]}, r"expected W \[F, n\], C \[n, D\]"),
    ],
)
def test_refusals_of_files(name, change, message, tmp_path):
    torch.save(change(torch.load(GOLDEN / name / "sae.pt", weights_only=True)), tmp_path / "sae.pt")
    with pytest.raises(ValueError, match=message):
        saekern.load(tmp_path / "sae.pt", format="overcomplete", options=CASES[name][0])


@pytest.mark.parametrize(
    ("sae", "options", "message"),
    [
        (lambda: saekern.GatedSAE(8, 16), {}, "cannot express 'gated'; it has: relu, topk, batch_topk, jumprelu"),
        (lambda: with_bias(saekern.TopKSAE(8, 16, 2)), {}, "no decoder bias, and b_dec of this SAE is not 0"),
        (lambda: saekern.TopKSAE(8, 16, 2), {"class": "SAE"}, "class: expected 'TopKSAE' for this SAE, got 'SAE'"),
        (lambda: with_rows(saekern.ReLUSAE(8, 16)), {}, "norms from .* pass options={'normalization': 'identity'}"),
        (lambda: archetypes(0.0), {}, "delta = 0 is 0/0 there"),
        (lambda: archetypes(0.1, "gated"), {}, "cannot express 'gated'"),
        (lambda: archetypes(0.1, "relu"), {}, "no archetypal SAE over 'relu'"),
        (lambda: off(archetypes(0.1)), {}, "20 rows of W are not >= 0 with sum 1, 0 of Lambda are longer"),
    ],
)
def test_refusals_of_writing(sae, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        saekern.save(sae(), tmp_path / "sae.pt", "overcomplete", options=options)
    assert not (tmp_path / "sae.pt").exists()


def test_archetypes_of_ours(tmp_path):
    for relaxation, delta in ((0.1, 0.1), (0.0, 1.0)):
        sae = archetypes(relaxation)
        saekern.save(sae, tmp_path / "sae.pt", "overcomplete", options={"delta": delta})
        again = saekern.load(tmp_path / "sae.pt", options={"class": "RATopKSAE", "top_k": 2, "delta": delta})
        x = torch.randn(9, 8)
        assert torch.equal(again.points, sae.points)
        torch.testing.assert_close(again(x), sae(x))


def with_bias(sae):
    sae.b_dec.data.fill_(0.5)
    return sae


def with_rows(sae):
    sae.W_dec.data.mul_(torch.linspace(1, 2, sae.d_sae)[:, None])
    return sae


def archetypes(relaxation, base="topk"):
    arguments = {"k": 2} if base == "topk" else {}
    return saekern.ArchetypalSAE(
        8, 20, points=torch.randn(5, 8), relaxation=relaxation, base=base, base_args=arguments, init_seed=0
    )


def off(sae):
    sae.W.data.mul_(1.5)
    return sae
