"""Settings: JSON and back, and what they refuse."""

import dataclasses
import json

import pytest

from saekern.cli.options import descriptions
from saekern.pipeline.config import ActivationsConfig, StudyConfig
from saekern.pipeline.presets import PRESETS, preset
from saekern.training import TrainConfig


def classes() -> list[type]:
    nested = [type(getattr(StudyConfig(), field.name)) for field in dataclasses.fields(StudyConfig)]
    return [StudyConfig, *(cls for cls in nested if dataclasses.is_dataclass(cls))]


@pytest.mark.parametrize("config", [StudyConfig(), preset("quickstart"), preset("pareto")])
def test_round_trip(config):
    assert StudyConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("cls", classes())
def test_every_field_has_a_docstring(cls):
    """Planted: removed the text under `seeds`; caught."""
    assert list(descriptions(cls)) == [field.name for field in dataclasses.fields(cls)]
    assert all(text.endswith(".") for text in descriptions(cls).values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seedz": 3}, "unknown key 'seedz'; did you mean 'seeds'"),
        ({"train": {"batchsize": 3}}, "TrainConfig: unknown key 'batchsize'; did you mean 'batch_size'"),
        ({"seeds": "eight"}, "StudyConfig.seeds: expected int, got 'eight'"),
        ({"seeds": 1}, "seeds: expected at least 2"),
        ({"vary": "data"}, "vary: expected"),
        ({"sae": {"k": 5000}}, "sae.k: expected 1 to d_sae = 2048, got 5000"),
        ({"sae": {"arch": "topkk"}}, "sae.arch: expected one of"),
        ({"sae": {"options": {"heads": 3}}}, "sae.options: topk has no 'heads'; expected k_start, k_steps"),
        ({"sae": {"options": {"k": 3}}}, "sae.options: k has a setting of its own"),
        ({"sae": {"arch": "archetypal"}}, "sae.options: points: expected an integer of at least 1, got 0"),
        ({"sae": {"arch": "archetypal", "options": {"points": 9, "base": "x"}}}, "sae.options: base: expected an arch"),
        (
            {"sae": {"arch": "archetypal", "options": {"points": 9, "base_args": 3}}},
            "sae.options: base_args: expected a JSON object, got 3",
        ),
        ({"sae": {"options": ["k"]}}, "SAEConfig.options: expected dict"),
        ({"stability": {"threshold": 1.5}}, "stability.threshold: expected a cosine"),
        ({"stability": {"epsilon": 0.5}}, "stability.epsilon: expected a fraction"),
        ({"variants": [{"name": "a/b"}]}, "variants.name: expected letters"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "variants: expected different names"),
        ({"variants": [{"sae": {}}]}, "VariantConfig: expected 'name'"),
        ({"activations": {"model": "gpt2"}}, "activations.tokens: expected an .npy file"),
        ([], "expected a JSON object, got list"),
    ],
)
def test_messages(values, message):
    with pytest.raises(ValueError, match="^.*" + message.replace(".", r"\.")):
        StudyConfig.from_json(values)


def test_file_errors_name_the_file(tmp_path):
    path = tmp_path / "settings.json"
    for text, message in (("{", "not valid JSON"), ('{"seedz": 1}', "did you mean 'seeds'"), ("3", "JSON object")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"settings\.json: .*{message}"):
            StudyConfig.read(path)


def test_quickstart_keeps_its_promises():
    """At least 8 seeds, F ≥ 2048, K ≤ D/8 of the shipped model, 500,000 rows (BOS positions do not count)."""
    config = PRESETS["quickstart"]()
    activations, width = config.activations, 128
    assert config.seeds >= 8
    assert config.sae.d_sae >= 2048
    assert config.sae.k <= width // 8
    assert activations.sequences * (activations.context - 1) >= 500_000
    assert config.train.rows >= 500_000


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset: expected one of papers, pareto, quickstart, got 'quick'"):
        preset("quick")


def test_defaults_are_frozen():
    for config in (StudyConfig(), ActivationsConfig(), TrainConfig()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.seeds = 3
