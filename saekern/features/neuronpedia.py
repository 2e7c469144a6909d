"""A dashboard as the JSON that Neuronpedia's importer reads: the batch files of SAEDashboard.

Field names and their meaning: `NeuronpediaDashboardBatch` and `…Feature` of SAEDashboard (db4839a, May 2026), and
`convert-saedashboard-to-neuronpedia-export.py` of Neuronpedia (commit ebb8426, August 2026), which reads them and wants
every field, non-empty `values`, and finite numbers. Left empty, as nothing here computes them: correlated neurons and
features, head contributions, the steering vector.
"""

import re
from typing import Any

from saekern.features.contexts import Context
from saekern.features.dashboard import Band, Dashboard, Latent

DIGITS = 3  # after the point, as SAEDashboard rounds


def neuronpedia(dashboard: Dashboard, source_set: str, dataset: str = "") -> dict[str, Any]:
    """The content of one `batch-N.json`.

    Args:
        source_set: Neuronpedia's name for the SAEs of one kind, such as "res-16k".
        dataset: where the text comes from.

    Raises:
        ValueError: no layer number in the hook's name, or no model's name.
    """
    layer = re.search(r"(?<![^.])\d+(?![^.])", dashboard.hook or "")
    if layer is None or dashboard.model is None:
        raise ValueError(
            f"Neuronpedia wants a model and a layer; this cache comes from model {dashboard.model!r}, hook "
            f"{dashboard.hook!r}"
        )
    return {
        "model_id": dashboard.model,
        "layer": int(layer.group()),
        "sae_set": source_set,
        "sae_id_suffix": None,
        "features": [_feature(latent, dashboard, dataset) for latent in dashboard.latents],
    }


def _feature(latent: Latent, dashboard: Dashboard, dataset: str) -> dict[str, Any]:
    used = max((i + 1 for i, count in enumerate(latent.histogram) if count), default=0)
    low = latent.suppressed[0].logit if latent.suppressed else 0.0
    step = (latent.promoted[0].logit - low) / len(latent.logit_histogram) if latent.logit_histogram else 0.0
    values = [value for _, value in latent.largest_neurons]
    return {
        "feature_index": latent.latent,
        "neuron_alignment_indices": [index for index, _ in latent.largest_neurons],
        "neuron_alignment_values": _rounded(values),
        "neuron_alignment_l1": _rounded([value / (latent.absolute_sum or 1.0) for value in values]),
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [],
        "correlated_features_l1": [],
        "correlated_features_pearson": [],
        "neg_str": [token.text for token in latent.suppressed],
        "neg_values": _rounded([token.logit for token in latent.suppressed]),
        "pos_str": [token.text for token in latent.promoted],
        "pos_values": _rounded([token.logit for token in latent.promoted]),
        "frac_nonzero": latent.active / dashboard.rows,
        "freq_hist_data_bar_values": _rounded([(i + 0.5) * latent.bin_width for i in range(used)]),  # middles
        "freq_hist_data_bar_heights": latent.histogram[:used],
        "logits_hist_data_bar_heights": latent.logit_histogram,
        "logits_hist_data_bar_values": _rounded([low + (i + 0.5) * step for i in range(len(latent.logit_histogram))]),
        "n_prompts_total": dashboard.sequences,
        "n_tokens_in_prompt": dashboard.context,
        "dataset": dataset,
        "decoder_weights_dist": [],
        "vector": [],
        "activations": [_activation(context, band) for band in latent.bands for context in band.contexts],
    }


def _activation(context: Context, band: Band) -> dict[str, Any]:
    strongest = band.quarter is None  # marked by −1, as SAEDashboard's "top activations"
    return {
        "bin_min": -1 if strongest else round(band.low, DIGITS),
        "bin_max": round(band.high, DIGITS),
        "bin_contains": -1 if strongest else round(band.share, DIGITS),
        "tokens": context.pieces,
        "values": _rounded([value or 0.0 for value in context.values]),
        "qualifying_token_index": context.focus,
    }


def _rounded(values: list[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]
