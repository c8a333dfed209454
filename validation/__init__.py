"""Closed-form problems, measured orders, distances, the laws as public functions, strategies, pictures.

``strategies`` needs hypothesis and is imported by name: ``from carom.validation import strategies``. ``pictures`` imports matplotlib
when a picture is drawn.
"""

from . import pictures, problems
from .convergence import (
    Discretisation,
    Gap,
    OrnsteinUhlenbeck,
    discretisation,
    exponential_rates,
    gaussian_gap,
    linear_law,
)
from .cover import cover_expectation
from .distances import Distance, energy_distance, frechet_distance, sliced_wasserstein
from .domain_laws import check_domain
from .gallery import domain_picture
from .grid_law import GridLaw
from .laws import Law, LawError, Report
from .orders import BasisNoise, convergence_order, expectation, propagate_moments
from .report import report
from .residuals import Asymmetry, asymmetry, family_residuals, fokker_planck_residual
from .schedule_laws import check_schedule
from .solver_laws import check_solver

__all__ = [
    "linear_law",
    "gaussian_gap",
    "fokker_planck_residual",
    "family_residuals",
    "exponential_rates",
    "discretisation",
    "asymmetry",
    "OrnsteinUhlenbeck",
    "Gap",
    "GridLaw",
    "Discretisation",
    "Asymmetry",
    "BasisNoise",
    "Distance",
    "Law",
    "LawError",
    "Report",
    "check_domain",
    "check_schedule",
    "check_solver",
    "convergence_order",
    "cover_expectation",
    "domain_picture",
    "energy_distance",
    "expectation",
    "frechet_distance",
    "pictures",
    "problems",
    "propagate_moments",
    "report",
    "sliced_wasserstein",
]
