"""When does a Brownian particle leave an interval? Without the bridge the answer is late by O(√h); with it a coarse grid will do."""

import torch

from carom.domains import Hypercube
from carom.processes import SDE
from carom.solvers import EulerMaruyama, first_passage

brownian = SDE(drift=lambda x, t: torch.zeros_like(x), diffusion=1.0, domain=Hypercube((1,)))
start = torch.full((10_000, 1), 0.3, dtype=torch.float64)
print("exactly: E[τ] = x (1 − x) = 0.21, 0.7 of them through 0")

for steps in (100, 300):
    times = torch.linspace(0, 4, steps + 1)  # by t = 4 all but e^{−2π²} have left
    for bridge in (False, True):
        left = first_passage(brownian, start, times, EulerMaruyama(), seed=0, bridge=bridge)
        mean, error = left.time.nanmean(), left.time.nan_to_num().std() / len(start) ** 0.5
        low = (left.wall == 0).double().mean()  # of the walls in the order of facets()
        print(f"h = {4 / steps:.3f}, bridge={bridge}: E[τ] = {mean:.4f} ± {error:.4f}, {low:.3f} of them through 0")
