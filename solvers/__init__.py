"""Step rules, time grids, noise sources, walls and the loop. Solvers take any callable as a score."""

from ..processes import Wall
from .adams import DEIS, ERSDE, IPNDM, Adams
from .adaptive import AdaptiveODE
from .adaptive_sde import AdaptiveSDE
from .bookkeeping import Info
from .churn import EDMStochastic, Restart, RestartInterval
from .dpm import DPMSolver, DPMSolverPP, dpm_solver_fast
from .external import TorchDiffEq, TorchSDE
from .grids import karras, quadratic, uniform, uniform_lambda
from .half_line import LepingleEulerMaruyama
from .langevin import AnnealedLangevin, LangevinCorrector, PredictorCorrector
from .linear import LinearSolver, Reading, Stage
from .loop import integrate, sample, solve
from .multistep import ExponentialAdams, falling_end, rising, singlestep_start
from .noise import BrownianPath, Noise, SampleNoise, WhiteNoise
from .onestep import DDIM, Ancestral, ReverseDiffusion
from .runge_kutta import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    EULER,
    HEUN,
    KUTTA3,
    MIDPOINT,
    RALSTON,
    RK4,
    TSITOURAS,
    Euler,
    Heun,
    RungeKutta,
    Tableau,
)
from .solution import Solution, SolveError, Status
from .solver import Record, Row, Solver, bind, combine
from .stochastic import EulerMaruyama, Milstein, ReflectedEulerMaruyama, ReflectedStrang
from .unipc import SASolver, UniPC
from .walls import Cover, Oblique, Penalise, Project, Reflect, Reject

SOLVERS: tuple[type[Solver], ...] = (
    Euler,
    Heun,
    RungeKutta,
    AdaptiveODE,
    AdaptiveSDE,
    TorchDiffEq,
    TorchSDE,
    DDIM,
    DPMSolver,
    DPMSolverPP,
    UniPC,
    DEIS,
    ExponentialAdams,
    Adams,
    IPNDM,
    Ancestral,
    ReverseDiffusion,
    SASolver,
    ERSDE,
    EDMStochastic,
    Restart,
    PredictorCorrector,
    AnnealedLangevin,
    EulerMaruyama,
    ReflectedEulerMaruyama,
    Milstein,
    ReflectedStrang,
    LepingleEulerMaruyama,
)

__all__ = [
    "BOGACKI_SHAMPINE",
    "DDIM",
    "DEIS",
    "DORMAND_PRINCE",
    "ERSDE",
    "EULER",
    "HEUN",
    "IPNDM",
    "KUTTA3",
    "MIDPOINT",
    "RALSTON",
    "RK4",
    "SOLVERS",
    "TSITOURAS",
    "Adams",
    "AdaptiveODE",
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "BrownianPath",
    "Cover",
    "DPMSolver",
    "DPMSolverPP",
    "EDMStochastic",
    "Euler",
    "EulerMaruyama",
    "ExponentialAdams",
    "Heun",
    "Info",
    "LangevinCorrector",
    "LepingleEulerMaruyama",
    "LinearSolver",
    "Milstein",
    "Noise",
    "Oblique",
    "Penalise",
    "PredictorCorrector",
    "Project",
    "Reading",
    "Record",
    "Reflect",
    "ReflectedEulerMaruyama",
    "ReflectedStrang",
    "Reject",
    "Restart",
    "RestartInterval",
    "ReverseDiffusion",
    "Row",
    "RungeKutta",
    "SASolver",
    "SampleNoise",
    "Solution",
    "SolveError",
    "Solver",
    "Stage",
    "Status",
    "Tableau",
    "TorchDiffEq",
    "TorchSDE",
    "UniPC",
    "Wall",
    "WhiteNoise",
    "bind",
    "combine",
    "dpm_solver_fast",
    "falling_end",
    "integrate",
    "karras",
    "quadratic",
    "rising",
    "sample",
    "singlestep_start",
    "solve",
    "uniform",
    "uniform_lambda",
]
