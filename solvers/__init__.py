"""Step rules, time grids, noise sources, walls and the loop. Solvers take any callable as a score."""

from ..processes import Wall
from .adaptive import AdaptiveODE
from .bookkeeping import Info
from .external import TorchDiffEq
from .grids import karras, quadratic, uniform, uniform_lambda
from .loop import integrate, sample, solve
from .noise import BrownianPath, Noise, SampleNoise, WhiteNoise
from .runge_kutta import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    EULER,
    HEUN,
    KUTTA3,
    MIDPOINT,
    RALSTON,
    RK4,
    Euler,
    Heun,
    RungeKutta,
    Tableau,
)
from .solution import Solution, SolveError, Status
from .solver import Record, Row, Solver, bind, combine
from .stochastic import EulerMaruyama, ReflectedEulerMaruyama
from .walls import Cover, Project, Reflect

SOLVERS: tuple[type[Solver], ...] = (
    Euler,
    Heun,
    RungeKutta,
    AdaptiveODE,
    EulerMaruyama,
    ReflectedEulerMaruyama,
    TorchDiffEq,
)

__all__ = [
    "BOGACKI_SHAMPINE",
    "DORMAND_PRINCE",
    "EULER",
    "HEUN",
    "KUTTA3",
    "MIDPOINT",
    "RALSTON",
    "RK4",
    "SOLVERS",
    "AdaptiveODE",
    "BrownianPath",
    "Cover",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Info",
    "Noise",
    "Project",
    "Record",
    "Reflect",
    "ReflectedEulerMaruyama",
    "Row",
    "RungeKutta",
    "SampleNoise",
    "Solution",
    "SolveError",
    "Solver",
    "Status",
    "Tableau",
    "TorchDiffEq",
    "Wall",
    "WhiteNoise",
    "bind",
    "combine",
    "integrate",
    "karras",
    "quadratic",
    "sample",
    "solve",
    "uniform",
    "uniform_lambda",
]
