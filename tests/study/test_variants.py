"""Other SAEs than the study's, on its rows and on others."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saekern import activations
from saekern.pipeline import study
from saekern.pipeline.config import ActivationsConfig, SAEConfig, StudyConfig, VariantConfig
from saekern.pipeline.matched import difference, place
from saekern.pipeline.sources import Sources
from saekern.sae import load

pytest.importorskip("matplotlib")


def test_variants_are_trained_evaluated_and_shown(small_config, tmp_path):
    """And a new one costs nothing but itself. Planted: variants read the seeds' steps; caught."""
    variants = (VariantConfig("topk-2", SAEConfig(d_sae=48, k=2), seeds=2),)
    done = study(small_config(variants=variants), tmp_path, progress=False)
    assert {name for name in done.ran if name.startswith("variants")} == {
        "variants/topk-2/000",
        "variants/topk-2/001",
        "variants/topk-2",
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


spec = importlib.util.spec_from_file_location("stand_in", Path(__file__).parent / "stand_in.py")
stand_in = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stand_in)
SMALL = SAEConfig(d_sae=48, k=4)
BEFORE = "blocks.0.hook_resid_pre"
ARMS = (
    VariantConfig("small", SMALL, seeds=3, axis="size"),
    VariantConfig("wide", SAEConfig(d_sae=96, k=4), seeds=3, axis="size"),
    VariantConfig("short", SAEConfig(d_sae=64, k=4), seeds=3, train_rows=1024, axis="budget"),
    VariantConfig("before", SMALL, seeds=2, hook=BEFORE, axis="layer"),
    VariantConfig("salmon", SMALL, seeds=3, rows_from="random_model", axis="null"),
    VariantConfig("salmon-2", SAEConfig(d_sae=48, k=2), rows_from="random_model", axis="null"),
    VariantConfig("shuffled", SMALL, seeds=2, rows_from="shuffled_covariance", axis="null"),
)


@pytest.fixture(scope="module")
def armed(tmp_path_factory):
    """A study with a variant of every kind: its config, its folder, the steps that ran."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "tiny_model", stand_in.StandIn)
        folder = tmp_path_factory.mktemp("armed")
        config = stand_in.small_config(variants=ARMS)
        return config, folder, study(config, folder, progress=False).ran


def test_other_rows_are_harvested_once_and_shared(armed, small_config, tmp_path):
    """Two variants on the random model, one harvest. Planted: a harvest a variant; caught."""
    config, folder, ran = armed
    other = [name for name in ran if name.startswith("harvest/") and "-" in name]
    assert sorted(other) == sorted(
        f"harvest/{source}-{split}" for source in (f"tiny@{BEFORE}", "random_model") for split in ("train", "heldout")
    )
    assert study(config, folder, progress=False).ran == ()
    sources = Sources(config, folder)
    one, two = sources.variant_rows("salmon"), sources.variant_rows("salmon-2")
    index = torch.arange(50)
    assert torch.equal(one.take(index), two.take(index))
    assert not torch.equal(one.take(index), sources.rows.take(index))
    assert len(sources.variant_heldout("salmon")) == 400
    assert sources.variant_cache("salmon").tokens is not None
    first = sources.variant_rows("before").take(torch.arange(1))
    assert not torch.equal(first, sources.rows.take(torch.arange(1)))
    shuffled = sources.variant_rows("shuffled")
    torch.testing.assert_close(
        shuffled.take(torch.arange(len(shuffled))).mean(0), sources.rows.take(torch.arange(len(shuffled))).mean(0)
    )
    with pytest.raises(ValueError, match="got rows shuffled to keep their covariance"):
        sources.variant_cache("shuffled")


def test_a_variant_is_matched_within_itself(armed):
    """p̂ of it alone, dead latents by its own held-out rows; of one seed there is none."""
    config, folder, _ = armed
    sources = Sources(config, folder)
    summary, arrays = sources.variant_stability("salmon")
    assert summary["seeds"] == 3
    assert arrays["probability"].shape == (3, 48)
    counts = load_file(folder / "results/variants/salmon-001.safetensors")["firing_counts"]
    assert torch.equal(arrays["live"][1], counts >= config.stability.min_firings)
    live = summary["raw"]["live"]
    made = summary["estimates"]["raw"]
    assert made["mean_probability"]["mean"] == pytest.approx(live["mean_probability"])
    assert made["stable"]["mean"] == pytest.approx(live["stable"])
    assert made["unstable"]["mean"] == pytest.approx(live["unstable"])
    assert made["mean_probability"]["low"] <= made["mean_probability"]["mean"] <= made["mean_probability"]["high"]
    assert sources.variant_stability("shuffled")[0]["estimates"]["raw"]["stable"]["low"] is None  # two seeds
    assert len(sources.variant_saes("salmon")) == 3
    assert sources.variant_saes("salmon")[2].init_seed == 2
    with pytest.raises(ValueError, match=r"variants.salmon-2.seeds: expected at least 2"):
        sources.variant_stability("salmon-2")
    with pytest.raises(ValueError, match=r"variants: expected small, wide, .*, got 'salmo'"):
        sources.variant("salmo")


def test_variants_stand_beside_the_studys_seeds(armed):
    """The main arm is on every axis, in its place; no cross-entropy where it would be another model's."""
    _, folder, _ = armed
    arms = json.loads((folder / "results/arms.json").read_text())
    assert arms["axes"]["size"]["arms"] == ["small", "the study's", "wide"]
    assert arms["axes"]["budget"]["arms"] == ["short", "the study's"]
    assert set(arms["axes"]) == {"size", "budget", "layer", "null"}
    stability = json.loads((folder / "results/stability.json").read_text())
    main = arms["main"]["estimates"]["raw"]["mean_probability"]
    assert main["mean"] == pytest.approx(stability["raw"]["live"]["mean_probability"])
    points = {one["variant"]: one for one in json.loads((folder / "results/variants.json").read_text())}
    assert "ce_sae" in points["before"]["points"][0]
    assert "ce_sae" not in points["salmon"]["points"][0]
    assert [name for name, one in points.items() if one["comparable"]] == ["small", "wide"]
    page = (folder / "report.html").read_text()
    assert '<section id="variants">' in page
    assert '<section id="nulls">' in page
    assert (folder / "tables/variants_size.csv").read_text().splitlines()[0].startswith("arm,F,seeds,mean p")


def test_a_change_of_one_kind_of_rows_remakes_its_variants_alone(armed, monkeypatch):
    """Planted: the axis among the settings of the seeds; caught."""
    config, folder, _ = armed
    monkeypatch.setattr(activations, "tiny_model", stand_in.StandIn)
    renamed = dataclasses.replace(ARMS[-1], axis="architecture")
    ran = study(dataclasses.replace(config, variants=(*ARMS[:-1], renamed)), folder, progress=False).ran
    assert ran == ("variants", "report")
    other = dataclasses.replace(ARMS[-1], rows_from="shuffled_marginals")
    ran = study(dataclasses.replace(config, variants=(*ARMS[:-1], other)), folder, progress=False).ran
    assert ran == ("variants/shuffled/000", "variants/shuffled/001", "variants/shuffled", "variants", "report")


def test_differences_are_welchs():
    """Known: arms of 3 runs, SE 0.1 each: SE √0.02, 4 degrees of freedom, t = 2.776."""
    t = 4.302653
    first, second = ({"mean": m, "low": m - 0.1 * t, "high": m + 0.1 * t, "runs": 3} for m in (0.2, 0.7))
    gap = difference(first, second)
    assert gap["mean"] == pytest.approx(0.5)
    assert gap["high"] - 0.5 == pytest.approx(2.776445 * 0.02**0.5, rel=1e-5)
    assert difference(first, second | {"low": None})["low"] is None


def test_layers_are_in_the_order_of_their_numbers():
    hooks = [f"blocks.{i}.hook_resid_post" for i in (10, 9, 2)]
    assert sorted(hooks, key=lambda hook: place("layer", {"hook": hook})) == hooks[::-1]


@pytest.mark.parametrize(
    ("variant", "source", "message"),
    [
        ({"rows_from": "salmon"}, {}, "variants.rows_from: expected one of model, random_model, .*, got 'salmon'"),
        ({"axis": "width"}, {}, "variants.axis: expected one of architecture, size"),
        ({"hook": ""}, {}, "variants.hook: expected a name or null"),
        ({"train_rows": 0}, {}, "variants.train_rows: expected at least 1 or null, got 0"),
        ({"train_rows": 9}, {}, "variants.a.train_rows: expected at least batch_size"),
        ({"model": "gpt2"}, {}, "variants.a.model: expected activations.tokens, an .npy file of token ids"),
        ({"rows_from": "random_model"}, {"cache": "c"}, "variants.a: expected rows_from model or shuffled"),
        ({"hook": "x"}, {"cache": "c"}, "variants.a: .* since the rows come from c, without a model"),
    ],
)
def test_what_cannot_be_is_refused(variant, source, message):
    with pytest.raises(ValueError, match=message):
        StudyConfig(activations=ActivationsConfig(**source), variants=(VariantConfig("a", **variant),))


def test_another_model_reads_the_same_tokens(small_config, tmp_path, monkeypatch):
    """Its rows are its own, its layer's EV stands beside the study's, and it has no cross-entropy. Planted: the study's
    model for every variant; caught."""

    class Other(stand_in.StandIn):
        def __init__(self):
            super().__init__()
            self.embed.data = self.embed.data.flip(0)

    asked = []
    monkeypatch.setattr(activations, "load_model", lambda name, device="cpu": asked.append(name) or Other())
    tokens = torch.randint(0, 256, (80, 32), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    source = ActivationsConfig(
        hook=stand_in.HOOK, tokens=str(tmp_path / "tokens.npy"), sequences=64, heldout_sequences=16, batch=16
    )
    variants = (VariantConfig("other", SMALL, seeds=2, model="other-model", axis="model"),)
    config = small_config(activations=source, variants=variants)
    study(config, tmp_path / "study", progress=False)
    assert set(asked) == {"other-model"}
    sources = Sources(config, tmp_path / "study")
    row = torch.arange(1)
    assert not torch.equal(sources.variant_rows("other").take(row), sources.rows.take(row))
    arms = json.loads((tmp_path / "study/results/arms.json").read_text())
    assert arms["axes"]["model"]["arms"] == ["the study's", "other"]
    assert arms["variants"][0]["model"] == "other-model"
    (first, _) = json.loads((tmp_path / "study/results/variants.json").read_text())
    assert "ce_sae" not in first["points"][0]
    assert "By model" in (tmp_path / "study/report.html").read_text()
