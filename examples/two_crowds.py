"""Langevin dynamics and SVGD side by side: one wanders for ever, the other comes to rest, evenly spread."""

import matplotlib
import torch
from torch import Tensor

from carom.domains import Euclidean
from carom.processes import Langevin
from carom.solvers import SVGD, EulerMaruyama, Heun, WhiteNoise, solve

matplotlib.use("Agg")
from matplotlib import pyplot as plt

plane, count, times = Euclidean((2,)), 100, torch.linspace(0, 16, 801)


def log_p(x: Tensor) -> Tensor:
    """A banana: x₁ ~ N(0, 1), x₂ given x₁ ~ N(½x₁² − ½, ¼), of mean 0 and variances 1 and ¾."""
    return -0.5 * x[..., 0] ** 2 - 2 * (x[..., 1] - 0.5 * x[..., 0] ** 2 + 0.5) ** 2


langevin = Langevin.of_log_prob(log_p, plane)
score = torch.func.grad(lambda x: log_p(x).sum())
start = torch.tensor([0.0, 2.0]) + 0.2 * torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
runs = {
    "Langevin": solve(langevin, start, times, EulerMaruyama(), noise=WhiteNoise(1), save="all").trajectory,
    "SVGD": solve(SVGD(score, plane, count), start[None], times[::4], Heun(), save="all").trajectory[:, 0],
}
figure, axes = plt.subplots(2, 4, figsize=(12, 6), layout="constrained", sharex=True, sharey=True)
grid = torch.meshgrid(torch.linspace(-3.2, 3.2, 161), torch.linspace(-2.5, 4, 161), indexing="xy")
for row, (name, trajectory) in zip(axes, runs.items(), strict=True):
    for axis, t in zip(row, (0.0, 0.5, 2.0, 16.0), strict=True):
        k = round(t / 16 * (len(trajectory) - 1))
        axis.contourf(*grid, log_p(torch.stack(grid, -1)).exp(), cmap="Greys", levels=8)
        axis.plot(*trajectory[max(0, k - len(trajectory) // 40) : k + 1, ::5].unbind(-1), lw=0.5, color="C0")
        axis.scatter(*trajectory[k].T, s=8, color="C3")
        axis.set_title(f"{name}, t = {t:g}")
    x = trajectory[-1]
    print(f"{name:8} mean {x.mean(0).tolist()}, variances {x.var(0).tolist()}; exact 0 and 1, 0.75")
figure.savefig("two_crowds.png", dpi=110)
