"""A member of a bank has the bits, the log and the files of the same SAE trained alone."""

import dataclasses
import json

import pytest
import torch

import saekern
from saekern.activations import ChosenRows
from saekern.sae import files
from saekern.training import bank, bootstrap, disjoint, doubling, loop, train_bank

CONFIG = saekern.TrainConfig(
    rows=20 * 64, batch_size=64, lr=1e-3, log_every=3, checkpoint_every=6, dead_after=256, pre_bias_rows=64, clip=1.0
)
SNAPSHOTS = doubling(CONFIG.steps)


class NoisySAE(saekern.TopKSAE):
    """Draws random numbers in its loss."""

    def loss(self, x, dead=None):
        return super().loss(x + 0.05 * torch.randn_like(x), dead)


def make(count=3, cls=saekern.TopKSAE):
    return [cls(8, 32, 4, init_seed=seed) for seed in range(count)]


def contents(folder):
    """All files but the bank's times."""
    kept = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != bank.LOG)
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept}


def alone(saes, rows, out, seeds=(0, 0, 0), subsets=(None, None, None)):
    results = []
    for i, (sae, seed, subset) in enumerate(zip(saes, seeds, subsets, strict=True)):
        settings = dataclasses.replace(CONFIG, data_seed=seed, snapshots=SNAPSHOTS)
        own = rows if subset is None else ChosenRows(rows, subset)
        results.append(saekern.train(sae, own, settings, out=out / f"{i:03d}", progress=False))
    return results


def banked(saes, rows, out, **options):
    return train_bank(saes, rows, CONFIG, out=out, snapshots=SNAPSHOTS, progress=False, **options)


HALVES = disjoint(512, 2, seed=1)
KINDS = {
    "one order": {},
    "own orders": {"data_seeds": [4, 5, 4]},
    "subsets": {"subsets": [HALVES[0], HALVES[1], bootstrap(512, seed=2)]},
    "both": {"data_seeds": [0, 1, 0], "subsets": [HALVES[0], None, None]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", [saekern.TopKSAE, saekern.BatchTopKSAE, NoisySAE])
def test_members_equal_runs_alone(tmp_path, make_rows, kind, cls):
    """Parameters, logs, and every file: state (moments, firing record, random state), weights, snapshots, config.

    Planted: the random state not put back for each member; every member on the first order; streams of one seed taken
    for one whatever their subsets. Each was caught.
    """
    rows, options = make_rows(), KINDS[kind]
    together, single = make(cls=cls), make(cls=cls)
    results = banked(together, rows, tmp_path / "bank", **options)
    expected = alone(
        single, rows, tmp_path / "alone", options.get("data_seeds", [0] * 3), options.get("subsets", [None] * 3)
    )
    for sae, other, result, wanted in zip(together, single, results, expected, strict=True):
        for name, tensor in other.state_dict().items():
            assert torch.equal(sae.state_dict()[name], tensor), name
        assert result.log == wanted.log
        assert result.sae is sae
    assert contents(tmp_path / "bank") == contents(tmp_path / "alone")
    assert {f"000/snapshots/{step:08d}.safetensors" for step in (0, 1, 2, 4, 8, 16, 20)} < contents(
        tmp_path / "bank"
    ).keys()


def test_rows_of_one_order_are_read_once(make_rows, monkeypatch):
    rows, read = make_rows(), []
    take = rows.take
    monkeypatch.setattr(rows, "take", lambda indices: read.append(len(indices)) or take(indices))
    train_bank(make(8), rows, dataclasses.replace(CONFIG, pre_bias_rows=0), progress=False)
    assert sum(read) == CONFIG.rows
    assert len(read) == 3  # turns of 8, 8 and 4 steps


def test_the_geometric_median_is_found_once_for_the_same_rows(make_rows, monkeypatch):
    rows, found = make_rows(), []
    start = saekern.TopKSAE.init_pre_bias_
    monkeypatch.setattr(
        "saekern.sae.base.SAE.init_pre_bias_", lambda sae, sample: found.append(sae) or start(sae, sample)
    )
    saes = make(4)
    train_bank(saes, rows, CONFIG, progress=False, subsets=[None, HALVES[0], None, HALVES[0]], data_seeds=[0, 1, 2, 3])
    assert found == saes[:2]


def test_many_orders_are_read_in_smaller_blocks(tmp_path, make_rows, monkeypatch):
    monkeypatch.setattr(bank, "BLOCK", 1)
    rows = make_rows()
    banked(make(), rows, tmp_path / "bank", data_seeds=[1, 2, 3])
    alone(make(), rows, tmp_path / "alone", [1, 2, 3])
    assert contents(tmp_path / "bank") == contents(tmp_path / "alone")


class Stopped(Exception):
    """Ends the bank as a kill would."""


@pytest.mark.parametrize("stop_at", [1, 2, 7, 9, 22, 30, 43, 59])
def test_stopped_anywhere_it_ends_with_the_same_bytes(tmp_path, make_rows, monkeypatch, stop_at):
    """The stops lie before the first checkpoint, between the same checkpoint of two members, and near the end.

    Planted: steps taken again by members that are ahead; starting at the member that is furthest. Each was caught.
    """
    rows, options = make_rows(), KINDS["both"]
    advance, calls = loop.Run.advance, []

    def until(run, batch):
        calls.append(1)
        if len(calls) == stop_at:
            raise Stopped
        return advance(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "advance", until)
        with pytest.raises(Stopped):
            banked(make(cls=NoisySAE), rows, tmp_path / "bank", **options)
    before = torch.get_rng_state()
    banked(make(cls=NoisySAE), rows, tmp_path / "bank", **options)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers stay
    alone(make(cls=NoisySAE), rows, tmp_path / "alone", options["data_seeds"], options["subsets"])
    assert contents(tmp_path / "bank") == contents(tmp_path / "alone")


def test_members_may_be_added_and_runs_alone_taken_over(tmp_path, make_rows):
    rows = make_rows()
    alone(make(1), rows, tmp_path / "bank", [0], [None])
    banked(make(2), rows, tmp_path / "bank")
    banked(make(3), rows, tmp_path / "bank")
    alone(make(3), rows, tmp_path / "alone")
    assert contents(tmp_path / "bank") == contents(tmp_path / "alone")


def test_times_are_told(tmp_path, make_rows):
    banked(make(), make_rows(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / bank.LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 16, 20]
    assert all(line["rows_per_second"] > 0 and line["members"] == 3 for line in lines)
    assert lines[0]["seconds_left"] > 0 == lines[-1]["seconds_left"]


@pytest.mark.parametrize("cls", [saekern.TopKSAE, saekern.BatchTopKSAE])
def test_snapshots_take_half_the_space(tmp_path, make_rows, cls):
    """Planted: thresholds, which `sae.half()` keeps in float32, rounded too; caught."""
    rows = make_rows()
    banked(make(cls=cls), rows, tmp_path / "half", snapshot_dtype=torch.float16)
    banked(make(cls=cls), rows, tmp_path / "whole")
    name = "001/snapshots/00000008.safetensors"
    half, whole = (
        files.load(tmp_path / kind / "001", weights="snapshots/00000008.safetensors") for kind in ("half", "whole")
    )
    for key, tensor in whole.half().state_dict().items():
        assert torch.equal(half.state_dict()[key], tensor), key
        assert half.state_dict()[key].dtype == tensor.dtype
    sizes = [(tmp_path / kind / name).stat().st_size for kind in ("half", "whole")]
    assert sizes[1] - sizes[0] > 1000  # 2 · 8 · 32 matrix entries and the biases, 2 bytes each
    one, other = (contents(tmp_path / kind) for kind in ("half", "whole"))
    assert one["001/sae.safetensors"] == other["001/sae.safetensors"]
    with pytest.raises(ValueError, match=r"another run: provenance\.snapshots\.dtype"):
        banked(make(cls=cls), rows, tmp_path / "half")


def test_a_loss_that_is_not_finite_names_its_member(make_rows):
    rows = make_rows()
    saes = make()
    saes[1].W_dec.data[:] = torch.inf
    with pytest.raises(FloatingPointError, match=r"member 1: step 1: the loss is"):
        train_bank(saes, rows, CONFIG, progress=False)


def test_doubling():
    assert doubling(8) == (0, 1, 2, 4, 8)
    assert doubling(9) == (0, 1, 2, 4, 8, 9)
    assert doubling(1) == (0, 1)
    assert doubling(0) == (0,)


def test_subsets():
    halves = disjoint(11, 2, seed=3)
    assert [len(half) for half in halves] == [5, 5]
    assert len(set(torch.cat(halves).tolist())) == 10
    assert not torch.equal(halves[0], disjoint(11, 2, seed=4)[0])
    drawn = bootstrap(10_000, seed=0)
    assert torch.equal(drawn, bootstrap(10_000, seed=0))
    # Distinct rows: 1 - 1/e of them, with standard deviation sqrt(n (1/e) (1 - 2/e)) = 31.
    assert abs(len(drawn.unique()) - 6321) < 5 * 31
    with pytest.raises(ValueError, match="parts: expected 1 to 3, as many as there are rows, got 4"):
        disjoint(3, 4, seed=0)


def test_chosen_rows(make_rows):
    rows = make_rows(count=10)
    chosen = ChosenRows(rows, torch.tensor([7, 2, 2]))
    assert len(chosen) == 3
    assert torch.equal(chosen.take(torch.tensor([2, 0])), rows.tensor[[2, 7]])
    assert chosen.fingerprint == ChosenRows(rows, torch.tensor([7, 2, 2])).fingerprint
    assert chosen.fingerprint != ChosenRows(rows, torch.tensor([7, 2, 3])).fingerprint
    with pytest.raises(IndexError, match="indices: expected 0 to 9, got 2 to 10"):
        ChosenRows(rows, torch.tensor([10, 2]))
    with pytest.raises(IndexError, match="indices: expected 0 to 2, got -1 to -1"):
        chosen.take(torch.tensor([-1]))


@pytest.mark.parametrize(
    ("saes", "options", "message"),
    [
        (make(2), {"data_seeds": [1]}, "data_seeds: expected 2, one for each SAE, got 1"),
        (make(2), {"subsets": [None]}, "subsets: expected 2, one for each SAE, got 1"),
        (make(1) * 2, {}, "saes: expected every SAE once, got one of them twice"),
        ([*make(1), make(1)[0].double()], {}, r"saes\[1\]: expected torch.float32 on cpu like saes\[0\]"),
    ],
)
def test_errors(make_rows, saes, options, message):
    with pytest.raises(ValueError, match=message):
        train_bank(saes, make_rows(), CONFIG, progress=False, **options)


def test_no_members(make_rows):
    assert train_bank([], make_rows(), CONFIG) == []
