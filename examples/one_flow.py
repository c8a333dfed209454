"""VP, sub-VP, VE, EDM, flow matching: one flow, read with other clocks and scales. A score trained under one serves them all."""

import torch

from carom.processes import EDM, VE, VP, Diffusion, FlowMatching, SubVP, retime
from carom.solvers import AdaptiveODE, solve
from carom.validation import problems

problem = problems.mixture(VP())
source = problem.process
X = torch.tensor([[-4.0], [0.3], [2.5]], dtype=torch.float64)  # X = x/s at σ = 3
for schedule in (VP(), SubVP(), VE(sigma_max=20.0), EDM(), FlowMatching()):
    process = Diffusion(source.domain, schedule)
    score = retime(problem.score, source, process)  # that of VP, in the new process's x and t
    start, end = process.level(sigma=3.0), process.level(sigma=0.05)
    times = [float(start.t), float(end.t)]
    x = solve(process.flow(score), start.scale * X, times, AdaptiveODE(1e-10, 1e-10)).x / end.scale
    print(f"{type(schedule).__name__:13} X at σ = 0.05: {[round(v, 8) for v in x.flatten().tolist()]}")
