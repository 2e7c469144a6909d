"""`saekern match`: folders and raw arrays, the summary, the file, the picture, all pairs."""

import json
import sys

import numpy as np
import pytest
import torch
from command_line import run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment as scipy_assignment

from saekern import TopKSAE, save
from saekern.matching import PairStore, match
from saekern.report import matched
from saekern.version import __version__


@pytest.fixture
def rows():
    """Two dictionaries: the second has the first's latents in another order and a little noise, two of them zero."""
    a = torch.randn(41, 12)
    b = a[torch.randperm(41)] + 0.05 * torch.randn(41, 12)
    a[3], b[[5, 7]] = 0, 0
    return a, b


def write_npy(path, rows, dtype="float32"):
    np.save(path, rows.numpy().astype(dtype))
    return path


def lines_of(out):
    """The summary as a dict: what stands before the first colon, and after it."""
    return dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)


@pytest.mark.parametrize("kind", ["npy", "safetensors", "folder and npy"])
def test_the_file_holds_what_match_finds(capsys, tmp_path, rows, kind):
    """Planted: u and v exchanged in the file; the second array read for both; both caught."""
    a, b = rows
    if kind == "npy":
        paths = [write_npy(tmp_path / f"{name}.npy", x) for name, x in (("a", a), ("b", b))]
    elif kind == "safetensors":
        paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        for path, x in zip(paths, rows, strict=True):
            save_file({"W_dec": x, "W_enc": torch.randn(12, 41)}, path)
    else:
        sae = TopKSAE(12, 41, 4, init_seed=0)
        with torch.no_grad():
            sae.W_dec.copy_(a)
        save(sae, tmp_path / "sae")
        paths = [tmp_path / "sae", write_npy(tmp_path / "b.npy", b)]
    code, out, _ = run(capsys, "match", *paths, "--out", tmp_path / "new" / "m.safetensors")
    assert code == 0
    want = match(a, b)
    found = load_file(tmp_path / "new" / "m.safetensors")
    for name in ("index", "cosine", "margin"):
        assert torch.equal(found[name].nan_to_num(7), getattr(want, name).nan_to_num(7))
    assert torch.equal(found["u"], want.certificate.u)
    assert torch.equal(found["v"], want.certificate.v)
    with safe_open(tmp_path / "new" / "m.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["a"] == str(paths[0])
    assert facts["b"] == str(paths[1])
    assert (facts["method"], facts["metric"], facts["exact"], facts["verified"]) == (
        "assignment",
        "cosine",
        "True",
        "False",
    )
    assert facts["saekern"] == __version__
    assert float(facts["primal"]) == want.certificate.primal
    assert float(facts["gap"]) == float(facts["dual"]) - float(facts["primal"])
    assert int(facts["rows_recomputed"]) == want.certificate.rows_recomputed
    words = lines_of(out)
    assert words["set aside, having no direction"] == "1 of A, 2 of B"
    assert words["left over, since the other side has fewer"] == "1"  # 40 latents, 39 partners
    assert "optimal" in words
    assert f"{want.certificate.primal:.9g}" in words["optimal"]


def test_summary_counts(capsys, tmp_path, rows):
    """Planted: the share of all latents in place of live ones; caught."""
    a, b = rows
    paths = [write_npy(tmp_path / f"{i}.npy", x) for i, x in enumerate(rows)]
    for method in ("assignment", "nearest"):
        code, out, _ = run(capsys, "match", *paths, "--method", method, "--threshold", 0.9)
        want, words = match(a, b, method), lines_of(out)
        cosine = want.cosine[~want.cosine.isnan()]
        matched = int((cosine >= 0.9).sum())
        assert code == 0
        assert out.startswith(f"41 latents against 41, {method}\n")
        assert words["cosine ≥ 0.9"] == f"{matched} ({matched / 40:.1%})"
        assert words["cosine"] == f"mean {cosine.mean():.4f}, median {cosine.median():.4f}"
        low, middle, high = np.quantile(want.margin[~want.margin.isnan()].double(), [0.1, 0.5, 0.9])
        assert words["margin"].startswith(
            f"10 % below {low:.4f}, half below {middle:.4f}, 90 % below {high:.4f} (the pair stays"
            if method == "assignment"
            else f"10 % below {low:.4f}, half below {middle:.4f}, 90 % below {high:.4f} (to the second best"
        )
        assert ("optimal" in words) == (method == "assignment")


def test_verify_says_so(capsys, tmp_path, rows):
    paths = [write_npy(tmp_path / f"{i}.npy", x) for i, x in enumerate(rows)]
    code, out, _ = run(capsys, "match", *paths, "--verify", "--out", tmp_path / "m.safetensors")
    assert code == 0
    assert "verified: a second look at all pairs" in out
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata()["verified"] == "True"


def test_exact_margins(capsys, tmp_path, rows):
    paths = [write_npy(tmp_path / f"{i}.npy", x) for i, x in enumerate(rows)]
    assert run(capsys, "match", *paths, "--margin", "exact", "--out", tmp_path / "m.safetensors")[0] == 0
    found, want = load_file(tmp_path / "m.safetensors")["margin"], match(*rows, margin="exact").margin
    assert torch.equal(found.nan_to_num(7), want.nan_to_num(7))
    assert bool((found.nan_to_num(7) >= match(*rows).margin.nan_to_num(7)).all())
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata()["margins"] == "exact"


def test_a_proof_that_fails_is_not_called_one():
    found = match(torch.randn(5, 4), torch.randn(5, 4))
    proof = found.certificate._replace(exact=False, gap=0.25)
    assert matched._proof(proof)[0].startswith("NOT PROVED optimal")
    assert "0.25" in matched._proof(proof)[0]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions(capsys, tmp_path, rows, dtype):
    """Halves are matched as float32, doubles as doubles."""
    paths = [write_npy(tmp_path / f"{i}.npy", x, dtype) for i, x in enumerate(rows)]
    code, _, _ = run(capsys, "match", *paths, "--out", tmp_path / "m.safetensors")
    assert code == 0
    found = load_file(tmp_path / "m.safetensors")
    a, b = (torch.from_numpy(np.load(path)) for path in paths)
    assert torch.equal(found["index"], match(a, b).index)
    assert found["cosine"].dtype == (torch.float64 if dtype == "float64" else torch.float32)
    cosine = torch.nn.functional.normalize(a.double()) @ torch.nn.functional.normalize(b.double()).T
    best = cosine[scipy_assignment(cosine, maximize=True)].sum()
    assert abs(found["cosine"].double().nansum() - best) <= 41 * 2.0**-24


def test_transposed_tensor_by_name(capsys, tmp_path, rows):
    """What torch.nn.Linear(F, D) saves. Planted: --transpose not handed on; caught, as F = 12 against 41."""
    a, b = rows
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, x in zip(paths, rows, strict=True):
        save_file({"decoder.weight": x.T.contiguous(), "encoder.weight": x + 1}, path)
    arguments = ["--tensor", "decoder.weight", "--transpose", "--out", tmp_path / "m.safetensors"]
    assert run(capsys, "match", *paths, *arguments)[0] == 0
    assert torch.equal(load_file(tmp_path / "m.safetensors")["index"], match(a, b).index)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.npy"], "expected two dictionaries, got 1; --all matches every pair"),
        (["a.npy", "a.npy", "a.npy"], "expected two dictionaries, got 3"),
        (
            ["a.npy", "none.npy"],
            "none.npy does not exist: expected an SAE, a .npy or a .safetensors file",
        ),
        (["a.npy", "text.txt"], "text.txt: no known format (found: text.txt)"),
        (["a.npy", "narrow.npy"], "b: expected shape [Fb, 12] like a's width, got [5, 4]"),
        (["a.npy", "nan.npy"], "nan.npy: expected finite entries, got NaN or Inf in 1 rows, first row 2"),
        (
            ["a.npy", "integers.npy"],
            "integers.npy: expected a matrix [F, D] of floating-point numbers, got torch.int64",
        ),
        (["a.npy", "line.npy"], "line.npy: expected a matrix [F, D] of floating-point numbers, got torch.float32 [12]"),
        (["a.npy", "names.npy"], "names.npy: expected a matrix [F, D] of floating-point numbers, got <U1"),
        (["a.npy", "pickle.npy"], "pickle.npy is not a readable .npy array"),
        (["a.npy", "cut.npy"], "cut.npy is not a readable .npy array"),
        (["a.npy", "cut.safetensors"], "cut.safetensors is truncated or damaged"),
        (
            ["a.npy", "two.safetensors"],
            "no W_dec, and 2 matrices; name one of its tensors (--tensor): bias [3], x [3, 12]",
        ),
        (["a.npy", "two.safetensors", "--tensor", "z"], "two.safetensors: no tensor 'z'; name one of its tensors"),
        (["a.npy", "two.safetensors", "--tensor", "bias"], "expected a matrix [F, D] of floating-point numbers"),
        (
            ["a.npy", "a.npy", "--method", "nearest", "--verify"],
            "method: metric, verify, start and margin are for 'assignment'",
        ),
        (["a.npy", "a.npy", "--picture", "x.jpg"], "--picture: expected a file name that ends in .png, got 'x.jpg'"),
        (["a.npy", "a.npy", "--all", "--verify"], "--verify, --margin: expected two dictionaries, not --all"),
        (["a.npy", "--all"], "a.npy/study.json does not exist: expected the folder of a study"),
        (["a.npy", "narrow.npy", "--all"], "dictionaries[1]: expected shape [F, 12] like dictionaries[0], got [5, 4]"),
    ],
)
def test_errors_name_the_file(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    a = torch.randn(7, 12)
    write_npy("a.npy", a)
    write_npy("narrow.npy", torch.randn(5, 4))
    write_npy("nan.npy", torch.where(torch.arange(7)[:, None] == 2, torch.nan, a))
    write_npy("integers.npy", a, "int64")
    write_npy("line.npy", a[0])
    np.save("names.npy", np.array([["a", "b"]]))
    np.save("pickle.npy", np.array([[None]]), allow_pickle=True)
    with open("a.npy", "rb") as whole, open("cut.npy", "wb") as cut:
        cut.write(whole.read()[:-20])
    save_file({"x": a[:3].clone(), "y": a, "bias": torch.ones(3)}, "two.safetensors")
    with open("two.safetensors", "rb") as whole, open("cut.safetensors", "wb") as cut:
        cut.write(whole.read()[:-20])
    (tmp_path / "text.txt").write_text("no array")
    code, _, err = run(capsys, "match", *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("saekern: error: ")
    assert err.count("\n") == 1


def test_picture(capsys, tmp_path, rows):
    """A PNG that opens, with ink in it. Planted: the counts of set-aside latents left out of the note; caught."""
    from matplotlib.image import imread

    notes = []
    paths = [write_npy(tmp_path / f"{name}.npy", x) for name, x in zip("ab", rows, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        inner = matched.draw_cosines
        patch.setattr("saekern.cli.match.draw_cosines", lambda *given: (notes.append(given[2:]), inner(*given)))
        assert run(capsys, "match", *paths, "--picture", tmp_path / "new" / "p.png")[0] == 0
    pixels = imread(tmp_path / "new" / "p.png")
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 800
    assert pixels[..., :3].std() > 0.05
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "p.png"]
    ((title, note, threshold),) = notes
    assert title == "a.npy → b.npy, assignment"
    assert "39 partners" in note
    assert note.endswith("set aside: 1 of A, 2 of B")
    assert threshold == 0.7


def test_picture_without_matplotlib_fails_before_the_work(capsys, tmp_path, rows, monkeypatch):
    paths = [write_npy(tmp_path / f"{i}.npy", x) for i, x in enumerate(rows)]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(capsys, "match", *paths, "--picture", tmp_path / "p.png")
    assert (code, out) == (2, "")
    assert err == "saekern: error: --picture needs Matplotlib: pip install 'saekern[report]'\n"


def test_progress_bar_is_asked_for(capsys, tmp_path, rows, monkeypatch):
    """Not a terminal here, so none by default. Planted: progress not handed to match; caught."""
    paths = [write_npy(tmp_path / f"{i}.npy", x) for i, x in enumerate(rows)]
    told = []

    def slowly(*given, progress, **options):
        told.append(progress)
        if progress is not None:
            progress("candidates", 1, 2)
            progress("search", 41, 41)
        return match(*given, **options)

    monkeypatch.setattr("saekern.matching.match", slowly)
    assert run(capsys, "match", *paths)[2] == ""
    assert run(capsys, "match", *paths, "--no-progress")[2] == ""
    assert told == [None, None]
    err = run(capsys, "match", *paths, "--progress")[2]
    assert "candidates  50%" in err
    assert "search     100%" in err


def test_all_pairs_of_arrays(capsys, tmp_path, rows):
    """In memory and in a store, which a second call only completes."""
    paths = [write_npy(tmp_path / f"{i}.npy", x) for i, x in enumerate([*rows, torch.randn(30, 12)])]
    code, out, _ = run(capsys, "match", "--all", *paths, "--threshold", 0.9)
    assert code == 0
    assert "3 pairs of 3 dictionaries (30 or 41 latents), assignment" in out
    assert "set aside, dead or without direction: 3 of 112 latents" in out
    assert "pairs: " not in out
    store = tmp_path / "store"
    arguments = ["match", "--all", *paths, "--threshold", 0.9, "--out", store, "--picture", tmp_path / "p.png"]
    code, stored, _ = run(capsys, *arguments)
    assert code == 0
    assert stored == out + f"pairs: {store}\n"
    first = (store / "000-001.safetensors").read_bytes()
    (store / "000-001.safetensors").unlink()
    assert run(capsys, *arguments)[1] == stored
    assert (store / "000-001.safetensors").read_bytes() == first
    found = PairStore.open(store)
    assert torch.equal(found[0, 1].index, match(*rows).index)
    words = lines_of(out)
    shares = [(found[i, j].cosine >= 0.9).sum() / found.live(i).sum() for i in range(3) for j in range(3) if i != j]
    assert words["most"] == f"{max(shares):.1%}, 001 in 000"  # 38 of 39 against 38 of 40, or about that
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((store / "manifest.json").read_text())["method"] == "assignment"
