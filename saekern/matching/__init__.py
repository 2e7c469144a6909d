"""Which latent of one dictionary is which latent of another."""

from saekern.matching.assignment import linear_sum_assignment

__all__ = ["linear_sum_assignment"]
