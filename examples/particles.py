"""Particles that share a density among themselves: SVGD on a mixture in the plane, three rivals beside it, and a picture."""

import torch

from carom.domains import Euclidean
from carom.solvers import GFSD, GFSF, SVGD, Blob, Heun, LinearKernel, solve
from carom.validation.pictures import particle_paths

centres = torch.tensor([[-2.0, -1.0], [2.0, 1.0], [-1.0, 2.0]])


def log_p(x: torch.Tensor) -> torch.Tensor:
    """Three unit Gaussians around the centres."""
    return (-0.5 * (centres - x[..., None, :]).square().sum(-1)).logsumexp(-1)


rounded = lambda values: [round(float(v), 3) for v in values.flatten()]
score = torch.func.grad(lambda x: log_p(x).sum())


count, plane = 100, Euclidean((2,))
start = torch.randn(1, count, 2, generator=torch.Generator().manual_seed(0))
times = torch.linspace(0, 20, 101)
print(
    f"at t = 20, SVGD not quite at rest; target: mean {rounded(centres.mean(0))}, variances {rounded(1 + centres.var(0, correction=0))}"
)
for kind in (SVGD, Blob, GFSD, GFSF):
    run = solve(kind(score, plane, count), start, times, Heun(), save="all")
    x = run.x[0]
    print(f"{kind.__name__}: mean {rounded(x.mean(0))}, variances {rounded(x.var(0, correction=0))}")
    if kind is SVGD:
        print(f"-> {particle_paths(run.trajectory[:, 0], 'particles.png', log_prob=log_p, title='SVGD')}")

mean, precision = torch.tensor([0.5, -0.3]), torch.linalg.inv(torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
exact = SVGD(lambda x: (mean - x) @ precision, plane, count, LinearKernel())
x = solve(exact, start, times, Heun()).x[0]
print(
    f"linear kernel: mean {rounded(x.mean(0))} (0.5, -0.3), covariance {rounded(x.T.cov(correction=0))} (.5, .2, .2, .3)"
)
