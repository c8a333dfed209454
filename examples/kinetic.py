"""Kinetic Langevin dynamics by BAOAB: exact variances on an oscillator at any step, and billiards that keep the uniform law."""

import torch

from carom.domains import Ball, Euclidean, Hypercube
from carom.processes import Kinetic
from carom.solvers import BAOAB, OBABO, WhiteNoise, solve

torch.set_default_dtype(torch.float64)
n, generator = 20_000, torch.Generator().manual_seed(0)

# p = N(0, 1): h = 1 is half of the largest stable step
oscillator = Kinetic(lambda x: -x, Euclidean((1,)), friction=1.0)
start = torch.randn(n, 2, 1, generator=generator)
for solver in (BAOAB(), OBABO()):
    x, v = oscillator.split(solve(oscillator, start, torch.linspace(0, 30, 31), solver, noise=WhiteNoise(1)).x)
    exact = (1.0, 0.75) if type(solver) is BAOAB else (1 / 0.75, 1.0)
    print(f"{solver!r}: var x {x.var():.3f}, var v {v.var():.3f}; the rule's own {exact[0]:.3f}, {exact[1]:.3f} ± .02")

# no force: positions stay uniform, velocities thermal, however many walls a step meets
for domain in (Hypercube((2,)), Ball(2)):
    gas = Kinetic(torch.zeros_like, domain, friction=0.5)
    x = domain.uniform(torch.float64).sample((n,), generator=generator)
    state = gas.join(x, torch.randn(n, 2, generator=generator))
    x, v = gas.split(solve(gas, state, torch.linspace(0, 10, 11), BAOAB(), noise=WhiteNoise(2)).x)
    exact_variance = 1 / 12 if isinstance(domain, Hypercube) else 1 / 4
    print(
        f"{domain!r}: var x {x.var(0).mean():.4f} (uniform {exact_variance:.4f} ± .001), var v {v.var():.3f} (1 ± .007)"
    )
    print(f"    all inside: {bool(domain.contains(x).all())}")
