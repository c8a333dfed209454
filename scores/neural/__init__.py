"""Neural scores: networks, preconditionings, objectives, training and the file they are kept in."""

from .data import digits, split
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

__all__ = [
    "DenoisingScoreMatching",
    "EDMPreconditioning",
    "ImplicitScoreMatching",
    "LatentImageScoreMatching",
    "Levels",
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
    "digits",
    "register_network",
    "simulate",
    "split",
    "train",
]
