"""The cache: right rows in the right order, the same after any interruption, and clear errors."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from saekern.activations import harvest, open_cache
from saekern.activations.cache import shard_name

HOOK = "blocks.0.hook_resid_post"


def make(model, sequences, path, **options):
    return harvest(model, HOOK, sequences, path, **{"batch": 2, "shard_rows": 28, "progress": False, **options})


def everything(cache):
    return cache.take(torch.arange(len(cache)))


@pytest.mark.parametrize("batch", [1, 2, 50])
@pytest.mark.parametrize("shard_rows", [1, 28, 10_000])
@pytest.mark.parametrize("exclude_bos", [True, False])
def test_rows_are_what_the_hook_saw(stub, sequences, tmp_path, batch, shard_rows, exclude_bos):
    """Planted: every shard masked as the first one is; caught."""
    cache = make(stub, sequences, tmp_path, batch=batch, shard_rows=shard_rows, exclude_bos=exclude_bos)
    want = stub.expected(sequences)[:, 1 if exclude_bos else 0 :].flatten(0, 1)
    assert torch.equal(everything(cache), want)
    assert torch.equal(cache.tokens, sequences)
    assert cache.width == 6
    assert cache.provenance == {"model": stub.cfg.model_name, "hook": HOOK}
    mean = want.double().mean(0)
    assert (cache.mean() - mean).abs().max() <= torch.finfo(torch.float32).eps * mean.abs().max()
    cache.verify()


def test_excluded_tokens_and_heads(stub, sequences, tmp_path):
    cache = harvest(stub, "blocks.0.attn.hook_z", sequences, tmp_path, exclude_tokens=[5, 3], progress=False)
    keep = ~torch.isin(sequences, torch.tensor([3, 5]))
    keep[:, 0] = False
    assert 0 < len(cache) < sequences[:, 1:].numel()
    assert torch.equal(everything(cache), stub.expected(sequences)[keep])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_storage_dtype_rounds_once(stub, sequences, tmp_path, dtype):
    cache = make(stub, sequences, tmp_path, dtype=dtype)
    want = stub.expected(sequences)[:, 1:].flatten(0, 1)
    assert torch.equal(everything(cache), want.to(getattr(torch, dtype)).float())


def test_snippet(stub, tmp_path):
    sequences = torch.tensor([[0, *b"def aa(x): pass"], [0, *"über = 'ä'; a".encode()]])
    stub.embed = torch.nn.Parameter(torch.ones(256, 6))
    stub.cfg.model_name = "saekern-tiny"
    cache = make(stub, sequences, tmp_path, shard_rows=1)
    assert cache.snippet(5, before=2, after=3) == (" a", "a", "(x)")
    assert cache.snippet(0) == ("", "d", "ef aa(x)")
    assert cache.snippet(len(cache) - 1, before=5) == ("ä'; ", "a", "")  # ä is two bytes
    with pytest.raises(IndexError, match=r"row: expected 0 to 29, got 30"):
        cache.snippet(30)


def test_snippet_of_a_tokenizer(stub, sequences, tmp_path):
    stub.tokenizer = type("Words", (), {"decode": staticmethod(lambda ids: f"<{ids[0]}>")})()
    cache = make(stub, sequences, tmp_path)
    a, b, c = sequences[0, 1:4].tolist()
    assert cache.snippet(1, before=9, after=1) == (f"<{a}>", f"<{b}>", f"<{c}>")


class Killed(BaseException):
    """Not an Exception, so that no handler tidies up: the files are as after a SIGKILL."""


def test_killed_at_every_file_operation(stub, sequences, tmp_path, monkeypatch):
    """Each rename is once not reached and once the last thing done; the cache ends the same as without a kill.

    Planted: files first begun under their own name; caught. Planted: tokens written after the manifest; caught."""
    whole = make(stub, sequences, tmp_path / "whole")
    names = sorted(file.name for file in whole.path.iterdir())
    replace = os.replace
    for stop in range(len(names)):
        for after in (False, True):
            path, calls = tmp_path / f"{stop}{after}", []

            def dying(source, target, stop=stop, after=after, calls=calls):
                calls.append(target)
                if len(calls) <= stop or after:
                    replace(source, target)
                if len(calls) == stop + 1:
                    raise Killed

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", dying)
                with pytest.raises(Killed):
                    make(stub, sequences, path)
            if len(calls) < len(names):
                with pytest.raises(FileNotFoundError, match=r"no activation cache there|run the same harvest again"):
                    open_cache(path)
            cache = make(stub, sequences, path)
            assert sorted(file.name for file in path.iterdir() if not file.name.endswith(".tmp")) == names
            for name in names:
                assert (path / name).read_bytes() == (whole.path / name).read_bytes(), (stop, after, name)
            assert cache.fingerprint == whole.fingerprint


def test_sigkill(tmp_path, stub, sequences):
    program = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch
        from conftest import StubModel
        from saekern.activations import harvest
        class Slow(StubModel):
            def run_with_hooks(self, *args, **kwargs):
                time.sleep(0.02)
                super().run_with_hooks(*args, **kwargs)
        sequences = torch.load({str(tmp_path / "s.pt")!r})
        harvest(Slow(), {HOOK!r}, sequences, {str(tmp_path / "c")!r}, batch=2, shard_rows=28, progress=False)
    """
    torch.save(sequences, tmp_path / "s.pt")
    process = subprocess.Popen([sys.executable, "-P", "-c", textwrap.dedent(program)])
    deadline = time.monotonic() + 120
    while not (tmp_path / "c" / shard_name(1)).exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    cache = make(stub, sequences, tmp_path / "c")
    assert cache.fingerprint == make(stub, sequences, tmp_path / "whole").fingerprint
    assert torch.equal(everything(cache), stub.expected(sequences)[:, 1:].flatten(0, 1))


def test_finished_shards_are_not_computed_again(stub, sequences, tmp_path):
    make(stub, sequences, tmp_path)
    stub.passes = 0
    make(stub, sequences, tmp_path)
    assert stub.passes == 1  # the one that finds the width
    (tmp_path / shard_name(2)).unlink()
    make(stub, sequences, tmp_path)
    assert stub.passes == 4  # width, and 4 sequences in batches of 2


@pytest.mark.parametrize("size", [0, 30, -1])
def test_truncated_shard(stub, sequences, tmp_path, caplog, size):
    cache = make(stub, sequences, tmp_path)
    path = tmp_path / shard_name(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"shard-00001.safetensors: truncated"):
        open_cache(tmp_path)
    with pytest.raises(ValueError, match=r"shard-00001.safetensors: truncated"):
        cache.verify()
    make(stub, sequences, tmp_path).verify()
    assert "harvesting it again" in caplog.text
    assert path.read_bytes() == whole


def test_shard_of_another_shape_and_nan(stub, sequences, tmp_path):
    cache = make(stub, sequences, tmp_path)
    os.replace(tmp_path / shard_name(5), tmp_path / shard_name(1))  # the last shard is shorter
    with pytest.raises(
        ValueError, match=r"shard-00001.safetensors: expected float32 \[24, 6\], found float32 \[18, 6\]"
    ):
        cache.verify()
    cache = make(stub, sequences, tmp_path)
    data = bytearray((tmp_path / shard_name(0)).read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    (tmp_path / shard_name(0)).write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-00000.safetensors: rows that are not finite"):
        cache.verify()


def test_disk_full(stub, sequences, tmp_path, monkeypatch):
    """A real failing write (a file-size limit), then the check before the first one."""
    make(stub, sequences, tmp_path / "c")
    (tmp_path / "c" / shard_name(3)).unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(
            OSError, match=r"while writing .*shard-00003.safetensors \(0.0 MiB\); earlier files are intact"
        ):
            make(stub, sequences, tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "c").glob("*.tmp"))
    make(stub, sequences, tmp_path / "c").verify()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    with pytest.raises(OSError, match=r"2 MiB are needed for 1 shards, 1 are free"):
        make(stub, sequences.repeat(800, 1)[:15000], tmp_path / "d", shard_rows=10**6)


def test_another_harvest_in_the_folder(stub, sequences, tmp_path):
    make(stub, sequences, tmp_path)
    with pytest.raises(ValueError, match=r"holds another harvest \(different dataset_sha256\); choose another folder"):
        make(stub, sequences.flip(0), tmp_path)
    with pytest.raises(ValueError, match=r"different dtype"):
        make(stub, sequences, tmp_path, dtype="float16")
    stub.embed.data[0, 0] += 1
    with pytest.raises(ValueError, match=r"different model_sha256"):
        make(stub, sequences, tmp_path)


def test_fingerprint_follows_what_was_harvested(stub, sequences, tmp_path):
    one = make(stub, sequences, tmp_path / "a").fingerprint
    assert make(stub, sequences, tmp_path / "b").fingerprint == one
    assert make(stub, sequences.flip(0), tmp_path / "c").fingerprint != one


def test_bad_arguments(stub, sequences, tmp_path):
    for bad, message in [
        ({"dtype": "int8"}, r"dtype: expected one of \['bfloat16', 'float16', 'float32'\], got 'int8'"),
        ({"batch": 0}, "batch and shard_rows: expected at least 1, got 0 and 28"),
        ({"exclude_tokens": range(20)}, "no position is left"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(stub, sequences, tmp_path, **bad)
    with pytest.raises(ValueError, match=r"'blocks.9.x' is not a hook of this model; for example blocks.0.hook_resid"):
        harvest(stub, "blocks.9.x", sequences, tmp_path)
    with pytest.raises(ValueError, match=r"expected a non-empty int64 \[count, context\], got torch.float32 \[23, 7\]"):
        make(stub, sequences.float(), tmp_path)
    stub.embed.data[4, 2] = torch.inf
    with pytest.raises(ValueError, match=r"not finite in float32; nothing was written"):
        make(stub, sequences, tmp_path / "inf")
    stub.embed.data[4, 2] = 1e6
    with pytest.raises(ValueError, match=r"not finite in float16"):
        make(stub, sequences, tmp_path / "half", dtype="float16")


def test_manifest_errors(stub, sequences, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest.json: no activation cache there"):
        open_cache(tmp_path / "none")
    make(stub, sequences, tmp_path)
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(ValueError, match=r"version 2 is newer than 1: update saekern"):
        open_cache(tmp_path)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json: not JSON"):
        open_cache(tmp_path)
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"expected format 'saekern-activations'"):
        open_cache(tmp_path)
