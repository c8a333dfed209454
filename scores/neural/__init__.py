"""Neural scores: networks, preconditionings, objectives, training and the file they are kept in."""

from .data import digits, split
from .ddpm import Hybrid, LearnedVariance, LevelTerms, Levelwise, VariationalBound
from .decoders import Bins
from .forward import simulate
from .networks import MLP, MLPConfig, UNet, UNetConfig, register_network
from .objectives import (
    DenoisingScoreMatching,
    ImplicitScoreMatching,
    LatentImageScoreMatching,
    Levels,
    LogUniform,
    Objective,
    SlicedScoreMatching,
    Terms,
)
from .preconditioning import EDMPreconditioning, Preconditioning, Reflected
from .score import NeuralScore
from .training import TrainingResult, train
from .vdm import VDM, Bound

__all__ = [
    "Bins",
    "Bound",
    "DenoisingScoreMatching",
    "EDMPreconditioning",
    "Hybrid",
    "ImplicitScoreMatching",
    "LatentImageScoreMatching",
    "LearnedVariance",
    "LevelTerms",
    "Levels",
    "Levelwise",
    "LogUniform",
    "MLP",
    "MLPConfig",
    "NeuralScore",
    "Objective",
    "Preconditioning",
    "Reflected",
    "SlicedScoreMatching",
    "Terms",
    "TrainingResult",
    "UNet",
    "UNetConfig",
    "VDM",
    "VariationalBound",
    "digits",
    "register_network",
    "simulate",
    "split",
    "train",
]
