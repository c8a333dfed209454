"""The laws run over what the library itself offers, as one table."""

from __future__ import annotations

from ..domains import Domain, Euclidean, Hypercube, Orthant
from ..processes import EDM, VE, VP, CosineVP, Discrete, FlowMatching, Schedule, SubVP
from ..solvers import AdaptiveODE, Euler, EulerMaruyama, Heun, ReflectedEulerMaruyama, RungeKutta, Solver
from .domain_laws import check_domain
from .laws import Report
from .schedule_laws import check_schedule
from .solver_laws import check_solver

DOMAINS: tuple[Domain, ...] = (Euclidean((2,)), Hypercube((2,)), Hypercube((1,), -1.0, 3.0), Orthant((2,)))
SCHEDULES: tuple[Schedule, ...] = (VP(), SubVP(), VE(), EDM(), CosineVP(), FlowMatching(), Discrete.ddpm(100))
SOLVERS: tuple[Solver, ...] = (Euler(), Heun(), RungeKutta(), AdaptiveODE(), EulerMaruyama(), ReflectedEulerMaruyama())


def report() -> list[Report]:
    """Check every domain, schedule and solver of the library; print a report to see its laws, ``.ok`` to ask for its verdict."""
    return [
        *(check_domain(domain, raises=False) for domain in DOMAINS),
        *(check_schedule(schedule, raises=False) for schedule in SCHEDULES),
        *(check_solver(solver, raises=False) for solver in SOLVERS),
    ]
