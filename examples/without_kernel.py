"""Training where no heat kernel exists: a polygon, noised by small reflected steps, with implicit score matching."""

import math
import sys

import torch

from carom.domains import Polytope
from carom.processes import VE, Diffusion
from carom.scores.neural import MLP, ImplicitScoreMatching, MLPConfig, NeuralScore, split, train
from carom.solvers import ReflectedEulerMaruyama, karras, sample
from carom.validation import sliced_wasserstein

torch.manual_seed(0)
angle = 2 * math.pi * torch.arange(5) / 5
pentagon = Polytope(torch.stack([angle.cos(), angle.sin()], -1), torch.ones(5))

# data: a ring that presses against the walls
turn = 2 * math.pi * torch.rand(4000)
ring = (0.9 + 0.2 * torch.randn(4000)).unsqueeze(-1) * torch.stack([turn.cos(), turn.sin()], -1)
ours, held_out = split(pentagon.project(ring), 0.5)

process = Diffusion(pentagon, VE(sigma_min=0.02, sigma_max=1.6))
score = NeuralScore(MLP(MLPConfig((2,), width=96)), process)
seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
result = train(score, ours, objective=ImplicitScoreMatching(), seconds=seconds, batch_size=256, progress=False)
x = sample(process, score, ReflectedEulerMaruyama(), karras(process, 80), shape=len(held_out), seed=0).x
print(f"{result.steps} steps; {int((~pentagon.contains(x)).sum())} of {len(x)} samples outside")
print(f"samples against held-out {sliced_wasserstein(x, held_out)}, real {sliced_wasserstein(ours, held_out)}")
print(f"uniform against held-out {sliced_wasserstein(pentagon.uniform().sample((2000,)), held_out)}")
