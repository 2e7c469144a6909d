"""Other architectures on the rows of a study."""

import dataclasses
import json

import pytest

from saekern.pipeline import study
from saekern.pipeline.config import SAEConfig, VariantConfig
from saekern.sae import load

pytest.importorskip("matplotlib")


def test_variants_are_trained_evaluated_and_shown(small_config, tmp_path):
    """And a new one costs nothing but itself. Planted: variants read the seeds' steps; caught."""
    variants = (VariantConfig("topk-2", SAEConfig(d_sae=48, k=2), seeds=2),)
    done = study(small_config(variants=variants), tmp_path, progress=False)
    assert {name for name in done.ran if name.startswith("variants")} == {
        "variants/topk-2/000",
        "variants/topk-2/001",
        "variants",
    }
    found = json.loads((tmp_path / "results/variants.json").read_text())
    assert [one["seed"] for one in found] == [0, 1]
    for one in found:
        sae = load(tmp_path / f"variants/topk-2/{one['seed']:03d}")
        assert (sae.d_sae, sae.k, sae.init_seed) == (48, 2, one["seed"])
        assert one["parameters"] == 2 * 48 * sae.d_in + 48 + sae.d_in
        (point,) = one["points"]
        assert 0 < point["l0"] <= 2
        assert 0 < point["ev"] < 1
        assert point["ce_sae"] > 0
    assert "Other architectures" in done.report.read_text()

    more = (*variants, VariantConfig("topk-8", SAEConfig(d_sae=48, k=8), lr=1e-3))
    again = study(small_config(variants=more), tmp_path, progress=False)
    assert again.ran == ("variants/topk-8/000", "variants", "report")
    assert study(small_config(), tmp_path, progress=False).ran == ("report",)
    assert "Other architectures" not in done.report.read_text()


def test_another_order_of_the_rows_remakes_them(small_config, tmp_path):
    """Planted: `data_seed` not among the step's settings; caught."""
    variants = (VariantConfig("topk-2", SAEConfig(d_sae=48, k=2)),)
    config = small_config(variants=variants)
    study(config, tmp_path, progress=False)
    train = dataclasses.replace(config.train, data_seed=config.train.data_seed + 1)
    again = study(small_config(variants=variants, train=train), tmp_path, progress=False)
    assert "variants/topk-2/000" in again.ran
