"""The GPU benches with their shapes and goals."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from saekern.bench import gpu_benches as benches
from saekern.bench import gpu_hierarchical, roofline_cases
from saekern.bench.common import Bench, Goal, Shape
from saekern.bench.gpu_kron import Kron, kron_setup
from saekern.bench.gpu_problems import Dictionaries, Layer
from saekern.bench.kernel_bounds import Bound
from saekern.bench.peers import PEERS

GOAL = {"B": 8192, "F": 65536}
GRID = [(width, latents, k) for width in (768, 2304, 4096) for latents in (16384, 65536, 131072) for k in (32, 64, 128)]


def shaped(chosen: list[tuple[int, int, int]], **more: str) -> list[Shape]:
    return [{"B": 8192, "D": width, "F": latents, "K": k, **more} for width, latents, k in chosen]


@dataclass(frozen=True)
class GpuBench:
    """A Bench whose inputs need a device, with the lower bound of each shape."""

    bench: Bench
    inputs: Callable[[Shape, torch.device], object]
    bound: Callable[[Shape], Bound]
    goals_at: int
    """The first so many shapes have goals, and are measured before the rest of any bench."""


def made(
    op: str,
    mode: str,
    shapes: list[Shape],
    goals_at: int,
    quick: Shape,
    providers: tuple[str, ...],
    inputs: Callable,
    setup: Callable,
    bound: Callable[[Shape], Bound],
    goals: tuple[Goal, ...],
    dtype: str = "bfloat16",
    rounds: tuple[int, int] = (10, 50),
) -> GpuBench:
    bench = Bench(op, f"{mode} on a GPU", tuple(shapes), (quick,), providers, inputs, setup, goals, dtype, rounds)
    return GpuBench(bench, inputs, bound, goals_at)


WIDTHS = [(768, 65536, 64), (2304, 65536, 64), (4096, 65536, 64)]
CODES = [(2304, 65536, 32), (2304, 65536, 64), (2304, 65536, 128)]
REST = [shape for shape in GRID if shape not in WIDTHS]
OTHER_CODES = [shape for shape in GRID if shape not in CODES]
STEPS = [(2304, 65536, 64), (768, 65536, 64)]


def width(size: int) -> Shape:
    return {"D": size, "F": 65536, "K": 64}


def decode_shapes(chosen: list[tuple[int, int, int]]) -> list[Shape]:
    return [shape for one in chosen for kind in ("uniform", "zipf") for shape in shaped([one], latents=kind)]


DECODERS = ("saekern", "flex-sae", "sparsify", "embedding_bag", "torch", "torch.compile")

BENCHES = (
    made(
        "topk_encode", "forward", shaped(WIDTHS + REST), 3, {"B": 6, "D": 32, "F": 160, "K": 4},
        ("saekern", "saekern streaming", "torch", "torch.compile", "gemm"), Layer, benches.encode_setup,
        benches.bound(roofline_cases.encode_case),
        (
            Goal(("gemm",), within=1.4, only=width(768)),
            Goal(("gemm",), within=1.6, only=width(768), ours="saekern streaming"),
            Goal(("gemm",), within=1.2, only=width(2304)),
            Goal(("gemm",), within=1.15, only=width(4096)),
            Goal(("torch",), faster=4, only=width(768)),
            Goal((), at_most=1.2e9 / 2**20, metric="peak_mib", only=width(768)),
            Goal((), at_most=100e6 / 2**20, metric="peak_mib", only=width(768), ours="saekern streaming"),
            Goal((), at_most=100e6 / 2**20, metric="peak_mib", only=width(2304)),
            Goal((), at_most=100e6 / 2**20, metric="peak_mib", only=width(4096)),
        ),
    ),
    made(
        "decode", "with loss, forward and backward", decode_shapes(CODES + OTHER_CODES), 6,
        {"B": 24, "D": 32, "F": 64, "K": 4, "latents": "zipf"}, DECODERS, Layer, benches.decode_setup,
        benches.bound(roofline_cases.decode_loss_case),
        (
            Goal(("roofline",), within=1.5),
            Goal(("flex-sae",), faster=4, only={"D": 2304, "F": 65536, "K": 32}),
            Goal(("flex-sae",), faster=3.5, only={"D": 2304, "F": 65536, "K": 64}),
            Goal(("flex-sae",), faster=2.5, only={"D": 2304, "F": 65536, "K": 128}),
        ),
    ),
    made(
        "hierarchical_loss", "with loss, forward and backward",
        [shape | budgets for shape in shaped(CODES) for budgets in ({}, {"J": 8})], 6,
        {"B": 24, "D": 32, "F": 64, "K": 4}, ("saekern", "torch", "torch.compile"), Layer, gpu_hierarchical.setup,
        benches.bound(roofline_cases.hierarchical_case), (Goal(("roofline",), within=1.5),),
    ),
    made(
        "train_step", "loss, backward, Adam", shaped(STEPS), 2, {"B": 32, "D": 32, "F": 128, "K": 4},
        ("saekern", *PEERS), partial(Layer, dtype=torch.float32), benches.step_setup, benches.step_bound,
        (Goal(PEERS, faster=3),), "float32, autocast to bfloat16",
    ),
    made(
        "nearest", "all pairs, both ways", [{"S": 96, "F": 16384, "D": 768}, {"S": 4, "F": 16384, "D": 768}], 2,
        {"S": 2, "F": 21, "D": 32}, ("saekern", "torch", "torch bf16"), Dictionaries, benches.nearest_setup,
        benches.nearest_bound,
        (Goal((), at_most=4000, only={"S": 96}), Goal(("torch",), faster=1, only={"S": 4})), "float32", (1, 20),
    ),
    made(
        "kron_encode", "forward", list(roofline_cases.KRON), 2, {"B": 6, "D": 32, "H": 9, "M": 3, "N": 5, "K": 4},
        ("saekern", "torch", "torch.compile", "gemm"), Kron, kron_setup, benches.bound(roofline_cases.kron_encode_case),
        (Goal(("gemm",), within=1.3), Goal((), at_most=100e6 / 2**20, metric="peak_mib")),
    ),
    made(
        "adam_step", "projection, Adam, norm", [{"F": 65536, "D": 2304}], 1, {"F": 48, "D": 32},
        ("saekern", "torch", "torch.compile"), benches.adam_inputs, benches.adam_setup,
        lambda shape: roofline_cases.adam_case(shape).bound, (Goal(("roofline",), within=1.2),), "float32",
    ),
)  # fmt: skip
