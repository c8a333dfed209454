"""What a model thinks of data: log-densities by the flow, a bound by the SDE, between walls."""

import torch

from carom.domains import Hypercube
from carom.processes import VE, Diffusion
from carom.scores import EmpiricalScore
from carom.solvers import Hutchinson, bits_per_dim, elbo, karras, log_likelihood

torch.manual_seed(0)
process = Diffusion(Hypercube((2,)), VE(sigma_min=0.1))
data = torch.rand(200, 2) ** 3  # crowded against two walls of the unit square
score = EmpiricalScore(process, data)
points = torch.tensor([[0.02, 0.03], [0.3, 0.3], [0.9, 0.9]])

# by the probability flow, with the divergence exact or estimated
flow = log_likelihood(process, score, points, round_trip=True)
probed = log_likelihood(process, score, points, divergence=Hutchinson(8), seed=0)
# the data set smoothed by σ_min is the very density of this model
exact = score.log_prob(points, float(karras(process, 2)[-1]))
print("log p of three points:", [round(float(v), 3) for v in exact])
evaluations = float(flow.nfe.double().mean())
print("by the flow:          ", [round(float(v), 3) for v in flow.log_prob], f"{evaluations:.0f} evaluations")
print(
    "with 8 probes:        ",
    [f"{v:.2f} ± {e:.2f}" for v, e in zip(probed.log_prob, probed.standard_error, strict=True)],
)
print(f"there and back again to {float(flow.round_trip.max()):.0e}; pushed by walls: {float(flow.pushed.max()):.0e}")

# a lower bound for the SDE, tight where the score is exact; many copies side by side are faster than as many draws
bound = elbo(process, score, points.expand(1000, 3, 2), draws=40, seed=0).log_prob
error = bound.std(0) / len(bound) ** 0.5
print("by the bound:         ", [f"{v:.2f} ± {e:.2f}" for v, e in zip(bound.mean(0), error, strict=True)])

# whole numbers 0 … 9 stored for both coordinates, in bits
levels = torch.tensor([[0, 0], [3, 3], [9, 9]])
bits = bits_per_dim(process, score, levels, bins=10, draws=16, seed=0)
print("bits per dimension of three pairs of levels:", [round(float(v), 2) for v in bits.each])
