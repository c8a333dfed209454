"""Analytic-DPM on a mixture: variances that make each reverse step optimal, the steps that lose least, a variance by coordinate."""

import torch
from torch import Tensor

from carom.processes import Discrete
from carom.solvers import AnalyticDPM, Ancestral, WhiteNoise, estimate_statistics, optimal, quadratic, solve
from carom.validation import problems

problem = problems.mixture(Discrete.ddpm(50))
process, score, generator = problem.process, problem.score, torch.Generator().manual_seed(0)
data = problem.flow(torch.randn(20_000, 1, dtype=torch.float64, generator=generator), 1.0, 0.0)  # exact
levels = torch.arange(50, 0, -1, dtype=torch.float64) / 50
statistics = estimate_statistics(process, score, data, levels)  # Γ = E|score|²/d at every level
print(
    "Γ of levels 50, 25, 2:",
    [f"{float(statistics.gamma[50 - n]):.4f}" for n in (50, 25, 2)],
    "(exact 1.0000 1.0172 12.513)",
)
path = optimal(process, 5, statistics)
print("the five levels that lose least:", [round(50 * t) for t in path.tolist()], "(exact 50 8 6 4 1)")


def variance(x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Var[ε | x] at each x: 1 + std²·∂score. A trained SecondMomentHead or ResidualHead stands here for images."""
    level = process.level(t)
    return 1 + (level.scale * level.sigma) ** 2 * torch.func.jvp(lambda u: score(u, t), (x,), (torch.ones_like(x),))[1]


start = torch.randn(20_000, 1, dtype=torch.float64, generator=generator)
times = torch.cat([quadratic(process, 10), torch.zeros(1, dtype=torch.float64)])
for name, solver in (("DDPM", Ancestral()), ("Γ", AnalyticDPM(statistics)), ("by state", AnalyticDPM(variance))):
    x = solve(process.reverse(score), start, times, solver, noise=WhiteNoise(2)).x
    apart = float((x.sort(0).values - data.sort(0).values).abs().mean())
    print(
        f"{name:8} at 10 levels: spread {float(x.std()):.3f} (data {float(data.std()):.3f}), Wasserstein-1 {apart:.3f}"
    )
