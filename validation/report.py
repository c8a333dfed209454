"""The laws run over what the library itself offers, as one table."""

from __future__ import annotations

import math

from ..domains import Ball, Domain, Euclidean, Hypercube, Orthant, Polytope, Product, RegularSimplex, Simplex, Torus
from ..processes import EDM, VE, VP, CosineVP, Discrete, FlowMatching, Schedule, SubVP
from ..solvers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    ExponentialAdams,
    Heun,
    ReflectedEulerMaruyama,
    RungeKutta,
    Solver,
    UniPC,
)
from .domain_laws import check_domain
from .laws import Report
from .schedule_laws import check_schedule
from .solver_laws import check_solver

DOMAINS: tuple[Domain, ...] = (
    Euclidean((2,)),
    Hypercube((2,)),
    Hypercube((2,), [-1.0, 0.0], [3.0, math.inf]),
    Orthant((2,)),
    Torus((2,), 2 * math.pi),
    Simplex(3),
    Simplex(4, (2,)),
    RegularSimplex(3),
    RegularSimplex(5),
    Ball(2),
    Ball(3),
    Polytope([[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1]], [1, 1, 0, 0, 1.4]),
    Product(Hypercube((1,)), Simplex(3)),
)
SCHEDULES: tuple[Schedule, ...] = (VP(), SubVP(), VE(), EDM(), CosineVP(), FlowMatching(), Discrete.ddpm(100))
SOLVERS: tuple[Solver, ...] = (
    Euler(),
    Heun(),
    RungeKutta(),
    DDIM(),
    UniPC(3),
    ExponentialAdams(4, "velocity"),
    DPMSolverPP(3),
    AdaptiveODE(),
    EulerMaruyama(),
    ReflectedEulerMaruyama(),
    Ancestral(),
    ExponentialAdams(2, sde=True),
)


def report() -> list[Report]:
    """Check every domain, schedule and solver of the library; print a report to see its laws, ``.ok`` to ask for its verdict."""
    return [
        *(check_domain(domain, raises=False) for domain in DOMAINS),
        *(check_schedule(schedule, raises=False) for schedule in SCHEDULES),
        *(check_solver(solver, raises=False) for solver in SOLVERS),
    ]
