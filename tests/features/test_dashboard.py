"""The whole dashboard on a cache known by hand, and its JSON for Neuronpedia."""

import json
import math

import pytest
import torch
from hand_cache import DirectSAE, sentences, write_cache

from saekern.features import Unembedding, dashboard, densest, drawn, neuronpedia
from saekern.features.dashboard import cached_word

# What Neuronpedia's importer and SAEDashboard's batch files have.
BATCH = {"model_id": str, "layer": int, "sae_set": str, "sae_id_suffix": type(None), "features": list}
FLOATS, INTEGERS, TEXTS = (list, float), (list, int), (list, str)
FEATURE = {
    "feature_index": int,
    "neuron_alignment_indices": INTEGERS,
    "neuron_alignment_values": FLOATS,
    "neuron_alignment_l1": FLOATS,
    "correlated_neurons_indices": INTEGERS,
    "correlated_neurons_l1": FLOATS,
    "correlated_neurons_pearson": FLOATS,
    "correlated_features_indices": INTEGERS,
    "correlated_features_l1": FLOATS,
    "correlated_features_pearson": FLOATS,
    "neg_str": TEXTS,
    "neg_values": FLOATS,
    "pos_str": TEXTS,
    "pos_values": FLOATS,
    "frac_nonzero": float,
    "freq_hist_data_bar_values": FLOATS,
    "freq_hist_data_bar_heights": INTEGERS,
    "logits_hist_data_bar_heights": INTEGERS,
    "logits_hist_data_bar_values": FLOATS,
    "n_prompts_total": int,
    "n_tokens_in_prompt": int,
    "dataset": str,
    "decoder_weights_dist": FLOATS,
    "vector": FLOATS,
    "activations": list,
}
ACTIVATION = {
    "bin_min": (int, float),
    "bin_max": float,
    "bin_contains": (int, float),
    "tokens": TEXTS,
    "values": FLOATS,
    "qualifying_token_index": int,
}


@pytest.fixture
def cache(tmp_path):
    """16 sentences of three letters. Latent 0: 1 … 48 by row; 1: dead; 2: in one row; 3: never positive."""
    rows = torch.zeros(48, 4)
    rows[:, 0] = torch.arange(1.0, 49)
    rows[30, 2] = 0.5
    rows[:, 3] = -1
    lines = [f"{chr(97 + i)}<{chr(65 + i)}" for i in range(16)]
    return write_cache(tmp_path / "cache", sentences(*lines), rows, hook="blocks.2.hook_resid_post")


@pytest.fixture
def made(cache):
    lens = Unembedding(torch.randn(4, 256), None, False)
    others = {"flipped": -torch.eye(4), "mixed": torch.eye(4)[[1, 0]] + 0.1}
    return dashboard(
        DirectSAE(4), cache, torch.tensor([0, 1, 2, 3]), name="hand", unembedding=lens, others=others, top=3, after=1
    )


def test_a_latent_by_hand(made):
    """Planted: quarters from the weakest up; caught. Planted: strongest contexts of one sequence; caught."""
    latent = made.latents[0]
    assert (latent.latent, latent.active, latent.largest, latent.mean) == (0, 48, 48.0, 24.5)
    assert latent.bin_width == 1
    assert latent.histogram == [0] + [1] * 48 + [0] * 15
    assert [(band.quarter, band.low, band.high) for band in latent.bands] == [
        (None, 42.0, 48.0),
        (3, 37.0, 48.0),
        (2, 25.0, 36.0),
        (1, 13.0, 24.0),
        (0, 1.0, 12.0),
    ]
    assert [context.value for context in latent.bands[0].contexts] == [48.0, 45.0, 42.0]  # of three sequences
    assert latent.bands[0].contexts[0].pieces == ["p", "<", "P"]
    assert latent.bands[0].contexts[0].values == [46.0, 47.0, 48.0]
    assert math.isnan(latent.bands[0].share)
    for band in latent.bands[1:]:
        assert band.share == 0.25
        assert len(band.contexts) == 2
        values = [context.value for context in band.contexts]
        assert values == sorted(values, reverse=True)
        assert all(band.low <= value <= band.high for value in values)
        assert not {48.0, 45.0, 42.0} & set(values)  # they are shown already
    assert latent.norm == latent.encoder_cosine == 1
    assert latent.similar[0] == (1, 0.0)
    assert [found[0].latent for found in latent.partners] == [1, 1]
    assert latent.mutual == [True, True] or latent.mutual == [False, True]


def test_dead_rare_and_negative_latents(made):
    dead, rare, negative = made.latents[1:]
    assert (dead.active, dead.largest, dead.mean, dead.bands, dead.bin_width) == (0, 0.0, None, [], 0.0)
    assert not any(dead.histogram)
    assert len(dead.promoted) == 10  # what it would write is known all the same
    assert (rare.active, rare.largest) == (1, 0.5)
    assert [(band.quarter, len(band.contexts)) for band in rare.bands] == [(None, 1)]  # shown once
    assert (negative.active, negative.largest, negative.mean, negative.bands) == (48, 0.0, -1.0, [])
    assert made.counts == [48, 0, 1, 48]


def test_the_order_of_rows_decides_nothing_else(cache):
    one, other = (dashboard(DirectSAE(4), cache, torch.tensor([2, 0]), batch=batch) for batch in (5, 4096))
    assert str(one) == str(other)  # NaN differs from itself
    assert [latent.latent for latent in one.latents] == [2, 0]
    assert one.lens == "No logit lens: no model was given."


def test_without_text(tmp_path):
    cache = write_cache(tmp_path / "c", None, torch.eye(4), hook="x.hook_z")
    made = dashboard(DirectSAE(4), cache, torch.arange(4), unembedding=Unembedding(torch.ones(4, 9), None, False))
    assert [latent.bands for latent in made.latents] == [[]] * 4
    assert made.lens == "No logit lens: x.hook_z is not in the residual stream, which is what the unembedding reads."


def test_words_alone(tmp_path):
    tokens = torch.tensor([[0, 5]])
    word = cached_word(write_cache(tmp_path / "b", sentences("a"), torch.ones(1, 1)))
    assert [word(token) for token in (0, 65, 0x7F, 0x80, 0xE2)] == ["\0", "A", "\x7f", "⟨80⟩", "⟨E2⟩"]
    words = {"0": "", "5": " the"}
    word = cached_word(write_cache(tmp_path / "v", tokens, torch.ones(1, 1), text="vocabulary", vocabulary=words))
    assert [word(5), word(417)] == [" the", "⟨417⟩"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top: expected at least 1, got 0"),
        ({"sample": 3}, "sample: expected at least 4, got 3"),
        ({"before": -1}, "before: expected at least 0, got -1"),
    ],
)
def test_options_out_of_range(cache, options, message):
    with pytest.raises(ValueError, match=message):
        dashboard(DirectSAE(4), cache, torch.tensor([0]), **options)


def test_caches_that_do_not_fit(tmp_path, cache):
    with pytest.raises(ValueError, match="rows are 4 wide, the SAE reads 5"):
        dashboard(DirectSAE(5), cache, torch.tensor([0]))
    empty = write_cache(tmp_path / "empty", None, torch.ones(0, 4))
    with pytest.raises(ValueError, match="this cache has no rows"):
        dashboard(DirectSAE(4), empty, torch.tensor([0]))


def test_choosing():
    assert densest(torch.tensor([1, 5, 0, 5]), 3).tolist() == [1, 3, 0]
    assert drawn(50, 8, 3).tolist() == drawn(50, 8, 3).tolist() != drawn(50, 8, 4).tolist()
    assert drawn(5, 5, 0).tolist() == [0, 1, 2, 3, 4]
    for n in (0, 6):
        with pytest.raises(ValueError, match=f"random: expected 1 to 5, the latents of this SAE, got {n}"):
            drawn(5, n, 0)
    with pytest.raises(ValueError, match="top: expected 1 to 4"):
        densest(torch.ones(4), 5)


def check(found, schema):
    assert list(found) == list(schema)
    for name, kind in schema.items():
        value = found[name]
        if isinstance(kind, tuple) and kind[0] is list:
            assert isinstance(value, list), name
            assert all(type(item) is kind[1] for item in value), name
        else:
            assert isinstance(value, kind), name


def test_neuronpedia(made):
    """Every field by name and type, in SAEDashboard's order; lists that belong together are of one length."""
    batch = json.loads(json.dumps(neuronpedia(made, "res-4", "python"), allow_nan=False))
    check(batch, BATCH)
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("hand", 2, "res-4")
    assert [feature["feature_index"] for feature in batch["features"]] == [0, 1, 2, 3]
    for feature in batch["features"]:
        check(feature, FEATURE)
        for a, b in (
            ("freq_hist_data_bar_values", "freq_hist_data_bar_heights"),
            ("logits_hist_data_bar_values", "logits_hist_data_bar_heights"),
            ("pos_str", "pos_values"),
            ("neg_str", "neg_values"),
            ("neuron_alignment_indices", "neuron_alignment_values"),
        ):
            assert len(feature[a]) == len(feature[b])
        assert sum(feature["logits_hist_data_bar_heights"]) == 256
        for activation in feature["activations"]:
            check(activation, ACTIVATION)
            assert len(activation["tokens"]) == len(activation["values"]) > activation["qualifying_token_index"]
    first = batch["features"][0]
    assert first["frac_nonzero"] == 1.0
    assert (first["neuron_alignment_indices"][0], first["neuron_alignment_l1"][0]) == (0, 1.0)
    assert first["freq_hist_data_bar_values"][:2] == [0.5, 1.5]
    assert first["freq_hist_data_bar_heights"][:3] == [0, 1, 1]
    assert len(first["freq_hist_data_bar_heights"]) == 49
    top, quarter = first["activations"][0], first["activations"][3]
    assert (top["bin_min"], top["bin_max"], top["bin_contains"]) == (-1, 48.0, -1)
    assert top["values"][top["qualifying_token_index"]] == 48.0
    assert (quarter["bin_min"], quarter["bin_max"], quarter["bin_contains"]) == (37.0, 48.0, 0.25)
    assert batch["features"][1]["activations"] == []


@pytest.mark.parametrize(
    ("hook", "layer"),
    [("blocks.11.hook_out", 11), ("model.layers.3.mlp", 3), ("h.0", 0), ("resnet50.head", None), (None, None)],
)
def test_neuronpedia_wants_a_layer(tmp_path, hook, layer):
    made = dashboard(DirectSAE(1), write_cache(tmp_path / "c", None, torch.ones(2, 1), hook=hook), torch.tensor([0]))
    if layer is None:
        with pytest.raises(ValueError, match="Neuronpedia wants a model and a layer"):
            neuronpedia(made, "x")
    else:
        assert neuronpedia(made, "x")["layer"] == layer
