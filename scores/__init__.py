"""Scores: closed forms, networks of other people, and neural ones of our own in ``carom.scores.neural``."""

from .checkpoints import from_ddpm_checkpoint
from .classifier_free import ClassifierFree, cfg_plus_plus
from .diffusers import from_diffusers
from .empirical import EmpiricalScore
from .energy import EnergyScore
from .guidance import Classifier, Damped, Energy, exact_energy
from .inverse import DPS, CovarianceGuidance, InverseGuidance, PiGDM
from .mixture import GaussianMixtureScore
from .operators import Blur, Dense, Downsample, Grayscale, LinearOperator, Mask, check_operator
from .outward import Denoiser, to_k_diffusion
from .predictions import PredictionScore, from_prediction, prediction
from .research import from_edm, from_k_diffusion, from_score_sde
from .thresholding import DynamicThreshold, StaticThreshold
from .translation import Translation
from .velocity import VelocityMixtureScore

__all__ = [
    "Blur",
    "Classifier",
    "ClassifierFree",
    "CovarianceGuidance",
    "DPS",
    "Damped",
    "Denoiser",
    "Dense",
    "Downsample",
    "DynamicThreshold",
    "EmpiricalScore",
    "Energy",
    "EnergyScore",
    "GaussianMixtureScore",
    "Grayscale",
    "InverseGuidance",
    "LinearOperator",
    "Mask",
    "PiGDM",
    "PredictionScore",
    "StaticThreshold",
    "Translation",
    "VelocityMixtureScore",
    "cfg_plus_plus",
    "check_operator",
    "exact_energy",
    "from_ddpm_checkpoint",
    "from_diffusers",
    "from_edm",
    "from_k_diffusion",
    "from_prediction",
    "from_score_sde",
    "prediction",
    "to_k_diffusion",
]
