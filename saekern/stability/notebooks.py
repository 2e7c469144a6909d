"""The four arms of the notebooks released with "Ablating Archetypes", their hyper-parameters, and arms beside them."""

from typing import Any

import torch
from torch import Tensor

from saekern import ops
from saekern.sae import SAE, Loss, TopKSAE
from saekern.stability.ablation import InitialisationAblation
from saekern.stability.arms import Arm, Pool, arm, derived
from saekern.stability.jackknife import Estimate
from saekern.training import TrainConfig

REVIVE = 1e-3
EPOCHS, BATCH = 20, 1024
# Mean Hungarian cosine distance over all atoms of one pair of runs: rows centred, rows as they are.
PUBLISHED = {
    "TopK, random start": (0.4187, 0.2834),
    "RA-SAE": (0.2447, 0.0870),
    "RA-SAE, projection off": (0.0812, 0.0887),
    "TopK, k-means start": (0.0724, 0.0759),
}


class NotebookTopK(TopKSAE):
    """Their loss: mean squared error − 10⁻³ · mean(pre-activation · dead), dead: active in no row of the batch. Their
    decoder has no bias: b_dec stays 0. Their encoder is torch's Linear as it comes, in every arm."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.b_dec.requires_grad_(False)

    def loss(self, x: Tensor, dead: Tensor | None = None) -> Loss:
        rows = self.flat(x)
        codes = self.encode_sparse(rows)
        x_hat = ops.decode(codes.values, codes.indices, self.W_dec, self.b_dec)
        mse = (rows - x_hat).square().mean()
        fired = torch.zeros(self.d_sae, dtype=torch.int64, device=rows.device)
        fired.scatter_add_(0, codes.indices.reshape(-1), (codes.values > 0).reshape(-1).to(torch.int64))
        # Σ over rows of x W + b is linear: the mean row's, without the [B, F] of pre-activations.
        pre = rows.mean(0) @ self.W_enc + self.b_enc
        revive = -REVIVE * torch.where(fired == 0, pre, 0).mean()
        return Loss(mse + revive, {"mse": mse, "revive": revive}, x_hat.reshape(x.shape), codes)


def notebook_config(rows: int, *, epochs: int = EPOCHS, data_seed: int = 0) -> TrainConfig:
    """Adam, learning rate 5e-3 throughout, batches of 1024, 20 epochs over `rows`, gradients clipped to norm 1."""
    return TrainConfig(
        rows=max(BATCH, epochs * rows),
        batch_size=BATCH,
        lr=5e-3,
        warmup=0.0,
        decay=0.0,
        eps=1e-8,
        clip=1.0,
        pre_bias_rows=0,
        data_seed=data_seed,
    )


def notebook_arms(
    d_sae: int = 200,
    k: int = 3,
    *,
    points: int = 100,
    points_seed: int = 0,
    relaxation: float = 0.1,
    more: bool = False,
) -> list[Arm]:
    """TopK from random directions (normalised, the baseline), RA-SAE, RA-SAE without its projection, and TopK from the
    k-means points (not normalised); all but the first share their points, D(0) = 0. Half of the atoms start at zero.

    Rows are taken as they are; for the notebooks' centred version subtract their mean first. Train with
    `notebook_config(len(rows))`. The third and the fourth arm are one model, written twice in the notebooks; here they
    differ by the draw of the encoders, and show how much that does. Ours, not theirs: atoms are projected after each
    step rather than in the next forward pass, and the k-means is our own.

    Args:
        more: with the arms that take the published comparison apart: k-means start with normalised atoms, and RA-SAE
            from each run's own k-means, from that of each run's half of the rows, and from random W.
    """
    pool = Pool()
    common = {"points": points, "points_seed": points_seed, "centre": False, "base": NotebookTopK, "pool": pool}
    archetypal = {"constraint": True, "normalisation": "identity", "relaxation": relaxation, "multiplier": True}
    free = {"start": "kmeans-shared", "normalisation": "identity"}
    recipes: dict[str, dict[str, Any]] = {
        "TopK, random start": {"start": "random"},
        "RA-SAE": {"start": "kmeans-shared", **archetypal},
        "RA-SAE, projection off": free,
        "TopK, k-means start": free,
    }
    if more:
        recipes |= {
            "TopK, k-means start, l2": {"start": "kmeans-shared"},
            "RA-SAE, own k-means": {"start": "kmeans-own", **archetypal},
            "RA-SAE, k-means of halves": {"start": "kmeans-half", **archetypal},
            "RA-SAE, random W": {"start": "random", **archetypal},
        }
    made = []
    for stream, (name, recipe) in enumerate(recipes.items()):
        inner = arm(d_sae, k, name=name, **common, **recipe)  # type: ignore[arg-type]
        made.append(
            Arm(name, _with_linear_encoder(inner, 0 if name != "TopK, k-means start" else stream), inner.factors)
        )
    for one in made:
        one.factors["tied"] = False
    return made


def beside_published(found: InitialisationAblation, *, centred: bool) -> list[dict[str, Any]]:
    """Our D(T) of the four arms beside the notebooks', over all atoms in raw cosine, as theirs are. Values depend on
    the rows; what can agree is the sign of each arm's difference from the first: "agrees", "disagrees", or "undecided"
    where our interval holds 0. Theirs have one pair of runs and no interval.

    Args:
        centred: whether the rows' mean was subtracted.
    """
    column = 0 if centred else 1
    differences = found.differences("raw", dead_too=True)
    base, lines = PUBLISHED[found.arms[0].name][column], []
    for arm_ in found.arms:
        if arm_.name not in PUBLISHED:
            continue
        theirs, every = PUBLISHED[arm_.name][column], arm_.trajectories.geometries["raw"].between_all
        ours = Estimate(*(value[-1] for value in every)).to_json()
        line: dict[str, Any] = {"arm": arm_.name, "published": theirs, "ours": ours}
        if arm_.name in differences:
            gap = differences[arm_.name]
            decided = bool(gap.low > 0) or bool(gap.high < 0)
            same = (float(gap.mean) > 0) == (theirs > base)
            line |= {
                "published_difference": theirs - base,
                "difference": gap.to_json(),
                "sign": ("agrees" if same else "disagrees") if decided else "undecided",
            }
        lines.append(line)
    return lines


def _with_linear_encoder(inner: Arm, stream: int) -> Any:
    def make(init_seed: int, rows: Any) -> SAE:
        sae = inner.make(init_seed, rows)
        generator = torch.Generator().manual_seed(derived(init_seed, 100 + stream))
        reach = sae.d_in**-0.5  # torch.nn.Linear's uniform bound, of weight and bias alike
        with torch.no_grad():
            sae.W_enc.T.copy_((2 * torch.rand(sae.d_sae, sae.d_in, generator=generator) - 1) * reach)
            sae.b_enc.copy_((2 * torch.rand(sae.d_sae, generator=generator) - 1) * reach)
        return sae

    return make
