"""Samples of a class, by a conditional score or by a classifier. Every guidance is a score made of scores, and goes wherever one goes."""

import torch

from carom.domains import Hypercube
from carom.processes import VE, Diffusion
from carom.scores import Classifier, ClassifierFree, Damped, EmpiricalScore
from carom.solvers import Heun, karras, sample

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
