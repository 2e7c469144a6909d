"""One SAE with its input rows, and the float64 answer that every provider is held to."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.bench.common import Shape, WrongAnswer, expect_close, generator, sum_bound

BLOCK = 256  # rows of the float64 scores that exist at a time: 134 MB at F = 65536
# A gradient of 32 · 1024 products rounds to about 1e-6 of its norm; a lost term, mask or factor shows in percent.
GRADIENT_TOLERANCE = 1e-4


class Answer(NamedTuple):
    """float64, of the TopK SAE z = ReLU(TopK((x − b_dec) W_encᵀ + b_enc)), x̂ = z W_dec + b_dec."""

    values: Tensor  # [B, K], descending, after ReLU
    indices: Tensor  # [B, K]
    value_bound: float  # what a float32 score may be off by
    x_hat: Tensor  # [B, D]
    x_hat_bound: Tensor  # [B, D]
    squared_error: float  # Σ (x − x̂)²


@dataclass(frozen=True)
class SAEProblem:
    """float32. The K-th and the next score of every row lie further apart than float32 rounding of any order of
    summation moves them, so that all providers must choose the same latents."""

    x: Tensor  # [B, D]
    w_enc: Tensor  # [F, D]
    b_enc: Tensor  # [F]
    w_dec: Tensor  # [F, D], unit rows
    b_dec: Tensor  # [D]
    k: int

    @cached_property
    def answer(self) -> Answer:
        return self.answer_for(slice(None))

    def answer_for(self, rows: slice) -> Answer:
        x, w_enc, w_dec = self.x[rows].double(), self.w_enc.double(), self.w_dec.double()
        centred = x - self.b_dec.double()
        tops = [(block @ w_enc.T + self.b_enc.double()).topk(self.k) for block in centred.split(BLOCK)]
        values, indices = torch.cat([top.values for top in tops]).relu(), torch.cat([top.indices for top in tops])
        x_hat, magnitude, weights = self.b_dec.double().expand_as(x).clone(), torch.zeros_like(x), torch.zeros_like(x)
        for k in range(self.k):
            picked = w_dec[indices[:, k]]
            x_hat += values[:, k, None] * picked
            magnitude += values[:, k, None] * picked.abs()
            weights += picked.abs()
        largest = centred.norm(dim=1).max() * w_enc.norm(dim=1).max()  # ≥ Σ|products| of any score
        value_bound = float(sum_bound(values, largest, x.shape[1] + 2).max())
        bound = sum_bound(x_hat, magnitude + self.b_dec.abs(), self.k + 1) + value_bound * weights
        return Answer(values, indices, value_bound, x_hat, bound, float((x - x_hat).square().sum()))

    @cached_property
    def squared_error_gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients of Σ (x − x̂)² to w_enc and w_dec, [F, D] float64."""
        values, indices, *_, x_hat, _, _ = self.answer
        x, w_dec = self.x.double(), self.w_dec.double()
        outer, centred = 2 * (x_hat - x), x - self.b_dec.double()
        grad_enc, grad_dec = torch.zeros_like(w_dec), torch.zeros_like(w_dec)
        for k in range(self.k):
            at, value = indices[:, k], values[:, k, None]
            through = torch.where(value > 0, (outer * w_dec[at]).sum(1, keepdim=True), 0)  # past the ReLU
            grad_dec.index_add_(0, at, value * outer)
            grad_enc.index_add_(0, at, through * centred)
        return grad_enc, grad_dec

    def total_variance(self) -> float:
        x = self.x.double()
        return float((x - x.mean(0)).square().sum())


def sae_problem(shape: Shape) -> SAEProblem:
    """Shape: B, D, F, K. Rows that are sums of a few latents and noise, as activations are, and small biases."""
    batch, width, latents, k = (int(shape[name]) for name in "BDFK")
    random = generator(shape)
    w_dec = F.normalize(torch.randn(latents, width, generator=random), dim=1)
    w_enc = w_dec + 0.1 * torch.randn(latents, width, generator=random) / width**0.5
    b_enc = 0.05 * torch.randn(latents, generator=random)
    b_dec = 0.2 * torch.randn(width, generator=random)
    spare = batch + batch // 4 + 16
    x = torch.randn(spare, width, generator=random) + b_dec
    for _ in range(min(8, k)):
        x += torch.rand(spare, 1, generator=random) * w_dec[torch.randint(latents, (spare,), generator=random)]
    clear = torch.cat([has_clear_choice(block, w_enc, b_enc, b_dec, k) for block in x.split(BLOCK)])
    if int(clear.sum()) < batch:
        raise ValueError(f"{int(clear.sum())} of {spare} rows have a clear choice of latents, {batch} are needed")
    return SAEProblem(x[clear][:batch].contiguous(), w_enc, b_enc, w_dec, b_dec, k)


def has_clear_choice(x: Tensor, w_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int) -> Tensor:
    """[B] bool: the K-th and the next float32 score differ by more than eight typical rounding errors, and so does the
    K-th from 0, where the ReLU bends."""
    if k == w_enc.shape[0]:
        return torch.ones(x.shape[0], dtype=torch.bool)
    centred = x - b_dec
    scores = (centred @ w_enc.T + b_enc).topk(k + 1).values
    rounding = 2.0**-24 * x.shape[1] ** 0.5 * centred.norm(dim=1) * w_enc.norm(dim=1).max()
    return ((scores[:, k - 1] - scores[:, k]) > 8 * rounding) & (scores[:, k - 1].abs() > 8 * rounding)


def check_codes(problem: SAEProblem, values: Tensor, indices: Tensor, *, relu: bool = True) -> None:
    """Values within the float32 bound of float64's, and the same set of latents in every row."""
    answer = problem.answer
    expect_close("values", values.sort(1, descending=True).values.relu(), answer.values, answer.value_bound)
    if not torch.equal(indices.sort(1).values, answer.indices.sort(1).values):
        raise WrongAnswer("indices: not the latents that float64 chooses")


def check_reconstruction(problem: SAEProblem, x_hat: Tensor) -> None:
    expect_close("x_hat", x_hat, problem.answer.x_hat, problem.answer.x_hat_bound)


def check_gradients(problem: SAEProblem, scale: float, grad_enc: Tensor, grad_dec: Tensor) -> None:
    """For a loss scale · Σ (x − x̂)², gradients as [F, D]."""
    wanted = problem.squared_error_gradients
    for name, got, want in (("encoder gradient", grad_enc, wanted[0]), ("decoder gradient", grad_dec, wanted[1])):
        error = float((got.double() - scale * want).norm() / (scale * want).norm())
        if not error <= GRADIENT_TOLERANCE:
            raise WrongAnswer(f"{name}: off by {error:.2e} of its norm, at most {GRADIENT_TOLERANCE:g} is rounding")


def check_loss(problem: SAEProblem, scale: float, loss: float) -> None:
    want = scale * problem.answer.squared_error
    if not abs(loss - want) <= 1e-5 * abs(want):
        raise WrongAnswer(f"loss: {loss:.8g}, expected {want:.8g}")
