"""The methods section: what every word on the page means, and whose it is."""

import html
from typing import Any

from saekern.report.results import Results

GERASIMOV = "Gerasimov et al. 2026, arXiv 2606.12138"
OURS = "ours"


def methods_html(results: Results) -> str:
    """Definitions, sources, seeds and versions."""
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}"
        f'<span class="source">Source: {html.escape(source)}.</span></dd></div>'
        for name, text, source in _definitions(results)
    )
    return f'<dl class="methods">{items}</dl>{_seeds(results)}'


def _definitions(results: Results) -> list[tuple[str, str, str]]:
    found = results.stability
    theta, epsilon, others = found["threshold"], found["epsilon"], found["seeds"] - 1
    lines = [
        (
            "p̂, reappearance probability",
            f"Of a latent: the share of the other {others} seeds in which the nearest live decoder row has a cosine of "
            f"at least θ = {theta:g}. Every seed is the anchor in turn. Partners may be shared.",
            GERASIMOV,
        ),
        (
            "Stable, between, unstable",
            f"Stable: p̂ ≥ 1 − ε. Unstable: p̂ ≤ ε. ε = {epsilon:g}. Between: the rest. Where runs share their "
            "initialisation nothing is called stable.",
            f"{GERASIMOV}; the last rule is {OURS}",
        ),
        (
            "Dead latents",
            "Latents that fire on fewer held-out rows than the settings' min_firings, or whose decoder row is zero. "
            "They are counted and left out of every other figure, on both sides of a matching.",
            OURS,
        ),
        (
            "Intervals of p̂",
            "Clopper–Pearson, 95 %, of each latent: given the latent, the other runs are independent draws. They are "
            "not corrected for the number of latents.",
            OURS,
        ),
        (
            "Intervals of shares and means",
            "Latents of one study meet the same runs and are not independent: where a share has an interval, it leaves "
            "out one run at a time (jackknife, Student's t). “±” without other words is the standard deviation over "
            "anchors, which is no interval. Intervals of experiments are described in their notes; each is by itself "
            "unless the note says that it is corrected for several comparisons.",
            OURS,
        ),
        (
            "Nulls",
            "Random: dictionaries of independent Gaussian rows of the same sizes. Rotated: the study's dictionaries, "
            "each turned by its own random rotation, which keeps the angles inside and nothing between. What they give "
            "is what chance gives.",
            f"{OURS}; the paper's own control, SAEs on a model with random weights, is an experiment of its own",
        ),
        (
            "Centred cosine",
            "The cosine after the mean of all live decoder rows of all seeds is subtracted, so that a direction which "
            "all latents share does not pass for agreement.",
            "Brzozowski & Chung 2026, arXiv 2606.02061; which mean is subtracted is ours",
        ),
        (
            "D(0), D(end)",
            "Mean of 1 − cosine over latents of two runs, matched one to one, before and after training. Agreement "
            "that was there from the start (D(0) near 0) is not stabilisation.",
            "Brzozowski & Chung 2026; the definition in this form is ours",
        ),
        (
            "One-to-one matching, PW-MCC, IoU",
            "An assignment with the largest sum of cosines, proved optimal. PW-MCC is its mean cosine. IoU compares "
            "what it finds at θ with what nearest neighbours find.",
            "PW-MCC: Song et al. 2025, arXiv 2505.20254; the comparison of the two: Gerasimov et al. 2026",
        ),
        (
            "Margin, mutual",
            "In the explorer: a partner's cosine less that of the runner-up in the same seed; mutual where the "
            "partner's own nearest latent is the one looked at.",
            OURS,
        ),
    ]
    if results.evaluation is not None:
        lines += [
            (
                "EV, explained variance",
                "1 − Σ‖x − x̂‖² / Σ‖x − mean‖², over all held-out rows together, mean of those rows. PCA with K "
                "components is the baseline.",
                "common usage; definitions differ between libraries",
            ),
            (
                "Cross-entropy recovered",
                "(CE with zeros − CE with the reconstruction) / (CE with zeros − CE untouched), in nats a token.",
                "common usage",
            ),
            (
                "Frequency, mass",
                "Frequency: the share of held-out rows in which a latent's code is not zero. Mass: the mean |code| "
                "over rows, which a rare latent has little of.",
                f"mass matching: {GERASIMOV}; exact matching by mass is ours",
            ),
        ]
    return lines


def _seeds(results: Results) -> str:
    """How the runs differ, and with what they were made."""
    run: dict[str, Any] = results.run
    config = run["config"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    if results.saes:
        seeds = "The SAEs were given; what their training differed in is not known."
    else:
        first, count = config.get("first_seed", 0), results.stability["seeds"]
        order = config.get("train", {}).get("data_seed", 0)
        data = (
            f"data_seed {order} to {order + count - 1}" if config.get("vary") == "init+data" else f"data_seed {order}"
        )
        seeds = (
            f"init_seed {first} to {first + count - 1} decides the first weights, {data} the order of rows; "
            "both are in the table of seeds and in every checkpoint."
        )
    text = f"{seeds} Made with {versions}. The same settings give the same numbers on the same kind of machine."
    return f'<p class="note">{html.escape(text)}</p>'
