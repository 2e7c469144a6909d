"""Every op on fresh random inputs against float64: poisoned memory, runs equal bit for bit, CUDA graphs."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from saekern import reference
from saekern.bench import gpu_hierarchical
from saekern.bench.common import Absent, Run, WrongAnswer, expect_close, expect_same, sum_bound
from saekern.bench.gpu_kron import Kron, backward, check_kron_encode
from saekern.bench.gpu_problems import Dictionaries, Layer, check_encode, check_nearest
from saekern.bench.roofline_cases import cuda

LARGE = {"B": 1031, "D": 768, "F": 16381, "K": 32}  # primes: no tile comes out even
SMALL = {"B": 19, "D": 40, "F": 97, "K": 5}
TINY = {"B": 5, "D": 24, "F": 53, "K": 3}  # for the interpreter, where a program takes milliseconds


@contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty comes filled with NaN, or with the largest integer: an element that nobody writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def decode(layer: Layer) -> Run:
    values, indices = layer.codes
    grad = torch.randn_like(layer.x)

    def run() -> tuple[Tensor, ...]:
        out = cuda("decode")(values, indices, layer.w_dec, layer.b_dec, None, None, None)
        back = cuda("decode_backward")(grad, values, indices, layer.w_dec, None, None, None, [True, True, True])
        return (out, *back)

    exact = [t.double() for t in (grad, values, layer.w_dec, layer.b_dec)]
    most = int(indices.flatten().bincount().max())

    def check(got: tuple[Tensor, ...]) -> None:
        g, v, w, b = exact
        terms = (layer.k + 1, w.shape[1], most, len(g))
        want = reference.decode(v, indices, w, b), *reference.decode_backward(g, v, indices, w, None)
        size = reference.decode(v, indices, w.abs(), b.abs())
        sizes = size, *reference.decode_backward(g.abs(), v, indices, w.abs(), None)
        for name, a, x, s, t in zip(("out", "to values", "to weight", "to bias"), got, want, sizes, terms, strict=True):
            rounding = torch.finfo(a.dtype).eps * x.abs() if a.dtype != torch.float32 else 0
            expect_close(name, a, x, sum_bound(x, s, t) + rounding)

    return Run(run, check)


def encode(layer: Layer) -> Run:
    kernel = cuda("topk_encode")

    def run() -> tuple[Tensor, ...]:
        return kernel(layer.x, layer.w_enc, layer.b_enc, layer.k, layer.b_dec, True, None, 0, True)

    return Run(run, lambda got: check_encode(layer, got[0], got[1]))


def encode_backward(layer: Layer) -> Run:
    values, indices = layer.codes
    grad, need = torch.randn_like(values), [True, True, True, True]

    def run() -> tuple[Tensor, ...]:
        kernel = cuda("topk_encode_backward")
        return kernel(grad, values, indices, layer.x, layer.w_enc, layer.b_dec, None, None, True, need)

    def check(got: tuple[Tensor, ...]) -> None:
        exact = [t.double() for t in (grad, values, layer.x, layer.w_enc, layer.b_dec)]
        want = reference.topk_encode_backward(*exact[:2], indices, *exact[2:], True)
        for name, a, x in zip(("to x", "to weight", "to bias", "to pre_bias"), got, want, strict=True):
            off = float((a.double() - x).norm() / x.norm().clamp_min(1e-300))
            if not off <= 8 * torch.finfo(a.dtype).eps:
                raise WrongAnswer(f"{name}: off by {off:.2e} of its norm")

    return Run(run, check)


def loss(layer: Layer) -> Run:
    estimate = layer.x + 0.1 * torch.randn_like(layer.x)

    def run() -> tuple[Tensor, ...]:
        value, variance = cuda("unexplained_variance")(layer.x, estimate)
        return value, cuda("unexplained_variance_backward")(torch.ones_like(value), layer.x, estimate, variance)

    def check(got: tuple[Tensor, ...]) -> None:
        want, variance = reference.unexplained_variance(layer.x.double(), estimate.double())
        expect_close("loss", got[0], want, 1e-6 * want.abs())
        slope = 2 * (estimate.double() - layer.x.double()) / variance
        expect_close("gradient", got[1], slope, 2 * torch.finfo(got[1].dtype).eps * slope.abs() + 1e-30)

    return Run(run, check)


def nearest(layer: Layer) -> Run:
    shape = {"S": 2, "F": min(len(layer.w_dec), 4001), "D": layer.x.shape[1]}
    problem, kernel = Dictionaries(shape, layer.device), cuda("nearest")

    def run() -> tuple[Tensor, ...]:
        return kernel(problem.stack[0], problem.stack[1])

    return Run(run, lambda got: check_nearest(problem, [got]))


def kron(layer: Layer) -> Kron:
    """As many latents as the layer has, about, in heads of 3 × 5."""
    shape = {name: layer.shape[name] for name in ("B", "D", "K", "seed")}
    return Kron(shape | {"H": len(layer.w_dec) // 15, "M": 3, "N": 5}, layer.device, layer.x.dtype)


def kron_encode(layer: Layer) -> Run:
    problem = kron(layer)
    return Run(lambda: problem.encode(order=True), lambda got: check_kron_encode(problem, got[0], got[1]))


CHECKED: dict[str, Callable[[Layer], Run]] = {
    "topk_encode": encode,
    "topk_encode backward": encode_backward,
    "decode": decode,
    "loss": loss,
    "hierarchical_loss": gpu_hierarchical.fresh,
    "nearest": nearest,
    "kron_encode": kron_encode,
    "kron_encode backward": lambda layer: backward(kron(layer)),
}


def fresh(device: torch.device, small: bool, runs: int) -> list[dict[str, str]]:
    """One line an op and dtype."""
    lines = []
    sizes = TINY if device.type == "cpu" else SMALL if small else LARGE
    shape = dict(sizes, seed=secrets.randbelow(2**31))
    for name, make in CHECKED.items():
        for dtype in (torch.bfloat16, torch.float32):
            what = f"{name} {str(dtype).removeprefix('torch.')} seed={shape['seed']}"
            try:
                with poisoned():
                    run = make(Layer(shape, device, dtype))
                    first = run.call()
                    run.check(first)
                    for _ in range(runs - 1):
                        for a, b in zip(tree_leaves(first), tree_leaves(run.call()), strict=True):
                            expect_same("a second run", a, b)
                note = f"{runs} runs equal"
                if device.type == "cuda" and not small:
                    note += ", " + in_a_graph(run, first)
                lines.append({"check": what, "result": "ok", "note": note})
            except Absent as error:
                lines.append({"check": what, "result": "absent", "note": str(error)})
            except Exception as error:
                text = (str(error).strip().splitlines() or [""])[0][:200]
                lines.append({"check": what, "result": "FAILED", "note": f"{type(error).__name__}: {text}"})
    return lines


def in_a_graph(run: Run, first: object) -> str:
    """Captured and replayed, with the same bits: so nothing waits for the device."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run.call()
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(tree_leaves(first), tree_leaves(out), strict=True):
        expect_same("the replay of a CUDA graph", a, b)
    return "also in a CUDA graph"
