"""Neural scores: networks, preconditionings, objectives, training and the file they are kept in."""

from .conservative import Conservative, ConservativeConfig
from .data import digits, split
from .dit import DiT, DiTConfig
from .equivariant import EquivariantConfig, EquivariantMLP
from .forward import simulate
from .mlp import MLP, MLPConfig
from .networks import register_network
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
from .unet import UNet, UNetConfig

__all__ = [
    "Conservative",
    "ConservativeConfig",
    "DenoisingScoreMatching",
    "DiT",
    "DiTConfig",
    "EDMPreconditioning",
    "EquivariantConfig",
    "EquivariantMLP",
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
