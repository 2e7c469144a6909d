"""Whole studies of a stand-in model: results, what runs again, damage, kills."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saekern import matching, stability
from saekern.activations import language_model
from saekern.pipeline import plan, study
from saekern.pipeline.config import StudyConfig
from saekern.pipeline.harvests import harvest_step
from saekern.pipeline.sources import Sources
from saekern.pipeline.stages import STAGES

pytest.importorskip("matplotlib")


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "study")
    return tmp_path / "study"


def test_layout(finished):
    """The folder is the one of the design page."""
    for name in (
        "study.json",
        "activations/train/manifest.json",
        "seeds/000/config.json",
        "seeds/002/sae.safetensors",
        "seeds/001/train.jsonl",
        "seeds/001/snapshots/00000000.safetensors",
        "pairs/000-001.safetensors",
        "pairs/assignment/000-001.safetensors",
        "results/stability.json",
        "results/evaluation.json",
        "figures/ecdf.png",
        "report.html",
    ):
        assert (finished / name).exists(), name


def test_seeds_differ_in_initialisation_alone(finished):
    configs = [json.loads((finished / f"seeds/{i:03d}/config.json").read_text()) for i in range(3)]
    assert [c["sae"]["init_seed"] for c in configs] == [0, 1, 2]
    assert len({c["provenance"]["training"]["data_seed"] for c in configs}) == 1
    starts = [load_file(finished / f"seeds/{i:03d}/snapshots/00000000.safetensors")["W_dec"] for i in range(3)]
    assert not torch.equal(starts[0], starts[1])


def test_probabilities_are_those_of_the_dictionaries(finished):
    """p̂ from the definition, in float64, by the full cosine matrix, among latents that fire.

    Planted: masks of dead latents not handed to the matching; caught."""
    results = study(small(finished), finished, progress=False).results()
    rows = [load_file(finished / f"seeds/{i:03d}/sae.safetensors")["W_dec"].double() for i in range(3)]
    counts = [load_file(finished / f"results/seeds/{i:03d}.safetensors")["firing_counts"] for i in range(3)]
    live = torch.stack(counts) >= 12
    assert not live.all()
    rows = [torch.nn.functional.normalize(d, dim=1) for d in rows]
    for i in range(3):
        others = [j for j in range(3) if j != i]
        hits = sum((rows[i] @ rows[j][live[j]].T).max(1).values >= 0.7 for j in others)
        expected = torch.where(live[i], hits / len(others), torch.nan).numpy()
        np.testing.assert_array_equal(results.arrays["probability"][i], expected)


def small(folder: Path):
    from saekern.pipeline import StudyConfig

    return StudyConfig.read(folder / "study.json")


def test_nothing_runs_twice(small_config, copied):
    assert study(small_config(), copied, progress=False).ran == ()


@pytest.mark.parametrize(
    ("section", "change", "first"),
    [
        ("report", {"title": "Another"}, {"report"}),
        ("report", {"latents": 2}, {"latents", "report"}),
        ("stability", {"threshold": 0.6}, {"stability", "latents", "report"}),
        ("train", {"log_every": 3}, set()),
        ("evaluation", {"ce_sequences": 3}, {"evaluate", "stability", "latents", "report"}),
    ],
)
def test_a_change_runs_what_depends_on_it(small_config, copied, section, change, first):
    """Planted: the whole config as the key of the report; caught."""
    config = small_config()
    config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **change)})
    planned = {line.stage for line in plan(config, copied) if line.runs}
    ran = {name.split("/")[0] for name in study(config, copied, progress=False).ran}
    assert ran <= planned
    assert ran - {"match"} == first
    weights = load_file(copied / "seeds/000/sae.safetensors")
    assert weights  # still there


def test_more_seeds_keep_the_trained_ones(small_config, copied):
    before = (copied / "seeds/001/sae.safetensors").stat().st_mtime_ns
    pair = (copied / "pairs/000-001.safetensors").stat().st_mtime_ns
    ran = study(small_config(seeds=4), copied, progress=False).ran
    assert [name for name in ran if name.startswith("train")] == ["train/003"]
    assert (copied / "seeds/001/sae.safetensors").stat().st_mtime_ns == before
    assert (copied / "pairs/000-001.safetensors").stat().st_mtime_ns == pair
    study(small_config(), copied, progress=False)  # and back
    assert not (copied / "pairs/000-003.safetensors").exists()


@pytest.mark.parametrize(
    "name",
    [
        "activations/train/shard-00000.safetensors",
        "seeds/001/sae.safetensors",
        "pairs/000-001.safetensors",
        "results/stability.json",
    ],
)
def test_cut_file_is_named_and_the_rest_is_left(small_config, copied, name):
    path = copied / name
    path.write_bytes(path.read_bytes()[:-7])
    others = {p: p.read_bytes() for p in copied.rglob("*.safetensors") if p != path}
    with pytest.raises(ValueError, match=f"{name}.*cut short or altered; delete it to have it made again"):
        study(small_config(), copied, progress=False)
    assert all(p.read_bytes() == content for p, content in others.items())
    if path.is_file() and not name.startswith("activations"):
        path.unlink()
        study(small_config(), copied, progress=False)
        assert path.exists()


def test_only(small_config, copied, tmp_path):
    (copied / "report.html").unlink()
    assert study(small_config(), copied, only="report", progress=False).ran == ("report",)
    with pytest.raises(ValueError, match=r"only: expected one of harvest.*got 'reprot'"):
        study(small_config(), copied, only="reprot")
    with pytest.raises(ValueError, match=r"report reads stability, which is not complete \(not run yet\)"):
        study(small_config(), tmp_path / "new", only="report", progress=False)


def test_plan_writes_nothing_and_counts(small_config, tmp_path):
    config = small_config()
    lines = {line.stage: line for line in plan(config, tmp_path / "new")}
    assert list(lines) == list(STAGES)
    assert not (tmp_path / "new").exists()
    assert lines["train"].rows == 3 * 4096
    assert lines["train"].flops == 3 * 4096 * 2 * 128 * 64
    assert all(line.seconds >= 0 and line.runs == line.of for line in lines.values())


def test_rows_from_an_outside_cache(small_config, finished, tmp_path):
    """No model: the figures of rows are there, cross-entropy is not, contexts come from the cache's own tokens."""
    config = small_config()
    cache = dataclasses.replace(config.activations, cache=str(finished / "activations" / "train"))
    done = study(dataclasses.replace(config, activations=cache), tmp_path / "study", progress=False)
    assert not any(name.startswith("harvest") for name in done.ran)
    assert done.results().latents
    assert any(record["bands"] for record in done.results().explorer["records"])
    assert "not measured" in done.report.read_text()


def test_centred_removes_a_shared_offset():
    """Atoms with one large offset in common look alike raw, and not once centred on their mean."""
    from saekern.pipeline.measure import mean_atom

    offset = 5 * torch.nn.functional.normalize(torch.ones(1, 32), dim=1)
    rows = [torch.randn(50, 32, generator=torch.Generator().manual_seed(s)) / 32**0.5 + offset for s in range(3)]
    live = [torch.ones(50, dtype=torch.bool)] * 3
    mean = mean_atom(rows, live)
    raw = stability.feature_stability(rows).probability.mean()
    centred = stability.feature_stability([matching.center(d, mean) for d in rows]).probability.mean()
    assert raw == 1
    assert centred < 0.2


WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import stand_in
from saekern import activations
from saekern.pipeline import study
activations.tiny_model = stand_in.StandIn
study(stand_in.small_config(), sys.argv[2], progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_sigkill_at_any_stage(small_config, finished, tmp_path):
    """Killed in the middle of several stages, the study ends with the bytes of an undisturbed one.

    Planted: a step recorded as done before it runs; caught."""
    folder = tmp_path / "study"
    marks = [
        ".partial/harvest-heldout",
        ".partial/train-001/001/state.safetensors",
        ".partial/match",
        ".partial/report",
    ]
    for mark in marks:
        process = subprocess.Popen([sys.executable, "-P", "-c", WORKER, str(Path(__file__).parent), str(folder)])
        while process.poll() is None and not (folder / mark).exists():
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    study(small_config(), folder, progress=False)
    assert study(small_config(), folder, progress=False).ran == ()
    names = [
        "results/stability.safetensors",
        "results/stability.json",
        "results/evaluation.json",
        "results/latents.json",
    ]
    names += [f"seeds/{i:03d}/sae.safetensors" for i in range(3)]
    for name in names:
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def test_harvest_depends_on_the_shipped_weights(tmp_path, monkeypatch):
    """A retrained shipped model makes the harvest run again; a model from the hub is known by its name alone."""
    shipped = language_model.weights_hash("tiny")
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(language_model, "_TINY", tmp_path)
    assert language_model.weights_hash("tiny") != shipped
    assert language_model.weights_hash("gpt2") is None
    train = harvest_step(Sources(StudyConfig(), tmp_path), {"activations": {"model": "tiny"}}, "train", progress=False)
    assert train.settings["weights"] == language_model.weights_hash("tiny")
