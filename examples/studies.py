"""Studies of a law: which equations share it, how fast a chain nears it, what a rotation in the score does and does not change."""

import math

import torch

from carom.domains import Euclidean
from carom.processes import SDE, VP, TimeReversal
from carom.solvers import EulerMaruyama, Heun
from carom.validation import OrnsteinUhlenbeck, asymmetry, discretisation, exponential_rates, problems, residuals

torch.set_default_dtype(torch.float64)

mixture = problems.mixture_2d(VP())
found = residuals.family_residuals(mixture.process, mixture.score, mixture.log_prob, mixture.points(0.3), 0.3)
print("Fokker-Planck residual of", ", ".join(f"{name}: {v:.0e}" for name, v in found.items()))

log_p, x = lambda x, t: -0.5 * x.square().sum(-1), torch.randn(4, 2)
wrong = residuals.fokker_planck_residual(SDE(lambda x, t: -1.3 * x, math.sqrt(2), Euclidean((2,))), log_p, x, 0.0)
print(f"of a drift too strong by 0.3: {wrong.tolist()}, expected {(-0.3 * (2 - x.square().sum(-1))).tolist()}")

turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
rotated = lambda x, t: -x + 0.5 * x @ turn
flow = SDE(rotated, math.sqrt(2), Euclidean((2,)))
value, still = asymmetry(rotated, x, 0.0).value[0], residuals.fokker_planck_residual(flow, log_p, x, 0.0)
print(f"−x + ½Jx: asymmetry {value:.9f}, expected {1 / math.sqrt(1.25):.9f}; under N(0, I) {still.abs().max():.0e}")

times = [4.0, 8.0, 12.0, 16.0, 20.0]
slow = [OrnsteinUhlenbeck(rate=0.1).gap(t).total_variation for t in times]
print("total variation at T = 4, 8 … 20:", [f"{v:.3e}" for v in slow])
print(f"rates {[round(float(v), 4) for v in exponential_rates(slow, times)]} fall to 2α = 0.2; printed: √α = 0.3162")

study, law = OrnsteinUhlenbeck(rate=1.0), (torch.zeros(1), torch.eye(1))
reverse = TimeReversal(study.equation, study.score)
for rule, equation in ((EulerMaruyama(), reverse), (Heun(), reverse.flow())):
    slopes = discretisation(equation, rule, lambda n: torch.linspace(2, 0, n + 1), (64, 128, 256), law)
    print(f"{rule!r}: slopes of total variation {slopes.total_variation.tolist()}, of KL {slopes.divergence.tolist()}")
