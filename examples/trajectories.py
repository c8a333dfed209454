"""The notes' picture of three flows to ±1: VP bends on its way, VE at the data, EDM runs straight to the mean and then to a point.

The density of x_t is grey behind them. All three end in ±1, and at equal σ their X = x/s agree."""

from pathlib import Path

import matplotlib
import torch

from carom.domains import Euclidean
from carom.processes import EDM, VE, VP, Diffusion
from carom.scores import EmpiricalScore
from carom.solvers import RK4, Heun, RungeKutta, karras, sample, solve

matplotlib.use("Agg")
from matplotlib import pyplot as plt

data = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
schedules = {"VP": VP(), "VE": VE(sigma_min=0.02, sigma_max=10.0), "EDM": EDM(sigma_min=0.002, sigma_max=3.0)}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
for axis, (name, schedule) in zip(axes, schedules.items(), strict=True):
    process = Diffusion(Euclidean((1,)), schedule)
    score = EmpiricalScore(process, data)
    times = torch.linspace(1, 2e-3, 400, dtype=torch.float64)
    first, top = process.level(times[0]), 3.0 if name != "VE" else 12.0
    width = min(2.0, float(first.scale * first.sigma))
    x = torch.linspace(-2 * width, 2 * width, 9, dtype=torch.float64)[:, None]
    path = solve(process.flow(score), x, times, RungeKutta(RK4), save="all").trajectory[:, :, 0]
    grid = torch.linspace(-top, top, 301, dtype=torch.float64)[:, None]
    density = torch.stack([score.log_prob(grid, float(t)).exp() for t in times], 1)
    density = density / density.amax(0)  # each time in its own units
    axis.imshow(density, extent=(1, 2e-3, -top, top), origin="lower", aspect="auto", cmap="Greys", vmax=1.6)
    axis.plot(times, path, lw=1, color="C0")
    axis.set(title=name, xlabel="t", ylim=(-top, top))
    ends = sample(process, score, Heun(), karras(process, 40), shape=200, seed=0).x
    print(f"{name:3}: 200 samples are ±1 to {float((ends.abs() - 1).abs().max()):.0e}")
figure.savefig(Path("trajectories.png"), dpi=110)
print("drawn: trajectories.png")
