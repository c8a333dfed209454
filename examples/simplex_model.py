"""A model of points on the simplex of ten categories: what a classifier says of digits. Every sample is a probability vector."""

import sys

import torch
from data.digit_probabilities import digit_probabilities

from carom.domains import Simplex
from carom.processes import VE, Diffusion
from carom.scores.neural import MLP, MLPConfig, NeuralScore, split, train
from carom.solvers import Heun, ReflectedEulerMaruyama, karras, sample
from carom.validation import sliced_wasserstein

torch.manual_seed(0)
simplex = Simplex(10)
ours, held_out = split(digit_probabilities().float(), 0.5)
process = Diffusion(simplex, VE(sigma_min=0.002, sigma_max=2.0))
score = NeuralScore(MLP(MLPConfig(simplex.event_shape, width=192)), process)
seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
result = train(score, simplex.from_probabilities(ours), seconds=seconds, batch_size=256, progress=False)
print(f"{result.steps} steps, loss {result.loss:.3f}")
print(f"{'real against held-out':32}{sliced_wasserstein(ours, held_out)}")
for solver, levels in ((ReflectedEulerMaruyama(), 200), (Heun(), 30)):
    x = sample(process, score, solver, karras(process, levels), shape=len(held_out), seed=0).x
    p = simplex.to_probabilities(x)
    feasible = (p >= 0).all(-1) & ((p.sum(-1) - 1).abs() < 1e-6)
    print(f"{solver!r:32}{sliced_wasserstein(p, held_out)}, infeasible: {int((~feasible).sum())}")
