"""High-order score matching: the same network, trained on ∇log q alone or on its first two derivatives as well."""

import torch
from torch import Tensor

from carom.domains import Euclidean
from carom.processes import VE, Diffusion
from carom.scores import GaussianMixtureScore, neural

process = Diffusion(Euclidean((1,)), VE(sigma_min=0.1, sigma_max=10.0))
exact = GaussianMixtureScore(process, [0.4, 0.6], [-1.0, 0.8], [0.04, 0.09])
data = exact.sample(20_000, generator=torch.Generator().manual_seed(0)).float()
objectives = {
    "first order": neural.DenoisingScoreMatching(neural.LogUniform(0.1, 10.0)),
    "second order": neural.HighOrderScoreMatching(third=0.0, levels=neural.LogUniform(0.1, 10.0)),
    "third order": neural.HighOrderScoreMatching(levels=neural.LogUniform(0.1, 10.0)),
}


def derivatives(score, x: Tensor, t: float) -> Tensor:
    """s, s′ and s″ of a score in one dimension: ``[3, n]``."""
    ones, f = torch.ones_like(x), lambda u: score(u, t)
    slope = lambda u: torch.func.jvp(f, (u,), (ones,))[1]
    return torch.cat([f(x), slope(x), torch.func.jvp(slope, (x,), (ones,))[1]], 1).T.detach()


x, t = exact.sample(2000, generator=torch.Generator().manual_seed(1)).float(), float(process.level(sigma=0.3).t)
x = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))  # draws of q_t
true = derivatives(exact, x.double(), t)
for name, objective in objectives.items():
    torch.manual_seed(0)
    network = neural.MLP(neural.MLPConfig((1,), width=32))
    score = neural.NeuralScore(network, process, neural.EDMPreconditioning(1.0))
    neural.train(score, data, objective=objective, steps=1000, batch_size=256, lr=4e-3, ema=0.99, progress=False)
    off = (derivatives(score, x, t) - true).square().mean(1).sqrt() / true.square().mean(1).sqrt()
    print(
        f"{name:12}: off at σ = 0.3 by",
        ", ".join(f"{v:.1%} in {s}" for v, s in zip(off, ("s", "s′", "s″"), strict=True)),
    )
