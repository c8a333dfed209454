"""Sets with walls: membership, projection, reflection, uniform law, heat kernel."""

from .domain import Domain, FoldedDomain, HeatKernel, KernelDomain
from .euclidean import Euclidean
from .hypercube import Hypercube
from .orthant import Orthant
from .registry import domain_from_config

__all__ = [
    "Domain",
    "Euclidean",
    "FoldedDomain",
    "HeatKernel",
    "Hypercube",
    "KernelDomain",
    "Orthant",
    "domain_from_config",
]
