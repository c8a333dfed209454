"""Neural scores: networks, preconditionings, objectives, training and the file they are kept in."""

from .data import digits, split
from .denoisers import (
    DenoiserPreconditioning,
    EDMPreconditioning,
    IDDPMPreconditioning,
    VelocityPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
    VPredictionPreconditioning,
)
from .forward import simulate
from .implicit import ImplicitScoreMatching, SlicedScoreMatching
from .levels import Constant, Levels, LogitNormalTime, LogNormal, LogUniform, MinSNR, UniformTime
from .networks import MLP, MLPConfig, UNet, UNetConfig, register_network
from .objectives import (
    ConditionalFlowMatching,
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    LatentImageScoreMatching,
    Objective,
    Terms,
)
from .preconditioning import Preconditioning
from .reflected import Reflected, ReflectedVelocity
from .score import NeuralScore
from .training import TrainingResult, train

__all__ = [
    "ConditionalFlowMatching",
    "Constant",
    "DenoiserPreconditioning",
    "DenoisingScoreMatching",
    "EDMPreconditioning",
    "ExplicitScoreMatching",
    "IDDPMPreconditioning",
    "ImplicitScoreMatching",
    "LatentImageScoreMatching",
    "Levels",
    "LogNormal",
    "LogUniform",
    "LogitNormalTime",
    "MLP",
    "MLPConfig",
    "MinSNR",
    "NeuralScore",
    "Objective",
    "Preconditioning",
    "Reflected",
    "ReflectedVelocity",
    "SlicedScoreMatching",
    "Terms",
    "TrainingResult",
    "UNet",
    "UNetConfig",
    "UniformTime",
    "VEPreconditioning",
    "VPPreconditioning",
    "VPredictionPreconditioning",
    "VelocityPreconditioning",
    "digits",
    "register_network",
    "simulate",
    "split",
    "train",
]
