"""Training on another device than the CPU, as far as a machine without a GPU can tell: a stand-in device and fakes."""

import json
import re
from contextlib import nullcontext

import pytest
import torch
from stand_in_device import StandIn, patch_autocast

import saekern
from saekern.sae import files
from saekern.training import Shuffle, checkpoint, feed
from saekern.training import device as devices
from saekern.training.watch import EVERY, Watch


def config(**changes):
    settings = {"rows": 50 * 64, "batch_size": 64, "lr": 2e-3, "log_every": 1, "dead_after": 128, "pre_bias_rows": 100}
    return saekern.TrainConfig(**{**settings, **changes})


@pytest.fixture
def stand_in(monkeypatch):
    patch_autocast(monkeypatch)
    with StandIn() as device:
        yield device


def small(seed=0, device="meta"):
    return saekern.TopKSAE(8, 48, 3, init_seed=seed, k_aux=4).to(device)


def wide(device="meta"):
    """Most of its latents die."""
    return saekern.TopKSAE(8, 300, 2, init_seed=0).to(device)


def host(sae):
    return {name: parameter.detach().cpu() for name, parameter in sae.named_parameters()}


def test_the_stand_in_notices_mixing_and_waiting(stand_in):
    a, b = torch.ones(3), torch.ones(3).to("meta")
    assert (b + b).device.type == "meta"
    assert torch.equal((b + b).cpu(), a + a)
    assert stand_in.waits == ["aten::_to_copy"]
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        a + b
    assert float(b.sum()) == 3
    assert stand_in.waits[1:] == ["aten::_local_scalar_dense"]


def test_a_step_does_not_wait_for_the_device(stand_in, make_rows):
    """Only log lines and the rare look for dead latents do. Planted: `dead.any()`, `isfinite`, and clipping's norm as a
    float, each asked every step; caught."""
    settings = config(log_every=1000, clip=0.05, rows=100 * 64)
    saekern.train(small(), make_rows(), settings, progress=False)
    lines = 2  # the first and the last step
    assert 0 < len(stand_in.waits) <= lines * 12 + 100 // EVERY + 1


def test_results_are_those_of_the_cpu(stand_in, make_rows):
    """Until a latent dies; after that the GPU's rule finds it up to EVERY − 1 steps later, which is allowed for here by
    a dead_after that no latent reaches, and by one where some are dead from a step on at which it is asked."""
    for dead_after in (10**6, EVERY * 64):
        settings = config(dead_after=dead_after)
        there = saekern.train(wide(), make_rows(), settings, progress=False)
        here = saekern.train(wide("cpu"), make_rows(), settings, progress=False)
        assert there.sae.W_dec.device.type == "meta"
        assert (there.log[-1]["dead"] > 0) == (dead_after < 10**6)
        assert there.log == here.log
        for name, tensor in host(there.sae).items():
            assert torch.equal(tensor, host(here.sae)[name]), name


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@pytest.mark.parametrize("kill_at", [21, 37])
def test_resume_is_exact(stand_in, make_rows, resumed, tmp_path, kill_at):
    """Among dead latents. Planted: what was learnt about dead latents left out of the checkpoint; caught."""
    rows, settings = make_rows(), config(checkpoint_every=5, dead_after=9 * 64)
    whole = saekern.train(wide(), rows, settings, out=tmp_path / "whole", progress=False)
    assert whole.log[-1]["dead"] > 0
    resumed(wide, rows, settings, tmp_path / "killed", kill_at)
    for name in (checkpoint.STATE, files.WEIGHTS, checkpoint.LOG, files.CONFIG):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_another_kind_of_device_is_refused(stand_in, make_rows, tmp_path):
    saekern.train(small(), make_rows(), config(), out=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r'holds another run: provenance.device is "meta" there, "cpu" here'):
        saekern.train(small(device="cpu"), make_rows(), config(), out=tmp_path, progress=False)


@pytest.mark.parametrize(("log_every", "noticed"), [(1, 6), (4, 8), (1000, 10)])
def test_a_loss_that_is_not_finite_reaches_no_file(stand_in, make_rows, tmp_path, log_every, noticed):
    """Planted: checkpoints written without asking; caught by the state's step and its NaN."""
    rows = make_rows()
    settings = config(checkpoint_every=5, log_every=log_every, pre_bias_rows=0, snapshots=(9, 10))
    bad = int(Shuffle(len(rows), settings.data_seed).take(5 * 64, 64)[17])  # a row of step 6
    rows.tensor[bad, 3] = torch.inf
    later = "" if noticed == 6 else rf"not finite \(noticed at step {min(noticed, 9)}\); "
    with pytest.raises(FloatingPointError, match=f"step 6: the loss is {later or 'nan'}") as raised:
        saekern.train(small(), rows, settings, out=tmp_path, progress=False)
    assert "the last checkpoint in" in str(raised.value)
    tensors, metadata = files.read_tensors(tmp_path / checkpoint.STATE)
    assert json.loads(metadata["position"])["step"] == 5
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    assert not (tmp_path / "snapshots").exists()


def test_mixed_devices(stand_in, make_rows):
    sae = small()
    sae.b_enc = torch.nn.Parameter(torch.zeros(48))
    with pytest.raises(ValueError, match="b_enc: expected device meta like b_dec, got cpu"):
        saekern.train(sae, make_rows(), config(), progress=False)
    x = torch.zeros(2, 8)
    with pytest.raises(ValueError, match="bias: expected device cpu like x, got meta"):
        small().encode_sparse(x)
    values, indices = torch.zeros(2, 3).to("meta"), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="values: expected device cpu like weight, got meta"):
        saekern.ops.decode(values, indices, torch.zeros(4, 8))


def test_watch_is_exact_where_it_can_be():
    """`ask_at` never passes a step at which a latent could be dead, unless that is within EVERY steps."""
    watch = Watch(torch.device("meta"))
    watch.first_bad = torch.zeros((), dtype=torch.int64)
    fired = torch.tensor([640, 64 * 90])
    none = torch.zeros(2, dtype=torch.bool)
    assert watch.dead(none, fired, 20, 64, 64 * 50) is None
    assert watch.ask_at == 60, "the latent that fired at row 640 is dead from step 60 on"
    assert watch.dead(none, fired, 59, 64, 64 * 50) is None
    assert watch.dead(none, fired, 60, 64, 64 * 50) is none
    assert watch.ask_at == 60 + EVERY
    fired[0] = 64 * 61
    assert watch.dead(none, fired, 75, 64, 64 * 50) is none
    assert watch.dead(none, fired, 76, 64, 64 * 50) is None
    assert watch.ask_at == 111


class Event:
    pass


class FakeCuda:
    """As much of `torch.cuda` as `Ahead` uses; what it is asked is noted."""

    def __init__(self, monkeypatch):
        self.seen = []
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self.note("pin", tensor))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.note("record", tensor))

    def note(self, word, result=None):
        self.seen.append(word)
        return result

    def record_event(self):
        return self.note("sent", Event())

    def wait_event(self, event):
        assert isinstance(event, Event)
        self.note("wait")


def test_rows_are_read_one_ahead(monkeypatch):
    """Step s + 1 is being read before step s is handed out; errors of reading come out in their turn; nothing is read
    beyond the end. Planted: a read beyond the end; the event of the copy not waited for; both caught."""
    cuda, read = FakeCuda(monkeypatch), []

    def rows(step):
        read.append(step)
        if step == 7:
            raise OSError("shard is gone")
        return torch.full((2, 3), float(step))

    ahead = feed.Ahead(rows, range(3, 6), torch.device("cpu"))
    for step in (3, 4, 5):
        assert torch.equal(ahead.take(step), rows(step))
        if ahead.waiting is not None:
            ahead.waiting.result()
        assert max(read) == min(step + 1, 5)
    ahead.close()
    assert (
        cuda.seen.count("pin") == cuda.seen.count("sent") == cuda.seen.count("wait") == cuda.seen.count("record") == 3
    )
    ahead = feed.Ahead(rows, range(6, 9), torch.device("cpu"))
    ahead.take(6)
    with pytest.raises(OSError, match="shard is gone"):
        ahead.take(7)
    ahead.close()
    feed.Ahead(rows, range(0), torch.device("cpu")).close()


def test_device_names(monkeypatch):
    for name in ("gpu", "cuda:", "cuda:x", "CPU", "", "mps"):
        with pytest.raises(ValueError, match=re.escape(f"device: expected cpu, cuda or cuda:N, got {name!r}")):
            devices.parse_device(name)
    assert devices.usable_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        ValueError, match=r"'cuda' was asked for, but this PyTorch \(.*\) is built without CUDA; use cpu"
    ):
        devices.usable_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ValueError, match=r"'cuda:1' was asked for, but this PyTorch \(.*\) finds no GPU; use cpu"):
        devices.usable_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(ValueError, match="device: expected cuda:0 to cuda:1, got 'cuda:2'"):
        devices.usable_device("cuda:2")
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None if name == "triton" else True)
    with pytest.raises(ValueError, match=r"'cuda' needs Triton, which is not installed: pip install 'triton>=3.6'"):
        devices.usable_device("cuda")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert devices.usable_device("cuda") == torch.device("cuda:1")
    assert devices.usable_device("cuda:0") == torch.device("cuda:0")
