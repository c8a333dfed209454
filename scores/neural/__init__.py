"""Neural scores: networks, preconditionings, objectives, training and the file they are kept in."""

from .covariance import (
    CovarianceHead,
    ResidualHead,
    ResidualMatching,
    SecondMomentHead,
    SecondMomentMatching,
)
from .data import digits, fashion_mnist, load_data, mnist, split, to_domain
from .dataset import Data, DomainDataset, from_dataset
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
from .high_order import HighOrderScoreMatching
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
from .pictures import image_folder
from .preconditioning import Preconditioning
from .readers import arrays, idx
from .reflected import Reflected, ReflectedVelocity
from .score import NeuralScore
from .training import TrainingResult, train
from .transforms import AffineValues, DataTransform, Probabilities, affine_values, transform_from_config

__all__ = [
    "AffineValues",
    "ConditionalFlowMatching",
    "Constant",
    "Data",
    "DataTransform",
    "CovarianceHead",
    "DenoiserPreconditioning",
    "DenoisingScoreMatching",
    "DomainDataset",
    "EDMPreconditioning",
    "ExplicitScoreMatching",
    "HighOrderScoreMatching",
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
    "Probabilities",
    "Reflected",
    "ReflectedVelocity",
    "ResidualHead",
    "ResidualMatching",
    "SecondMomentHead",
    "SecondMomentMatching",
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
