"""Looking at single latents: their contexts, histograms, logit lens and neighbours."""

from saekern.features.choose import densest, drawn
from saekern.features.collect import Activity, collect
from saekern.features.contexts import Context
from saekern.features.dashboard import Band, Dashboard, Latent, dashboard
from saekern.features.logit_lens import LogitLens, Unembedding, logit_lens, unembedding_of
from saekern.features.neighbours import Neighbours, in_other, in_same, nearest_rows
from saekern.features.neuronpedia import neuronpedia
from saekern.features.record import record

__all__ = [
    "Activity",
    "Band",
    "Context",
    "Dashboard",
    "Latent",
    "LogitLens",
    "Neighbours",
    "Unembedding",
    "collect",
    "dashboard",
    "densest",
    "drawn",
    "in_other",
    "in_same",
    "logit_lens",
    "nearest_rows",
    "neuronpedia",
    "record",
    "unembedding_of",
]
