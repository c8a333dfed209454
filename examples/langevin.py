"""Langevin dynamics on a skewed mixture: ULA is off by its step, MALA is not; a metric needs its divergence; walls cost nothing."""

import math

import torch
from torch import Tensor

from carom.domains import Ball, Euclidean
from carom.processes import Langevin, RiemannianLangevin
from carom.solvers import MALA, EulerMaruyama, Milstein, WhiteNoise, solve

torch.set_default_dtype(torch.float64)


def log_p(x: Tensor) -> Tensor:
    """.3 N(−1, .2²) + .7 N(.8, .3²)"""
    parts = [math.log(w / s) - 0.5 * ((x[..., 0] - m) / s) ** 2 for w, m, s in ((0.3, -1.0, 0.2), (0.7, 0.8, 0.3))]
    return torch.stack(parts).logsumexp(0)


n, generator = 40_000, torch.Generator().manual_seed(0)
left, z = torch.rand(n, generator=generator) < 0.3, torch.randn(n, generator=generator)
start = torch.where(left, -1 + 0.2 * z, 0.8 + 0.3 * z)[:, None]  # draws of p: whatever moves now is bias
times, mixture = torch.arange(81) * 0.02, Langevin.of_log_prob(log_p, Euclidean((1,)))
for solver in (EulerMaruyama(), MALA()):
    run = solve(mixture, start, times, solver, noise=WhiteNoise(1))
    moved = log_p(run.x) - log_p(start)
    taken = f", acceptance {run.stats['acceptance'].mean():.3f}" if run.stats else ""
    print(f"{solver!r:16} E log p moved by {moved.mean():+.4f} ± {moved.std() / math.sqrt(n):.4f}{taken}")

normal = torch.randn(n, 1, generator=generator)
for name, divergence in (("with", None), ("without", torch.zeros_like)):
    equation = RiemannianLangevin(lambda x: -x, lambda x: 1 + x**2 / 4, Euclidean((1,)), divergence)
    x = solve(equation, normal, torch.linspace(0, 4, 201), Milstein(), noise=WhiteNoise(2)).x
    print(f"metric, {name} its divergence: variance {x.var():.3f} (target 1)")

disk = Langevin.of_log_prob(lambda x: x[..., 0], Ball(2))  # p ∝ eˣ in the unit disk: E x = I₂(1)/I₁(1)
x = solve(disk, torch.zeros(n, 2), torch.linspace(0, 6, 61), MALA(), noise=WhiteNoise(3)).x
print(f"in the disk: mean {x[:, 0].mean():.4f}, exact 0.2402; farthest {x.norm(dim=1).max():.4f}")
