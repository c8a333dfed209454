"""Thresholding: clipping at every step is projection, of order ½ where folding is exact; clipping the predicted data is another score."""

import math

import torch

from carom.domains import Euclidean, Hypercube
from carom.processes import SDE, VE, Diffusion
from carom.scores import ClassifierFree, DynamicThreshold, GaussianMixtureScore, StaticThreshold
from carom.solvers import EulerMaruyama, Project, Reflect, karras, sample
from carom.validation import convergence_order, expectation

motion, place = SDE(lambda x, t: 0 * x, 1.0, Hypercube((1,))), torch.tensor([[0.2]], dtype=torch.float64)
exact = math.exp(-(math.pi**2) / 8) * math.cos(math.pi / 5)


def mean(steps: int, wall: Reflect | Project) -> float:
    """E cos πX of Brownian motion in [0, 1] from 0.2 at time ¼, by quadrature of each step."""
    times = torch.linspace(0, 0.25, steps + 1, dtype=torch.float64)
    return float(expectation(motion, EulerMaruyama(), times, lambda x: torch.cos(math.pi * x), wall=wall)(place))


print(f"E cos πX in 64 steps: folded {mean(64, Reflect()):.9f}, clipped {mean(64, Project()):.9f}, exact {exact:.9f}")
slopes = convergence_order(lambda n: mean(n, Project()), (16, 32, 64, 128, 256), exact)
print("order of clipping:", [round(v, 3) for v in slopes.tolist()])

# guidance pushes the data that a score predicts out of their range
process, data = Diffusion(Euclidean((4,)), VE(sigma_max=20.0)), [[-0.6] * 4, [0.6] * 4]
everything = GaussianMixtureScore(process, [0.5, 0.5], data, 0.02)
classes = [GaussianMixtureScore(process, [1.0], [mean], 0.02) for mean in data]
either = lambda x, t, label=None: everything(x, t) if label is None else classes[1](x, t)
guided, label = ClassifierFree(either, weight=30.0, process=process), torch.ones(1000, dtype=torch.long)
for score in (guided, StaticThreshold(guided), DynamicThreshold(guided)):
    x = sample(process, score, EulerMaruyama(), karras(process, 60), shape=1000, seed=0, condition={"label": label}).x
    print(f"{type(score).__name__:16} beyond 1: {float((x > 1).double().mean()):.1%}, largest {float(x.max()):.2f}")
