"""Runs whose stable latents are known, with statistics made up for them."""

import torch

from saekern.stability import ActivationStatistics, feature_stability


def example(runs=4, latents=120, stable=0.4, effect=1.5, dead=0.2, rows=100_000):
    """Statistics of each run and the runs' stability. The first share `stable` of the latents is in every run; its log
    frequencies are `effect` standard deviations higher. The share `dead` of the others, and a quarter of it among them,
    fires too seldom for statistics; half of these the stability takes for live all the same."""
    shared = int(stable * latents)
    features = torch.randn(shared, 200)
    dictionaries, statistics, live = [], [], []
    for _ in range(runs):
        dictionaries.append(torch.cat([features, torch.randn(latents - shared, 200)]))
        steady = torch.arange(latents) < shared
        z = torch.randn(latents, dtype=torch.float64) + effect * steady
        counts = (1000 * 2**z).long().clamp(min=100)
        rare = torch.rand(latents) < torch.where(steady, dead / 4, dead)
        counts[rare] = torch.where(torch.rand(latents) < 0.5, 3, 50)[rare]
        alive = counts >= 100
        values = [torch.where(alive, torch.rand(latents).double(), torch.nan) for _ in range(4)]
        statistics.append(ActivationStatistics(rows, counts, 100, *values))
        live.append(counts >= 10)
    return statistics, feature_stability(dictionaries, live=live)
