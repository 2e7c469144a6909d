"""Every op at the shapes that have goals, on `meta` tensors, with what it cannot avoid and how far off it may be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from saekern.bench.common import Absent, Shape
from saekern.bench.kernel_bounds import SLACK, Bound, Case
from saekern.bench.kernel_costs import size
from saekern.ops import library

KRON_BACKWARD = 1.6  # instead of SLACK, for kron_encode: two orders of the codes, made here, and float32 coefficients
EXTRA = 100e6  # bytes that an encoder may allocate beside its answer


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
