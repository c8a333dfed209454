"""Neural scores: networks, preconditionings, objectives, training and the file they are kept in."""

from ...domains.decoders import Bins
from ...domains.transforms import AffineValues, DataTransform, Probabilities, affine_values, transform_from_config
from .bridge import DiffusionSchroedingerBridge
from .classifier import ClassifierMLP, ClassifierMLPConfig, CrossEntropy, NoisyClassifier
from .conservative import Conservative, ConservativeConfig
from .covariance import (
    CovarianceHead,
    ResidualHead,
    ResidualMatching,
    SecondMomentHead,
    SecondMomentMatching,
)
from .data import digits, fashion_mnist, load_data, mnist, split, to_domain
from .dataset import Data, DomainDataset, from_dataset
from .ddpm import Hybrid, LearnedVariance, LevelTerms, Levelwise, VariationalBound
from .denoisers import (
    DenoiserPreconditioning,
    EDMPreconditioning,
    IDDPMPreconditioning,
    VelocityPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
    VPredictionPreconditioning,
)
from .dit import DiT, DiTConfig
from .equivariant import EquivariantConfig, EquivariantMLP
from .forward import simulate
from .high_order import HighOrderScoreMatching
from .hybrid import HybridScoreMatching, MixedScore
from .implicit import ImplicitScoreMatching, SlicedScoreMatching
from .importance import ImportanceSampled
from .levels import Constant, Levels, LogitNormalTime, LogNormal, LogUniform, MinSNR, UniformTime
from .mlp import MLP, MLPConfig
from .networks import register_network
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
from .regressors import LinearRegressor, NeuralRegressor, Regressor
from .score import NeuralScore
from .simulated import SimulatedScoreMatching, simulate_sde
from .stored import Stored
from .trainable import Trainable
from .training import TrainingResult, train
from .unet import UNet, UNetConfig
from .updates import Cosine
from .vdm import VDM, Bound

__all__ = [
    "AffineValues",
    "Bins",
    "Bound",
    "ClassifierMLP",
    "ClassifierMLPConfig",
    "ConditionalFlowMatching",
    "Conservative",
    "ConservativeConfig",
    "Constant",
    "Cosine",
    "CovarianceHead",
    "CrossEntropy",
    "Data",
    "DataTransform",
    "DenoiserPreconditioning",
    "DenoisingScoreMatching",
    "DiffusionSchroedingerBridge",
    "DiT",
    "DiTConfig",
    "DomainDataset",
    "EDMPreconditioning",
    "EquivariantConfig",
    "EquivariantMLP",
    "ExplicitScoreMatching",
    "HighOrderScoreMatching",
    "Hybrid",
    "HybridScoreMatching",
    "MixedScore",
    "ImportanceSampled",
    "IDDPMPreconditioning",
    "ImplicitScoreMatching",
    "LatentImageScoreMatching",
    "LearnedVariance",
    "LevelTerms",
    "Levels",
    "Levelwise",
    "LinearRegressor",
    "LogNormal",
    "LogUniform",
    "LogitNormalTime",
    "MLP",
    "MLPConfig",
    "MinSNR",
    "NeuralRegressor",
    "NeuralScore",
    "NoisyClassifier",
    "Objective",
    "Preconditioning",
    "Probabilities",
    "Reflected",
    "ReflectedVelocity",
    "Regressor",
    "ResidualHead",
    "ResidualMatching",
    "SecondMomentHead",
    "SecondMomentMatching",
    "SimulatedScoreMatching",
    "SlicedScoreMatching",
    "Stored",
    "Terms",
    "Trainable",
    "TrainingResult",
    "UNet",
    "UNetConfig",
    "UniformTime",
    "VDM",
    "VEPreconditioning",
    "VPPreconditioning",
    "VPredictionPreconditioning",
    "VariationalBound",
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
    "simulate_sde",
    "split",
    "to_domain",
    "train",
    "transform_from_config",
]
