"""What a study would do, and roughly what that costs."""

import os
import time
from typing import NamedTuple

import torch

from saekern.pipeline.config import SAEConfig, StudyConfig
from saekern.pipeline.existing import dictionary
from saekern.pipeline.stages import STAGES, steps
from saekern.pipeline.steps import StudyFolder

ROW_BYTES = 4  # float32


class Planned(NamedTuple):
    """One stage of the plan. Costs are of the steps that would run."""

    stage: str
    runs: int
    """Steps of the stage that would run."""
    of: int
    """Steps it has."""
    why: str
    rows: int
    """Rows of activations made or read."""
    flops: float
    """Of the dense products."""
    seconds: float
    """Estimate: those flops at the measured speed of a matrix product here, and the parameters' traffic."""
    bytes: int
    """Disk space of what it leaves."""


def plan(config: StudyConfig, out: str | os.PathLike) -> list[Planned]:
    """The stages in order, which of their steps would run and why, and an estimate of the cost. Writes nothing.

    A stage that reads one that runs is counted as running; it is skipped in the end if its inputs come out the same.
    """
    folder = StudyFolder(out)
    work = steps(config, folder, progress=False)
    pending: dict[str, str] = {}
    for step in work:
        before = [name for name in step.reads if name in pending]
        reason = folder.due(step) or (f"reads {before[0]}, which runs first" if before else None)
        if reason is not None:
            pending[step.name] = reason
    width, latents = _shape(config)
    speed = gemm_speed(width, latents)
    result = []
    for stage in STAGES:
        members = [step.name for step in work if step.stage == stage]
        due = [name for name in members if name in pending]
        why = pending[due[0]] if due else "complete"
        rows, flops, traffic, size = _cost(config, stage, due, width, latents)
        seconds = flops / speed + traffic / 5e9  # bytes/s that one or two cores stream, order of magnitude
        result.append(Planned(stage, len(due), len(members), why, rows, flops, seconds, size))
    return result


def gemm_speed(width: int, latents: int) -> float:
    """Flops per second of a float32 matrix product [1024, D] × [D, min(F, 8192)] here; takes about 0.1 s."""
    columns = min(latents, 8192)
    a, b = torch.ones(1024, width), torch.ones(width, columns)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 1024 * width * columns / best


def _shape(config: StudyConfig) -> tuple[int, int]:
    """D and F."""
    if config.saes:
        latents, width = dictionary(config.saes[0]).shape
        return width, latents
    return _width(config), config.sae.d_sae


def _width(config: StudyConfig) -> int:
    if config.activations.cache is not None:
        from saekern.activations import open_cache

        return open_cache(config.activations.cache).width
    return 128 if config.activations.model == "tiny" else 768  # before the model is loaded; 768 is GPT-2's


def _cost(config: StudyConfig, stage: str, due: list[str], width: int, latents: int) -> tuple[int, float, float, int]:
    """rows, flops, bytes of memory traffic, bytes on disk."""
    seeds = config.seeds
    source, few = config.activations, min(config.stability.assignment_seeds, config.seeds)
    held = source.heldout_sequences * source.context
    if stage == "harvest":
        rows = sum(source.sequences * source.context if name.endswith("train") else held for name in due)
        layers = 4 if source.model == "tiny" else 12
        return rows, rows * layers * 24.0 * width**2, 0.0, rows * width * ROW_BYTES
    if stage == "train":
        return _training(config, width, [config.sae] * len(due))
    if stage == "variants":
        shapes = {variant.name: variant.sae for variant in config.variants}
        seeds_due = [name.split("/")[1] for name in due if name.count("/") == 2]  # the others match and gather
        return _training(config, width, [shapes[name] for name in seeds_due])
    if stage == "evaluate":
        rows = min(config.evaluation.rows, held) * len(due)
        return rows, rows * 3 * 2.0 * width * latents, 0.0, len(due) * latents * 8
    if stage == "match":
        pairs = seeds * (seeds - 1) // 2 if due else 0
        assigned = few * (few - 1) // 2 if due else 0
        return 0, (pairs + assigned) * 2.0 * width * latents**2, 0.0, pairs * latents * 26
    if stage == "stability" and due:
        pairs, assigned = seeds * (seeds - 1) // 2, few * (few - 1) // 2
        return 0, (3 * pairs + 7 * assigned) * 2.0 * width * latents**2, 0.0, seeds * latents * 50
    if stage == "latents" and due:
        rows = min(config.evaluation.rows, held)
        return rows, rows * 2.0 * width * latents, 0.0, 100_000
    return 0, 0.0, 0.0, 1_000_000 if due else 0


def _training(config: StudyConfig, width: int, shapes: list[SAEConfig]) -> tuple[int, float, float, int]:
    """As if all were TopK SAEs."""
    rows = config.train.rows
    flops, traffic, size = 0.0, 0.0, 0
    for shape in shapes:
        parameters = 2 * shape.d_sae * width
        # Adam reads and writes parameter, gradient and two moments; sparse gradients gather and scatter K rows twice.
        traffic += rows / config.train.batch_size * parameters * 40.0 + rows * shape.k * width * 4.0 * 8
        flops += rows * 2.0 * width * shape.d_sae
        size += parameters * 4 * 5  # state, weights, snapshot 0
    return rows * len(shapes), flops, traffic, size
