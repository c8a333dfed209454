"""Reflect or threshold? The reverse SDE of four atoms on [0, 1] with exact scores, by Euler–Maruyama on ever finer grids.

Three ways: fold moves back and read the score of the reflected diffusion (the reflected SDE itself); clip moves to the nearest point
("thresholding") and read the same score; clip and read the score of the diffusion *without* walls, which is the usual practice. Printed:
the Kolmogorov–Smirnov distance to the exact law at σ_min, and the share of states that sit exactly on a wall.

No sampling noise: a move from x is N(m(x), s²) with m and s from the solver's own step, and Gauss–Legendre sums over [0, 1], which converge
geometrically, carry its law from step to step. The last lines compare these laws with samples drawn through ``solve``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from timing import verdict
from torch import Tensor

from carom.domains import Euclidean, Hypercube
from carom.processes import VE, Diffusion, Equation, Wall
from carom.scores import EmpiricalScore
from carom.solvers import EulerMaruyama, Project, Reflect, WhiteNoise, bind, solve, uniform_lambda

ATOMS = torch.tensor([[0.03], [0.25], [0.6], [0.98]], dtype=torch.float64)
STEPS = (25, 50, 100, 200, 400, 800)
SIGMA_MAX, SIGMA_MIN = 5.0, 0.1
SAMPLES = 4000
Cdf = Callable[[Tensor], Tensor]


class Landing(NamedTuple):
    """Where the wall takes N(m, s²): the density at y inside, and the mass up to y (at 1: what is not on that wall)."""

    wall: Wall
    density: Callable[[Tensor, Tensor, float], Tensor]
    below: Callable[[Tensor, Tensor, float], Tensor]


class Way(NamedTuple):
    name: str
    landing: Landing
    score: Any


class Measured(NamedTuple):
    distance: float
    on_walls: float


def normal(z: Tensor) -> Tensor:
    return (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)


def unfolded(s: float) -> range:
    """k of the copies [2k − 1, 2k + 1] of the folded interval within 8 standard deviations of [−1, 2]."""
    most = math.ceil((8 * s + 1) / 2) + 1
    return range(-most, most + 1)


CLIP = Landing(
    Project(),
    density=lambda y, m, s: normal((y - m) / s) / s,
    below=lambda y, m, s: torch.special.ndtr((y - m) / s),
)
FOLD = Landing(
    Reflect(),
    density=lambda y, m, s: sum(normal((2 * k + y - m) / s) + normal((2 * k - y - m) / s) for k in unfolded(s)) / s,
    below=lambda y, m, s: sum(
        torch.special.ndtr((2 * k + y - m) / s) - torch.special.ndtr((2 * k - y - m) / s) for k in unfolded(s)
    ),
)


def exact(y: Tensor) -> Tensor:
    """The law to be reached: atoms blurred by σ_min and folded."""
    return FOLD.below(y[:, None], ATOMS[:, 0], SIGMA_MIN).mean(-1)


def grid(process: Diffusion, steps: int) -> Tensor:
    return uniform_lambda(process, steps + 1, sigma_max=SIGMA_MAX, sigma_min=SIGMA_MIN)


def moves(equation: Equation, times: Tensor, x: Tensor) -> list[tuple[Tensor, float]]:
    """(m ``[n]``, s) of each step from the states x ``[n, 1]``."""
    solver, found = EulerMaruyama(), []
    # the first state twice, the second time with a unit normal
    x, z = torch.cat([x, x[:1]]), torch.cat([torch.zeros_like(x), torch.ones_like(x[:1])])
    for record in bind(solver.plan(equation, times), x):
        moved = solver.step(equation, x, record, (), (z,))[0][:, 0]
        found.append((moved[:-1], float(moved[-1] - moved[0])))
    return found


def law(process: Diffusion, way: Way, steps: int) -> Cdf:
    """The distribution function after so many steps from the uniform law, as which the prior at σ_max starts."""
    equation, times, landing = process.reverse(way.score).bound(way.landing.wall), grid(process, steps), way.landing
    narrowest = min(s for _, s in moves(equation, times, ATOMS[:1]))
    # a sum over nodes at distance d of a Gaussian errs by e^{−2π²(s/d)²}; they lie at most π/2n apart, that is 0.8 s
    nodes, weights = (torch.tensor(0.5 * v) for v in np.polynomial.legendre.leggauss(30 + math.ceil(2 / narrowest)))
    inside = 0.5 + nodes
    low, high = inside.new_zeros(1), inside.new_ones(1)
    *path, (m, s) = moves(equation, times, torch.cat([low, inside, high])[:, None])
    mass = torch.cat([low, weights, low])
    for centre, spread in path:
        on_low, on_high = (landing.below(wall, centre, spread) @ mass for wall in (low, high))
        density = landing.density(inside[:, None], centre, spread) @ mass
        mass = torch.cat([on_low[None], weights * density, 1 - on_high[None]])
    return lambda y: landing.below(y[:, None], m, s) @ mass


def measure(cdf: Cdf) -> Measured:
    y = torch.linspace(0, 1, 1001, dtype=torch.float64)
    found = cdf(y)
    return Measured(float((found - exact(y)).abs().max()), float(found[0] + 1 - found[-1]))


def order(values: list[float]) -> float:
    """Of the decay from the second grid to the last, in steps."""
    return math.log(values[1] / values[-1]) / math.log(STEPS[-1] / STEPS[1])


def report(way: Way, runs: list[Measured]) -> None:
    for label, values in (("KS", [r.distance for r in runs]), ("on walls", [r.on_walls for r in runs])):
        decay = f"{order(values):8.2f}" if values[-1] > 1e-9 else f"{'–':>8}"
        print(f"{way.name:28}{label:>10}" + "".join(f"{abs(v):9.4f}" for v in values) + decay)


def check(process: Diffusion, way: Way, cdf: Cdf) -> None:
    """Samples through ``solve`` against the law of the coarsest grid: √n times the largest gap, which exceeds 1.63 once in a hundred."""
    x = (torch.arange(SAMPLES, dtype=torch.float64)[:, None] + 0.5) / SAMPLES
    equation, times = process.reverse(way.score), grid(process, STEPS[0])
    x = solve(equation, x, times, EulerMaruyama(), noise=WhiteNoise(0), wall=way.landing.wall).x.flatten()
    y = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    gap = SAMPLES**0.5 * float(((x <= y[:, None]).double().mean(1) - cdf(y)).abs().max())
    share = float(((x == 0) | (x == 1)).double().mean())
    error = (share * (1 - share) / SAMPLES) ** 0.5
    print(f"  {way.name:28} {share:.4f} ± {error:.4f} on walls, √n·gap {gap:.2f}   {verdict(gap, 1.63)}")


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    process = Diffusion(Hypercube((1,)), VE())
    inside = EmpiricalScore(process, ATOMS)
    without = EmpiricalScore(Diffusion(Euclidean((1,)), VE()), ATOMS)
    ways = (
        Way("fold, reflected score", FOLD, inside),
        Way("clip, reflected score", CLIP, inside),
        Way("clip, score without walls", CLIP, without),
    )
    print(f"atoms at {ATOMS.flatten().tolist()}, uniform in ln σ from {SIGMA_MAX:g} to {SIGMA_MIN:g}; steps:")
    print(f"{'':38}" + "".join(f"{n:>9}" for n in STEPS) + "   order")
    laws = {way: [law(process, way, n) for n in STEPS] for way in ways}
    runs = {way: [measure(cdf) for cdf in laws[way]] for way in ways}
    for way in ways:
        report(way, runs[way])

    fold, clip, wrong = ([r.distance for r in runs[way]] for way in ways)
    atoms = order([r.on_walls for r in runs[ways[1]]])
    print("\nfolding converges to the law with order 1")
    print(f"  order of KS {order(fold):.2f}   {verdict(order(fold), 0.9, at_least=True)}")
    print("clipping converges to it as √h, as do the shares that it leaves on the walls")
    print(f"  order of KS {order(clip):.2f}   {verdict(order(clip), 0.6)}")
    print(f"  order of the share on walls {atoms:.2f}   {verdict(atoms, 0.6)}")
    print("clipping with the score of another process converges to another law")
    print(f"  KS on the finest grid {wrong[-1]:.3f}   {verdict(wrong[-1], 0.1, at_least=True)}")
    print(f"  over that of folding {wrong[-1] / fold[-1]:.0f}×   {verdict(wrong[-1] / fold[-1], 50, at_least=True)}")
    print(f"\n{SAMPLES} samples of {STEPS[0]} steps through solve:")
    for way in ways:
        check(process, way, laws[way][0])


if __name__ == "__main__":
    main()
