"""What is timed on a GPU, in the form of common.Bench: goal shapes first, the others while time lasts."""

import importlib
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.bench import roofline_cases
from saekern.bench.common import Absent, Run, Shape, WrongAnswer
from saekern.bench.gpu_problems import Dictionaries, Layer, check_decode, check_encode, check_nearest
from saekern.bench.kernel_bounds import Bound, Case
from saekern.bench.peers import PEERS, adapter
from saekern.bench.plain import LR
from saekern.bench.roofline_cases import cuda
from saekern.ops import library

FLEX_SAE: list[Path] = []  # the clone given on the command line, if any


def bound(make: Callable[[Shape], Case]) -> Callable[[Shape], Bound]:
    return lambda shape: make({name: value for name, value in shape.items() if name != "latents"}).bound


# --- encoder ---


def encode_setup(layer: Layer, provider: str) -> Run:
    x, weight, bias, pre_bias, k = layer.x, layer.w_enc, layer.b_enc, layer.b_dec, layer.k
    flops = 2.0 * x.shape[0] * weight.shape[0] * x.shape[1]

    def plain() -> tuple[Tensor, Tensor]:
        return F.linear(x - pre_bias, weight, bias).relu().topk(k, dim=1)

    if provider == "gemm":
        return Run(lambda: x @ weight.T, lambda out: check_gemm(layer, out), flops=flops)
    if provider.startswith("saekern"):
        kernel, streaming = cuda("topk_encode"), provider == "saekern streaming"
        if streaming:
            with roofline_cases.streamed_encoder():  # raises Absent
                pass

        def ours() -> tuple[Tensor, ...]:
            with roofline_cases.streamed_encoder() if streaming else nullcontext():
                return kernel(x, weight, bias, k, pre_bias, True, None, 0, False)

        return Run(ours, lambda out: check_encode(layer, *out[:2]), flops=flops)
    call = torch.compile(plain) if provider == "torch.compile" else plain
    return Run(call, lambda out: check_encode(layer, *out, rounded=True), flops=flops)


def check_gemm(layer: Layer, out: Tensor) -> None:
    want = layer.x[:16].double() @ layer.w_enc.double().T
    if not (out[:16].double() - want).abs().max() <= 2.0**-7 * want.abs().max():
        raise WrongAnswer("the product is off")


# --- decoder and loss, both ways ---


def decode_setup(layer: Layer, provider: str) -> Run:
    """Loss and gradients to values, dictionary and bias; every provider makes its own order of the codes."""
    values, indices = layer.codes
    x, bias = layer.x, layer.b_dec
    scale = 1 / float((x.double() - x.double().mean(0)).square().sum())
    if provider == "saekern":

        def ours() -> tuple[Any, ...]:
            x_hat = cuda("decode")(values, indices, layer.w_dec, bias, None, None, None)
            loss, variance = cuda("unexplained_variance")(x, x_hat)
            upstream = cuda("unexplained_variance_backward")(torch.ones_like(loss), x, x_hat, variance)
            need = [True, True, True]
            return loss, *cuda("decode_backward")(upstream, values, indices, layer.w_dec, None, None, None, need)

        return Run(ours, lambda out: check_decode(layer, out[0], {"values": out[1], "weight": out[2]}, scale))
    leaves = [t.clone().requires_grad_() for t in (values, layer.w_dec, bias)]
    loss_of, factor = decode_losses(provider, layer, scale)

    def step() -> tuple[Tensor, Tensor, Tensor]:
        loss = loss_of(*leaves)
        loss.backward()
        return loss.detach(), leaves[0].grad, leaves[1].grad

    def forget() -> None:
        for leaf in leaves:
            leaf.grad = None

    kept = sum(leaf.nbytes for leaf in leaves)
    return Run(
        step,
        lambda out: check_decode(layer, out[0], {"values": out[1], "weight": out[2]}, factor),
        forget,
        kept_bytes=kept,
    )


def decode_losses(
    provider: str, layer: Layer, scale: float
) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], float]:
    """values, weight, bias -> loss, and the factor with which it is a sum of squares."""
    _, indices = layer.codes
    x = layer.x

    def bag(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x_hat = F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum") + bias
        return scale * (x - x_hat).float().square().sum()

    def dense(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x_hat = values.new_zeros(len(x), len(weight)).scatter(1, indices, values) @ weight + bias
        return scale * (x - x_hat).float().square().sum()

    if provider == "embedding_bag":
        return bag, scale
    if provider in ("torch", "torch.compile"):
        return (torch.compile(dense) if provider == "torch.compile" else dense), scale
    if provider == "sparsify":
        decode = peer_module("sparsify.utils", "eai-sparsify").decoder_impl
        return lambda v, w, b: scale * (x - (decode(indices, v, w.mT) + b)).float().square().sum(), scale
    flex = flex_sae()  # its loss is a mean
    return lambda v, w, b: flex.triton_topk_sae_loss(indices, w, v, b, x), 1 / x.numel()


def peer_module(name: str, distribution: str) -> Any:
    from saekern.bench.peers import load

    load(name.split(".")[0], distribution)
    return importlib.import_module(name)


def flex_sae() -> Any:
    if not FLEX_SAE:
        raise Absent("flex-sae: no clone given (--flex-sae FOLDER)")
    folder = str(FLEX_SAE[0] / "torch-ext")
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module("flex_sae")
    except Exception as error:
        raise Absent(f"flex-sae in {folder} cannot be imported: {type(error).__name__}: {error}") from error


# --- all pairs of dictionaries ---


def nearest_setup(problem: Dictionaries, provider: str) -> Run:
    stack, pairs = problem.stack, problem.pairs
    flops = 2.0 * len(pairs) * stack.shape[1] ** 2 * stack.shape[2]

    def torch_pairs(unit: Tensor) -> list[tuple[Tensor, ...]]:
        found = []
        for i, j in pairs:
            cosine = unit[i] @ unit[j].T
            (a, a_index), (b, b_index) = cosine.max(1), cosine.max(0)
            found.append((a, a_index, b, b_index))
        return found

    if provider == "torch":
        return Run(lambda: torch_pairs(F.normalize(stack, dim=2)), lambda out: check_nearest(problem, out), flops=flops)
    if provider == "torch bf16":  # says another partner where two are close: not the same answer
        return Run(
            lambda: torch_pairs(F.normalize(stack, dim=2).bfloat16()),
            lambda out: check_nearest(problem, out, exact=False),
            flops=flops,
        )
    kernel = cuda("nearest")
    module = library.kernels("nearest")
    if hasattr(module, "nearest_pairs"):  # many pairs a launch, the dictionaries prepared once
        numbers = torch.tensor(pairs, dtype=torch.int32, device=stack.device)

        def batched() -> list[tuple[Tensor, ...]]:
            ready = module.prepare(stack)
            return list(zip(*module.nearest_pairs(ready, ready, numbers), strict=True))

        return Run(batched, lambda out: check_nearest(problem, out), flops=flops)
    return Run(
        lambda: [kernel(stack[i], stack[j]) for i, j in pairs], lambda out: check_nearest(problem, out), flops=flops
    )


def nearest_bound(shape: Shape) -> Bound:
    runs = int(shape["S"])
    one, pairs = roofline_cases.nearest_case({"F": shape["F"], "D": shape["D"]}).bound, runs * (runs - 1) // 2
    return Bound(pairs * one.bytes, pairs * one.matrix)


# --- the whole training step ---


def step_setup(layer: Layer, provider: str) -> Run:
    """float32 parameters, products in bfloat16 by autocast, for all alike."""
    if provider != "saekern" and provider not in PEERS:
        raise Absent(provider)
    sae = adapter(provider, layer.sae_problem())
    state = sum(parameter.nbytes for parameter in sae.parameters)
    device = layer.device.type
    with torch.no_grad():
        first = float(sae.scale) * squared_error(layer)

    def step() -> Tensor | float:
        with torch.autocast(device, torch.bfloat16):
            return sae.step(sae.x)

    def check(loss: Tensor | float) -> None:
        if not abs(float(loss) - first) <= 0.02 * abs(first):
            raise WrongAnswer(f"loss: {float(loss):.6g}, expected {first:.6g} within 2 %")
        moved = (sae.encoder.detach().T if sae.encoder_transposed else sae.encoder.detach()) - layer.w_enc
        most = float(moved.abs().max())
        if not 0.5 * LR <= most <= 1.5 * LR:
            raise WrongAnswer(f"encoder: moved by {most:.3g} at most, Adam's first step is {LR:g}")

    return Run(step, check, kept_bytes=sae.step_keeps * state, version=sae.version)


def squared_error(layer: Layer) -> float:
    """Σ (x − x̂)² in float32, a block of rows at a time."""
    total = 0.0
    for x in layer.x.float().split(256):
        top = ((x - layer.b_dec) @ layer.w_enc.T + layer.b_enc).topk(layer.k)
        x_hat = (top.values.relu()[..., None] * layer.w_dec[top.indices]).sum(1) + layer.b_dec
        total += float((x - x_hat).double().square().sum())
    return total


def step_bound(shape: Shape) -> Bound:
    return roofline_cases.train_step_case(shape).bound


# --- Adam ---


def adam_setup(problem: list[Tensor], provider: str) -> Run:
    param, grad, first, second = (tensor.clone() for tensor in problem)
    fresh = [tensor.clone() for tensor in problem]
    arguments = (3, 1e-4, 0.9, 0.999, 1e-8, True, True)

    def restore() -> None:
        for tensor, old in zip((param, grad, first, second), fresh, strict=True):
            tensor.copy_(old)

    def plain() -> None:
        along = (grad * param).sum(1, keepdim=True) / param.square().sum(1, keepdim=True)
        g = grad - along * param
        first.lerp_(g, 0.1)
        second.mul_(0.999).addcmul_(g, g, value=0.001)
        param.addcdiv_(first, (second / (1 - 0.999**3)).sqrt_().add_(1e-8), value=-1e-4 / (1 - 0.9**3))
        param.div_(param.norm(dim=1, keepdim=True))

    def check(_: Any) -> None:
        want = [tensor.double()[:64] for tensor in fresh]
        from saekern import reference

        reference.adam_step(*want, 3, lr=1e-4, beta1=0.9, beta2=0.999, eps=1e-8, project=True, normalize=True)
        if not (param[:64].double() - want[0]).abs().max() <= 2.0**-20:
            raise WrongAnswer("param: off")

    call = {"torch": plain, "torch.compile": torch.compile(plain)}.get(provider)
    return Run(call or (lambda: cuda("adam_step")(param, grad, first, second, *arguments)), check, restore)


def adam_inputs(shape: Shape, device: torch.device) -> list[Tensor]:
    random = torch.Generator(device).manual_seed(0)
    made = [torch.randn(int(shape["F"]), int(shape["D"]), generator=random, device=device) for _ in range(4)]
    return [F.normalize(made[0], dim=1), made[1], 0.1 * made[2], 0.01 * made[3].square()]
