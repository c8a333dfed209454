"""Schedules, the forward diffusion and the equations that solvers integrate."""

from .critically_damped import CriticallyDamped, ForwardKinetic, KineticFlow, PhaseGaussian, ReverseKinetic
from .diffusion import Diffusion, Level, data_form, noise_form, retime
from .equations import ODE, SDE, Equation, ForwardSDE, ProbabilityFlow, ReverseSDE, Wall
from .langevin import Kinetic, Langevin, RiemannianLangevin
from .learned import Learned
from .registry import process_from_config, schedule_from_config
from .reversal import TimeReversal
from .schedule import Schedule, UnitScale, VariancePreserving
from .schedules import EDM, VE, VP, CosineVP, Discrete, FlowMatching, SubVP

__all__ = [
    "EDM",
    "ODE",
    "SDE",
    "VE",
    "VP",
    "CosineVP",
    "CriticallyDamped",
    "Diffusion",
    "Discrete",
    "Equation",
    "FlowMatching",
    "ForwardKinetic",
    "ForwardSDE",
    "Kinetic",
    "KineticFlow",
    "Langevin",
    "Learned",
    "Level",
    "PhaseGaussian",
    "ProbabilityFlow",
    "ReverseKinetic",
    "ReverseSDE",
    "RiemannianLangevin",
    "Schedule",
    "SubVP",
    "TimeReversal",
    "UnitScale",
    "VariancePreserving",
    "Wall",
    "data_form",
    "noise_form",
    "process_from_config",
    "retime",
    "schedule_from_config",
]
