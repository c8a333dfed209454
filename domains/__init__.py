"""Sets with walls: membership, projection, reflection, uniform law, heat kernel."""

from .ball import Ball
from .domain import Domain, FoldedDomain, HeatKernel, KernelDomain
from .ensemble import Ensemble
from .euclidean import Euclidean
from .hypercube import Hypercube
from .orthant import Orthant
from .phase import phase_space
from .polytope import Polytope
from .product import Product
from .registry import domain_from_config
from .regular_simplex import RegularSimplex
from .simplex import Simplex
from .torus import Torus

__all__ = [
    "Ball",
    "Domain",
    "Ensemble",
    "Euclidean",
    "FoldedDomain",
    "HeatKernel",
    "Hypercube",
    "KernelDomain",
    "Orthant",
    "Polytope",
    "phase_space",
    "Product",
    "RegularSimplex",
    "Simplex",
    "Torus",
    "domain_from_config",
]
