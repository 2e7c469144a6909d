"""Configs: every bad value named, typos met with the nearest key, the schedule at its corners."""

import dataclasses
import inspect

import pytest

from saekern import TrainConfig
from saekern.training import parse_config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"rows": 5, "batch_size": 6}, "rows: expected at least batch_size = 6, got 5"),
        ({"lr": 0.0}, "lr: expected a positive number or null, got 0.0"),
        ({"lr": float("nan")}, "lr: expected a positive number"),
        ({"warmup": 1.5}, r"warmup: expected a fraction in \[0, 1\], got 1.5"),
        ({"warmup": 0.5, "decay": 0.6}, r"decay: expected a fraction in \[0, 1 - warmup = 0.5\], got 0.6"),
        ({"betas": (0.9, 1.0)}, r"betas: expected two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"eps": -1e-8}, "eps: expected a positive number, got -1e-08"),
        ({"clip": -1.0}, "clip: expected a positive number or null, got -1.0"),
        ({"dead_after": 0}, "dead_after: expected at least 1 or null, got 0"),
        ({"data_seed": -1}, r"data_seed: expected an integer in \[0, 2\^63\), got -1"),
        ({"pre_bias_rows": -1}, "pre_bias_rows: expected at least 0, got -1"),
        ({"log_every": 0}, "log_every: expected at least 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every: expected at least 1, got 0"),
        (
            {"rows": 100, "batch_size": 10, "snapshots": (0, 11)},
            r"snapshots: expected steps in \[0, 10\], got \(0, 11\)",
        ),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 8}, "TrainConfig: unknown key 'batchsize'; did you mean 'batch_size'?"),
        ({"checkpont_every": 8}, "did you mean 'checkpoint_every'?"),
        ({"zzz": 8}, "unknown key 'zzz'; valid keys: rows, batch_size, lr,"),
        ({"rows": "many"}, "TrainConfig.rows: expected int, got 'many'"),
        ({"rows": 1e6}, "TrainConfig.rows: expected int, got 1000000.0"),
        ({"rows": True}, "TrainConfig.rows: expected int, got True"),
        ({"lr": False}, "TrainConfig.lr: expected float, got False"),
        ({"bf16": 1}, "TrainConfig.bf16: expected bool, got 1"),
        ({"betas": [0.9]}, r"TrainConfig.betas: expected tuple\[float, float\], got \[0.9\]"),
        ({"snapshots": [1, "2"]}, r"TrainConfig.snapshots\[1\]: expected int, got '2'"),
        ([1], "TrainConfig: expected a JSON object, got list"),
    ],
)
def test_bad_json(values, message):
    with pytest.raises(ValueError, match=message):
        parse_config(TrainConfig, values)


def test_json_values_become_the_dataclass():
    got = parse_config(TrainConfig, {"rows": 9000, "lr": 1, "betas": [0, 0.99], "snapshots": [0, 2], "clip": None})
    assert got == TrainConfig(rows=9000, lr=1.0, betas=(0.0, 0.99), snapshots=(0, 2))
    assert type(got.lr) is float

    @dataclasses.dataclass(frozen=True)
    class Outer:
        train: TrainConfig
        name: str = "x"

    assert parse_config(Outer, {"train": {"rows": 5000}}) == Outer(TrainConfig(rows=5000))
    with pytest.raises(ValueError, match="TrainConfig: unknown key 'row'; did you mean 'rows'"):
        parse_config(Outer, {"train": {"row": 5000}})


def test_every_field_has_a_docstring():
    """The command line shows them."""
    source = inspect.getsource(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        after = source.split(f"\n    {field.name}: ")[1].split("\n")[1]
        assert after.strip().startswith('"""'), field.name


def test_schedule():
    config = TrainConfig(rows=1000, batch_size=10, lr=0.5, warmup=0.1, decay=0.2)
    rates = [config.lr_at(step, 1) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.05 * i for i in range(1, 11)])
    assert rates[10:80] == [0.5] * 70
    assert rates[80:] == pytest.approx([0.025 * i for i in range(20, 0, -1)])
    constant = TrainConfig(rows=1000, batch_size=10, lr=0.5, warmup=0, decay=0)
    assert [constant.lr_at(step, 1) for step in range(1, 101)] == [0.5] * 100
    assert TrainConfig(rows=100_000, warmup=0, decay=0).lr_at(1, 65536) == pytest.approx(1e-4)


def test_derived_settings():
    assert TrainConfig(rows=1009, batch_size=10).steps == 100
    assert TrainConfig(rows=1000, batch_size=10).dead_rows == 100
    assert TrainConfig(rows=10**9).dead_rows == 10**7
    assert TrainConfig(dead_after=7).dead_rows == 7
