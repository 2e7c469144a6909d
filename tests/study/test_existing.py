"""Studies of SAEs that exist already: with rows or dictionaries alone, changed files, one more, one less."""

import dataclasses
import json
import os
import re
import shutil
from itertools import combinations

import pytest
import torch
from command_line import run
from safetensors.torch import save_file

from saekern import TopKSAE, save
from saekern.matching import PairStore, all_pairs, match_all
from saekern.pipeline import StudyConfig, match_study, plan, study
from saekern.pipeline.config import ActivationsConfig
from saekern.pipeline.experiments.settings import ExperimentsConfig
from saekern.stability import feature_stability, shared_latents

pytest.importorskip("matplotlib")
F, D = 48, 24
NOTHING = ActivationsConfig(model=None)


def write(path, seed, size=F, *, bare=False):
    """An SAE whose first 12 latents are those of every seed, slightly turned; the encoder reads another direction."""
    common = torch.randn(12, D, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, D, generator=random)
    order = torch.randperm(size, generator=random)
    rows[order[:12]] = common + 0.1 * torch.randn(12, D, generator=random)
    rows[order[12]] = 0.0  # no direction
    encoder = rows.clone()
    encoder[order[:6]] = torch.randn(6, D, generator=random)
    if bare:
        save_file({"W_dec": rows.half(), "W_enc": encoder.half()}, path)
        return str(path)
    sae = TopKSAE(D, size, 4, init_seed=seed)
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(encoder.T)
    save(sae, path)
    return str(path)


@pytest.fixture
def saes(tmp_path):
    return tuple(write(tmp_path / f"sae{seed}", seed) for seed in range(4))


def small(saes, **changes):
    config = {"saes": saes, "activations": NOTHING} | changes
    config = StudyConfig(**config)
    settings = dataclasses.replace(config.stability, null_seeds=2, assignment_seeds=3)
    return dataclasses.replace(config, stability=settings)


@pytest.fixture
def computed(monkeypatch):
    """A list that grows by an entry for every pair that is matched, of whatever dictionaries."""
    done = []
    inner = all_pairs.AllPairs.compute

    def counted(self, positions):
        for pair in inner(self, positions):
            done.append((self.method, pair.i, pair.j))
            yield pair

    monkeypatch.setattr(all_pairs.AllPairs, "compute", counted)
    return done


def stored(done, method):
    """Pairs of the study's stores; the numbers of the centred and null dictionaries come on top."""
    return [pair for name, *pair in done if name == method]


def test_dictionaries_alone(saes, tmp_path):
    """Nothing is harvested, trained or evaluated; the numbers are those of the functions; the page says what is
    missing.

    Planted: the decoders' pairs taken for the encoders'; caught."""
    done = study(small(saes), tmp_path / "study", progress=False)
    stages = {name.split("/")[0] for name in done.ran}
    assert stages == {"saes", "match", "stability", "latents", "report"}
    found, want = done.results(), feature_stability([done.sae(i).dictionary for i in range(4)])
    assert found.evaluation is None
    assert "firing" not in found.arrays
    torch.testing.assert_close(torch.from_numpy(found.arrays["probability"]), want.probability, equal_nan=True)
    assert found.stability["raw"]["dead"] == [1, 1, 1, 1]
    assert found.stability["raw"]["live"]["stable"] == pytest.approx(12 / 47)
    few = [done.sae(i) for i in range(3)]
    strict = shared_latents(
        match_all([sae.W_enc.detach().T for sae in few], "assignment", progress=False, dead=zero(few)),
        match_all(few, "assignment", progress=False, dead=zero(few)),
    )
    assert found.stability["strict"]["shared"]["mean"] == pytest.approx(strict.to_json()["shared"]["mean"])
    assert found.stability["strict"]["shared"]["mean"] < 0.2  # half of the twelve have an encoder of their own
    low, high = (found.stability["intervals"]["stable"][end] for end in ("low", "high"))
    assert low <= 12 / 47 <= high
    page = done.report.read_text()
    for words in ("There are no activations", "which of them ever fire is not known", str(saes[3])):
        assert words in page
    assert page.count("<figure id=") == 5  # excess among them, which needs no rows
    assert "distance between runs" not in page
    assert study(small(saes), tmp_path / "study", progress=False).ran == ()


def zero(saes):
    return [(sae.dictionary == 0).all(1) for sae in saes]


def test_a_file_with_two_matrices(tmp_path, capsys):
    """Half precision, W_enc and W_dec both [F, D], in the same place as an SAE in our format.

    Planted: zero rows not found; caught."""
    paths = [write(tmp_path / f"{seed}.safetensors", seed, bare=True) for seed in range(3)]
    study(small((*paths, write(tmp_path / "sae", 7))), tmp_path / "study", progress=False)
    found = json.loads((tmp_path / "study/results/stability.json").read_text())
    assert found["raw"]["live"]["stable"] == pytest.approx(12 / 47)
    assert found["strict"]["same_partner"]["mean"] > 0.1
    described = json.loads((tmp_path / "study/checkpoints/000.json").read_text())
    assert (described["architecture"], described["encoder"], described["zero"]) == ("a dictionary alone", True, 1)
    saved = torch.randn(F, D)
    save_file({"W_dec": saved}, tmp_path / "alone.safetensors")
    code, out, _ = run(capsys, "stability", *paths[:1], tmp_path / "alone.safetensors")
    assert code == 0
    assert "strict rule" not in out  # one of them has no encoder


def test_with_rows(small_config, saes, tmp_path):
    """The stand-in's activations: held-out rows only are harvested; explained variance, dead latents and contexts are
    there, D(0) is not."""
    config = small_config(saes=saes)
    done = study(config, tmp_path / "study", progress=False)
    assert {name for name in done.ran if name.startswith("harvest")} == {"harvest/heldout"}
    results = done.results()
    assert [seed["seed"] for seed in results.evaluation["seeds"]] == [0, 1, 2, 3]
    assert results.evaluation["k"] in (3, 4)  # mean L0 of the first, since K is not ours to know
    assert all("ce_sae" in seed for seed in results.evaluation["seeds"])
    assert results.arrays["firing"].shape == (4, F)
    assert results.stability["distance"] == {}
    assert results.latents != []
    assert "There are no activations" not in done.report.read_text()
    assert study(config, tmp_path / "study", progress=False).ran == ()


def test_other_sizes_and_other_widths(small_config, saes, tmp_path):
    """Unequal F with rows: every array is padded. Another width is an error that names the file."""
    wide = write(tmp_path / "wide", 5, 61)
    done = study(small_config(saes=(*saes[:2], wide)), tmp_path / "study", progress=False)
    assert done.results().arrays["firing"].shape == (3, 61)
    assert done.results().stability["sizes"] == [F, F, 61]
    save(TopKSAE(16, F, 4), tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"narrow has width 16, expected 24 as in .*sae0"):
        study(small((saes[0], str(tmp_path / "narrow"))), tmp_path / "b", progress=False)
    with pytest.raises(ValueError, match=r"narrow reads activations of width 16, the rows have 24; activations.model"):
        study(small_config(saes=(str(tmp_path / "narrow"), saes[0])), tmp_path / "c", progress=False)


def test_one_more_costs_its_own_pairs(saes, tmp_path, computed):
    """Appended; then one taken from the middle, which costs nothing; then put back there.

    Planted: files of positions beyond the new count deleted before the matching; caught."""
    store = tmp_path / "study" / "pairs"
    study(small(saes[:3]), tmp_path / "study", progress=False)
    written = {path.stat().st_mtime_ns for path in store.glob("*-*")}
    for chosen, new in ((saes, 3), ((saes[0], *saes[2:]), 0), (saes, 3)):
        study(small(chosen), tmp_path / "study", only="saes", progress=False)
        computed.clear()
        study(small(chosen), tmp_path / "study", only="match", progress=False)
        assert len(stored(computed, "nearest")) == new, chosen
        files = sorted(path.name for path in store.glob("*-*"))
        assert files == [f"{i:03d}-{j:03d}.safetensors" for i, j in combinations(range(len(chosen)), 2)]
        now = {path.stat().st_mtime_ns for path in store.glob("*-*")}
        assert len(now - written) == new
        written = now
        assert PairStore.open(store).seeds == list(range(len(chosen)))


def test_order_is_a_change(saes, tmp_path, computed):
    """Two that change places: theirs is computed anew, what they have with the third is not."""
    study(small(saes[:3]), tmp_path / "study", progress=False)
    turned = small((saes[1], saes[0], saes[2]))
    assert {line.stage: line.runs for line in plan(turned, tmp_path / "study")}["saes"] == 2
    study(turned, tmp_path / "study", only="saes", progress=False)
    computed.clear()
    study(turned, tmp_path / "study", only="match", progress=False)
    assert stored(computed, "nearest") == [[0, 1]]


def test_changed_files_run_again_and_touched_ones_do_not(saes, tmp_path, computed):
    """By content. A state file of a training run beside the SAE is not part of it.

    Planted: time and size taken for the content; caught."""
    folder = tmp_path / "study"
    study(small(saes), folder, progress=False)
    os.utime(tmp_path / "sae1" / "sae.safetensors")
    (tmp_path / "sae1" / "state.safetensors").write_bytes(b"the next step")
    moved = shutil.copytree(tmp_path / "sae2", tmp_path / "elsewhere")
    assert study(small((*saes[:2], str(moved), saes[3])), folder, progress=False).ran == ()
    other = TopKSAE(D, F, 4, init_seed=77)
    save(other, tmp_path / "sae1")
    assert plan(small(saes), folder)[1].why == "its source changed"
    computed.clear()
    ran = study(small(saes), folder, progress=False).ran
    assert [name for name in ran if name.startswith("saes")] == ["saes/001"]
    assert {"match", "stability", "report"} <= set(ran)
    (folder / "checkpoints" / "001.stat.json").unlink()
    assert study(small(saes), folder, progress=False).ran == ()


def test_match_study(saes, tmp_path):
    study(small(saes), tmp_path / "study", progress=False)
    store = match_study(tmp_path / "study", progress=False)
    assert (len(store), store.method) == (6, "assignment")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"saes": ["a"]}, "saes: expected at least two SAEs, got 1"),
        ({"saes": ["a", "a"]}, "saes: expected every SAE once, got ['a', 'a']"),
        ({"activations": {"model": None}}, "training needs a model or activations.cache"),
        ({"activations": {"model": ""}}, "activations.model: expected a model name or null, got ''"),
        ({"saes": ["a", "b"], "activations": {"model": None}, "variants": [{"name": "x"}]}, "variants are trained"),
    ],
)
def test_settings(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StudyConfig.from_json(values)


def test_seeds_are_their_number():
    config = StudyConfig.from_json({"saes": ["a", "b", "c"], "seeds": 9})
    assert config.seeds == 3
    assert StudyConfig.from_json(config.to_json()) == config


def test_what_cannot_be_studied(small_config, saes, tmp_path):
    shutil.copytree(saes[0], tmp_path / "copy")
    with pytest.raises(ValueError, match=r"expected different SAEs, but .*copy and .*sae0 have the same content"):
        study(small((saes[0], str(tmp_path / "copy"))), tmp_path / "a", progress=False)
    bare = tuple(write(tmp_path / f"{seed}.safetensors", seed, bare=True) for seed in range(2))
    with pytest.raises(ValueError, match=r"0\.safetensors holds a dictionary alone: rows need an SAE"):
        study(small_config(saes=bare), tmp_path / "b", progress=False)
    with pytest.raises(FileNotFoundError, match=r"nowhere.* does not exist"):
        study(small((saes[0], str(tmp_path / "nowhere"))), tmp_path / "c", progress=False)
    wide = write(tmp_path / "wide", 5, 61)
    config = small_config(saes=(saes[0], wide), experiments=ExperimentsConfig(run=("masking",)))
    with pytest.raises(ValueError, match=r"wide has latents 61, expected 48 as in .*sae0"):
        study(config, tmp_path / "e", progress=False)
    values = small(saes).to_json() | {"experiments": {"run": ["masking"]}}
    with pytest.raises(ValueError, match=r"masking needs rows, but there are no rows \(activations.model is null\)"):
        study(StudyConfig.from_json(values), tmp_path / "d", progress=False)


def test_the_command(saes, tmp_path, capsys):
    """A folder, a JSON file, and nothing: the same lines. The folder is continued, by config too."""
    code, out, _ = run(capsys, "stability", *saes, "--quiet")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("4 dictionaries of 48 latents, θ = 0.7, ε = 0.05; set aside: 4, without direction")
    assert lines[1].startswith("stable 25.53 (")
    for words in ("by chance: mean p", "beyond chance (rotated copies): excess 0.", "IoU", "PW-MCC", "strict rule"):
        assert words in out
    folder = tmp_path / "study"
    code, again, _ = run(capsys, "stability", *saes, "--out", folder, "--quiet")
    assert again.splitlines() == [*lines, f"report: {folder / 'report.html'}"]
    code, _, _ = run(capsys, "stability", *saes, "--out", tmp_path / "s.json", "--quiet")
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["intervals"]["confidence"] == 0.95
    assert content["stability"]["comparisons"] == 3
    code, out, _ = run(capsys, "study", folder / "study.json", "--out", folder)
    assert code == 0
    assert out.splitlines() == again.splitlines()


def test_the_command_with_a_cache(saes, finished, tmp_path, capsys):
    cache = finished / "activations" / "train"
    code, out, _ = run(capsys, "stability", *saes, "--out", tmp_path / "study", "--rows", cache, "--quiet")
    assert code == 0
    assert ", dead" in out.splitlines()[0]
    evaluation = json.loads((tmp_path / "study/results/evaluation.json").read_text())
    assert evaluation["rows"] > 500  # half of the cache: nothing is trained on it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "x", "--model", "tiny"], "expected --rows or --model, got both"),
        (["--model", "tiny"], "--model tiny: expected --hook as well"),
        (["--hook", "blocks.1.hook_resid_post"], "--hook, --tokens: expected --model as well"),
        (["--rows", "x"], "--rows, --model: expected --out DIR as well"),
    ],
)
def test_errors_of_the_command(saes, capsys, arguments, message):
    code, _, err = run(capsys, "stability", *saes, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
