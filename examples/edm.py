"""EDM: the table's columns, a network that is exact before it has learned anything, and what churn does to a variance."""

import math

import torch

from carom.domains import Euclidean
from carom.processes import EDM, Diffusion
from carom.scores import neural
from carom.solvers import EDMStochastic, iddpm, karras
from carom.validation import propagate_moments

process, sigma = Diffusion(Euclidean((1,)), EDM()), torch.tensor([[0.002], [0.5], [80.0]], dtype=torch.float64)
print("column of the table: c_skip | c_out | c_in | c_noise, each at σ = 0.002, 0.5, 80")
columns = (
    neural.VPPreconditioning(),
    neural.VEPreconditioning(),
    neural.IDDPMPreconditioning(),
    neural.EDMPreconditioning(0.5),
)
for column in columns:
    rows = [getattr(column, name)(sigma)[:, 0].tolist() for name in ("c_skip", "c_out", "c_in", "c_noise")]
    print(f"{type(column).__name__[:-15]:5}", *[" ".join(f"{v:9.3g}" for v in row) for row in rows], sep=" | ")

# the output of a fresh network is 0, which in EDM's column is the exact score of N(0, 0.5²), with a loss of 1 at every σ
score = neural.NeuralScore(neural.MLP(neural.MLPConfig((1,), width=8)), process, columns[-1]).double()
data = 0.5 * torch.randn(200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
terms = neural.DenoisingScoreMatching.edm().terms(score, data, torch.Generator().manual_seed(1))
parts = [terms.loss[abs(terms.sigma.log() - center) < 0.5] for center in (-3.0, -1.0, 1.0)]
print("loss near ln σ = −3, −1, 1:", [f"{p.mean():.3f} ± {p.std() / math.sqrt(len(p)):.3f}" for p in parts], "exact 1")

start = torch.tensor([[80.0**2]], dtype=torch.float64)
print("variance of samples of N(0, 0.25), without sampling; the exact one is 0.25")
for name, grid in (("karras", karras(process, 18)), ("iddpm", iddpm(process, 18))):
    for solver in (EDMStochastic(0.0), EDMStochastic(), EDMStochastic(s_min=0.0, s_max=math.inf, s_noise=1.0)):
        times = torch.cat([grid, torch.zeros(1)])
        variance = propagate_moments(process.reverse(score), solver, times, torch.zeros(1).double(), start)[1]
        print(f"{name:6} {solver!r}: {float(variance):.6f}")
