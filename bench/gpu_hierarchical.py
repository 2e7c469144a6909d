"""The hierarchical loss with its gradients on a GPU: what is timed, and how answers are checked."""

from collections.abc import Iterator

import torch
from torch import Tensor

from saekern.bench.common import Absent, Run, WrongAnswer
from saekern.bench.gpu_problems import SAMPLE, Layer, near
from saekern.ops import library

ROWS = 128  # whose prefixes are formed at once: 0.3 GB in float64 for K = 128 and D = 2304


def budgets(layer: Layer) -> tuple[Tensor, Tensor]:
    """Every prefix, or J of them, evenly spaced to all K codes; and weights that say which is which."""
    count = int(layer.shape.get("J", layer.k))
    cuts = torch.arange(1, count + 1, device=layer.device) * layer.k // count
    weights = torch.linspace(1.5, 0.5, count, device=layer.device)
    return cuts, weights / weights.sum()


def launched(layer: Layer, grad: Tensor, *, with_target: bool) -> tuple[Tensor, ...]:
    """loss, x̂, and the gradients to values, weight, bias and target."""
    (values, indices), (cuts, weights) = layer.codes, budgets(layer)
    inputs, last = (values, indices, layer.w_dec, layer.b_dec, layer.x), (cuts, weights, None, None, None)
    loss, x_hat = library.kernels("hierarchical_loss").hierarchical_loss(*inputs, *last)
    backward = library.kernels("hierarchical_loss_backward").hierarchical_loss_backward
    return loss, x_hat, *backward(grad, *inputs, x_hat, *last, [True, True, True, with_target])


def setup(layer: Layer, provider: str) -> Run:
    """Loss and gradients to values, dictionary and bias; every provider makes its own order of the codes."""
    if provider == "saekern":
        one = torch.ones((), device=layer.device)
        return Run(lambda: launched(layer, one, with_target=False), lambda out: check(layer, *out[:1], *out[2:4]))
    if provider not in ("torch", "torch.compile"):
        raise Absent(provider)
    (values, indices), (cuts, weights) = layer.codes, budgets(layer)
    leaves = [t.clone().requires_grad_() for t in (values, layer.w_dec, layer.b_dec)]

    def loss_of(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        prefixes = (values[..., None].float() * weight[indices]).cumsum(1)[:, cuts - 1]  # [B, J, D]
        return (weights * (prefixes + bias - layer.x[:, None]).square().sum(2)).sum(1).mean()

    call = torch.compile(loss_of) if provider == "torch.compile" else loss_of

    def step() -> tuple[Tensor, ...]:
        loss = call(*leaves)
        loss.backward()
        return loss.detach(), *(leaf.grad for leaf in leaves[:2] if leaf.grad is not None)

    def forget() -> None:
        for leaf in leaves:
            leaf.grad = None

    return Run(step, lambda out: check(layer, *out), forget, kept_bytes=sum(leaf.nbytes for leaf in leaves))


def fresh(layer: Layer) -> Run:
    """With the gradient to the target, each result against all of float64's."""
    grad = torch.tensor(0.7, device=layer.device)

    def verify(got: tuple[Tensor, ...]) -> None:
        (values, indices), unit = layer.codes, torch.finfo(layer.x.dtype).eps
        x_hat, to_target = torch.empty(2, *layer.x.shape, dtype=torch.float64, device=layer.device)
        to_values = torch.empty_like(values, dtype=torch.float64)
        to_weight = torch.zeros_like(layer.w_dec, dtype=torch.float64)
        total = 0.0
        for rows, picked, residuals, suffixes, loss in prefixes(layer, torch.arange(len(layer.x), device=layer.device)):
            total += loss
            x_hat[rows], to_target[rows] = residuals[:, -1] + layer.x[rows].double(), -suffixes[:, 0]
            to_values[rows] = (suffixes * picked).sum(2)
            terms = values[rows].double()[..., None] * suffixes
            to_weight.index_add_(0, indices[rows].flatten(), terms.flatten(0, 1))
        wanted = (x_hat, *(float(grad) * t for t in (to_values, to_weight, -to_target.sum(0), to_target)))
        names = ("x_hat", "to values", "to weight", "to bias", "to target")
        close("loss", got[0], total)
        for name, a, x in zip(names, got[1:], wanted, strict=True):
            near(name, a, x, unit)

    return Run(lambda: launched(layer, grad, with_target=True), verify)


def prefixes(layer: Layer, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, float]]:
    """In float64, a block of `rows` at a time: the rows, the dictionary's rows [n, K, D], the residuals of all prefixes
    [n, K+1, D], S [n, K, D] for an upstream gradient of 1, and the rows' part of the loss. No cut is at 0."""
    (values, indices), (cuts, weights) = layer.codes, budgets(layer)
    steps = weights.new_zeros(layer.k + 1, dtype=torch.float64).index_add_(0, cuts, weights.double())
    for part in rows.split(ROWS):
        picked = layer.w_dec[indices[part]].double()
        terms = values[part].double()[..., None] * picked
        sums = torch.cat([torch.zeros_like(terms[:, :1]), terms.cumsum(1)], 1)
        residuals = sums + layer.b_dec.double() - layer.x[part, None].double()
        upstream = 2 * steps[1:, None] * residuals[:, 1:] / len(layer.x)
        loss = float((steps * residuals.square().sum(2)).sum()) / len(layer.x)
        yield part, picked, residuals, upstream.flip(1).cumsum(1).flip(1), loss


def close(name: str, got: Tensor, want: float) -> None:
    if not abs(float(got) - want) <= 1e-5 * abs(want):
        raise WrongAnswer(f"{name}: {float(got):.8g}, expected {want:.8g}")


def check(layer: Layer, loss: Tensor, to_values: Tensor, to_weight: Tensor) -> None:
    """The loss; the gradients of a sample of rows and of latents, the most frequent among them."""
    (values, indices), unit, device = layer.codes, torch.finfo(layer.x.dtype).eps, layer.device
    close("loss", loss, sum(last for *_, last in prefixes(layer, torch.arange(len(layer.x), device=device))))
    sample = torch.arange(0, len(layer.x), max(1, len(layer.x) // SAMPLE), device=device)
    for rows, picked, _, suffixes, _ in prefixes(layer, sample):
        near("gradient to values", to_values[rows], (suffixes * picked).sum(2), unit)
    counts = indices.flatten().bincount(minlength=len(layer.w_dec))
    others = torch.arange(0, len(counts), max(1, len(counts) // SAMPLE), device=device)
    for latent in [int(counts.argmax()), *others.tolist()[: SAMPLE // 2]]:
        want = torch.zeros(layer.x.shape[1], dtype=torch.float64, device=device)
        fired = (indices == latent).any(1).nonzero()[:, 0]
        for rows, _, _, suffixes, _ in prefixes(layer, fired):
            here = (indices[rows] == latent) * values[rows].double()  # [n, K]
            want += (here[..., None] * suffixes).sum((0, 1))
        near(f"gradient to latent {latent}", to_weight[latent], want, unit)
