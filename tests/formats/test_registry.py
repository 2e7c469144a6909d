"""The door: which format, where the files are, what is kept, and what a command says of it."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from command_line import run

import saekern
from saekern import formats
from saekern.formats import registry
from saekern.formats.checkpoint import Checkpoint, build


@pytest.fixture
def sae():
    return saekern.TopKSAE(6, 20, 3, init_seed=9)


def checkpoint(**changes):
    tensors = {
        "W_enc": torch.randn(6, 20),
        "W_dec": torch.randn(20, 6),
        "b_enc": torch.randn(20),
        "b_dec": torch.randn(6),
    }
    given = {
        "format": "other",
        "architecture": "topk",
        "options": {"d_in": 6, "d_sae": 20, "k": 3},
        "tensors": tensors,
        "kept": {"lr": 0.1},
        "provenance": {"hook": "h"},
    }
    return Checkpoint(**{**given, **changes})


def test_build_takes_the_tensors_as_they_are():
    """Planted: W_enc left in rows of D; caught."""
    read = checkpoint()
    sae = build(read)
    for name, tensor in read.tensors.items():
        assert torch.equal(getattr(sae, name), tensor), name
    assert sae.W_enc.T.is_contiguous()
    assert all(parameter.requires_grad for parameter in sae.parameters())
    assert sae.provenance == {"hook": "h", "other": {"lr": 0.1}}
    assert build(read, dtype=torch.float64).W_dec.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": {"W_enc": torch.ones(6, 20)}}, r"other: tensors missing: \['W_dec', 'b_dec', 'b_enc'\]"),
        ({"tensors": checkpoint().tensors | {"r_mag": torch.ones(20)}}, r"unexpected: \['r_mag'\]"),
        (
            {"options": {"d_in": 6, "d_sae": 10**12, "k": 3}},
            r"W_enc: expected shape \[6, 1000000000000\], got \[6, 20\]",
        ),
        ({"options": {"d_in": 6, "d_sae": 20, "k": 99}}, "k: expected 1 <= k <= d_sae = 20, got 99"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(checkpoint(**changes))


def test_unknown_and_ambiguous_paths(tmp_path, sae, monkeypatch):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"no known format \(found: notes\.txt\)\. Known: saekern"):
        saekern.load(tmp_path)
    saekern.save(sae, tmp_path / "a")
    double = SimpleNamespace(NAME="double", OPTIONS={}, detect=lambda path: "it always does", read=None)
    monkeypatch.setattr(registry, "formats", lambda: {"saekern": registry.native, "double": double})
    with pytest.raises(ValueError, match=r"could be saekern \(.*\); double \(it always does\): pass format="):
        saekern.load(tmp_path / "a")
    assert torch.equal(saekern.load(tmp_path / "a", format="saekern").W_dec, sae.W_dec)
    with pytest.raises(ValueError, match="format: expected one of saekern, double, got 'onnx'"):
        saekern.load(tmp_path / "a", format="onnx")
    with pytest.raises(ValueError, match="options: double has no 'k'; it takes: none"):
        saekern.load(tmp_path / "a", format="double", options={"k": 3})
    with pytest.raises(ValueError, match="weights: only for our own format"):
        saekern.load(tmp_path / "a", format="double", weights="snapshots/0.safetensors")


def test_every_format_keeps_the_contract():
    for name, module in formats.formats().items():
        assert name == module.NAME
        assert module.__doc__
        assert all(isinstance(text, str) and text for text in module.OPTIONS.values())
        for function in ("detect", "read", "write"):
            assert callable(getattr(module, function)), (name, function)


def test_no_format_claims_what_is_not_its_own(tmp_path, sae):
    saekern.save(sae, tmp_path / "a")
    assert list(formats.detect(tmp_path / "a")) == ["saekern"]
    for content in ({}, {"format": "other"}, {"d_in": 6}, {"trainer": 3}):
        for name in ("config.json", "cfg.json"):
            folder = tmp_path / "b"
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content))
            assert formats.detect(folder) == {}
            (folder / name).unlink()
    assert formats.detect(tmp_path / "nothing") == {}


def test_subfolders(tmp_path, sae):
    saekern.save(sae, tmp_path / "layers.3" / "seed0")
    assert torch.equal(saekern.load(tmp_path, subfolder="layers.3/seed0").W_dec, sae.W_dec)
    with pytest.raises(FileNotFoundError, match=r"no 'layers\.4'; it has layers\.3"):
        saekern.load(tmp_path, subfolder="layers.4")
    with pytest.raises(ValueError, match="expected a name inside"):
        saekern.load(tmp_path / "layers.3", subfolder="../..")


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers from a folder, or not at all."""
    module, asked = ModuleType("huggingface_hub"), []
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)

    def answer(folder):
        def snapshot_download(name, *, revision, allow_patterns):
            asked.append((name, revision, allow_patterns))
            if folder is None:
                raise ConnectionError("no route to host")
            return str(folder)

        module.snapshot_download = snapshot_download
        return asked

    return answer


def test_repositories(tmp_path, sae, hub):
    saekern.save(sae, tmp_path / "layers.3")
    asked = hub(tmp_path)
    found = saekern.load("owner/name", subfolder="layers.3", revision="v1")
    assert torch.equal(found.W_dec, sae.W_dec)
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("owner/name", "v1")
    assert "layers.3/*.safetensors" in patterns
    assert "layers.3/*.json" in patterns
    with pytest.raises(ValueError, match="no known format"):
        saekern.load("owner/name")
    assert "*.npz" in asked[-1][2]


def test_without_a_hub(tmp_path, sae, hub, monkeypatch):
    hub(None)
    with pytest.raises(
        OSError, match=r"owner/name does not exist here and could not be had .* no route to host\)\. Off"
    ):
        saekern.load("owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        saekern.load("owner/name")
    for name in ("not there", "a/b/c", "/no/where", "../up"):
        with pytest.raises(FileNotFoundError, match="does not exist, and is not the name of a repository"):
            saekern.load(name)
    saekern.save(sae, tmp_path)
    with pytest.raises(ValueError, match=r"revision: .* is a local path"):
        saekern.load(tmp_path, revision="v1")


def test_saving_restores_provenance_also_after_an_error(tmp_path, sae, monkeypatch):
    def write(sae, path, options, fold):
        raise ValueError(f"cannot express {sae.provenance['hook']}")

    other = SimpleNamespace(NAME="other", OPTIONS={}, write=write)
    monkeypatch.setattr(registry, "formats", lambda: {"other": other})
    with pytest.raises(ValueError, match="cannot express there"):
        saekern.save(sae, tmp_path / "a", "other", provenance={"hook": "there"})
    assert sae.provenance == {}


def test_convert(tmp_path, sae, capsys):
    saekern.save(sae, tmp_path / "a", provenance={"hook": "there"})
    code, out, err = run(capsys, "convert", tmp_path / "a", "--dry-run")
    assert (code, err) == (0, "")
    assert "saekern -> TopKSAE(d_in=6, d_sae=20, k=3)" in out
    assert "W_dec        float32   [20, 6]" in out
    assert not (tmp_path / "b").exists()
    assert run(capsys, "convert", tmp_path / "a", tmp_path / "b")[0] == 0
    for name in ("config.json", "sae.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected SOURCE and OUT, or SOURCE and --dry-run"),
        (["a"], "expected SOURCE and OUT, or SOURCE and --dry-run"),
        (["nothing", "b"], "nothing does not exist, and is not the name of a repository"),
        (["a", "b", "--from", "onnx"], "format: expected one of saekern"),
        (["a", "b", "--to", "onnx"], "format: expected one of saekern"),
        (["a", "b", "--option", "k=3"], "options: saekern has no 'k'"),
    ],
)
def test_convert_says_what_is_wrong(tmp_path, sae, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    saekern.save(sae, "a")
    code, _, err = run(capsys, "convert", *arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "b").exists()


def test_convert_lists_formats(capsys):
    code, out, _ = run(capsys, "convert", "--formats")
    assert code == 0
    for name, module in formats.formats().items():
        assert f"{name}: " in out
        assert all(option in out for option in module.OPTIONS)
