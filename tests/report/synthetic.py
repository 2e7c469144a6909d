"""A results folder as a study leaves it, from random numbers."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HOSTILE = "<script>alert('x')</script> & \x00\x1b[31m\u202e\u200b\ud800"


def results_folder(folder: Path, seeds: int = 8, latents: int = 512, *, text: bool = True, dead: float = 0.05) -> Path:
    random = np.random.default_rng(0)
    results = folder / "results"
    results.mkdir(parents=True)
    firing = (10 ** random.normal(-2.5, 0.6, (seeds, latents))).clip(1e-5, 0.3)
    live = random.random((seeds, latents)) > dead
    firing[~live] = 0
    chance = 1 / (1 + np.exp(-2.5 * (np.log10(firing + 1e-9) + 2.7)))
    p = random.binomial(max(1, seeds - 1), chance) / max(1, seeds - 1)
    edges = np.linspace(-1, 1, 101)
    cosines = np.concatenate([random.beta(18, 2, 4000), random.beta(6, 12, 2000)])
    p[~live] = np.nan
    matched = random.uniform(0.55, 0.7, (seeds, seeds))
    np.fill_diagonal(matched, np.nan)
    chance_counts = np.histogram(random.normal(0.33, 0.04, 6000), edges)[0]
    arrays = {
        "probability": p,
        "probability_centred": np.clip(p - 0.05 * (random.random(p.shape) < 0.2), 0, 1),
        "null_probability": np.zeros(latents),
        "live": live,
        "stable": live & (p >= 0.95),
        "unstable": live & (p <= 0.05),
        "firing": firing,
        "histogram_edges": edges,
        "cosine_histogram": np.histogram(cosines, edges)[0],
        "null_histogram": chance_counts,
        "rotated_histogram": np.roll(chance_counts, 1),
        "pair_matched": matched,
    }
    save_file(arrays, results / "stability.safetensors")

    def share(found: np.ndarray) -> dict:
        if found.size == 0:
            names = ("stable", "undecided", "unstable", "mean_probability")
            return {f"{name}{end}": None for name in names for end in ("", "_sd")} | {"latents": 0}
        stable, unstable = float((found >= 0.95).mean()), float((found <= 0.05).mean())
        parts = {"stable": stable, "undecided": 1 - stable - unstable, "unstable": unstable}
        parts["mean_probability"] = float(found.mean())
        return parts | {f"{name}_sd": 0.012 for name in parts} | {"latents": found.size}

    kind = {"live": share(p[live]), "all": share(np.nan_to_num(p)), "cosine_quantiles": {"0.5": 0.81}}
    null = {"stable": {"mean": 0.0}, "match_rate": {"mean": 0.0}, "cosine_quantiles": {"0.5": {"mean": 0.334}}}
    distance = {"initial": {"mean": 0.68, "sd": 0.01}, "final": {"mean": 0.24, "sd": 0.01}, "shared_init": False}
    stability = {
        "threshold": 0.7, "epsilon": 0.05, "seeds": seeds, "latents": latents, "vacuous": seeds < 21, "varied": "init",
        "raw": kind, "centred": kind, "null": {"random": null, "rotated": null},
        "distance": {"raw": distance, "centred": distance}, "mean_atom_norm": 0.021,
        "iou": {"features": {"mean": 0.951, "sd": 0.004}, "pairs": {"mean": 0.913, "sd": None}, "pairs_compared": 6,
                "pw_mcc": 0.79},
    }  # fmt: skip
    table = [
        {"seed": s, "init_seed": s, "data_seed": 0, "ev": 0.86 + 0.001 * s, "l0": 16.0, "dead": 0.04,
         "ce_sae": 1.41, "recovered": 0.962}
        for s in range(seeds)
    ]  # fmt: skip
    evaluation = {
        "seeds": table,
        "k": 16,
        "pca_ev": 0.71,
        "rows": 65536,
        "ce_clean": 1.33,
        "ce_zero": 3.9,
        "ce_tokens": 8192,
    }
    if not text:
        for seed in table:
            del seed["ce_sae"], seed["recovered"]
        evaluation |= {"ce_clean": None, "ce_zero": None, "ce_tokens": 0}
    contexts = [
        ("    def __init__(self, ", "name", ", value=None):\n        self._name"),
        ("for i in range(", "len", "(rows)):\n\ttotal += rows[i]"),
        (HOSTILE, "\n", "import os"),
    ]
    shown = [
        {"group": group, "seed": s, "latent": 17 * s + n, "probability": 1.0 if group == "stable" else 0.0,
         "cosine": 0.93 if group == "stable" else 0.31, "firing": 0.0123,
         "snippets": [{"before": b, "token": t, "after": a, "value": 3.1} for b, t, a in contexts]}
        for group in ("stable", "unstable") for s in range(2) for n in range(4)
    ]  # fmt: skip
    explorer(results, random, seeds, latents, HOSTILE if text else None)
    run = {
        "title": "Stability of a <tiny> SAE",
        "date": "2026-01-31 12:00 UTC",
        "facts": {"Model": "tiny", "Hook": "blocks.2.hook_resid_post", "Rows": 524288, "Latents": latents},
        "versions": {"saekern": "0.1.0", "torch": "2.13.0"},
        "seconds": {"harvest": 10.0, "train": 90.0},
        "config": {"seeds": seeds},
    }
    variants = [
        {"variant": f"kron-{k}", "seed": 0, "arch": "kron", "d_sae": 64, "options": {}, "parameters": 4000,
         "points": [{"k": None, "ev": 0.7 + 0.002 * k, "l0": float(k), "dead": 0.01, "ce_sae": 1.5}]}
        for k in (8, 32)
    ] + [
        {"variant": "nested <1>", "seed": 0, "arch": "hierarchical_topk", "d_sae": 64, "options": {},
         "parameters": 4000, "points": [{"k": k, "ev": 0.71 + 0.002 * k, "l0": float(k), "dead": 0.01} for k in (4, 8)]}
    ]  # fmt: skip
    files = {
        "run": run,
        "evaluation": evaluation,
        "stability": stability,
        "latents": shown if text else [],
        "variants": variants,
    }
    for name, value in files.items():
        (results / f"{name}.json").write_text(json.dumps(value))
    return folder


def explorer(results: Path, random, seeds: int, latents: int, text: str | None, chosen: int = 40) -> None:
    """Records of some latents of seed 0: every third has its strongest context and one from the weakest quarter."""
    others = seeds - 1
    picked = np.sort(random.permutation(latents)[: min(chosen, latents)])
    cosines = random.beta(8, 3, (len(picked), others)).astype(np.float32)
    arrays = {
        "cosine": random.beta(8, 3, latents).astype(np.float32),
        "chosen": picked,
        "partner": random.integers(0, latents, cosines.shape).astype(np.int32),
        "partner_cosine": cosines,
        "margin": cosines * 0.25,
        "mutual": (cosines > 0.6).astype(np.uint8),
    }
    save_file(arrays, results / "explorer.safetensors")
    context = [len(text or "") + 7, 3.5, f"{text}before focus, after", {str(len(text or "") + 7): 3.5, "0": 1.25}]
    bands = [
        {"q": None, "low": 3.5, "high": 3.5, "texts": [context]},
        {"q": 0, "low": 0.1, "high": 0.4, "texts": [[3, 0.25, "a weaker one", {"3": 0.25}]]},
    ]
    records = [
        {"i": int(latent), "n": 31, "max": 3.5, "mean": 1.25, "h": [3, 5, 1], "w": 0.5, "norm": 1.0, "ec": 0.71,
         "up": [], "down": [], "near": [[int(picked[0]), 0.41], [5, 0.33]], "other": [],
         "bands": bands if text is not None and i % 3 == 0 else []}
        for i, latent in enumerate(picked.tolist())
    ]  # fmt: skip
    (results / "explorer.json").write_text(json.dumps({"rows": 65536, "latents": records}))
