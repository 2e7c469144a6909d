"""`python -m saekern.bench.roofline`: what each op moves and computes on a GPU, and how close that is to what it must.

A launcher is run on `meta` tensors at the goal shapes (`recorder.py`); each of its launches is priced by a formula over
the grid and constants that it used (`kernel_costs.py`). Beside it stands the lower bound: every input read once, every
result written once. Nothing is measured here: times are estimates from the roofs, and may be wrong.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from saekern.bench.common import Absent, Shape, words
from saekern.bench.kernel_costs import ASSUMPTIONS, Cost, Roofs, size
from saekern.bench.kernel_formulas import cost
from saekern.bench.recorder import Record, recorded
from saekern.ops import library

KRON_BACKWARD = 1.6  # instead, for kron_encode: two orders of the codes, made here, and float32 coefficients
SLACK = 1.3  # bytes moved / bytes of the lower bound
EXTRA = 100e6  # bytes that an encoder may allocate beside its answer


class Bound(NamedTuple):
    """What cannot be avoided."""

    bytes: float  # each input read once, each result written once
    matrix: float = 0.0  # tensor-core operations
    l2: float = 0.0  # rows that codes gather, at best from L2
    then: tuple["Bound", ...] = ()  # phases that cannot begin before

    def seconds(self, roofs: Roofs) -> float:
        own = max(self.bytes / roofs.memory, self.matrix / roofs.matrix, self.l2 / roofs.l2)
        return own + sum(phase.seconds(roofs) for phase in self.then)

    def moved(self) -> float:
        return self.bytes + sum(phase.moved() for phase in self.then)

    def timed(self, roofs: Roofs) -> bool:
        """Whether bytes can hide behind products, so that only the time says something."""
        return bool(self.then) or self.matrix / roofs.matrix == self.seconds(roofs)


@dataclass(frozen=True)
class Case:
    """One op at one shape."""

    op: str
    shape: Shape
    run: Callable[[], Any]
    """Calls the launchers on `meta` tensors; raises Absent where an op has no kernel."""
    bound: Bound
    launches: int
    """At most."""
    forbidden: int
    """Elements of the matrix that must never exist."""
    slack: float = SLACK
    """Bytes moved / bytes of the bound. Where the bound is the tensor cores' time, the estimated time / that instead:
    bytes that pass behind a product cost nothing."""
    extra: float | None = None
    """Bytes of all buffers but the results, at most."""
    moves: float | None = None
    """Bytes moved / bytes of the bound, at most, where `slack` is of the time."""


class Line(NamedTuple):
    """One row of the table."""

    case: Case
    record: Record
    costs: list[Cost]
    roofs: Roofs

    @property
    def moved(self) -> float:
        return sum(c.bytes for c in self.costs)

    @property
    def ratio(self) -> float:
        return self.moved / self.case.bound.moved()

    @property
    def launches(self) -> int:
        return sum(c.launches for c in self.costs)

    @property
    def extra(self) -> float:
        """Bytes of all buffers but the results, as if none were freed."""
        results = [leaf for leaf in tree_leaves(self.record.result) if isinstance(leaf, Tensor)]
        return size(*self.record.buffers) - size(*results)

    @property
    def seconds(self) -> float:
        return sum(max(c.seconds(self.roofs).values()) for c in self.costs)

    @property
    def roof(self) -> str:
        """Where most of the time goes."""
        spent: dict[str, float] = {}
        for c in self.costs:
            times = c.seconds(self.roofs)
            worst = max(times, key=lambda name: times[name])
            spent[worst] = spent.get(worst, 0.0) + times[worst]
        return max(spent, key=lambda name: spent[name])

    def faults(self) -> list[str]:
        """Why this is not a kernel to be proud of; empty if it is."""
        largest, found, slack = self.record.largest(), [], self.case.slack
        bound = self.case.bound.seconds(self.roofs)
        if self.case.bound.timed(self.roofs):
            if self.seconds > slack * bound:
                found.append(f"takes {self.seconds / bound:.2f} × the time of its bound, at most {slack:g}")
            slack = self.case.moves or math.inf
        if self.ratio > slack:
            found.append(f"moves {self.ratio:.2f} × the lower bound, at most {slack:g}")
        if self.case.extra is not None and self.extra > self.case.extra:
            found.append(f"allocates {self.extra / 1e6:.0f} MB beside its results, at most {self.case.extra / 1e6:.0f}")
        if self.launches > self.case.launches:
            found.append(f"{self.launches} launches, at most {self.case.launches}")
        if largest is not None and largest.numel() >= self.case.forbidden:
            found.append(f"allocates {list(largest.shape)}, {largest.nbytes / 1e6:.0f} MB")
        return found


def priced(case: Case, roofs: Roofs | None = None) -> Line:
    """Raises Absent for an op without a kernel, ValueError for a kernel without a formula."""
    roofs = roofs or Roofs()
    record = recorded(case.run)
    return Line(case, record, [cost(step, roofs) for step in record.steps], roofs)


def cuda(op: str) -> Callable[..., Any]:
    """What the dispatcher calls for an op's CUDA tensors."""
    if op not in library.CUDA:
        raise Absent(f"{op} has no Triton kernel yet")
    return library.CUDA[op]


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class Layer(NamedTuple):
    """The tensors of one TopK layer."""

    x: Tensor
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    values: Tensor
    indices: Tensor
    k: int

    @property
    def used(self) -> float:
        """Bytes of the dictionary rows that codes can point at."""
        return min(self.values.numel(), self.w_dec.shape[0]) / self.w_dec.shape[0] * size(self.w_dec)

    @property
    def codes(self) -> float:
        return size(self.values, self.indices)

    @property
    def rows(self) -> float:
        """Bytes of one dictionary row a code."""
        return float(self.values.numel() * self.w_dec.shape[1] * self.w_dec.itemsize)


def layer(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> Layer:
    batch, width, latents, k = (int(shape[name]) for name in "BDFK")
    sizes = ((batch, width), (latents, width), (latents,), (latents, width), (width,), (batch, k))
    return Layer(*(empty(*s, dtype=dtype) for s in sizes), empty(batch, k, dtype=torch.int64), k)


def scores(shape: Shape) -> int:
    return int(shape["B"]) * int(shape["F"])


def encode_case(shape: Shape, streaming: bool = False) -> Case:
    """With `streaming` as for wide x, whatever the width: little memory."""
    made = layer(shape)

    def run() -> Any:
        with streamed_encoder() if streaming else nullcontext():
            return encode()

    def encode() -> Any:
        return cuda("topk_encode")(made.x, made.w_enc, made.b_enc, made.k, made.b_dec, True, None, 0, False)

    bound = Bound(size(made.x, made.w_enc, made.b_enc, made.b_dec) + made.codes, 2.0 * scores(shape) * int(shape["D"]))
    # The goals against the product alone; narrow rows leave little product to hide the selection behind.
    slack = {768: 1.6 if streaming else 1.4, 2304: 1.2, 4096: 1.15}.get(int(shape["D"]), SLACK)
    extra = EXTRA if streaming or int(shape["D"]) > 1024 else 12 * EXTRA
    name = "topk_encode, streaming" if streaming else "topk_encode"
    return Case(name, shape, run, bound, 150, scores(shape), slack, extra)


@contextmanager
def streamed_encoder() -> Iterator[None]:
    """Inside, the encoder's path for narrow x is not taken. Raises Absent where there is no such choice."""
    cuda("topk_encode")
    module = library.kernels("topk_encode")
    if not hasattr(module, "NARROW"):
        raise Absent("the encoder has one path only")
    with mock.patch.object(module, "NARROW", 0):
        yield


def encode_backward_case(shape: Shape) -> Case:
    made, grad = layer(shape), empty(int(shape["B"]), int(shape["K"]))

    def run() -> Any:
        entries, segments = library.kernels("latent_order").latent_order(made.indices, made.w_enc.shape[0])
        return cuda("topk_encode_backward")(
            grad, made.values, made.indices, made.x, made.w_enc, made.b_dec, entries, segments, True,
            [False, True, True, True],
        )  # fmt: skip

    # The pre-bias gradient is −Σ_f g_f · w_enc[f]: the encoder is read once more, its gradient written.
    bytes = size(grad, made.x, made.b_enc, made.b_dec) + made.codes + made.used + size(made.w_enc)
    return Case("topk_encode backward", shape, run, Bound(bytes, l2=made.rows), 18, scores(shape))


def decode_case(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> Case:
    made = layer(shape, dtype)

    def run() -> Any:
        return cuda("decode")(made.values, made.indices, made.w_dec, made.b_dec, None, None, None)

    bound = Bound(made.codes + made.used + size(made.b_dec, made.x), l2=made.rows)
    return Case("decode", shape, run, bound, 1, scores(shape))


def decode_loss(
    made: Layer, target: Tensor, order: tuple[Tensor | None, Tensor | None] = (None, None)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward and backward as the dispatcher runs them; without `order` the codes are sorted by latent here."""
    x_hat = cuda("decode")(made.values, made.indices, made.w_dec, made.b_dec, None, None, None)
    loss, variance = cuda("unexplained_variance")(target, x_hat)
    upstream = cuda("unexplained_variance_backward")(loss, target, x_hat, variance)
    gradients = cuda("decode_backward")(
        upstream, made.values, made.indices, made.w_dec, None, *order, [True, True, True]
    )
    return (upstream, *gradients)


def decode_loss_bytes(made: Layer) -> float:
    """Of one fused pass forward, which reads codes, dictionary and target and writes x̂ and its gradient, and one
    backward, which reads these, codes and dictionary and writes the gradients."""
    forward = made.codes + made.used + size(made.b_dec, made.x) + 2 * size(made.x)
    backward = size(made.x) + made.codes + made.used + size(made.values, made.w_dec, made.b_dec)
    return forward + backward


def decode_loss_case(shape: Shape) -> Case:
    made = layer(shape)
    bound = Bound(decode_loss_bytes(made), l2=2 * made.rows)
    return Case("decode + loss, both ways", shape, lambda: decode_loss(made, made.x), bound, 18, scores(shape))


def hierarchical_case(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Both ways, for the budgets 1 to K, or J of them."""
    made, count = layer(shape, dtype), int(shape.get("J", shape["K"]))
    cuts, weights = empty(count, dtype=torch.int64), empty(count, dtype=torch.float32)
    inputs = (made.values, made.indices, made.w_dec, made.b_dec, made.x)

    def run() -> Any:
        last = (cuts, weights, None, None, None)
        loss, x_hat = library.kernels("hierarchical_loss").hierarchical_loss(*inputs, *last)
        kernel = library.kernels("hierarchical_loss_backward").hierarchical_loss_backward
        return loss, x_hat, *kernel(loss, *inputs, x_hat, *last, [True, True, True, False])

    # The loss; S from all residuals, a row a cut; the sums of S over each latent's codes.
    forward = Bound(made.codes + made.used + size(made.b_dec, made.x, made.x), l2=made.rows)
    upstream = Bound(made.codes + made.used + size(made.x), l2=made.rows * (1 + count / made.k))
    latents = Bound(size(made.values, made.w_dec, made.b_dec), l2=made.rows)
    bound = forward._replace(then=(upstream, latents))
    passed = 2 * size(made.x) * count  # S written and read: memory need not see it, but must not see more
    moves = 1.6 * (bound.moved() + passed) / bound.moved()
    return Case("hierarchical_loss, both ways", shape, run, bound, 100, scores(shape), 1.5, 4 * EXTRA, moves)


def adam_case(shape: Shape) -> Case:
    latents, width = int(shape["F"]), int(shape["D"])
    tensors = [empty(latents, width, dtype=torch.float32) for _ in range(4)]

    def run() -> Any:
        return cuda("adam_step")(*tensors, 3, 1e-4, 0.9, 0.999, 1e-8, True, True)

    return Case("adam_step", shape, run, Bound(7 * size(tensors[0])), 1, 2 * latents * width)


def train_step_case(shape: Shape) -> Case:
    """float32 parameters, bf16 products: casts, encoder, decoder, loss, their gradients, Adam. The weights' bf16 copies
    are results of the step before, whose Adam wrote them, and take the gradients (`training/optimizer.py`)."""
    wide, made = layer(shape, torch.float32), layer(shape)
    moments = [(torch.empty_like(p), torch.empty_like(p)) for p in wide[1:5]]

    def run() -> Any:
        half = made._replace(**{name: getattr(wide, name).to(torch.bfloat16) for name in ("x", "b_enc", "b_dec")})
        relu, need = True, [False, True, True, True]
        values, indices, *_, entries, segments = cuda("topk_encode")(
            half.x, half.w_enc, half.b_enc, half.k, half.b_dec, relu, None, 0, True
        )
        _, grad_values, grad_dec, grad_b_dec = decode_loss(
            half._replace(values=values, indices=indices), wide.x, (entries, segments)
        )
        _, grad_enc, grad_b_enc, _ = cuda("topk_encode_backward")(
            grad_values, values, indices, half.x, half.w_enc, half.b_dec, entries, segments, relu, need
        )
        gradients = (grad_enc, grad_b_enc, grad_dec, grad_b_dec)
        for i, (parameter, gradient, pair) in enumerate(zip(wide[1:5], gradients, moments, strict=True)):
            unit, matrix = i == 2, parameter.dim() == 2  # the decoder's rows; biases have no copies
            rounded = half[1 + i] if matrix else None
            gradient = gradient if matrix else gradient.float()
            options = (3, 1e-4, 0.9, 0.999, 1e-8, unit, unit, None, rounded)
            cuda("adam_step")(parameter, gradient, *pair, *options)

    # Of a weight Adam reads and writes 3 × 4 bytes, reads a gradient of 2 and writes a copy of 2: 7 × 4.
    after = (decode_loss_case(shape).bound, encode_backward_case(shape).bound, Bound(7 * size(*wide[1:5])))
    bound = encode_case(shape).bound._replace(then=after)
    return Case("train step", shape, run, bound, 175, scores(shape), moves=SLACK)


def nearest_case(shape: Shape) -> Case:
    latents, width = int(shape["F"]), int(shape["D"])
    a, b = (empty(latents, width, dtype=torch.float32) for _ in range(2))
    bound = Bound(size(a, b) + 2 * latents * 12, 2.0 * latents**2 * width)
    # 4560 pairs in 4 s are 1.68 × the product of one of 16384 × 768.
    return Case("nearest, one pair", shape, lambda: cuda("nearest")(a, b), bound, 20, latents**2, 1.68)


class KronLayer(NamedTuple):
    """The tensors of one Kronecker encoder, and codes of it."""

    x: Tensor
    weight_p: Tensor
    weight_q: Tensor
    bias_p: Tensor
    bias_q: Tensor
    pre_bias: Tensor
    values: Tensor
    indices: Tensor
    u: Tensor
    v: Tensor
    k: int

    @property
    def codes(self) -> float:
        return size(self.values, self.indices, self.u, self.v)

    @property
    def weights(self) -> float:
        return size(self.weight_p, self.weight_q, self.bias_p, self.bias_q, self.pre_bias)


def kron_layer(shape: Shape) -> KronLayer:
    batch, width, heads, m, n, k = (int(shape[name]) for name in "BDHMNK")
    sizes = (batch, width), (heads, m, width), (heads, n, width), (heads, m), (heads, n), (width,), (batch, k)
    wide = {"dtype": torch.float32}
    indices, u, v = empty(batch, k, dtype=torch.int64), empty(batch, k, **wide), empty(batch, k, **wide)
    return KronLayer(*(empty(*s) for s in sizes), indices, u, v, k)


def kron_encode_case(shape: Shape) -> Case:
    """Against the product that makes the pre-latents alone: 1.3 × its time."""
    made = kron_layer(shape)

    def run() -> Any:
        return kernel("kron_encode")(*made[:5], made.k, made.pre_bias, "mand", 0.0, None, 0, False)

    heads, m, n = (int(shape[name]) for name in "HMN")
    work = 2.0 * made.x.numel() * heads * (m + n)
    bound = Bound(size(made.x) + made.weights + made.codes, work)
    return Case("kron_encode", shape, run, bound, 150, int(shape["B"]) * heads * m * n, 1.3, EXTRA)


def kron_encode_backward_case(shape: Shape) -> Case:
    made, grad = kron_layer(shape), empty(int(shape["B"]), int(shape["K"]))

    def run() -> Any:
        need = [False, True, True, True, True, True]
        return kernel("kron_encode_backward")(
            grad, made.indices, made.u, made.v, made.x, made.weight_p, made.weight_q, made.pre_bias, "mand", 0.0, need
        )

    # As for `topk_encode`: the pre-bias gradient reads the weights. Every code reads a row of x for u and one for v.
    bytes = size(grad, made.indices, made.u, made.v, made.x) + 2 * made.weights
    bound = Bound(bytes, l2=2.0 * made.k * size(made.x))
    forbidden = int(shape["B"]) * int(shape["H"]) * (int(shape["M"]) + int(shape["N"]))
    return Case("kron_encode backward", shape, run, bound, 36, forbidden, KRON_BACKWARD)


def kernel(op: str) -> Callable[..., Any]:
    """The launcher, also of an op that the dispatcher does not know."""
    return getattr(library.kernels(op), op)


LARGE = {"B": 8192, "F": 65536}
WIDTHS = tuple({**LARGE, "D": width, "K": 64} for width in (768, 2304, 4096))
KRON = tuple({"B": 8192, "D": 2304, "H": 2048, "M": 4, "N": 8, "K": k} for k in (32, 64))
CODES = tuple({**LARGE, "D": 2304, "K": k} for k in (32, 64, 128))


def goal_cases() -> list[Case]:
    """Every op at the shapes that have goals (bench/gpu_times.py)."""
    return [
        *map(encode_case, WIDTHS),
        encode_case(WIDTHS[0], streaming=True),
        *map(encode_backward_case, CODES),
        *map(decode_case, CODES),
        *map(decode_loss_case, CODES),
        *(hierarchical_case(shape | budgets) for shape in CODES for budgets in ({}, {"J": 8})),
        *map(kron_encode_case, KRON),
        *map(kron_encode_backward_case, KRON),
        adam_case({"F": 65536, "D": 2304}),
        train_step_case(CODES[1]),
        nearest_case({"F": 16384, "D": 768}),
    ]


def table(lines: Iterable[Line]) -> str:
    head = f"{'op':<29}{'shape':<28}{'MB':>8}{'bound':>8}{'ratio':>7}{'GFLOP':>9}{'launches':>9}{'largest MB':>11}"
    text = [f"{head}{'ms':>8}{'bound':>8}  roof"]
    for line in lines:
        largest = line.record.largest()
        bound, work = line.case.bound, sum(c.matrix + c.vector for c in line.costs)
        text.append(
            f"{line.case.op:<29}{words(line.case.shape):<28}{line.moved / 1e6:>8.0f}{bound.moved() / 1e6:>8.0f}"
            f"{line.ratio:>7.2f}{work / 1e9:>9.1f}{line.launches:>9}"
            f"{0 if largest is None else largest.nbytes / 1e6:>11.1f}"
            f"{1e3 * line.seconds:>8.3f}{1e3 * bound.seconds(line.roofs):>8.3f}  {line.roof}"
        )
        text += [f"    MISSED: {fault}" for fault in line.faults()]
    return "\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    """0; the gate is tests/bench/test_roofline.py."""
    parse = argparse.ArgumentParser(prog="python -m saekern.bench.roofline", description=__doc__.split("\n", 1)[0])
    for name, value in Roofs()._asdict().items():
        parse.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help="default %(default)g")
    parse.add_argument("--steps", action="store_true", help="also every launch of every op")
    options = vars(parse.parse_args(arguments))
    steps, roofs = options.pop("steps"), Roofs(**options)
    lines, absent = [], []
    for case in goal_cases():
        try:
            lines.append(priced(case, roofs))
        except (Absent, ValueError) as reason:
            absent.append(f"{case.op} {words(case.shape)}: absent ({reason})")
    print("\n".join([table(lines), *absent]))
    if steps:
        print("\n".join(detail(line) for line in lines))
    print("\nAssumed:", *(f"  {name}: {text}" for name, text in ASSUMPTIONS.items()), sep="\n")
    return 0


def detail(line: Line) -> str:
    text = [f"\n{line.case.op} {words(line.case.shape)}"]
    for step, price in zip(line.record.steps, line.costs, strict=True):
        if not step.view:
            grid = " × ".join(map(str, step.grid))
            moved = f"{price.read / 1e6:>9.1f} MB read{price.written / 1e6:>9.1f} written"
            text.append(f"  {step.name:<28}{grid:<16}{moved}")
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
