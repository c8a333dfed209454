"""A grid tuned to a score, against plain ones; then data encoded into noise and back."""

import torch

from carom.domains import Euclidean
from carom.processes import EDM, Diffusion
from carom.scores import GaussianMixtureScore
from carom.solvers import (
    ExponentialAdams,
    UniPC,
    karras,
    rising,
    round_trip,
    save_grid,
    solve,
    tuned,
    uniform_lambda,
)

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
process = Diffusion(Euclidean((8,)), EDM())
score = GaussianMixtureScore(
    process, [0.5, 0.3, 0.2], torch.randn(3, 8), [0.05, 0.1, 0.02]
)  # exact; a network is used alike

solver = UniPC(3, "velocity", orders=rising)
fitted = tuned(process, 11, score, solver=solver)
save_grid("grid.json", fitted, process, solver=solver)

start = 80 * torch.randn(200, 8)
exact = solve(process.flow(score), start, uniform_lambda(process, 300), ExponentialAdams(5)).x
for name, times in (("uniform λ", uniform_lambda(process, 11)), ("Karras", karras(process, 11)), ("tuned", fitted)):
    run = solve(process.flow(score), start, times, solver)
    print(f"{name:10}{run.nfe} evaluations, median error {(run.x - exact).norm(dim=-1).median():.1e}")

trip = round_trip(process, score, UniPC(3, "velocity"), uniform_lambda(process, 40), exact)
print(f"codes of std {(trip.code.x / 80).std():.2f} σ_max; the round trip is off by {trip.error.median():.1e}")
