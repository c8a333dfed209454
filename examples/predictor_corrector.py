"""NCSN's annealed Langevin dynamics and predictor–corrector sampling: correctors alone, predictors alone, both."""

import torch

from carom.processes import EDM, VP
from carom.solvers import (
    AnnealedLangevin,
    LangevinCorrector,
    PredictorCorrector,
    ReverseDiffusion,
    uniform,
    uniform_lambda,
)
from carom.validation import problems
from carom.validation.orders import propagate_moments


def law(problem, solver, times):
    process, first = problem.process, problem.process.level(times[0])
    spread = (first.scale * first.sigma).reshape(1, 1) ** 2
    return propagate_moments(process.reverse(problem.score), solver, times, torch.zeros(1).double(), spread)


annealed = problems.gaussian(EDM(sigma_min=0.01, sigma_max=1.0))  # data N(½, ¼)
for steps in (10, 100):
    mean, variance = law(annealed, AnnealedLangevin(steps, 2e-5), uniform_lambda(annealed.process, 10))
    print(f"annealed Langevin, {steps:3} steps at each of 10 levels: {float(mean):.5f}, {float(variance):.5f} (½, ¼)")
problem = problems.gaussian(VP())
for corrections in (0, 1, 5):
    corrector = LangevinCorrector(steps=corrections) if corrections else None
    solver = PredictorCorrector(ReverseDiffusion(), corrector) if corrector else ReverseDiffusion()
    mean, variance = law(problem, solver, uniform(problem.process, 101))
    print(f"100 predictions, {corrections} corrections each: {float(mean):.5f}, {float(variance):.5f}")
