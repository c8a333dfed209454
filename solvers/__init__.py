"""Step rules, time grids, noise sources, walls and the loop. Solvers take any callable as a score."""

from ..processes import Wall
from . import bridge
from .adams import DEIS, ERSDE, IPNDM, Adams
from .adaptive import AdaptiveODE
from .adaptive_sde import AdaptiveSDE
from .analytic import (
    AnalyticDPM,
    PredictionResidual,
    ScoreStatistics,
    SecondMoment,
    estimate_statistics,
    optimal,
    reverse_variance,
)
from .bookkeeping import Info
from .bridge import GaussianBridge
from .churn import EDMStochastic, Restart, RestartInterval
from .critically_damped import SSCS
from .divergence import Divergence, Exact, Hutchinson
from .dpm import DPMSolver, DPMSolverPP, dpm_solver_fast
from .editing import edit, interpolate
from .encoding import RoundTrip, encode, round_trip
from .external import TorchDiffEq, TorchSDE
from .first_passage import FirstPassage, first_passage
from .grid_files import load_grid, read_grid_file, save_grid
from .grids import (
    align,
    beta,
    discrete,
    grid_from_diffusers,
    iddpm,
    iddpm_levels,
    karras,
    polyexponential,
    quadratic,
    uniform,
    uniform_lambda,
)
from .half_line import LepingleEulerMaruyama
from .inpainting import Inpaint, inpaint
from .kernels import (
    RBF,
    Bandwidth,
    FixedBandwidth,
    Kernel,
    LinearKernel,
    MedianBandwidth,
    PercentileBandwidth,
    VanishingKernel,
)
from .kinetic import BAOAB, OBABO
from .langevin import AnnealedLangevin, LangevinCorrector, PredictorCorrector
from .likelihood import BitsPerDim, Likelihood, bits_per_dim, log_likelihood
from .linear import LinearSolver, Reading, Stage
from .loop import integrate, sample, solve
from .metropolis import MALA
from .multistep import ExponentialAdams, falling_end, rising, singlestep_start
from .noise import BrownianPath, Noise, SampleNoise, WhiteNoise
from .onestep import DDIM, Ancestral, ReverseDiffusion
from .particles import GFSD, GFSF, SVGD, Blob, ParticleFlow
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
from .sinkhorn import GridBridge, Weighted, sinkhorn
from .solution import Solution, SolveError, Status
from .solver import Record, Row, Solver, bind, combine
from .stochastic import EulerMaruyama, Milstein, ReflectedEulerMaruyama, ReflectedStrang
from .tuning import tuned
from .unipc import SASolver, UniPC
from .variational import Elbo, elbo
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
    AnalyticDPM,
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
#: rules for equations of their own, which generate from no diffusion process
LANGEVIN_SOLVERS: tuple[type[Solver], ...] = (MALA, BAOAB, OBABO, SSCS)

__all__ = [
    "Adams",
    "AdaptiveODE",
    "AdaptiveSDE",
    "AnalyticDPM",
    "Ancestral",
    "AnnealedLangevin",
    "BAOAB",
    "BOGACKI_SHAMPINE",
    "Bandwidth",
    "BitsPerDim",
    "Blob",
    "BrownianPath",
    "Cover",
    "DDIM",
    "DEIS",
    "DORMAND_PRINCE",
    "DPMSolver",
    "DPMSolverPP",
    "Divergence",
    "EDMStochastic",
    "ERSDE",
    "EULER",
    "Elbo",
    "Euler",
    "EulerMaruyama",
    "Exact",
    "ExponentialAdams",
    "FirstPassage",
    "FixedBandwidth",
    "GFSD",
    "GFSF",
    "GaussianBridge",
    "GridBridge",
    "HEUN",
    "Heun",
    "Hutchinson",
    "IPNDM",
    "Info",
    "Inpaint",
    "KUTTA3",
    "Kernel",
    "LANGEVIN_SOLVERS",
    "LangevinCorrector",
    "LepingleEulerMaruyama",
    "Likelihood",
    "LinearKernel",
    "LinearSolver",
    "MALA",
    "MIDPOINT",
    "MedianBandwidth",
    "Milstein",
    "Noise",
    "OBABO",
    "Oblique",
    "ParticleFlow",
    "Penalise",
    "PercentileBandwidth",
    "PredictionResidual",
    "PredictorCorrector",
    "Project",
    "RALSTON",
    "RBF",
    "RK4",
    "Reading",
    "Record",
    "Reflect",
    "ReflectedEulerMaruyama",
    "ReflectedStrang",
    "Reject",
    "Restart",
    "RestartInterval",
    "ReverseDiffusion",
    "RoundTrip",
    "Row",
    "RungeKutta",
    "SASolver",
    "SOLVERS",
    "SVGD",
    "SSCS",
    "SampleNoise",
    "ScoreStatistics",
    "SecondMoment",
    "Solution",
    "SolveError",
    "Solver",
    "Stage",
    "Status",
    "TSITOURAS",
    "Tableau",
    "TorchDiffEq",
    "TorchSDE",
    "UniPC",
    "VanishingKernel",
    "Wall",
    "Weighted",
    "WhiteNoise",
    "align",
    "beta",
    "bind",
    "bits_per_dim",
    "bridge",
    "combine",
    "discrete",
    "dpm_solver_fast",
    "edit",
    "elbo",
    "encode",
    "estimate_statistics",
    "falling_end",
    "first_passage",
    "grid_from_diffusers",
    "iddpm",
    "iddpm_levels",
    "inpaint",
    "integrate",
    "interpolate",
    "karras",
    "load_grid",
    "log_likelihood",
    "optimal",
    "polyexponential",
    "quadratic",
    "read_grid_file",
    "reverse_variance",
    "rising",
    "round_trip",
    "sample",
    "save_grid",
    "singlestep_start",
    "sinkhorn",
    "solve",
    "tuned",
    "uniform",
    "uniform_lambda",
]
