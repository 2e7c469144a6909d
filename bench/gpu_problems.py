"""What is timed on a GPU: tensors on the device, float64 answers for a sample of rows, and how answers are checked."""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.bench.common import Shape, WrongAnswer, expect_close, generator
from saekern.bench.problems import SAEProblem

SAMPLE = 64  # rows, or latents, that are compared with float64
HOT, DENSITY = 8, 0.3  # latents of "hot" codes that fire on 30 % of the rows


def on_device(device: torch.device, *shape: int, random: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Normal numbers drawn where they are needed, a slab at a time so that float32 copies stay small."""
    out = torch.empty(shape, dtype=dtype, device=device)
    for part in out.split(8192):
        part.copy_(torch.randn(part.shape, generator=random, device=device))
    return out


def on(device: torch.device, shape: Shape) -> torch.Generator:
    """Depends on the shape alone."""
    return torch.Generator(device).manual_seed(generator(shape).initial_seed())


class Layer:
    """One TopK layer in `dtype`, as SAEProblem."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        self.shape, self.device = shape, device
        batch, width, latents, self.k = (int(shape[name]) for name in "BDFK")
        random = on(device, shape)
        self.x = on_device(device, batch, width, random=random, dtype=dtype)
        self.w_dec = on_device(device, latents, width, random=random, dtype=dtype)
        for part in self.w_dec.split(8192):
            part.copy_(F.normalize(part.float(), dim=1))
        self.w_enc = self.w_dec.clone()
        self.b_enc = 0.05 * on_device(device, latents, random=random, dtype=dtype)
        self.b_dec = 0.2 * on_device(device, width, random=random, dtype=dtype)

    def sae_problem(self) -> SAEProblem:
        return SAEProblem(self.x, self.w_enc, self.b_enc, self.w_dec, self.b_dec, self.k)

    @cached_property
    def codes(self) -> tuple[Tensor, Tensor]:
        """values, indices [B, K], distinct in a row: uniform, or with HOT latents that fire on DENSITY of the rows."""
        batch, latents, random = len(self.x), len(self.w_dec), on(self.device, self.shape)
        values = torch.rand(batch, self.k, generator=random, device=self.device) + 0.1
        # k different numbers in each of k strips of the latents.
        strip = latents // self.k
        indices = torch.randint(strip, (batch, self.k), generator=random, device=self.device)
        indices += strip * torch.arange(self.k, device=self.device)
        if self.shape.get("latents") == "zipf":
            # Zipf in every strip, then a few latents on DENSITY of the rows: what an unsplit backward waits for.
            uniform = torch.rand(batch, self.k, generator=random, device=self.device)
            indices = (strip**uniform).long().clamp(1, strip) - 1 + strip * torch.arange(self.k, device=self.device)
            hot = torch.rand(batch, self.k, generator=random, device=self.device) < DENSITY
            hot[:, HOT:] = False
            indices = torch.where(hot, strip * torch.arange(self.k, device=self.device), indices)
        return values.to(self.x.dtype), indices


def check_encode(layer: Layer, values: Tensor, indices: Tensor, *, rounded: bool = False) -> None:
    """A sample of rows against float64 scores: nothing clearly better was left out, nothing clearly worse taken in, and
    values are the scores. `rounded`: the scores went through the storage type before they were compared."""
    rows = torch.arange(0, len(layer.x), max(1, len(layer.x) // SAMPLE), device=layer.device)
    x, weight = layer.x[rows].double() - layer.b_dec.double(), layer.w_enc.double()
    scores = x @ weight.T + layer.b_enc.double()
    size = (layer.x[rows].double().norm(dim=1) + layer.b_dec.double().norm()) * weight.norm(dim=1).max() + 1
    bound = (layer.x.shape[1] + 8) * 2.0**-24 * size[:, None]
    unit = torch.finfo(layer.x.dtype).eps
    if rounded:  # x − b_dec and the scores themselves
        bound = bound + unit * size[:, None] / layer.x.shape[1] ** 0.5 * 8 + unit * scores.abs().amax(1, keepdim=True)
    got, chosen = values[rows].double(), indices[rows]
    picked = scores.gather(1, chosen)
    kth = scores.topk(layer.k, dim=1).values[:, -1:]
    if (chosen.sort(1).values.diff(dim=1) == 0).any():
        raise WrongAnswer("indices: a latent twice in a row")
    if (picked < kth - 2 * bound).any():
        raise WrongAnswer("indices: a latent that is clearly not among the k largest")
    expect_close("values", got, picked.relu(), bound + unit * picked.abs())


def check_decode(layer: Layer, loss: Tensor, gradients: dict[str, Tensor], scale: float) -> None:
    """Loss = scale · Σ (x − x̂)² and its gradients: values of a sample of rows, dictionary rows of a sample of latents
    (the most frequent among them)."""
    values, indices = layer.codes
    unit = torch.finfo(layer.x.dtype).eps
    x_hat = torch.empty(layer.x.shape, dtype=torch.float64, device=layer.device)
    for part in torch.arange(len(layer.x), device=layer.device).split(512):
        picked = layer.w_dec[indices[part]].double()  # [512, K, D]
        x_hat[part] = (values[part].double()[..., None] * picked).sum(1) + layer.b_dec.double()
    error = x_hat - layer.x.double()
    want = scale * float(error.square().sum())
    if not abs(float(loss) - want) <= 4 * unit * abs(want):
        raise WrongAnswer(f"loss: {float(loss):.8g}, expected {want:.8g}")
    upstream = 2 * scale * error
    rows = torch.arange(0, len(layer.x), max(1, len(layer.x) // SAMPLE), device=layer.device)
    wanted = (upstream[rows, None] * layer.w_dec[indices[rows]].double()).sum(2)
    near("gradient to values", gradients["values"][rows], wanted, unit)
    counts = indices.flatten().bincount(minlength=len(layer.w_dec))
    latents = torch.cat(
        [counts.topk(2).indices, torch.arange(0, len(counts), max(1, len(counts) // SAMPLE), device=layer.device)]
    )
    for latent in latents.tolist()[:SAMPLE]:
        row, slot = (indices == latent).nonzero(as_tuple=True)
        wanted = (values[row, slot].double()[:, None] * upstream[row]).sum(0)
        near(f"gradient to latent {latent}", gradients["weight"][latent], wanted, unit)


def near(name: str, got: Tensor, want: Tensor, unit: float) -> None:
    """By norm: the gradient of the loss is rounded to the storage type before it is gathered."""
    off = float((got.double() - want).norm())
    if not off <= 8 * unit * float(want.norm()) + 1e-30:
        raise WrongAnswer(
            f"{name}: off by {off / max(float(want.norm()), 1e-30):.2e} of its norm, {8 * unit:.0e} is rounding"
        )


class Dictionaries:
    """S dictionaries [F, D] in float32, half of whose latents are noisy copies of those of the first."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        count, latents, width = (int(shape[name]) for name in "SFD")
        random = on(device, shape)
        self.stack = torch.empty(count, latents, width, device=device)
        for i in range(count):
            self.stack[i] = on_device(device, latents, width, random=random, dtype=torch.float32)
            if i:
                self.stack[i, : latents // 2] = self.stack[0, : latents // 2] + 0.5 * self.stack[i, : latents // 2]
        self.pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]


def check_nearest(problem: Dictionaries, answers: list[tuple[Any, ...]], exact: bool = True) -> None:
    """Of the first pair and the last: cosine and partner of a sample of rows, both ways, against float64."""
    for at in (0, len(problem.pairs) - 1):
        i, j = problem.pairs[at]
        a, b = (F.normalize(problem.stack[n].double(), dim=1) for n in (i, j))
        got = answers[at]
        for cosine, index, own, other in ((got[0], got[1], a, b), (got[2], got[3], b, a)):
            rows = torch.arange(0, len(own), max(1, len(own) // SAMPLE), device=problem.device)
            wanted = own[rows] @ other.T
            best = wanted.max(1).values
            bound = (own.shape[1] + 8) * 2.0**-24 if exact else 2.0**-6
            expect_close("cosine", cosine[rows], best, 2 * bound)
            picked = wanted.gather(1, index[rows, None].long())[:, 0]
            if (picked < best - 2 * bound).any():
                raise WrongAnswer("index: not the nearest")
