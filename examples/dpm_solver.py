"""DPM-Solver on a flow with a closed form: errors and orders of its three members on steps uniform in λ, beside DDIM and Heun."""

import torch

from carom.processes import VP
from carom.solvers import DDIM, DPMSolver, DPMSolverPP, Heun, solve, uniform_lambda
from carom.validation import problems

problem = problems.mixture(VP())  # two bumps on the line
process = problem.process
x = torch.tensor([-1.5, -0.6, 0.1, 0.7, 1.8], dtype=torch.float64)[:, None]
first, last = (float(process.schedule.sigma(torch.tensor(t).double())) for t in (1.0, 1e-3))
exact = problem.flow(x, 1.0, 1e-3)
for solver in (DDIM(), DPMSolver(1), DPMSolver(2), DPMSolver(3), DPMSolverPP(2), Heun()):
    errors = []
    for steps in (80, 160, 320):
        times = uniform_lambda(process, steps + 1, sigma_max=first, sigma_min=last)
        errors.append(float((solve(process.flow(problem.score), x, times, solver).x - exact).abs().max()))
    order = torch.tensor(errors[-2] / errors[-1]).log2()
    print(
        f"{solver!s:16} errors {', '.join(f'{e:.1e}' for e in errors)}: order {float(order):.2f} (stated {solver.order})"
    )
