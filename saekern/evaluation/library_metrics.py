"""The figures of other libraries' evaluators, by their own names and definitions: they are not interchangeable."""

from typing import Any

import torch
from torch import Tensor

from saekern.activations.rows import Rows
from saekern.evaluation.rows import Variance, _dictionary, batches, encode, reconstruction

EPSILON = 1e-6  # overcomplete's


@torch.no_grad()
def library_metrics(sae: Any, rows: Rows, batch: int = 4096) -> dict[str, float]:
    """What SAELens, dictionary_learning, overcomplete and sparsify would report about an SAE on these rows.

    In float64, e = x − x̂, x̄ the mean row of all rows, m that of a batch. `batch` matters where a batch is named.

        sae_lens.explained_variance            1 − Σ‖e‖² / Σ‖x − x̄‖²: `explained_variance` of saekern too
        sae_lens.explained_variance_legacy     mean over rows of 1 − ‖e‖² / ‖x − m‖²
        sae_lens.mse, .cossim, .l0, .l1        means over rows of ‖e‖², cos(x, x̂), active latents, Σ|z|
        sae_lens.l2_norm_in, .l2_norm_out      means over rows of ‖x‖, ‖x̂‖
        sae_lens.l2_ratio                      mean over rows of ‖x̂‖ / ‖x‖; rows with ‖x‖ < 0.0001 are divided by 1
        sae_lens.relative_reconstruction_bias  mean over batches of Σ‖x̂‖² / Σ⟨x, x̂⟩
        dictionary_learning.frac_variance_explained  mean over batches of 1 − Σ_d var(e_d) / Σ_d var(x_d): the
                                               residual's mean does not count, so it is never below the first
        dictionary_learning.l2_loss            mean over batches of the mean ‖e‖
        dictionary_learning.frac_alive         share of latents that were active
        overcomplete.r2_score                  mean over batches of 1 − mean(e²) / (mean((x − c)²) + 10⁻⁶), c the mean
                                               of all numbers of the batch: an offset of the data raises it
        sparsify.fvu                           mean over batches of Σ‖e‖² / Σ‖x − m‖²: 1 − EV of a batch

    Raises:
        ValueError: no rows, or a width that is not the SAE's.
    """
    fired = torch.zeros(_dictionary(sae, rows).shape[0], dtype=torch.bool)
    by_row: dict[str, float] = {}
    by_batch: dict[str, float] = {}
    variance, count = Variance(rows.width), 0
    for x in batches(rows, batch):
        codes = encode(sae, x)
        x_hat = reconstruction(sae, codes, x).cpu().double()
        variance.add(x)
        values = codes.values.cpu().double()
        fired[codes.indices.cpu()[values != 0]] = True
        _add(by_row, _row_sums(x.double(), x_hat, values))
        _add(by_batch, _batch_figures(x.double(), x_hat))
        count += 1
    total, n = variance.total(), len(rows)
    names = ("explained_variance_legacy", "mse", "cossim", "l0", "l1", "l2_norm_in", "l2_norm_out", "l2_ratio")
    result = {"sae_lens.explained_variance": 1 - by_row["mse"] / total if total else float("nan")}
    result |= {f"sae_lens.{name}": by_row[name] / n for name in names}
    result |= {name: value / count for name, value in by_batch.items()}
    return result | {"dictionary_learning.frac_alive": float(fired.double().mean())}


def _row_sums(x: Tensor, x_hat: Tensor, values: Tensor) -> dict[str, Tensor]:
    error = (x - x_hat).square().sum(1)
    norm, norm_hat = x.norm(dim=1), x_hat.norm(dim=1)
    return {
        "explained_variance_legacy": (1 - error / (x - x.mean(0)).square().sum(1)).sum(),
        "mse": error.sum(),
        "cossim": ((x / norm[:, None]) * (x_hat / norm_hat[:, None])).sum(),
        "l0": (values != 0).sum(),
        "l1": values.abs().sum(),
        "l2_norm_in": norm.sum(),
        "l2_norm_out": norm_hat.sum(),
        "l2_ratio": (norm_hat / torch.where(norm < 1e-4, 1, norm)).sum(),
    }


def _batch_figures(x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
    error = x - x_hat
    square, spread = error.square(), (x - x.mean(0)).square().sum()
    about_mean = (error - error.mean(0)).square().sum()
    return {
        "sae_lens.relative_reconstruction_bias": x_hat.square().sum() / (x * x_hat).sum(),
        "dictionary_learning.frac_variance_explained": 1 - about_mean / spread,
        "dictionary_learning.l2_loss": square.sum(1).sqrt().mean(),
        "overcomplete.r2_score": 1 - square.mean() / ((x - x.mean()).square().mean() + EPSILON),
        "sparsify.fvu": square.sum() / spread,
    }


def _add(sums: dict[str, float], terms: dict[str, Tensor]) -> None:
    for name, term in terms.items():
        sums[name] = sums.get(name, 0.0) + float(term)
