"""Swap solvers on a trained image model: the same weights, one changed word per line.

Trains for 10 seconds unless a checkpoint is named: python swap_solvers.py out/demo/digits.safetensors
"""

import sys

import torch

from carom.domains import Hypercube
from carom.processes import VE, Diffusion
from carom.scores.neural import NeuralScore, UNet, UNetConfig, digits, split, train
from carom.solvers import AdaptiveODE, Euler, EulerMaruyama, Heun, Project, ReflectedEulerMaruyama, karras, sample
from carom.validation import sliced_wasserstein

training, held_out = split(digits())
if len(sys.argv) > 1:
    score = NeuralScore.load(sys.argv[1])
else:
    torch.manual_seed(0)
    score = NeuralScore(UNet(UNetConfig()), Diffusion(Hypercube((1, 8, 8)), VE()))
    train(score, training, seconds=10)

for solver, levels, wall in (
    (ReflectedEulerMaruyama(), 40, None),
    (EulerMaruyama(), 40, Project()),
    (Heun(), 12, None),
    (AdaptiveODE(1e-2, 1e-2, method="bosh3"), 2, None),
    (Euler(), 20, None),
):
    grid = karras(score.process, levels)
    x = sample(score.process, score, solver, grid, shape=128, seed=range(128), wall=wall).x
    outside = int((~score.process.domain.contains(x)).sum())
    print(f"{solver!r}: distance {sliced_wasserstein(x, held_out).value:.4f}, outside {outside}")
