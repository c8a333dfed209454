"""Closed-form problems, measured orders, distances, the laws as public functions, strategies, pictures."""

from . import pictures
from .distances import Distance, energy_distance, frechet_distance, sliced_wasserstein

__all__ = ["Distance", "energy_distance", "frechet_distance", "pictures", "sliced_wasserstein"]
