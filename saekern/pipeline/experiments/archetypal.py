"""Latents beside known objects and known classes."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekern import stability
from saekern.activations import TensorRows
from saekern.pipeline.check import require
from saekern.pipeline.steps import write_json
from saekern.stability.arms import Pool
from saekern.stability.means import mean_interval
from saekern.training import TrainConfig, train

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab

WIDTH, LATENTS, PARTS = 64, 40, 4
EPOCHS = 2
TRAINING = TrainConfig(rows=100_000, batch_size=256, lr=3e-3, dead_after=10_000, pre_bias_rows=4096)
LETTERS = b"abcdefghijklmnopqrstuvwxyz"
CLASSES: dict[str, bytes] = {
    "letters": LETTERS + LETTERS.upper(),
    "uppercase": LETTERS.upper(),
    "vowels": b"aeiouAEIOU",
    "digits": b"0123456789",
    "whitespace": b" \t\n\r\f\v",
    "line ends": b"\n\r",
    "punctuation": bytes(b for b in range(33, 127) if not bytes([b]).isalnum()),
    "brackets": b"()[]{}",
    "quotes": b"\"'`",
    "operators": b"+-*/%=<>&|^~!",
}
METRICS = ("plausibility", "plausibility_excess", "identifiability", "excess")


@dataclass(frozen=True)
class ArchetypalSettings:
    """Plausibility and soft identifiability, on collages of four objects and on the shipped model's byte classes."""

    sets: int = 12
    """Sets of collages, each with objects of its own."""

    rows: int = 50_000
    """Rows of a set to train on."""

    seeds: int = 8
    """Seeds of the study, the first ones, that are judged by byte classes; 0 skips it."""

    held_out: int = 32_768
    """Held-out rows of the study for that."""

    seed: int = 0
    """Of the sets and the nulls."""

    def __post_init__(self) -> None:
        for name, least in (("sets", 3), ("rows", TRAINING.batch_size), ("seeds", 0), ("held_out", 1)):
            require(getattr(self, name) >= least, f"archetypal.{name}", f"at least {least}", getattr(self, name))


def run(lab: "Lab", settings: ArchetypalSettings, work: Path) -> dict[str, Any]:
    """`stability.collage_benchmark`, kept in `work`, and `stability.class_benchmark` of the study's SAEs."""
    path = work / "collages.json"
    if not path.exists():
        found = stability.collage_benchmark(
            collage_arms(settings.rows),
            sets=settings.sets,
            count=settings.rows,
            width=WIDTH,
            parts=PARTS,
            seed=settings.seed,
        )
        write_json(path, found.to_json())
    return {"collages": json.loads(path.read_text(encoding="utf-8")), "classes": _classes(lab, settings)}


def collage_arms(count: int) -> dict[str, Callable[[Any, int], Any]]:
    """Name → a function that makes and trains an SAE from `count` rows and a seed. Points are each
    set's own."""
    config = dataclasses.replace(TRAINING, rows=EPOCHS * count)
    free = {"normalisation": "identity", "constraint": True, "start": "kmeans-own", "points": 2 * LATENTS}
    recipes: dict[str, dict[str, Any]] = {
        "TopK": {},
        "TopK, k-means start": {"start": "kmeans-own"},
        "RA-SAE, δ = 0.1": free,
        "A-SAE, δ = 0": free | {"relaxation": 0.0},
    }

    pool = Pool()  # the arms of a set share its k-means

    def trained(recipe: dict[str, Any]) -> Callable[[Any, int], Any]:
        made = stability.arm(LATENTS, PARTS, pool=pool, **recipe)
        return lambda rows, seed: (
            train(made.make(seed, rows), rows, dataclasses.replace(config, data_seed=seed), progress=False).sae
        )

    return {name: trained(recipe) for name, recipe in recipes.items()}


def _classes(lab: "Lab", settings: ArchetypalSettings) -> dict[str, Any] | None:
    """The study's seeds, and those of archetypal variants on its rows; None without bytes to judge by."""
    if settings.seeds == 0 or lab.config.activations.model != "tiny" or not lab.has_text:
        return None
    count = min(settings.held_out, len(lab.heldout))
    rows, labels = TensorRows(lab.heldout.take(torch.arange(count))), byte_labels(lab.tokens[:count])
    directions = stability.class_directions(rows, labels)
    arms: dict[str, list[Any]] = {"main arm": [lab.saes[i] for i in range(min(settings.seeds, lab.seeds))]}
    for variant in lab.config.variants:
        if variant.sae.arch == "archetypal" and lab.sources.row_source(variant.name).own:
            members = lab.sources.variant_saes(variant.name)
            arms[variant.name] = [members[i] for i in range(min(settings.seeds, len(members)))]
    names, lines, by_class = list(CLASSES), [], []
    for arm, saes in arms.items():
        found = [stability.class_benchmark(sae, rows, labels, directions, seed=settings.seed) for sae in saes]
        line: dict[str, Any] = {"arm": arm, "seeds": len(found)}
        for metric in METRICS:
            line[metric] = mean_interval([float(getattr(one, metric)) for one in found])._asdict()
        line["plausibility_null"] = _mean([value for one in found for value in one.plausibility_rotated])
        line["identifiability_null"] = _mean([value for one in found for value in one.identifiability_shuffled])
        line["majority"] = found[0].majority
        lines.append(line)
        for c, column in enumerate(found[0].classes.tolist()):
            cosine = mean_interval([float(one.cosine[c]) for one in found])._asdict()
            accuracy = mean_interval([float(one.accuracy[c]) for one in found])._asdict()
            share = int(found[0].support[c]) / count
            by_class.append(
                {"arm": arm, "class": names[column], "share": share, "cosine": cosine, "accuracy": accuracy}
            )
    return {"rows": count, "arms": lines, "by_class": by_class}


def byte_labels(tokens: Tensor) -> Tensor:
    """[n, classes] bool: which classes each byte is in."""
    table = torch.zeros(256, len(CLASSES), dtype=torch.bool)
    for column, members in enumerate(CLASSES.values()):
        table[list(members), column] = True
    return table[tokens.clamp(0, 255)]


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None
