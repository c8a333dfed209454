"""Neural scores: networks, preconditionings, objectives, training and the file they are kept in."""

from .data import digits, split
from .networks import MLP, MLPConfig, UNet, UNetConfig, register_network
from .objectives import DenoisingScoreMatching, Levels, LogUniform, Objective, Terms
from .preconditioning import EDMPreconditioning, Preconditioning, Reflected
from .score import NeuralScore
from .training import TrainingResult, train

__all__ = [
    "DenoisingScoreMatching",
    "EDMPreconditioning",
    "Levels",
    "LogUniform",
    "MLP",
    "MLPConfig",
    "NeuralScore",
    "Objective",
    "Preconditioning",
    "Reflected",
    "Terms",
    "TrainingResult",
    "UNet",
    "UNetConfig",
    "digits",
    "register_network",
    "split",
    "train",
]
