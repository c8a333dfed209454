"""A domain, a process, a score and a solver: compose them, then swap any of the four."""

import torch

from carom.domains import Hypercube
from carom.processes import VE, Diffusion
from carom.scores import EmpiricalScore
from carom.solvers import Euler, Heun, ReflectedEulerMaruyama, karras, sample

torch.manual_seed(0)
data = torch.rand(200, 2) ** 3  # crowded against two walls of the unit square

process = Diffusion(Hypercube((2,)), VE())
score = EmpiricalScore(process, data)  # any callable (x, t) -> tensor will do
solution = sample(process, score, ReflectedEulerMaruyama(), karras(process, 60), shape=500, seed=0)

print(f"data    mean {data.mean(0).tolist()}, std {data.std(0).tolist()}")
print(f"samples mean {solution.x.mean(0).tolist()}, std {solution.x.std(0).tolist()}")
print(f"outside the square: {int((~process.domain.contains(solution.x)).sum())}; {solution.report()}")

for solver in (Heun(), Euler()):
    other = sample(process, score, solver, karras(process, 30), shape=500, seed=0)
    print(f"{solver!r}: {other.nfe} evaluations, mean {other.x.mean(0).tolist()}")
