"""Samples that do as they are told: of a class, with a part given, with a measurement given. Every guidance is a score made of scores."""

import torch

from carom.domains import Hypercube
from carom.processes import VE, Diffusion
from carom.scores import Classifier, ClassifierFree, CovarianceGuidance, Damped, Downsample, EmpiricalScore
from carom.solvers import EulerMaruyama, Heun, inpaint, karras, sample

torch.manual_seed(0)
process = Diffusion(Hypercube((1, 4, 4)), VE())
bright, dark = 0.6 + 0.4 * torch.rand(40, 1, 4, 4), 0.4 * torch.rand(40, 1, 4, 4)
everything = EmpiricalScore(process, torch.cat([bright, dark]))
classes = [EmpiricalScore(process, bright), EmpiricalScore(process, dark)]


def score(x, t, label=None):
    """What a class-conditional network answers: with no label the score of everything."""
    if label is None:
        return everything(x, t)
    return torch.where(label.reshape(-1, 1, 1, 1) == 0, classes[0](x, t), classes[1](x, t))


def log_class(x, t, label):
    """log p_t(label | x), as a classifier of noisy data learns it."""
    parts = torch.stack([c.log_prob(x, t) for c in classes], -1)
    return parts.log_softmax(-1).gather(-1, label[:, None])[:, 0]


times, label = karras(process, 18), torch.tensor([0, 1, 0, 1])
for guided in (
    ClassifierFree(score, weight=2.0, process=process),
    Damped(Classifier(everything, log_class, weight=2.0)),  # a classifier's gradient does not vanish at the walls
):
    run = sample(process, guided, Heun(), times, shape=4, seed=0, condition={"label": label})
    means = [round(float(v), 2) for v in run.x.mean((1, 2, 3))]
    print(f"{type(guided).__name__}: mean brightness {means} of bright, dark, bright, dark")

# the upper half is given
picture = bright[:1].expand(3, 1, 4, 4)
known = torch.zeros(1, 4, 4, dtype=torch.bool)
known[:, :2] = True
run = inpaint(process, everything, EulerMaruyama(), karras(process, 40), picture, known, resamplings=5, seed=range(3))
apart = (run.x - picture).abs()
print(
    f"inpainted: the known half to {float(apart[:, :, :2].max()):.0e}, the other to {float(apart[:, :, 2:].max()):.2f}"
)

# means of 2 × 2 blocks are given, to 0.02
operator = Downsample((1, 4, 4), 2)
guided = CovarianceGuidance(everything, operator, operator.forward(dark[0]), sigma_y=0.02)
run = sample(process, guided, EulerMaruyama(), karras(process, 60), shape=4, seed=1)
print(
    f"measured:  off the measurement by {float((operator.forward(run.x) - operator.forward(dark[0])).abs().mean()):.3f} on average"
)
