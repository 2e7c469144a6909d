"""Known objects and classes in a study."""

import pytest
import torch

from saekern.pipeline.config import SAEConfig, VariantConfig
from saekern.pipeline.experiments.archetypal import CLASSES, ArchetypalSettings, byte_labels

pytest.importorskip("matplotlib")


def test_archetypal(experiment):
    """Collages with the truth on top; byte classes of the seeds, and of a variant of that architecture."""
    variant = VariantConfig("hull", SAEConfig(arch="archetypal", d_sae=64, k=4, options={"points": 64}), seeds=2)
    settings = ArchetypalSettings(sets=3, rows=2000, seeds=3, held_out=400)
    found, page, _ = experiment("archetypal", settings, variants=(variant,))
    arms = {line["arm"] for line in found["collages"]["arms"]}
    assert arms == {"TopK", "TopK, k-means start", "RA-SAE, δ = 0.1", "A-SAE, δ = 0", "truth"}
    assert [(line["arm"], line["seeds"]) for line in found["classes"]["arms"]] == [("main arm", 3), ("hull", 2)]
    line = found["classes"]["arms"][0]
    assert line["identifiability"]["mean"] > line["identifiability_null"] >= line["majority"]
    assert '<section id="archetypal">' in page
    assert "Every class of bytes" in page


def test_no_classes_without_seeds(experiment):
    found, page, _ = experiment("archetypal", ArchetypalSettings(sets=3, rows=300, seeds=0))
    assert found["classes"] is None
    assert "Every class of bytes" not in page


def test_byte_labels():
    names = list(CLASSES)
    labels = byte_labels(torch.tensor(list(b"aQ7 \n(_")))
    members = [{names[c] for c in range(len(names)) if row[c]} for row in labels]
    assert members == [
        {"letters", "vowels"},
        {"letters", "uppercase"},
        {"digits"},
        {"whitespace"},
        {"whitespace", "line ends"},
        {"punctuation", "brackets"},
        {"punctuation"},
    ]
