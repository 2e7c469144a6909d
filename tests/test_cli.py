"""The command line: help, messages, exit codes, and the commands on small inputs."""

import json
import subprocess
import sys

import pytest
import torch
from command_line import run

from saekern import TopKSAE, cli, save
from saekern.version import __version__


@pytest.fixture
def saes(tmp_path):
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"sae{seed}")
        save(TopKSAE(8, 32, 4, init_seed=seed), paths[-1])
    return paths


def test_help_is_light():
    """`saekern --help` imports neither torch nor anything slow. Planted: `import torch` in the package; caught."""
    code = (
        "import sys; from saekern.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert all(f"    {name}" in result.stdout for name in cli.COMMANDS)


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, f"saekern {__version__}\n")


def test_no_command_prints_help(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert out.startswith("usage: saekern")


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "bench"])
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "--debug" in out


def test_study_options_come_from_the_config(capsys):
    """Planted: help without the field's text; caught."""
    _, out, _ = run(capsys, "study", "--help")
    text = " ".join(out.split())
    assert "--train.batch-size INT Rows a step. Default: 4096." in text
    assert "--sae.k-aux INT|none Dead latents that reconstruct the residual" in text
    assert "--activations.exclude-bos [true|false]" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["study", "--preset", "quick", "--out", "x"],
            "preset: expected one of papers, pareto, quickstart, got 'quick'",
        ),
        (["study", "missing.json", "--out", "x"], "missing.json: No such file or directory"),
        (["study", "a.json", "--preset", "quickstart", "--out", "x"], "expected CONFIG or --preset, got both"),
        (["study", "--out", "x", "--seeds", "1"], "seeds: expected at least 2"),
        (["study", "--out", "x", "--sae.k", "9999"], "sae.k: expected 1 to d_sae = 2048, got 9999"),
        (["match", "missing-a", "missing-b"], "missing-a"),
        (["stability", "one"], "expected at least two folders, got 1"),
        (["train", "missing-cache", "--out", "x"], "missing-cache"),
    ],
)
def test_errors_are_one_line_and_2(capsys, arguments, message, tmp_path, monkeypatch):
    """Planted: the exception let through; caught."""
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("saekern: error: ")
    assert err.count("\n") == 1


def test_config_typo_names_the_nearest_key(capsys, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"train": {"batchsize": 5}}))
    code, _, err = run(capsys, "study", path, "--out", tmp_path / "x")
    assert code == 2
    assert "unknown key 'batchsize'; did you mean 'batch_size'?" in err


def test_unknown_option_and_command(capsys):
    for arguments, message in ((["study", "--out", "x", "--seedz", "3"], "--seedz"), (["studdy"], "invalid choice")):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert message in err


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="seeds"):
        cli.main(["study", "--out", str(tmp_path), "--seeds", "1", "--debug"])


def test_interrupt_is_130_and_silent(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    from saekern.cli import info

    monkeypatch.setattr(info, "run", interrupted)
    assert run(capsys, "info") == (130, "", "")


def test_a_bug_is_named_too(capsys, monkeypatch):
    from saekern.cli import info

    monkeypatch.setattr(info, "run", lambda options: {}["key"])
    assert run(capsys, "info") == (2, "", "saekern: error: KeyError: 'key' (--debug shows where)\n")


def test_info(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    names = [line.split("  ")[0].strip() for line in out.splitlines()]
    assert {"saekern", "torch", "threads", "GPU", "instructions", "bf16 products", "topk_encode", "decode"} <= set(
        names
    )
    assert f"saekern                {__version__}" in out


@pytest.mark.parametrize("method", ["assignment", "nearest"])
def test_match_a_permuted_copy(capsys, tmp_path, saes, method):
    a = TopKSAE(8, 32, 4, init_seed=0)
    order = torch.randperm(32)
    b = TopKSAE(8, 32, 4, init_seed=0)
    with torch.no_grad():
        b.W_dec.copy_(a.W_dec[order])
    save(b, tmp_path / "b")
    code, out, _ = run(
        capsys, "match", saes[0], tmp_path / "b", "--method", method, "--out", tmp_path / "m.safetensors"
    )
    assert code == 0
    assert "cosine ≥ 0.7: 32 (100.0%)" in out
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "m.safetensors")["index"], order.argsort())


def test_stability(capsys, tmp_path, saes):
    code, out, _ = run(capsys, "stability", *saes, "--out", tmp_path / "s.json")
    assert code == 0
    assert "3 dictionaries" in out
    assert "vacuous" in out
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["stability"]["comparisons"] == 2
    assert content["random_null"]["kind"] == "random"


def test_dry_run_prints_the_plan(capsys, tmp_path):
    code, out, _ = run(capsys, "study", "--preset", "quickstart", "--dry-run", "--out", tmp_path / "new")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "8 of 8" in lines["train"]
    assert lines["train"].endswith("not run yet")
    assert not (tmp_path / "new").exists()


def test_bench_gets_its_arguments(capsys):
    code, out, _ = run(capsys, "bench", "--help")
    assert code == 0
    assert "saekern bench" in out


def test_info_says_what_runs_on_a_gpu(capsys, monkeypatch):
    """From the table that registration fills. Planted: "Triton" for an op without kernels; caught."""
    from saekern.cli import info
    from saekern.ops import library

    shown = dict(info.facts())
    for op, backends in library.BACKENDS.items():
        assert op in library.CUDA or backends["CUDA"] == "reference"
        assert f"{backends['CUDA']} on CUDA" in shown[op]
    assert library.BACKENDS["topk_encode"]["CUDA"] == "Triton"
    assert library.BACKENDS["batch_topk_encode"]["CUDA"] == "torch, by blocks of rows"
    assert library.BACKENDS["threshold_encode"]["CUDA"] == "torch, by blocks of rows"
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: None)
    assert "Triton (not installed: an error) on CUDA" in dict(info.facts())["decode"]


def test_without_triton_a_gpu_op_says_what_to_install(monkeypatch):
    """Planted: the check for the module's name left out; caught by the second half."""
    from saekern.ops import library

    def missing(name):
        raise ModuleNotFoundError("No module named 'triton'", name="triton.language")

    monkeypatch.setattr(library.importlib, "import_module", missing)
    with pytest.raises(RuntimeError, match=r"saekern.decode on a CUDA device needs Triton.*pip install 'triton>=3.6'"):
        library.kernels("decode")
    monkeypatch.undo()
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        library.kernels("nothing")
