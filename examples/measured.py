"""Data known in part: half a picture (RePaint), or its coarse pixels (guidance by the covariance). Walls stay walls."""

import torch

from carom.domains import Hypercube
from carom.processes import VE, Diffusion
from carom.scores import CovarianceGuidance, Downsample, EmpiricalScore
from carom.solvers import EulerMaruyama, inpaint, karras, sample

torch.manual_seed(0)
process = Diffusion(Hypercube((1, 4, 4)), VE())
bright, dark = 0.6 + 0.4 * torch.rand(40, 1, 4, 4), 0.4 * torch.rand(40, 1, 4, 4)
everything = EmpiricalScore(process, torch.cat([bright, dark]))

# the upper half is given
picture = bright[:1].expand(3, 1, 4, 4)
known = torch.zeros(1, 4, 4, dtype=torch.bool)
known[:, :2] = True
run = inpaint(process, everything, EulerMaruyama(), karras(process, 40), picture, known, resamplings=5, seed=range(3))
apart = (run.x - picture).abs()
print(
    f"inpainted: the known half to {float(apart[:, :, :2].max()):.0e}, the other to {float(apart[:, :, 2:].max()):.2f}"
)

# means of 2 × 2 blocks are given, to 0.02
operator = Downsample((1, 4, 4), 2)
guided = CovarianceGuidance(everything, operator, operator.forward(dark[0]), sigma_y=0.02)
run = sample(process, guided, EulerMaruyama(), karras(process, 60), shape=4, seed=1)
print(
    f"measured:  off the measurement by {float((operator.forward(run.x) - operator.forward(dark[0])).abs().mean()):.3f} on average"
)
