"""Interpretation scores as a stage of a study."""

import pytest

from saekern.pipeline.config import SAEConfig, VariantConfig
from saekern.pipeline.experiments.interpretation import InterpretationSettings

pytest.importorskip("matplotlib")


def test_rules_explain_a_model_of_bytes_and_its_random_copy(experiment):
    """The stand-in's activations are the byte and half the byte before: rules on bytes must explain its latents, and
    those of a random copy, whose bytes have embeddings too. Planted: the trained SAE's cache for both; caught."""
    salmon = VariantConfig("salmon", SAEConfig(d_sae=64, k=4), seeds=2, rows_from="random_model", axis="null")
    settings = InterpretationSettings(latents=40, least=4, size=8)
    found, page, _ = experiment("interpretation", settings, variants=(salmon,))
    detection, null = (found["trained"]["mean"][name] for name in ("detection", "null_detection"))
    assert detection["lower"] > 0.6
    assert detection["lower"] > null["upper"]
    assert found["salmon"]["name"] == "salmon"
    assert found["salmon"]["latents"] != found["trained"]["latents"]
    assert set(found["comparison"]["lines"]) >= {"detection", "fuzzing", "probability"}
    assert '<section id="interpretation">' in page
    assert "Explanations of latents tell where they fire" in page


def test_without_a_random_model(experiment):
    found, page, _ = experiment("interpretation", InterpretationSettings(latents=6, least=4, size=8))
    assert found["salmon"] is None
    assert "No variant on a random model" in page


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"interpretation\.latents: expected at least 2, got 1"):
        InterpretationSettings(latents=1)
