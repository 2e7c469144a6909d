"""A study on another device: on the stand-in it gives the CPU's numbers; where the GPU is missing it says so."""

import dataclasses
import json
import shutil

import pytest
import torch
from stand_in_device import StandIn, patch_autocast

import saekern.sae.topk
from saekern import cli
from saekern.pipeline import config as settings
from saekern.pipeline import plan, run, study

NUMBERS = ("evaluation.json", "stability.json", "latents.json")


def rounded(value):
    """torch's own sums depend on the threads in the last bits."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


@pytest.fixture
def stand_in(monkeypatch):
    patch_autocast(monkeypatch)
    monkeypatch.setattr(settings, "parse_device", lambda name: None)
    monkeypatch.setattr(run, "usable_device", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a stand-in")
    drawn = saekern.sae.topk.unit_directions  # makes nothing on the real "meta"
    monkeypatch.setattr(
        saekern.sae.topk, "unit_directions", lambda *sizes: drawn(*sizes[:3], "cpu").to(sizes[3] or "cpu")
    )
    with StandIn() as device:
        yield device


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_the_numbers_are_those_of_the_cpu(stand_in, small_config, tmp_path):
    """Every tensor is on one device or the other when it has to be. No latent is dead, which a GPU may notice later.

    Planted: the mean atom added up on the device; in-memory pairs left there; both caught."""
    train = dataclasses.replace(small_config().train, dead_after=10**6)
    results = []
    for device in ("meta", "cpu"):
        done = study(small_config(device=device, train=train), tmp_path / device, progress=False)
        assert done.report.exists()
        folder = tmp_path / device / "results"
        results.append([rounded(json.loads((folder / name).read_text())) for name in NUMBERS])
    assert results[0] == results[1]
    facts = json.loads((tmp_path / "meta" / "results" / "run.json").read_text())["facts"]
    assert facts["Device"] == "a stand-in"
    described = json.loads((tmp_path / "meta" / "seeds" / "000" / "config.json").read_text())
    assert described["provenance"]["device"] == "meta"


def test_another_device_makes_its_results_anew(small_config, finished, tmp_path):
    """Planted: the device left out of the training's settings; caught."""
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    why = {line.stage: line.why for line in plan(small_config(device="cuda"), folder)}
    assert why["harvest"] == "complete"
    for stage in ("train", "evaluate", "match", "stability", "latents"):
        assert 'changed: device "cpu" → "cuda"' in why[stage] or why[stage].endswith("which runs first"), stage
    assert why["train"] == 'changed: device "cpu" → "cuda"'
    assert all(line.why == "complete" for line in plan(small_config(), folder))


def test_without_a_gpu_the_command_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (["study", "--preset", "quickstart"], ["train", "cache"]):
        assert cli.main([*command, "--device", "cuda", "--out", str(tmp_path / "x")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("saekern: error: device: 'cuda' was asked for, but this PyTorch")
        assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()
    assert cli.main(["study", "--device", "gpu", "--out", str(tmp_path)]) == 2
    assert "device: expected cpu, cuda or cuda:N, got 'gpu'" in capsys.readouterr().err
