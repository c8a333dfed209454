"""The picture of iterative proportional fitting: q_t and paths of its iterates, each right at one end, from three bumps to two."""

from dataclasses import replace

import matplotlib
import torch

from carom.domains import Hypercube
from carom.solvers import EulerMaruyama, Weighted, WhiteNoise, sinkhorn, solve

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def bumps(*centres: float) -> Weighted:
    """Equal bumps of width 0.05, in 100 cells."""
    return Weighted.cells([0], [1], [100], lambda x: sum(torch.exp(-200 * (x[:, 0] - c) ** 2) for c in centres))


ends = start, end = bumps(0.15, 0.5, 0.9), bumps(0.3, 0.75)
limit = sinkhorn(Hypercube((1,)), start, end, sigma=0.15)
one = replace(limit, f=torch.zeros(100).double(), g=-end.masses.log() - torch.tensor(100.0).log())  # Brownian motion
figure, axes = plt.subplots(1, 5, figsize=(15, 3), layout="constrained", sharey=True)
grid, x = torch.linspace(0, 0.999, 200).double(), torch.linspace(0, 1, 161).double()[:, None]
generator = torch.Generator().manual_seed(0)
for half, axis in enumerate(axes):
    one = limit if half == 4 else one
    masses = [one.log_coupling().logsumexp(1 - k) for k in (0, 1)]
    density = torch.stack([one.log_density(x, float(t)).exp() for t in grid[1:]], 1)
    axis.imshow(density / density.amax(0), extent=(0, 1, 0, 1), origin="lower", aspect="auto", cmap="Greys", vmax=1.6)
    first = start.points[torch.multinomial(masses[0].exp(), 12, True, generator=generator)]
    path = solve(one.equation(), first, grid, EulerMaruyama(), noise=WhiteNoise(1), save="all").trajectory[:, :, 0]
    axis.plot(grid, path, lw=0.7)
    axis.set(title=f"half-iteration {half}" if half < 4 else "limit", xlabel="t", ylim=(0, 1))
    off = [0.5 * float((m.exp() - side.masses).abs().sum()) for m, side in zip(masses, ends, strict=True)]
    print(f"{axis.get_title():16} start off by {off[0]:.4f}, end by {off[1]:.4f} in total variation")
    k = 1 - half % 2  # the end that is made right next
    one = replace(one, **{"fg"[k]: (one.f, one.g)[k] + ends[k].masses.log() - masses[k]})
figure.savefig("bridge_iterates.png", dpi=110)
