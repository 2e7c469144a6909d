"""`saekern features`: its files, and each error by its message."""

import json

import numpy as np
import pytest
import torch
from command_line import run
from hand_cache import sentences, write_cache

from saekern import TopKSAE, save


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An SAE of width 8 with 32 latents, another, a narrower one, and a cache of its rows."""
    for seed, (width, name) in enumerate(((8, "sae"), (8, "other"), (6, "narrow"))):
        save(TopKSAE(width, 32, 4, init_seed=seed), tmp_path / name)
    lines = sentences("def f(x): ", "return <b>")
    write_cache(tmp_path / "cache", lines, torch.randn(20, 8), hook="blocks.1.hook_resid_post")
    write_cache(tmp_path / "empty", None, torch.ones(0, 8))
    np.save(tmp_path / "tokens.npy", np.ones(5))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_page_and_json(capsys, folder):
    code, out, err = run(
        capsys, "features", "sae", "--activations", "cache", "--out", "new/page.html", "--json", "page.json",
        "--against", "other", "sae", "--latents", 31, 4, 31, "--source-set", "res-32",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.startswith("2 of 32 latents on 20 rows, ")
    batch = json.loads((folder / "page.json").read_text())
    assert [feature["feature_index"] for feature in batch["features"]] == [31, 4]
    assert (batch["layer"], batch["sae_set"]) == (1, "res-32")
    text = (folder / "new/page.html").read_text()
    assert "<h1>Latents of sae</h1>" in text
    assert "nearest in other" in text


@pytest.mark.parametrize(("choice", "shown"), [(["--top", 3], 3), (["--random", 5], 5), (["--all"], 32), ([], 32)])
def test_choices(capsys, folder, choice, shown):
    code, out, _ = run(capsys, "features", "sae", "--activations", "cache", "--out", "p.html", *choice)
    assert code == 0
    assert out.startswith(f"{shown} of 32 latents")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --model NAME, --activations CACHE or both"),
        (["--activations", "cache", "--latents", "3", "32"], "--latents: expected 0 to 31, got 32"),
        (["--activations", "cache", "--latents", "-1"], "--latents: expected 0 to 31, got -1"),
        (["--activations", "cache", "--top", "0"], "top: expected 1 to 32, the latents of this SAE, got 0"),
        (["--activations", "cache", "--random", "33"], "random: expected 1 to 32, the latents of this SAE, got 33"),
        (["--activations", "cache", "--against", "narrow"], "--against: narrow is 6 wide, this SAE 8"),
        (["--activations", "cache", "--against", "nowhere"], "nowhere"),
        (["--activations", "cache", "--hook", "x"], "--tokens, --hook, --keep: for a harvest"),
        (["--activations", "cache", "--contexts", "0"], "top: expected at least 1, got 0"),
        (["--activations", "nowhere"], "nowhere"),
        (["--activations", "empty"], "empty: this cache has no rows"),
    ],
)
def test_errors(capsys, folder, arguments, message):
    code, _, err = run(capsys, "features", "sae", "--out", "p.html", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (folder / "p.html").exists()


def test_a_cache_of_another_width(capsys, folder):
    code, _, err = run(capsys, "features", "narrow", "--out", "p.html", "--activations", "cache")
    assert code == 2
    assert "rows are 8 wide, the SAE reads 6" in err


@pytest.mark.lens
def test_with_the_shipped_model(capsys, folder):
    save(TopKSAE(128, 64, 4, init_seed=0), folder / "wide")
    start = ["features", "wide", "--model", "tiny", "--out", "p.html", "--sequences", 3, "--quiet"]
    code, _, err = run(capsys, *start)
    assert code == 2
    assert "--hook: expected the hook whose rows wide was trained on; its files do not say" in err
    hooked = [*start, "--hook", "blocks.1.hook_resid_post", "--keep", "kept"]
    assert run(capsys, *hooked)[0] == 0
    assert '"lens":null' in (folder / "p.html").read_text()
    assert run(capsys, *start, "--activations", "kept")[0] == 0
    code, _, err = run(capsys, *hooked, "--tokens", "tokens.npy")
    assert "tokens.npy: expected integer token ids [at least 3, context], got float64 [5]" in err
    code, _, err = run(capsys, *start, "--activations", "cache")
    assert code == 2
    assert "--model: expected 'hand', whose rows the cache holds, got 'saekern-tiny'" in err
