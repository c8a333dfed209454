"""Three losses, one score: denoising, implicit and sliced score matching of a small network; the notes' theorem is that they agree."""

import torch

from carom.domains import Hypercube
from carom.processes import VE, Diffusion
from carom.scores.neural import (
    MLP,
    DenoisingScoreMatching,
    ImplicitScoreMatching,
    MLPConfig,
    NeuralScore,
    SlicedScoreMatching,
    train,
)
from carom.validation import problems

problem = problems.cosine(0.8)  # 1 + 0.8 cos πx between walls: its diffused scores have a closed form
process = Diffusion(Hypercube((1,)), VE(sigma_min=0.05))
u = torch.rand(8000, 1, generator=torch.Generator().manual_seed(0))
data = u[torch.rand(8000, 1, generator=torch.Generator().manual_seed(1)) * 1.8 < 1 + 0.8 * (torch.pi * u).cos()][
    :, None
]
x, t = torch.linspace(0.05, 0.95, 19)[:, None], float(process.level(sigma=0.2).t)
exact = problem.score(x, float(problem.process.level(sigma=0.2).t))
for objective in (DenoisingScoreMatching(), ImplicitScoreMatching(), SlicedScoreMatching()):
    torch.manual_seed(0)
    score = NeuralScore(MLP(MLPConfig((1,), width=32)), process)
    train(score, data, objective=objective, steps=300, batch_size=256, lr=5e-3, ema=0.98, progress=False)
    off = float((score(x, t) - exact).detach().square().mean().sqrt() / exact.square().mean().sqrt())
    print(f"{type(objective).__name__}: the score at σ = 0.2 is off by {off:.0%}")
