"""DDPM on data of a known score: ways down one table of β, all levels or ten of them. Their laws come without sampling noise."""

import torch

from carom.processes import Discrete
from carom.solvers import DDIM, Ancestral, ReverseDiffusion
from carom.validation import problems
from carom.validation.orders import propagate_moments

problem = problems.gaussian(Discrete.ddpm(1000))  # data N(½, ¼)
process = problem.process
start = torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
for count in (1000, 10):
    times = torch.linspace(1, 0, count + 1, dtype=torch.float64)
    for solver in (Ancestral("forward"), Ancestral("posterior"), ReverseDiffusion(), DDIM(), DDIM(1.0)):
        equation = process.reverse(problem.score) if solver.stochastic else process.flow(problem.score)
        mean, variance = propagate_moments(equation, solver, times, *start)
        print(f"{count:4} levels, {solver!s:24} mean {float(mean):.5f}, variance {float(variance):.5f} (½, ¼)")
