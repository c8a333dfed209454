r"""A neural Schrödinger bridge between two data sets, two moons and a ring, against entropic optimal transport by the library POT.

The bridge of Brownian motion of variance σ² couples the ends by entropic transport of |x − y|² at ε = 2σ². POT solves that on samples of
the two laws; the network learns it by mean-matching IPF. Compared are E|x0 − x1|² = ⟨C, π⟩ of the two, and the ends that are reached, by
sliced distances from fresh samples. The same in the unit square with reflecting walls, where the library's own Sinkhorn with the square's
heat kernel is the reference and no sample may be outside.

Run: ``python benchmarks/bridge.py``; ``--halves`` and ``--steps`` set the cost. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import NamedTuple

import ot
import torch
from timing import verdict
from torch import Tensor

from carom.domains import Domain, Euclidean, Hypercube
from carom.scores.neural import MLP, DiffusionSchroedingerBridge, MLPConfig, NeuralRegressor
from carom.solvers import Weighted, sinkhorn
from carom.validation import sliced_wasserstein


class Outcome(NamedTuple):
    """Transport costs; sliced distances from fresh samples, forwards and backwards; how many samples are outside; seconds."""

    cost: float
    reference: float
    forward: float
    backward: float
    floor: float
    outside: int
    seconds: float


def moons(count: int, generator: torch.Generator) -> Tensor:
    """Two half circles of radius 1 that reach into each other, with noise of 0.1, about the origin."""
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.rand(count, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return torch.stack([x, y], 1) + 0.1 * torch.randn(count, 2, generator=generator)


def ring(count: int, generator: torch.Generator) -> Tensor:
    """A circle of radius 2 with noise of 0.1."""
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(count, 2, generator=generator)


def within(domain: Hypercube, draw):
    """The same law, shrunk into the unit square; the few that are still outside are folded in."""
    return lambda count, generator: domain.fold(0.5 + 0.22 * draw(count, generator))[0]


def pot_cost(x: Tensor, y: Tensor, sigma: float) -> float:
    """⟨C, π⟩ of entropic transport at ε = 2σ², by POT."""
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    plan = ot.sinkhorn(ot.unif(len(x)), ot.unif(len(y)), cost, reg=2 * sigma**2, method="sinkhorn_log", stopThr=1e-9)
    return float((plan * cost).sum())


def learned(domain: Domain, start, end, sigma: float, halves: int, steps: int, reference) -> Outcome:
    torch.manual_seed(0)
    began = time.monotonic()
    networks = [MLP(MLPConfig((2,), width=64, depth=2)) for _ in range(2)]
    regressors = [NeuralRegressor(network, steps=steps, batch_size=1024, refresh=steps // 2) for network in networks]
    bridge = DiffusionSchroedingerBridge(domain, sigma, *regressors, times=20)
    bridge.fit(start, end, halves=halves, paths=4096)
    seconds = time.monotonic() - began
    fresh = torch.Generator().manual_seed(1)
    x, y, other = start(5000, fresh), end(5000, fresh), end(5000, fresh)
    to, back = bridge.sample(x, seed=2).x, bridge.sample(y, backward=True, seed=3).x
    return Outcome(
        float(((to - x) ** 2).sum(1).mean()),
        reference(x[:1000], y[:1000]),
        sliced_wasserstein(to, other).value,
        sliced_wasserstein(back, x).value,
        sliced_wasserstein(y, other).value,
        int((~domain.contains(to)).sum() + (~domain.contains(back)).sum()),
        seconds,
    )


def shown(title: str, result: Outcome) -> str:
    ratio = result.cost / result.reference
    return (
        f"{title} ({result.seconds:.0f} s)\n"
        f"  E|x0 − x1|² {result.cost:.4f}, reference {result.reference:.4f}, ratio {ratio:.3f}   {verdict(ratio, 1.5)}\n"
        f"  sliced distance to the end {result.forward:.3f}, to the start {result.backward:.3f}; of two samples of one law "
        f"{result.floor:.3f}\n"
        f"  samples outside {result.outside}   {verdict(result.outside, 0)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--halves", type=int, default=6)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = arguments.halves, arguments.steps
    sigma = 0.7
    result = learned(Euclidean((2,)), moons, ring, sigma, *sizes, lambda x, y: pot_cost(x, y, sigma))
    print(shown("Moons to a ring, σ = 0.7, reference by POT", result))
    square = Hypercube((2,))
    result = learned(
        square,
        within(square, moons),
        within(square, ring),
        0.22 * sigma,
        *sizes,
        lambda x, y: sinkhorn(square, Weighted.of(x), Weighted.of(y), 0.22 * sigma, tolerance=1e-6).cost,
    )
    print(shown("The same in the unit square, reflected, reference by Sinkhorn with its heat kernel", result))


if __name__ == "__main__":
    main()
