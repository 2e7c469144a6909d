"""Problems for the assignment benches: planted pairs of dictionaries, real ones, and matrices that hurt solvers.

A dictionary has unit rows, so that cosines are products. The planted kinds differ in what two training runs may share:

sae      60 % of the latents, with noise; the rest random within one subspace of 64 dimensions.
sae30    The same with 30 % shared, the figure of Llama dictionaries with 131k latents.
dead     60 % shared, 20 % in the subspace, 20 % isotropic: latents left as they were initialised.
dupdead  30 % shared, 40 % in clusters of other sizes on either side (feature splitting), the rest in the subspace.
aniso    30 % shared, all rows drawn with a power-law spectrum around one mean: every cosine is large.
clust    Nothing shared but n/20 clusters, each with about 20 latents on either side.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Generator, Tensor

from saekern.bench.common import Absent

RANK = 64  # of the subspace in which latents that are not shared lie
BLOCK = 4096  # rows drawn at a time: large dictionaries exist once, not with their noise and copies beside them


def dictionaries(kind: str, n: int, width: int = 768, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two float32 dictionaries [n, width]; the second's latents are in random order."""
    random = Generator().manual_seed(seed)
    a, b = DICTIONARIES[kind](n, width, random)
    return a, shuffled(b, random)


def matrix(kind: str, n: int, seed: int = 0) -> Tensor:
    """A float32 cost [n, n]."""
    return MATRICES[kind](n, Generator().manual_seed(seed))


def cost_of(a: Tensor, b: Tensor) -> Tensor:
    """1 − cosine [n, m], made in place: one matrix in memory."""
    return (a @ b.T).neg_().add_(1)


def real_pair(folder: Path | None, pair: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n latents of two decoders, float32 with unit rows: `folder`/seed0.safetensors and seed1 for "0-1".

    Raises Absent without a folder, or where it has no such file."""
    a, b = (load_decoder(folder, f"seed{seed}.safetensors", n) for seed in pair.split("-"))
    return a, b


def load_decoder(folder: Path | None, name: str, n: int) -> Tensor:
    if folder is None:
        raise Absent("real dictionaries are read with `--data FOLDER`")
    if not (folder / name).exists():
        raise Absent(f"no {name} in the folder of `--data`")
    with safe_open(folder / name, "pt") as file:
        return F.normalize(file.get_slice("W_dec")[:n].float(), dim=1)


# Dictionaries


def sae(n: int, width: int, random: Generator) -> tuple[Tensor, Tensor]:
    return planted(n, width, random, shared=0.6, isotropic=0.0)


def sae30(n: int, width: int, random: Generator) -> tuple[Tensor, Tensor]:
    return planted(n, width, random, shared=0.3, isotropic=0.0)


def dead(n: int, width: int, random: Generator) -> tuple[Tensor, Tensor]:
    return planted(n, width, random, shared=0.6, isotropic=0.2)


def dupdead(n: int, width: int, random: Generator) -> tuple[Tensor, Tensor]:
    """Latents choose their cluster with weights 1/rank that are shuffled anew for b: the sizes on the two sides have
    little to do with each other, so that many latents must leave their cluster."""
    shared, clustered = int(0.3 * n), int(0.4 * n)
    a, b = planted(n, width, random, shared=0.3, isotropic=0.0)
    centres = unit(max(1, clustered // 20), width, random)
    for side in (a, b):
        weights = 1 / torch.arange(1, len(centres) + 1)[torch.randperm(len(centres), generator=random)]
        members = torch.multinomial(weights, clustered, replacement=True, generator=random)
        near_(side[shared : shared + clustered], centres, members, random)
    return a, b


def aniso(n: int, width: int, random: Generator) -> tuple[Tensor, Tensor]:
    """Standard deviation i^(−1/2) along the i-th axis; the mean is as long as a row's deviation from it."""
    scale = torch.arange(1, width + 1).rsqrt()
    mean = torch.randn(width, generator=random) * scale
    shared = int(0.3 * n)
    a, b = torch.empty(n, width), torch.empty(n, width)
    for side in (a, b):
        for rows in side.split(BLOCK):
            torch.randn(rows.shape, generator=random, out=rows).mul_(scale)
    mix_(b[:shared], a[:shared], random)
    for side in (a, b):
        for rows in side.split(BLOCK):
            rows.add_(mean)
            normalize_(rows)
    return a, b


def clust(n: int, width: int, random: Generator) -> tuple[Tensor, Tensor]:
    centres = unit(max(1, n // 20), width, random)
    a, b = torch.empty(n, width), torch.empty(n, width)
    for side in (a, b):
        near_(side, centres, torch.randint(len(centres), (n,), generator=random), random)
    return a, b


def planted(n: int, width: int, random: Generator, shared: float, isotropic: float) -> tuple[Tensor, Tensor]:
    """First the shared latents, last the isotropic ones, between them those of the subspace."""
    first, last = int(shared * n), n - int(isotropic * n)
    basis = torch.randn(min(RANK, width), width, generator=random)
    a, b = torch.empty(n, width), torch.empty(n, width)
    for side in (a, b):
        for rows in side.split(BLOCK):
            normalize_(torch.randn(rows.shape, generator=random, out=rows))
        for rows in side[first:last].split(BLOCK):
            torch.mm(torch.randn(len(rows), len(basis), generator=random), basis, out=rows)
            normalize_(rows)
    mix_(b[:first], a[:first], random)
    for rows in b[:first].split(BLOCK):
        normalize_(rows)
    return a, b


def unit(n: int, width: int, random: Generator) -> Tensor:
    return F.normalize(torch.randn(n, width, generator=random), dim=1)


def mix_(noise: Tensor, source: Tensor, random: Generator) -> None:
    """noise ← c · source + √(1 − c²) · noise, c uniform in [0.7, 0.98] for each row."""
    for rows, of in zip(noise.split(BLOCK), source.split(BLOCK), strict=True):
        c = 0.7 + 0.28 * torch.rand(len(rows), 1, generator=random)
        rows.mul_((1 - c * c).sqrt()).addcmul_(c, of)


def near_(rows: Tensor, centres: Tensor, members: Tensor, random: Generator) -> None:
    """Unit rows around the centres that `members` names, at cosines of 0.7 to 0.98 to them."""
    for block, chosen in zip(rows.split(BLOCK), members.split(BLOCK), strict=True):
        normalize_(torch.randn(block.shape, generator=random, out=block))
        mix_(block, centres[chosen], random)
        normalize_(block)


def normalize_(rows: Tensor) -> None:
    rows.div_(rows.norm(dim=1, keepdim=True))


def shuffled(rows: Tensor, random: Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=random)]


DICTIONARIES: dict[str, Callable[[int, int, Generator], tuple[Tensor, Tensor]]] = {
    make.__name__: make for make in (sae, sae30, dead, dupdead, aniso, clust)
}


# Matrices


def uniform(n: int, random: Generator) -> Tensor:
    """Independent numbers in [0, 1): the textbook's hard case."""
    return torch.rand(n, n, generator=random)


def equal(n: int, random: Generator) -> Tensor:
    return torch.ones(n, n)


def integers(n: int, random: Generator, count: int) -> Tensor:
    """0 … count − 1: masses of ties."""
    return torch.randint(count, (n, n), generator=random).float()


def zeros(n: int, random: Generator) -> Tensor:
    """sae with a fifth of the latents of either side at zero norm: those rows and columns are constant."""
    a, b = sae(n, 768, random)
    b = shuffled(b, random)
    for side in (a, b):
        side[torch.randperm(n, generator=random)[: n // 5]] = 0
    return cost_of(a, b)


def duplicates(n: int, random: Generator) -> Tensor:
    """sae with an eighth of the latents of either side exact copies of others: 500 for n = 4000."""
    a, b = sae(n, 768, random)
    b = shuffled(b, random)
    for side in (a, b):
        order = torch.randperm(n, generator=random)
        side[order[: n // 8]] = side[order[n // 8 : 2 * (n // 8)]]
    return cost_of(a, b)


def products(n: int, random: Generator) -> Tensor:
    """i · j, Machol and Wien 1976: the longest augmenting paths there are. Exact in float32 up to n = 4096."""
    index = torch.arange(1.0, n + 1)
    return index[:, None] * index


def points(n: int, random: Generator) -> Tensor:
    """Distances between two sets of points in a square: every row competes with its whole neighbourhood."""
    return torch.cdist(torch.rand(n, 2, generator=random), torch.rand(n, 2, generator=random))


MATRICES: dict[str, Callable[[int, Generator], Tensor]] = {
    "uniform": uniform,
    "equal": equal,
    "integers10": lambda n, random: integers(n, random, 10),
    "integers1000": lambda n, random: integers(n, random, 1000),
    "zeros": zeros,
    "duplicates": duplicates,
    "products": products,
    "points": points,
}
