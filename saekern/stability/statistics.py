"""What a latent of one SAE does on text: how often it fires, on how many tokens, and whether the token tells."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekern.activations.rows import Rows
from saekern.evaluation.rows import batches, encode
from saekern.stability.pair_counts import PairCounts

MERGE = 4_000_000  # entries of a batch that are counted before they are merged: 64 MB


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Statistics of one SAE's latents over n rows, [F] float64; NaN for dead ones. Made by `activation_statistics`."""

    rows: int
    """n."""
    counts: Tensor
    """[F] int64: rows in which the latent fires."""
    min_firings: int
    """Latents that fire less often count as dead: their statistics would tell that they are, and nothing else."""
    mean_activation: Tensor
    """Mean code over the rows in which the latent fires."""
    token_entropy: Tensor
    """−Σ_t p_t ln p_t in nats, p_t the share of token t among the latent's firings. At most ln of the firings: rare
    latents have less by that alone, which a comparison with shuffled tokens shows."""
    multi_token_ratio: Tensor
    """Mean, over the sequences in which the latent fires, of the share of their rows in which it does."""
    surface_score: Tensor
    """Held-out AUROC of the current token as the predictor of firing: tokens scored by how often the latent fires on
    them in the even sequences, judged on the odd ones. 1: the token says it all; 0.5: it says nothing. NaN also where
    the latent never fires, or always, in one half."""

    @property
    def live(self) -> Tensor:
        """[F] bool: the latents with at least `min_firings` firings."""
        return self.counts >= self.min_firings

    @property
    def frequency(self) -> Tensor:
        """[F]: share of rows in which the latent fires."""
        return self._masked(self.counts.double() / self.rows)

    def table(self) -> dict[str, Tensor]:
        """The statistics by name, [F] each, the frequency as its log10: what is compared and predicted from."""
        return {
            "log_frequency": self.frequency.log10(),
            "mean_activation": self.mean_activation,
            "token_entropy": self.token_entropy,
            "multi_token_ratio": self.multi_token_ratio,
            "surface_score": self.surface_score,
        }

    def to_json(self) -> dict[str, Any]:
        """Median and quartiles over live latents as plain numbers; None where there is none."""
        table = {"frequency": self.frequency} | self.table()
        out: dict[str, Any] = {"rows": self.rows, "min_firings": self.min_firings, "live": int(self.live.sum())}
        return out | {"dead": int((~self.live).sum())} | {name: _quartiles(values) for name, values in table.items()}

    def _masked(self, values: Tensor) -> Tensor:
        return torch.where(self.live, values, torch.nan)


@torch.no_grad()
def activation_statistics(
    sae: Any,
    rows: Rows,
    tokens: Tensor,
    sequences: Tensor,
    *,
    min_firings: int = 100,
    shuffle_seed: int | None = None,
    batch: int = 4096,
) -> ActivationStatistics:
    """Frequency, mean activation, token entropy, multi-token ratio and surface-form score of every latent, in one pass.

    Memory: 16 bytes for each (latent, token) pair that occurs, twice while they are merged.

    Args:
        sae: has `encode_sparse(x)` and `dictionary` [F, D]. A latent fires where its code is not zero.
        rows: [n, D].
        tokens: int64 [n] the token of each row, ≥ 0; of a cache: `cache.tokens.flatten()[cache.positions]`.
        sequences: int64 [n] ascending: which sequence each row is from; `cache.positions // cache.tokens.shape[1]`.
            Whole sequences are held out, because what repeats within one would leak.
        min_firings: 100, as the replication of Gerasimov et al. advises.
        shuffle_seed: the null: tokens are dealt out to the rows at random, so that they say nothing of the latents.

    Raises:
        ValueError: tokens or sequences that do not fit the rows, no rows, or another width than the SAE's.

    Source: entropy and multi-token ratio as in KronSAE (arXiv 2505.22255, appendix D), there over a buffer, here over
    all rows; the surface-form score is ours.
    """
    latents, width = sae.dictionary.shape
    if width != rows.width:
        raise ValueError(f"rows: expected the SAE's width {width}, got {rows.width}")
    for name, values in (("tokens", tokens), ("sequences", sequences)):
        if values.dtype != torch.int64 or values.shape != (len(rows),) or (len(values) and int(values.min()) < 0):
            raise ValueError(f"{name}: expected int64 [{len(rows)}] >= 0, got {values.dtype} {list(values.shape)}")
    if bool((sequences.diff() < 0).any()):
        raise ValueError("sequences: expected ascending numbers")
    if shuffle_seed is not None:
        tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(shuffle_seed))]
    sequences = sequences.unique_consecutive(return_inverse=True)[1]  # 0, 1, 2, …
    vocabulary = int(tokens.max()) + 1 if len(tokens) else 1
    held = sequences % 2 == 1
    totals = [torch.bincount(tokens[half], minlength=vocabulary) for half in (~held, held)]
    length = torch.bincount(sequences).double()  # rows of each sequence

    halves = [PairCounts(MERGE), PairCounts(MERGE)]
    counts, active = torch.zeros(latents, dtype=torch.int64), torch.zeros(latents, dtype=torch.int64)
    total, ratio = torch.zeros(latents, dtype=torch.float64), torch.zeros(latents, dtype=torch.float64)
    last = torch.full((latents,), -1)  # the sequence in which each latent was last seen to fire
    start = 0
    for x in batches(rows, batch):
        latent, value, row = _entries(encode(sae, x))
        row += start
        start += len(x)
        counts += torch.bincount(latent, minlength=latents)
        total.index_add_(0, latent, value)
        for half, chosen in zip(halves, (~held[row], held[row]), strict=True):
            half.add(latent[chosen] * vocabulary + tokens[row[chosen]])
        where = sequences[row]
        ratio.index_add_(0, latent, 1 / length[where])
        pair = (latent * len(length) + where).unique()
        at, where = pair // len(length), pair % len(length)
        new = where > last[at]  # a sequence that the batch continues is counted already
        at, where = at[new], where[new]
        active += torch.bincount(at, minlength=latents)
        last.scatter_reduce_(0, at, where, "amax")

    live = counts >= min_firings
    entropy, surface = _entropy(halves, vocabulary, counts), _surface(halves, totals, vocabulary, latents)
    found = (total / counts, entropy, ratio / active, surface)
    return ActivationStatistics(len(rows), counts, min_firings, *(torch.where(live, v, torch.nan) for v in found))


def _entries(codes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Latent, code (float64) and row within the batch of every code that is not zero."""
    values, indices = codes.values.cpu(), codes.indices.cpu()
    if codes.offsets is None:
        row = torch.arange(len(values)).repeat_interleave(values.shape[1])
    else:
        row = torch.arange(len(codes.offsets) - 1).repeat_interleave(codes.offsets.cpu().diff())
    fires = values.flatten() != 0
    return indices.flatten()[fires], values.flatten()[fires].double(), row[fires]


def _entropy(halves: list[PairCounts], vocabulary: int, counts: Tensor) -> Tensor:
    together = PairCounts(MERGE)
    for half in halves:
        together.add(*half.result())
    key, count = together.result()
    latent = key // vocabulary
    share = count.double() / counts[latent]
    return torch.zeros(len(counts), dtype=torch.float64).index_add_(0, latent, -share * share.log())


def _surface(halves: list[PairCounts], totals: list[Tensor], vocabulary: int, latents: int) -> Tensor:
    """Held-out AUROC of the training half's firing rates, from the counts of (latent, token) pairs alone.

    Of each latent the tokens on which it fired in training are sorted by their rate; all others have rate 0 and are one
    tie. Ties count half: pairs won = Σ over tie groups of positives · (negatives below + ½ negatives in the group).
    """
    (key, fired), (held_key, held_fired) = (half.result() for half in halves)
    seen, held_all = totals
    positives = torch.zeros(latents, dtype=torch.float64)
    positives.index_add_(0, held_key // vocabulary, held_fired.double())
    negatives = float(held_all.sum()) - positives
    token = key % vocabulary
    rate = fired.double() / seen[token]
    place = torch.searchsorted(held_key, key).clamp(max=max(0, len(held_key) - 1))
    hit = torch.zeros(len(key), dtype=torch.float64)
    if len(held_key):
        hit = torch.where(held_key[place] == key, held_fired[place].double(), 0.0)
    miss = held_all[token].double() - hit

    order = rate.argsort(stable=True)
    order = order[(key[order] // vocabulary).argsort(stable=True)]
    latent, rate, hit, miss = key[order] // vocabulary, rate[order], hit[order], miss[order]
    zero_hit = positives - torch.zeros(latents, dtype=torch.float64).index_add_(0, latent, hit)
    zero_miss = negatives - torch.zeros(latents, dtype=torch.float64).index_add_(0, latent, miss)
    won = zero_hit * zero_miss / 2
    if len(latent):
        new = torch.ones(len(latent), dtype=torch.bool)
        new[1:] = (latent[1:] != latent[:-1]) | (rate[1:] != rate[:-1])
        group = new.cumsum(0) - 1  # tie groups
        owner = latent[new]
        hits = torch.zeros(len(owner), dtype=torch.float64).index_add_(0, group, hit)
        misses = torch.zeros(len(owner), dtype=torch.float64).index_add_(0, group, miss)
        before = misses.cumsum(0) - misses
        first = torch.searchsorted(owner, owner)  # the first group of the same latent
        below = before - before[first] + zero_miss[owner]
        won.index_add_(0, owner, hits * (below + misses / 2))
    return torch.where((positives > 0) & (negatives > 0), won / (positives * negatives), torch.nan)


def _quartiles(values: Tensor) -> dict[str, float | None]:
    known = values[values.isfinite()]
    if not len(known):
        return {"q25": None, "median": None, "q75": None}
    low, middle, high = torch.quantile(known, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return {"q25": low, "median": middle, "q75": high}
