r"""What inverse guidance and inpainting reach, where all is known: Gaussian data, linear measurements.

A guided score is affine in x there, so that mean m and covariance P of the guided reverse SDE obey ordinary equations,

.. math:: \dot m = a m + b F(m),\qquad \dot P = G P + P G^T - c^2 I,\qquad G = a I + b\,∂F/∂x

along falling t. Replacement is alike: on fine grids the noise of the known part averages out of the drift, and its mean is what the score
reads. Resampling r times per step is, in that limit, replacement in the reverse SDE of stochasticity 2r − 1: r steps down and r − 1 up
make one step down and r − 1 of Langevin dynamics. So all have closed forms, and they are compared with

* the moments of the rule on its grid, exact as well (``propagate_moments``),
* samples, whose mean is within a few standard errors of the rule's.

Run: ``python benchmarks/inverse.py``; ``--samples`` and ``--steps`` set the cost.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from timing import verdict
from torch import Tensor

from carom.domains import Euclidean
from carom.processes import ODE, VP, Diffusion
from carom.scores import DPS, CovarianceGuidance, Dense, GaussianMixtureScore, PiGDM
from carom.solvers import AdaptiveODE, Ancestral, Inpaint, Solver, WhiteNoise, karras, solve
from carom.validation import propagate_moments

MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 1.5, 0.1], [1.5, 1.5, -0.1], [0.1, -0.1, 0.1]], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
Y, SIGMA_Y = torch.tensor([3.0, -1.5], dtype=torch.float64), 0.8
KNOWN, MASK = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64), torch.tensor([True, False, False])

Moments = tuple[Tensor, Tensor]


class Line(NamedTuple):
    """Largest errors of the mean and of the covariance: in the limit of fine grids, of the rule, of samples; and how far the mean of the
    samples is from that of the rule, in standard errors."""

    name: str
    limit: tuple[float, float]
    rule: tuple[float, float]
    samples: tuple[float, float]
    deviation: float


def conditional(operator: Tensor, y: Tensor, noise: float) -> Moments:
    """Mean and covariance of x0 given y."""
    gram = operator @ COVARIANCE @ operator.T + noise**2 * torch.eye(len(operator), dtype=torch.float64)
    gain = COVARIANCE @ operator.T @ torch.linalg.inv(gram)
    return MEAN + gain @ (y - operator @ MEAN), COVARIANCE - gain @ operator @ COVARIANCE


def limit(
    process: Diffusion, score: Callable[..., Tensor], start: Moments, ends: Tensor, stochasticity: float = 1.0
) -> Moments:
    """Mean and covariance that the reverse SDE with an affine score reaches at ends[1] from ``start`` at ends[0]."""
    equation, d = process.reverse(score, stochasticity), len(start[0])

    def drift(state: Tensor, t: Tensor) -> Tensor:
        time = t.reshape(-1)[0]
        a, b, c = equation.coefficients(time)
        rows = score(torch.cat([torch.zeros(1, d), torch.eye(d)]).to(state), time)
        matrix = (rows[1:] - rows[0]).T
        mean, covariance = state[0, :d], state[0, d:].reshape(d, d)
        slope = a * torch.eye(d).to(state) + b * matrix
        turn = slope @ covariance
        change = turn + turn.T - c**2 * torch.eye(d).to(state)
        return torch.cat([slope @ mean + b * rows[0], change.reshape(-1)])[None]

    state = torch.cat([start[0], start[1].reshape(-1)])[None]
    rule = AdaptiveODE(1e-7, 1e-9, max_nfe=100_000)
    end = solve(ODE(drift, Euclidean((d + d * d,))), state, ends, rule, raise_on_failure=True).x[0]
    return end[:d], end[d:].reshape(d, d)


class Averaged:
    """The score of the unknown coordinates where the known ones stand at their mean s·x0: what replacement comes to on fine grids."""

    def __init__(self, score: GaussianMixtureScore):
        self.score, self.process = score, score.process
        free = (~MASK).nonzero().flatten()
        self.free, self.domain = free, Euclidean((len(free),))

    def __call__(self, u: Tensor, t: Tensor) -> Tensor:
        known = self.process.schedule.scale(t) * KNOWN.to(u)
        x = known.expand(*u.shape[:-1], len(known)).index_copy(-1, self.free, u)
        return self.score(x, t).index_select(-1, self.free)


def errors(found: Moments, exact: Moments) -> tuple[float, float]:
    mean, covariance = (float((a - b).abs().max()) for a, b in zip(found, exact, strict=True))
    return mean, covariance


def line(
    name: str, exact: Moments, bound: Moments, score: Any, solver: Solver, times: Tensor, samples: int, free: Tensor
) -> Line:
    """One method: its limit is given, its rule and its samples are run. ``free``: the coordinates to compare."""
    process = score.process
    start = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    equation = process.reverse(score)
    mean, covariance = propagate_moments(equation, solver, times, *start)
    x = torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        end = solve(equation, x, times, solver, noise=WhiteNoise(1)).x[:, free]
    measured = end.mean(0), end.T.cov()
    rule = mean[free], covariance[free][:, free]
    deviation = ((measured[0] - rule[0]).abs() / (rule[1].diagonal() / samples).sqrt()).max()
    return Line(name, errors(bound, exact), errors(rule, exact), errors(measured, exact), float(deviation))


def guidance(steps: int, samples: int) -> list[Line]:
    score = GaussianMixtureScore(Diffusion(Euclidean((3,)), VP()), [1.0], MEAN[None], COVARIANCE[None])
    times, operator = karras(score.process, steps + 1), Dense(MATRIX)
    exact, start = conditional(MATRIX, Y, SIGMA_Y), (torch.zeros(3).double(), torch.eye(3).double())
    methods = {
        "DPS": DPS(score, operator, Y, sigma_y=SIGMA_Y),
        "PiGDM": PiGDM(score, operator, Y, SIGMA_Y),
        "covariance": CovarianceGuidance(score, operator, Y, SIGMA_Y),
    }
    out = []
    for name, guided in methods.items():
        bound = limit(score.process, guided, start, times[[0, -1]])
        out.append(line(name, exact, bound, guided, Ancestral("forward"), times, samples, torch.arange(3)))
    return out


def inpainting(steps: int, samples: int) -> list[Line]:
    score = GaussianMixtureScore(Diffusion(Euclidean((3,)), VP()), [1.0], MEAN[None], COVARIANCE[None])
    times, averaged = karras(score.process, steps + 1), Averaged(score)
    whole = conditional(torch.eye(3, dtype=torch.float64)[:1], KNOWN[:1], 0.0)
    exact = whole[0][averaged.free], whole[1][averaged.free][:, averaged.free]
    start, unknown = (torch.zeros(2).double(), torch.eye(2).double()), Diffusion(averaged.domain, VP())
    out = []
    for r in (1, 5, 20):
        bound = limit(unknown, averaged, start, times[[0, -1]], 2.0 * r - 1)
        rule = Inpaint(Ancestral("forward"), KNOWN, MASK, r)
        name = "replacement" if r == 1 else f"RePaint, {r} times"
        out.append(line(name, exact, bound, score, rule, times, samples, averaged.free))
    return out


def table(title: str, lines: list[Line]) -> str:
    head = (
        f"{title}\n{'':18}{'limit':>18}{'rule':>20}{'samples':>20}{'deviation':>12}\n{'':18}"
        + f"{'mean':>10}{'cov.':>9}" * 3
    )
    rows = [
        f"{each.name:18}"
        + "".join(f"{m:11.4f}{c:9.4f}" for m, c in (each.limit, each.rule, each.samples))
        + f"{each.deviation:12.1f}   {verdict(each.deviation, 3.5)}"
        for each in lines
    ]
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    guided = guidance(arguments.steps, arguments.samples)
    print(table("Errors of guidance: mean and covariance of x0 given y = A x0 + noise", guided))
    print(f"  with the covariance, limit   {verdict(max(guided[-1].limit), 1e-3)}")
    known = inpainting(arguments.steps // 2, arguments.samples)
    print(table("Errors of inpainting: one of three coordinates known", known))
    for before, after in pairwise(known):
        print(f"  {after.name} over {before.name}   {verdict(after.rule[0] / before.rule[0], 0.5)}")


if __name__ == "__main__":
    main()
