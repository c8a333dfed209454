"""Scores: closed forms, and neural ones in ``carom.scores.neural``."""

from .empirical import EmpiricalScore
from .energy import EnergyScore
from .mixture import GaussianMixtureScore

__all__ = ["EmpiricalScore", "EnergyScore", "GaussianMixtureScore"]
