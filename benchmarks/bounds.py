r"""Bits per dimension of a model of discrete values, by the variational bound, on walls as in the open; what the studies of images report.

With x = x_{σ₀} noised data and s the score, in coordinates of the heat flow (no schedule enters),

.. math:: -\log P(v) \le \mathbb E\Big[\sum_i \log\sum_{u} q_{σ_0}(x_i|u)\Big] + \mathbb E[-\log π(x_{σ_1})]
          + \int_{σ_0}^{σ_1} σ\,\mathbb E\big[|s|^2 - 2 s·\nabla \log q_σ(x|x_0)\big] dσ

u over the values a number may take, each read off x by Bayes' rule with equal prior chances; the integral by ln σ in strata. It bounds
the reverse SDE's likelihood, and is tight for an exact score as σ₀ falls below the distance of two values.

Run as a script it shows that on three values of known chances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from carom.domains import Euclidean, Hypercube
from carom.processes import VE, VP, Diffusion
from carom.scores import EmpiricalScore
from carom.scores.neural.levels import LogUniform, stratified


class Bits(NamedTuple):
    """Bits per dimension and their standard error over the data."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.standard_error:.3f}"


@torch.no_grad()
def bits_per_dim(
    process: Diffusion,
    at_level: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    values: Tensor,
    *,
    sigma: float | None = None,
    draws: int = 8,
    batch_size: int = 250,
    seed: int = 0,
) -> Bits:
    """Args: at_level(X, σ): the score of the heat flow. x0: data ``[N, *event]`` among ``values`` ``[V]``. sigma: σ₀, sigma_min by default.
    draws: noise levels per datum."""
    generator = torch.Generator().manual_seed(seed)
    low, high = sigma or process.schedule.sigma_min, process.schedule.sigma_max
    nats = []
    for rows in x0.split(batch_size):
        each = torch.stack([_integral(process, at_level, rows, low, high, generator) for _ in range(draws)]).mean(0)
        nats.append(each + _prior(process, rows, high, generator) + _decoder(process, rows, values, low, generator))
    bits = torch.cat(nats).double() / (x0[0].numel() * math.log(2))
    return Bits(float(bits.mean()), float(bits.std()) / math.sqrt(len(bits)))


def _integral(process, at_level, x0: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    sigma = LogUniform(low, high).quantile(stratified(x0.shape[:1], x0, generator))
    x, target = process.heat_flow(x0, sigma).sample_with_target(generator=generator)
    s = at_level(x, sigma)
    return math.log(high / low) * sigma**2 * (s * (s - 2 * target)).flatten(1).sum(1)


def _prior(process: Diffusion, x0: Tensor, high: float, generator: torch.Generator) -> Tensor:
    if process.domain.bounded:
        return torch.full(x0.shape[:1], float(process.domain.uniform().entropy()))
    scale = float(process.schedule.scale(process.schedule.t_max))
    x = process.heat_flow(x0, torch.full(x0.shape[:1], high)).sample(generator=generator)
    return -process.prior(x.dtype).log_prob(scale * x) - x0[0].numel() * math.log(scale)


def _decoder(process: Diffusion, x0: Tensor, values: Tensor, low: float, generator: torch.Generator) -> Tensor:
    """E Σ_i log Σ_u q(x_i | u)."""
    x = process.heat_flow(x0, torch.full(x0.shape[:1], low)).sample(generator=generator)
    bounds = {k: v for k, v in process.domain.config().items() if k in ("low", "high")}
    line = type(process.domain)((1,), **bounds)
    kernel = line.heat_kernel(values.to(x)[:, None], low)
    # 12σ away a value adds nothing, but all are summed: some ten million numbers a batch
    parts = [kernel.log_prob(part[:, None, None]).logsumexp(-1) for part in x.flatten().split(1 << 15)]
    return torch.cat(parts).reshape(len(x), -1).sum(1)


def main() -> None:
    chances, values = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.0, 0.5, 1.0])
    entropy = float(-(chances * chances.log2()).sum())
    data = values[torch.repeat_interleave(torch.arange(3), torch.tensor([2000, 3000, 5000]))][:, None].double()
    print(f"three values of chances .2, .3, .5, entropy {entropy:.4f} bits; bounds with exact scores:")
    for process in (Diffusion(Hypercube((1,)), VE()), Diffusion(Euclidean((1,)), VP())):
        exact = EmpiricalScore(process, values.repeat_interleave(torch.tensor([2, 3, 5]))[:, None].double())

        def at_level(x: Tensor, sigma: Tensor, process: Diffusion = process, exact: EmpiricalScore = exact) -> Tensor:
            t = process.schedule.time(sigma)[:, None]
            scale = process.schedule.scale(t)
            return scale * exact(scale * x, t)

        print(f"{process.domain!r}: {bits_per_dim(process, at_level, data, values.double(), draws=32)}")


if __name__ == "__main__":
    main()
