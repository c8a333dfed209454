"""Sets with walls: membership, projection, reflection, uniform law, heat kernel."""

from .domain import Domain, FoldedDomain, HeatKernel, KernelDomain
from .euclidean import Euclidean
from .hypercube import Hypercube
from .orthant import Orthant
from .product import Product
from .registry import domain_from_config
from .simplex import Simplex
from .torus import Torus

__all__ = [
    "Domain",
    "Euclidean",
    "FoldedDomain",
    "HeatKernel",
    "Hypercube",
    "KernelDomain",
    "Orthant",
    "Product",
    "Simplex",
    "Torus",
    "domain_from_config",
]
