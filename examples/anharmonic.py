"""Training where x_t has no closed form: dx = −3(x + x³/2) dt + √6 dW, simulated; implicit matching; data by the reversed SDE."""

import torch

from carom.domains import Euclidean
from carom.processes import SDE, VP, Diffusion, TimeReversal
from carom.scores.neural import Cosine, LogUniform, NeuralScore, SimulatedScoreMatching, VPPreconditioning, train
from carom.solvers import EulerMaruyama, solve
from carom.validation import GridLaw

torch.manual_seed(0)
sde = SDE(lambda x, t: -3 * (x + x**3 / 2), 6**0.5, Euclidean((1,)))
data = 1.8 * (torch.rand(20000, 1) < 0.7) - 1 + 0.3 * torch.randn(20000, 1)  # .3 N(−1, .3²) + .7 N(.8, .3²)


class Network(torch.nn.Sequential):
    """ε = −std·score: of the stationary law, whose score 2f/g² is known, and a correction."""

    def forward(self, x, t):
        std, late = (1 - (-6 * t[:, None]).exp()).sqrt(), 1 + t[:, None].log() / 2
        shift, slope = super().forward(torch.cat([x, 2 * std - 1, late], -1)).chunk(2, -1)
        return std * (x + x**3 / 2) + shift + slope * x


# the process is a clock; levels from t = 0.01 on, each weighed in units of x
layers = torch.nn.Linear(3, 48), torch.nn.Tanh(), torch.nn.Linear(48, 48), torch.nn.Tanh(), torch.nn.Linear(48, 2)
score = NeuralScore(Network(*layers), Diffusion(sde.domain, VP(6, 6)), VPPreconditioning(6, 6, M=2))
loss = SimulatedScoreMatching(sde, levels=LogUniform(0.25, 20.0), weight=lambda sigma: 1 + sigma**-2)
train(score, data, objective=loss, steps=400, batch_size=512, lr=Cosine(1e-2, 400), ema=None, progress=False)
with torch.no_grad():
    start = solve(sde, data[:2000], torch.linspace(0, 3, 601), EulerMaruyama()).x  # the stationary law
    x = solve(TimeReversal(sde, score), start, torch.linspace(1, 0.1, 201) ** 2, EulerMaruyama()).x
bumps = lambda x: 3 * (-((x + 1) ** 2) / 0.18).exp() + 7 * (-((x - 0.8) ** 2) / 0.18).exp()
law = GridLaw(sde.drift, 6**0.5, bumps, -4, 4)
print(f"KL of the data from samples: at most {law.divergence(score, 0.01, 1):.3f}")
for k in (1, 2, 3):
    print(
        f"E x^{k}: {(x**k).mean():.3f} ± {(x**k).std() / 2000**0.5:.3f}, exact {law.mean(lambda x, k=k: x**k, 0.01):.3f}"
    )
