"""Schrödinger bridges: between Gaussians in closed form, on a grid between walls, and learned from samples, each against the other."""

import math

import torch

from carom.domains import Euclidean, Hypercube
from carom.scores.neural import DiffusionSchroedingerBridge, LinearRegressor
from carom.solvers import EulerMaruyama, ReflectedEulerMaruyama, Weighted, WhiteNoise, bridge, sinkhorn, solve

# 1. From N(0.5, 0.25) to N(−1, 2), nearest to Brownian motion: its drift is an SDE like any other
exact = bridge.gaussian((0.5, 0.25), (-1.0, 2.0), sigma=1.0)
x = 0.5 + 0.5 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
end = solve(exact.equation(), x, torch.linspace(0, 1, 101), EulerMaruyama(), noise=WhiteNoise(1)).x
print(f"closed form: E|x0 − x1|² = {exact.coupling.cost():.4f}, its SDE {float(((end - x) ** 2).mean()):.4f} ± 0.04")

# 2. The same by Sinkhorn's iteration on a grid, at the rate that the closed form has
normal = lambda m, v: lambda x: torch.exp(-((x[:, 0] - m) ** 2) / (2 * v))
cells = Weighted.cells([-3.0], [4.0], [150], normal(0.5, 0.25)), Weighted.cells([-9.0], [7.0], [200], normal(-1.0, 2.0))
grid = sinkhorn(Euclidean((1,)), *cells, sigma=1.0)
print(f"grid: {grid.cost:.4f}, rate {grid.errors[7] / grid.errors[6]:.4f}, expected {float(exact.correlations**2):.4f}")

# 3. Learned from samples by mean matching, whose bias at 20 steps is known as well
learned = DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, LinearRegressor(), LinearRegressor(), times=20)
draw = lambda mean, std: lambda n, generator: mean + std * torch.randn(n, 1, generator=generator)
learned.fit(draw(0.5, 0.5), draw(-1.0, math.sqrt(2)), halves=9, paths=20_000, progress=False)
back = learned.sample(draw(-1.0, math.sqrt(2))(20_000, torch.Generator().manual_seed(2)), backward=True, seed=3).x
mean, variance = (float(v) for v in bridge.mean_matching(exact, 20, 9)[-1].marginals()[0])
print(
    f"learned start: N({float(back.mean()):.3f}, {float(back.var()):.3f}); in the limit N({mean:.3f}, {variance:.3f})"
)

# 4. Between walls the reference is reflected, and nobody leaves the square
square = Hypercube((2,))
ends = [Weighted.cells([0, 0], [1, 1], [12, 12], lambda x, i=i: 1 + 0.9 * torch.cos(math.pi * x[:, i])) for i in (0, 1)]
walled = sinkhorn(square, *ends, sigma=0.5)
start = ends[0].points[torch.multinomial(ends[0].masses, 1000, True, generator=torch.Generator().manual_seed(4))]
run = solve(walled.equation(), start, torch.linspace(0, 0.95, 20), ReflectedEulerMaruyama(), noise=WhiteNoise(5))
print(f"square: {int((~square.contains(run.x)).sum())} of {len(start)} outside")
