"""Neural scores: networks, preconditionings, objectives, training and the file they are kept in."""

from .data import digits, fashion_mnist, load_data, mnist, split, to_domain
from .dataset import Data, DomainDataset, from_dataset
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
from .pictures import image_folder
from .preconditioning import EDMPreconditioning, Preconditioning, Reflected
from .readers import arrays, idx
from .score import NeuralScore
from .training import TrainingResult, train
from .transforms import AffineValues, DataTransform, Probabilities, affine_values, transform_from_config

__all__ = [
    "AffineValues",
    "Data",
    "DataTransform",
    "DenoisingScoreMatching",
    "DomainDataset",
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
    "Probabilities",
    "Reflected",
    "SlicedScoreMatching",
    "Terms",
    "TrainingResult",
    "UNet",
    "UNetConfig",
    "affine_values",
    "arrays",
    "digits",
    "fashion_mnist",
    "from_dataset",
    "idx",
    "image_folder",
    "load_data",
    "mnist",
    "register_network",
    "simulate",
    "split",
    "to_domain",
    "train",
    "transform_from_config",
]
