"""All pairs on disk: streaming, killing, resuming, damage."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment as scipy_assignment

from saekern.matching import PairStore, batches, match, match_all
from saekern.matching import all_pairs as all_pairs_module


def dictionaries(sizes=(30, 41, 30, 17), width=12):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(size, width, generator=generator) for size in sizes]


def assert_same(a, b):
    """Backward cosines are scaled by the two norms in the other order: two roundings of numbers below 1 may differ."""
    assert torch.equal(a.index, b.index)
    torch.testing.assert_close(a.cosine, b.cosine, rtol=0, atol=4 * 2.0**-24, equal_nan=True)


@pytest.mark.parametrize("method", ["nearest", "assignment"])
def test_store_holds_what_match_finds(tmp_path, method):
    """Unequal F; both directions; from memory, from the call, reopened. Planted: directions swapped; caught."""
    runs = dictionaries()
    dead = [None, torch.arange(41) % 5 == 0, None, torch.arange(17) == 3]
    memory = match_all(runs, method, progress=False, dead=dead, seeds=[10, 11, 12, 13])
    disk = match_all(runs, method, tmp_path / "pairs", progress=False, dead=dead, seeds=[10, 11, 12, 13])
    reopened = PairStore.open(tmp_path / "pairs")
    for store in (memory, disk, reopened):
        assert (len(store), store.sizes, store.seeds, store.method) == (6, [30, 41, 30, 17], [10, 11, 12, 13], method)
        for i in range(4):
            expected = torch.ones(len(runs[i]), dtype=torch.bool) if dead[i] is None else ~dead[i]
            assert torch.equal(store.live(i), expected)
        for i, j in [(0, 1), (1, 0), (2, 3), (3, 2), (1, 3)]:
            assert_same(store[i, j], match(runs[i], runs[j], method, dead=(dead[i], dead[j])))
        assert [(pair.i, pair.j) for pair in store] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    with pytest.raises(IndexError, match=r"pair: expected two different runs in 0\.\.3, got 2, 2"):
        memory[2, 2]


def test_file_names_and_lazy_sequences(tmp_path):
    runs = dictionaries()

    class Reading:
        fetched = 0

        def __len__(self):
            return 4

        def __getitem__(self, i):
            Reading.fetched += 1
            return runs[i].clone()

    match_all(Reading(), store=tmp_path, progress=False)
    assert Reading.fetched == 4 + 3 + 6  # hashed; first of each row of pairs; second of each pair
    names = [f"{i:03d}-{j:03d}.safetensors" for i in range(4) for j in range(i + 1, 4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "manifest.json"]


def count_pairs(monkeypatch):
    done = []
    inner = all_pairs_module.match_both

    def counted(*arguments):
        done.append(1)
        return inner(*arguments)

    monkeypatch.setattr(all_pairs_module, "match_both", counted)
    return done


def test_only_what_is_missing_damaged_or_changed_is_computed(tmp_path, monkeypatch):
    """Planted: a file's key not compared, so that pairs of an old dictionary stayed; caught."""
    runs = dictionaries()
    match_all(runs, store=tmp_path, progress=False)
    done = count_pairs(monkeypatch)
    match_all(runs, store=tmp_path, progress=False)
    assert len(done) == 0
    (tmp_path / "000-002.safetensors").unlink()
    truncate(tmp_path / "001-003.safetensors")
    match_all(runs, store=tmp_path, progress=False)
    assert len(done) == 2
    runs[3] = runs[3] * 1.5  # other bytes, though the same directions
    store = match_all(runs, store=tmp_path, progress=False)
    assert len(done) == 2 + 3
    assert_same(store[3, 0], match(runs[3], runs[0], "nearest"))
    match_all(runs, store=tmp_path, progress=False, dead=[torch.arange(30) == 0, None, None, None])
    assert len(done) == 5 + 3
    match_all([*runs, torch.randn(5, 12)], store=tmp_path, progress=False, dead=[torch.arange(30) == 0] + [None] * 4)
    assert len(done) == 8 + 4


@pytest.mark.parametrize("method", ["nearest", "assignment"])
def test_a_run_put_between_or_taken_out_costs_its_own_pairs(tmp_path, monkeypatch, method):
    """Appended, inserted, removed, and two that change places; every time the store is that of a fresh call, byte for
    byte. Planted: files renamed one after the other, over one another; caught."""
    a, b, c, d = dictionaries()
    e = torch.randn(23, 12, generator=torch.Generator().manual_seed(6))
    done = count_pairs(monkeypatch)
    orders = [
        ([a, b, c], 3),
        ([a, b, c, d], 3),
        ([a, e, b, c, d], 4),
        ([e, b, c, d], 0),
        ([e, b, d], 0),
        ([b, e, d], 1),  # b before e is another pair than e before b
        ([b, e, d, c], 3),  # c's were overwritten
        ([b, b, e], 2),  # a file cannot lie in two places
    ]
    for number, (runs, computed) in enumerate(orders):
        done.clear()
        match_all(runs, method, tmp_path / "grown", progress=False)
        assert len(done) == computed, number
        match_all(runs, method, tmp_path / str(number), progress=False)
        for path in (tmp_path / str(number)).iterdir():
            assert (tmp_path / "grown" / path.name).read_bytes() == path.read_bytes(), (number, path.name)


def test_killed_while_renaming(tmp_path, monkeypatch):
    """Between any two renames. Planted: `.moving` files not looked for; caught."""
    runs = dictionaries()
    match_all(runs, store=tmp_path / "new", progress=False)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    replace = os.replace
    done = count_pairs(monkeypatch)
    for limit in range(6):
        folder = tmp_path / str(limit)
        match_all(runs[1:] + runs[:1], store=folder, progress=False)
        renamed = []

        def dying(source, target, renamed=renamed, limit=limit):
            if str(source).endswith(".tmp"):
                return replace(source, target)
            if len(renamed) == limit:
                raise KeyboardInterrupt
            renamed.append(source)
            return replace(source, target)

        done.clear()
        monkeypatch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            match_all(runs, store=folder, progress=False)
        monkeypatch.setattr(os, "replace", replace)
        match_all(runs, store=folder, progress=False)
        assert len(done) == 3  # those of the run that came from the end to the front
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_assignments_in_memory_and_in_a_store(tmp_path, monkeypatch):
    """Optimal by scipy, the same from either side, and resumed without computing what is there. Planted: b's
    latents that are set aside given away all the same; caught."""
    runs = dictionaries()
    dead = [None, torch.arange(41) % 5 == 0, torch.arange(30) < 4, None]
    memory = match_all(runs, "assignment", progress=False, dead=dead)
    match_all(runs, "assignment", tmp_path, progress=False, dead=dead)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = count_pairs(monkeypatch)
    (tmp_path / "000-002.safetensors").unlink()
    truncate(tmp_path / "001-003.safetensors")
    disk = match_all(runs, "assignment", tmp_path, progress=False, dead=dead)
    assert len(done) == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole
    for pair in memory:
        i, j = pair.i, pair.j
        for name in ("index", "cosine"):
            for got, want in ((disk[i, j], pair.forward), (disk[j, i], pair.backward)):
                assert torch.equal(getattr(got, name).nan_to_num(7), getattr(want, name).nan_to_num(7))
        at = (pair.forward.index >= 0).nonzero()[:, 0]
        assert torch.equal(pair.backward.index[pair.forward.index[at]], at)
        assert torch.equal(pair.backward.cosine[pair.forward.index[at]], pair.forward.cosine[at])
        assert int((pair.backward.index >= 0).sum()) == len(at)
        x, y = (F.normalize(runs[k][memory.live(k)].double()) for k in (i, j))
        cosine = (x @ y.T).float().double()
        best = cosine[scipy_assignment(cosine, maximize=True)].sum()
        # Both round each cosine once; torch's double products may round to the other neighbour.
        assert abs(pair.forward.cosine.double().nansum() - best) <= len(at) * 2.0**-24


def truncate(path, keep=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.6, 0.999])
def test_truncated_pair_is_an_error_that_names_the_file(tmp_path, keep):
    match_all(dictionaries(), store=tmp_path, progress=False)
    truncate(tmp_path / "000-003.safetensors", keep)
    store = PairStore.open(tmp_path)
    assert store[0, 1].index.shape == (30,)
    with pytest.raises(ValueError, match=r"000-003\.safetensors: truncated or damaged .*run match_all"):
        store[3, 0]


def test_pair_of_other_dictionaries_is_an_error(tmp_path):
    match_all(dictionaries(), store=tmp_path / "a", progress=False)
    match_all([2 * rows for rows in dictionaries()], store=tmp_path / "b", progress=False)
    os.replace(tmp_path / "b" / "000-001.safetensors", tmp_path / "a" / "000-001.safetensors")
    with pytest.raises(ValueError, match=r"000-001\.safetensors: made from other dictionaries"):
        PairStore.open(tmp_path / "a")[0, 1]


def test_opening_errors(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"manifest\.json: no such file; expected a folder written by match_all"
    ):
        PairStore.open(tmp_path)
    match_all(dictionaries(), store=tmp_path, progress=False)
    (tmp_path / "001-002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"001-002\.safetensors: one of 1 missing pairs of 6"):
        PairStore.open(tmp_path)
    manifest = tmp_path / "manifest.json"
    header = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(header | {"version": 2}))
    with pytest.raises(ValueError, match=r"version 2 is newer than this saekern reads \(1\)"):
        PairStore.open(tmp_path)
    manifest.write_text(json.dumps({"format": "else"}))
    with pytest.raises(ValueError, match=r"manifest\.json: expected format 'saekern-pairs'"):
        PairStore.open(tmp_path)
    manifest.write_text('{"format": "saek')
    with pytest.raises(ValueError, match=r"manifest\.json: not valid JSON"):
        PairStore.open(tmp_path)


KILLED = """
    import os, signal, sys, torch
    from saekern.matching import all_pairs, match_all
    inner, count = all_pairs.disk.os.replace, 0
    def replace(source, target):
        global count
        count += 1
        if count == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        inner(source, target)
    all_pairs.disk.os.replace = replace
    generator = torch.Generator().manual_seed(5)
    match_all([torch.randn(n, 12, generator=generator) for n in (30, 41, 30, 17)], store=sys.argv[1], progress=False)
"""


def test_killed_between_writing_and_renaming_then_resumed(tmp_path, monkeypatch):
    """SIGKILL with a half-finished store: no damaged pair, only the rest is computed, the same bytes at the end.
    Planted: the pair written in place instead of renamed; caught."""
    match_all(dictionaries(), store=tmp_path / "whole", progress=False)
    killed = tmp_path / "killed"
    script = textwrap.dedent(KILLED)
    result = subprocess.run([sys.executable, "-P", "-c", script, str(killed), "4"], timeout=120)
    assert result.returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="4 missing pairs of 6"):  # the manifest and two pairs came through
        PairStore.open(killed)
    done = count_pairs(monkeypatch)
    match_all(dictionaries(), store=killed, progress=False)
    assert len(done) == 4
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (killed / path.name).read_bytes()
    assert not list(killed.glob("*.tmp"))


FULL = """
    import resource, sys, torch
    from saekern.matching import match_all
    small, large = [torch.eye(10, 4) + n for n in (1, 2)], torch.ones(3000, 4)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # bytes; stands in for a full disk
    try:
        match_all([*small, large], store=sys.argv[1], progress=False)
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_full_disk_names_the_file_and_keeps_what_was_written(tmp_path):
    run = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(FULL), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert "000-002.safetensors" in run.stdout, run.stderr
    assert "what was written before it is whole" in run.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000-001.safetensors", "manifest.json"]


@pytest.mark.parametrize("kind", ["stacked", "side by side", "apart", "unequal", "dead", "all dead", "half precision"])
def test_batches_are_the_pairs_one_by_one(tmp_path, monkeypatch, kind):
    """What a GPU takes, run here: results, files and a resumed store are those of the plain way, bit for bit. Planted:
    partners in the numbering of live latents; a batch's results given to the next one's pairs; both caught."""
    runs = dictionaries((30, 41, 30, 17) if kind == "unequal" else (30, 30, 30, 30))
    runs[1][4] = 0 if kind == "dead" else runs[1][4]
    dead = [torch.arange(len(rows)) % 5 == run for run, rows in enumerate(runs)] if kind == "dead" else None
    if kind == "all dead":
        dead = [None, torch.ones(30, dtype=torch.bool), None, None]
    if kind == "half precision":
        runs = [rows.bfloat16() for rows in runs]
    given = torch.stack(runs) if kind == "stacked" else runs
    plain = match_all(given, store=tmp_path / "plain", progress=False, dead=dead)
    monkeypatch.setattr(batches, "residents", lambda given: list(given))
    monkeypatch.setattr(batches, "LATENTS", 2 * 2 * 30)  # two pairs a batch
    if kind == "apart":
        monkeypatch.setattr(batches, "STACKED", 0)
    memory = match_all(given, progress=False, dead=dead)
    match_all(given, store=tmp_path / "batches", progress=False, dead=dead)
    for pair in memory:
        for got, want in ((pair.forward, plain[pair.i, pair.j]), (pair.backward, plain[pair.j, pair.i])):
            assert torch.equal(got.index, want.index)
            assert torch.equal(got.cosine.nan_to_num(7), want.cosine.nan_to_num(7))
    (tmp_path / "batches" / "001-002.safetensors").unlink()
    match_all(given, store=tmp_path / "batches", progress=False, dead=dead)
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "batches" / path.name).read_bytes()


def test_only_dictionaries_in_one_gpus_memory_are_batched():
    assert batches.residents(dictionaries()) is None
    assert batches.residents(range(3)) is None
    with torch.device("meta"):
        assert batches.residents([torch.empty(3, 4), torch.empty(5, 4)]) is None


def test_argument_errors():
    with pytest.raises(ValueError, match=r"dictionaries: expected at least 2, got 1"):
        match_all(dictionaries()[:1], progress=False)
    with pytest.raises(ValueError, match=r"dictionaries: expected several \[F, D\] or one \[S, F, D\], got \[3, 4\]"):
        match_all(torch.randn(3, 4), progress=False)
    with pytest.raises(
        ValueError, match=r"dictionaries\[1\]: expected shape \[F, 4\] like dictionaries\[0\], got \[3, 5\]"
    ):
        match_all([torch.randn(3, 4), torch.randn(3, 5)], progress=False)
    with pytest.raises(ValueError, match=r"dead: expected 4 masks, one a dictionary, got 1"):
        match_all(dictionaries(), progress=False, dead=[None])
    with pytest.raises(ValueError, match=r"seeds: expected 4 labels, one a dictionary, got 2"):
        match_all(dictionaries(), progress=False, seeds=[1, 2])
    with pytest.raises(ValueError, match=r"dead mask of dictionaries\[0\]: expected bool \[30\]"):
        match_all(dictionaries(), progress=False, dead=[torch.zeros(3, dtype=torch.bool), None, None, None])
