"""A noise schedule trained along with its score: the bound in continuous time rests on its ends alone, in steps on all of it."""

import math

import torch

from carom.domains import Euclidean
from carom.processes import Diffusion, Learned
from carom.scores.neural import MLP, VDM, EDMPreconditioning, MLPConfig, NeuralScore, train

data = 0.5 + 0.5 * torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25)


def model(schedule: Learned) -> NeuralScore:
    """A small network that begins at the exact score of N(½, ¼), the law of the data."""
    network = MLP(MLPConfig((1,), width=8))
    return NeuralScore(network, Diffusion(Euclidean((1,)), schedule), EDMPreconditioning(0.5, 0.5))


def bound(objective: VDM, score: NeuralScore) -> str:
    """Mean over 200,000 draws of data, time and noise, in nats above the entropy of the data, and its standard error."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        total = objective.bound(score, 0.5 + 0.5 * torch.randn(200_000, 1, generator=generator), generator).total
    return f"{float(total.mean()) - entropy:+.3f} ± {float(total.std()) / math.sqrt(len(total)):.3f}"


torch.manual_seed(0)
schedule = Learned(gamma_min=-13.3, gamma_max=5.0)
score = model(schedule)
infinite = 0.5 * math.log((1 + 0.25 * math.exp(13.3)) / (1 + 0.25 * math.exp(-5.0)))
rest = 0.00168446151349 - 5.23106481577  # KL(q(z_1|x_0)|N(0, 1)) and E[−log N(x_0; X_0, σ_min²)], both exact
print(f"continuous time: {bound(VDM(schedule), score)} above the entropy, exact {infinite + rest - entropy:+.4f}")
for steps in (10, 100):
    fixed = bound(VDM(schedule, steps=steps), score)
    free = Learned(gamma_min=-13.3, gamma_max=5.0, endpoints=False)
    trained, objective = model(free), VDM(free, steps=steps)
    train(trained, data, objective=objective, steps=300, batch_size=512, lr=2e-2, progress=False)
    print(f"{steps:3} steps: {fixed} as it begins, {bound(VDM(free, steps=steps), trained)} trained")
