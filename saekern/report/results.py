"""What a report is drawn from: the JSON and array files under `results/`, and nothing else."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

ARRAYS = {
    "probability": "[S, F] share of the other seeds in which each latent reappears, raw cosine; NaN where dead",
    "probability_centred": "[S, F] the same after subtracting the mean decoder row",
    "null_probability": "[n] the same for random dictionaries among each other",
    "live": "[S, F] true where the latent fires",
    "stable": "[S, F] true where stable",
    "unstable": "[S, F] true where unstable",
    "firing": "[S, F] share of the evaluated rows on which the latent fires; absent where there are no rows",
    "histogram_edges": "[n+1] bin edges of the two histograms",
    "cosine_histogram": "[n] best cosines of all live latents over all ordered seed pairs",
    "null_histogram": "[n] the same for random dictionaries",
    "rotated_histogram": "[n] the same for the dictionaries, each rotated by itself",
    "pair_matched": "[S, S] share of the row seed's live latents found in the column seed; NaN on the diagonal",
}


@dataclass(frozen=True)
class Results:
    """A study's numbers, as `load` reads them."""

    run: dict[str, Any]
    """What was run: title, date, model, rows, versions, seconds per stage, the whole config."""
    evaluation: dict[str, Any] | None
    """EV, L0, dead and CE per seed, and the PCA baseline; None where there are no rows."""
    stability: dict[str, Any]
    """Stable and unstable shares (raw and centred, live and all), nulls, distances, IoU."""
    latents: list[dict[str, Any]]
    """The most and least stable latents with the snippets that activate them; may be empty."""
    arrays: dict[str, np.ndarray]
    """See `ARRAYS`."""
    variants: list[dict[str, Any]]
    """Other SAEs on the same rows: name, architecture, parameters, and EV, L0, CE at each of their sparsities."""
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each section's experiment found, by its name; "excess", "nulls" and "variants" come from every study that
    has them."""
    explorer: dict[str, Any] | None = None
    """Of the anchor's latents: `cosine` [F] the mean over seeds of the best cosine; `chosen` [L] those with more, and
    of them `partner`, `partner_cosine`, `margin`, `mutual` [L, S-1] in every other seed, and `records`. None in studies
    of earlier versions."""

    @property
    def saes(self) -> list[dict[str, Any]]:
        """The SAEs that the study was given: path, format, architecture, sizes; empty where it trained its own."""
        return self.run.get("saes", [])


def load(folder: str | Path) -> Results:
    """Read `<folder>/results`.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file is cut short or an array is absent; both name the file.
    """
    results = Path(folder) / "results"
    arrays_path = results / "stability.safetensors"
    arrays = _arrays(arrays_path)
    evaluation = _json(results / "evaluation.json")
    missing = sorted(set(ARRAYS) - set(arrays) - ({"firing"} if evaluation is None else set()))
    if missing:
        raise ValueError(f"{arrays_path}: lacks {', '.join(missing)}")
    run = _json(results / "run.json")
    experiments = run["config"].get("experiments", {}).get("run", [])
    stability = _json(results / "stability.json")
    found = {name: _json(results / f"{name}.json") for name in experiments} | _arms(results / "arms.json")
    return Results(
        run=run,
        evaluation=evaluation,
        stability=stability,
        latents=_json(results / "latents.json"),
        arrays=arrays,
        variants=_json(results / "variants.json") if (results / "variants.json").exists() else [],
        experiments=found | ({"excess": stability} if stability.get("excess") else {}),
        explorer=_explorer(results) if (results / "explorer.json").exists() else None,
    )


def _arms(path: Path) -> dict[str, dict[str, Any]]:
    """The variants that were matched, for the sections "variants" and "nulls", if there are any of its kind."""
    if not path.exists():
        return {}
    arms = _json(path)
    null = [arm["rows_from"] != "model" for arm in arms["variants"]]
    return ({} if all(null) else {"variants": arms}) | ({"nulls": arms} if any(null) else {})


def _explorer(results: Path) -> dict[str, Any]:
    return {**_arrays(results / "explorer.safetensors"), "records": _json(results / "explorer.json")["latents"]}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors raises its own type for a cut header
        raise ValueError(f"{path}: not readable, probably cut short ({error})") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not readable JSON, probably cut short ({error})") from error
