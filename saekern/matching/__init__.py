"""Which latent of one dictionary is which of another: best partners, one-to-one assignment, all pairs of many runs."""

from saekern.matching.all_pairs import match_all
from saekern.matching.assignment import linear_sum_assignment
from saekern.matching.geometry import center, whiten
from saekern.matching.pair import match
from saekern.matching.result import Certificate, Matching, Pair
from saekern.matching.store import PairStore

__all__ = [
    "Certificate",
    "Matching",
    "Pair",
    "PairStore",
    "center",
    "linear_sum_assignment",
    "match",
    "match_all",
    "whiten",
]
