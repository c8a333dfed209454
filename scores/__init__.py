"""Scores: closed forms, networks of other people, and neural ones of our own in ``carom.scores.neural``."""

from .checkpoints import from_ddpm_checkpoint
from .diffusers import from_diffusers
from .empirical import EmpiricalScore
from .mixture import GaussianMixtureScore
from .outward import Denoiser, to_k_diffusion
from .predictions import PredictionScore, from_prediction, prediction
from .research import from_edm, from_k_diffusion, from_score_sde

__all__ = [
    "EmpiricalScore",
    "GaussianMixtureScore",
    "PredictionScore",
    "from_prediction",
    "prediction",
    "from_diffusers",
    "from_edm",
    "from_k_diffusion",
    "from_score_sde",
    "from_ddpm_checkpoint",
    "Denoiser",
    "to_k_diffusion",
]
