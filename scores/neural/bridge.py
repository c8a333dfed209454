r"""Diffusion Schrödinger bridges: mean-matching IPF between two data sets, or from data to noise, on any domain with a heat kernel.

Time 0 = t_0 < … < t_N = 1, h_k = t_{k+1} − t_k. Two chains, forward with rates f_k and backward with rates b_k, step like

.. math:: X_{k+1} \sim p_{σ\sqrt{h_k}}\big(\cdot\,|\,m\big),\quad m = \mathrm{reflect}\big(X_k,\ h_k f_k(X_k)\big),   (1)

p the domain's Neumann heat kernel: Euler–Maruyama in the open, and between walls its reflected form, for a fold of x + hf + σ√h z
is a draw of (1). IPF starts at the reference, f = drift (0: reflected Brownian motion), and alternates: run the forward chain from
``start`` and fit b to its reversal, run the backward chain from ``end`` and fit f to the reversal of that.

*What is regressed.* The reversal of a step has the rate −f_k(x) + σ²∇ log q_{k+1}(x), q_{k+1} the law of X_{k+1} (Haussmann & Pardoux
1986). By the denoising identity that score is E[∇ log p(X_{k+1} | m) | X_{k+1}], so that

.. math:: b_k(x) = E\big[-f_k(X_{k+1}) + σ^2\, ∇_x \log p_{σ\sqrt{h_k}}(X_{k+1}\,|\,m)\ \big|\ X_{k+1} = x\big]   (2)

and f from b alike, with the roles of the ends exchanged. In the open ∇ log p is (m − x)/σ²h, and x + h b_k(x) is the map
E[X_{k+1} + F_k(X_k) − F_k(X_{k+1}) | X_{k+1} = x], F = x + h f, of mean matching (De Bortoli et al. 2021, eq. 12). Between walls that
difference of positions would be wrong: a state that was folded has come from an image of m, seen across the wall. With u the unfolded
state the difference to take is m − u, carried back through the fold; its mean given m and x is the kernel's own score, which (2) uses: it
has less variance, needs no bookkeeping of folds, serves domains whose kernel is no fold, and has no normal component at a wall.

*Its bias.* Noise of variance σ²h in both directions and a rate right to O(h) leave the ends with errors of O(1/N), however well f and b
are fitted: ``carom.solvers.bridge.mean_matching`` computes them exactly for Gaussians.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ...domains import Domain, KernelDomain
from ...domains.tensors import batch_shape, expand_right, number
from ...processes import SDE
from ...processes.equations import check_field
from ...solvers import ReflectedEulerMaruyama, Solution, WhiteNoise, solve
from ...solvers.checks import check_times
from .batches import mix
from .regressors import Paths, Regressor, check_counts

Draw = Callable[[int, torch.Generator], Tensor]
Law = Tensor | Distribution | Draw


class _Reference:
    """The rates of the reference: its drift at the beginning of each step."""

    def __init__(self, drift: Callable[..., Tensor] | None, times: Tensor):
        self.drift, self.times = drift, times

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        if self.drift is None:
            return torch.zeros_like(x)
        t = self.times[step.cpu()].to(x)
        return check_field(self.drift(x, expand_right(t, x.dim() - 1) if t.dim() else t), x)


class DiffusionSchroedingerBridge:
    """Mean-matching IPF (De Bortoli et al. 2021, alg. 1): learns the Schrödinger bridge between two laws; see the module.

    Args:
        domain: where states live, with a heat kernel: Euclidean space, a box, a torus, a simplex, a ball ….
        sigma: of the reference dX = drift(X, t) dt + σ dW on t ∈ [0, 1], reflected at the walls.
        forward, backward: a regressor for each direction.
        times: a grid rising from 0 to 1, or the number of equal steps.
        drift: of the reference, a callable (x, t); none for Brownian motion.

    Raises ``TypeError`` for a domain without heat kernel, for what is no regressor, and for one in both places, ``ValueError`` for a grid
    that is none.
    """

    def __init__(
        self,
        domain: Domain,
        sigma: float,
        forward: Regressor,
        backward: Regressor,
        *,
        times: int | Sequence[float] | Tensor = 20,
        drift: Callable[..., Tensor] | None = None,
    ):
        if not isinstance(domain, KernelDomain):
            raise TypeError(
                f"domain: got {domain!r}, expected one with a known heat kernel, such as Hypercube or Euclidean: the target is its score"
            )
        for regressor, name in ((forward, "forward"), (backward, "backward")):
            if not isinstance(regressor, Regressor):
                raise TypeError(
                    f"{name}: got {type(regressor).__name__}, expected a Regressor, e.g. LinearRegressor() or NeuralRegressor(network)"
                )
        if drift is not None and not callable(drift):
            raise TypeError(
                f"drift: got {type(drift).__name__}, expected a callable drift(x, t), or None for Brownian motion"
            )
        if forward is backward:
            raise TypeError(
                "backward: got the regressor of forward, expected another; each direction learns rates of its own"
            )
        self.domain, self.sigma = domain, number(sigma, "sigma", low=0.0, open_low=True)
        self.times = _grid(times)
        shortest = self.sigma * math.sqrt(float(self.times.diff().min()))
        if shortest < domain.sigma_min:
            raise ValueError(
                f"times: got a step of standard deviation {shortest:g}, expected at least {domain.sigma_min:g}, below which the kernel of "
                f"{domain!r} is not exact; take fewer steps"
            )
        self.regressors = {False: forward, True: backward}
        #: the rates in force: by direction, True being backward
        self.rates: dict[bool, Callable[[Tensor, Tensor], Tensor]] = {False: _Reference(drift, self.times)}
        self.halves = 0

    def fit(
        self,
        start: Law,
        end: Law,
        *,
        halves: int = 10,
        paths: int = 4096,
        seed: int = 0,
        log: Callable[[int, float], Any] | None = None,
    ) -> list[float]:
        """Run half iterations of IPF, going on from those already done; returns the mean squared residual of each.

        The first fits the backward rates to the reference, the next the forward rates, and so on. Between data sets take as many as the
        coupling matters; from data to noise that the reference nearly reaches, few will do.

        Args:
            start, end: the laws at t = 0 and 1: data ``[n, *event]``, a distribution whose ``sample(shape, generator=…)`` draws (such
                as ``domain.uniform()``), or a callable (count, generator) → states.
            halves: how many half iterations.
            paths: how many are simulated and cached at a time.
            seed: of all draws; fits of one seed that go on from one another are the fit of all their halves.
            log: called as ``log(half, residual)`` after each.
        """
        check_counts(halves=halves, paths=paths)
        generator = torch.Generator()
        laws = {False: _drawing(start, "start", self.domain), True: _drawing(end, "end", self.domain)}
        losses = []
        for _ in range(halves):
            backward = self.halves % 2 == 0
            regressor = self.regressors[backward]
            # each half iteration has a seed of its own, so that those that are gone on with are the same as in one run
            generator.manual_seed(mix(seed, "half", self.halves))

            def draw(backward: bool = backward) -> Paths:
                # the direction that is fitted is the reversal of the paths of the other
                return self._simulate(laws[not backward](paths, generator), not backward, generator)

            # the rates of before stay in force for the paths that this half iteration needs
            losses.append(regressor.fit(draw, generator))
            self.rates[backward] = regressor
            self.halves += 1
            if log is not None:
                log(self.halves, losses[-1])
        return losses

    def equation(self, *, backward: bool = False) -> SDE:
        """The SDE of one direction, with rates that are constant in time over each step: times rise, or fall where ``backward``."""
        if backward not in self.rates:
            raise RuntimeError("bridge: got no backward rates yet; fit at least one half iteration")
        rates, ndim = self.rates[backward], len(self.domain.event_shape)

        def drift(x: Tensor, t: Tensor) -> Tensor:
            grid = self.times.to(t)
            # the step that begins at t in this direction
            step = (torch.searchsorted(grid, t.contiguous(), right=not backward) - 1).clamp(0, len(grid) - 2)
            if step.dim():
                step = step.reshape(step.shape[:-ndim]).expand(batch_shape(x, self.domain.event_shape)).reshape(-1)
            value = rates(x.reshape(-1, *self.domain.event_shape), step).reshape(x.shape)
            return -value if backward else value

        return SDE(drift, self.sigma, self.domain)

    @torch.no_grad()
    def sample(
        self, x: Tensor, *, backward: bool = False, seed: int | None = None, denoise: bool = False, save: Any = None
    ) -> Solution:
        """Carry states ``[B, *event]`` of ``start`` to ``end``, or back where ``backward``, on the grid it was trained on.

        The pairs (x, solution.x) are the learned coupling; ``save="all"`` keeps the paths. ``denoise``: the last step is taken without
        noise, as De Bortoli et al. do, for data narrower than its σ√h; x is then no draw of the chain, and its variance too small by σ²h.
        """
        times = self.times.flip(0) if backward else self.times
        equation, grid = self.equation(backward=backward), times[:-1] if denoise else times
        run = solve(equation, x, grid, ReflectedEulerMaruyama(), noise=WhiteNoise(seed), save=save)
        if not denoise:
            return run
        move = float(times[-1] - times[-2]) * equation.drift(run.x, times[-2].to(run.x))
        return replace(run, x=self.domain.reflect(run.x, move), nfe=run.nfe + 1)

    @torch.no_grad()
    def _simulate(self, x: Tensor, backward: bool, generator: torch.Generator) -> Paths:
        """Paths of this direction from x, with the targets (2) of the other."""
        rates, spans = self.rates[backward], self.times.diff()
        states, targets = [], []
        order = range(len(spans))
        for k in reversed(order) if backward else order:
            step, h = torch.tensor(k), float(spans[k])
            kernel = self.domain.unchecked_kernel(self.domain.reflect(x, h * rates(x, step)), self.sigma * math.sqrt(h))
            x, score = kernel.sample_with_target(generator=generator)
            states.append(x)
            targets.append(self.sigma**2 * score - rates(x, step))
        if backward:
            states, targets = states[::-1], targets[::-1]
        return Paths(torch.stack(states), torch.stack(targets))


def _grid(times: int | Sequence[float] | Tensor) -> Tensor:
    if isinstance(times, (int, float)):
        check_counts(times=times)
        return torch.linspace(0, 1, int(times) + 1, dtype=torch.float64)
    grid = check_times(times)
    if len(grid) < 2 or float(grid[0]) != 0.0 or float(grid[-1]) != 1.0:
        raise ValueError(
            f"times: got a grid from {float(grid[0]):g} to {float(grid[-1]):g}, expected one that rises from 0 to 1, or a number of steps"
        )
    return grid


def _drawing(law: Law, name: str, domain: Domain) -> Draw:
    """The law as a callable (count, generator) → states, checked at its first draw or, for data, here."""
    if isinstance(law, Tensor):
        domain.check(law, name)
        if law.dim() == len(domain.event_shape) or not len(law) or not bool(law.isfinite().all()):
            raise ValueError(
                f"{name}: got shape {tuple(law.shape)}, expected data [n, *event] with n of at least 1 and finite numbers"
            )
        return lambda count, generator: law[torch.randint(len(law), (count,), generator=generator).to(law.device)]
    draw: Draw
    if isinstance(law, Distribution):
        if "generator" not in inspect.signature(law.sample).parameters:
            raise TypeError(
                f"{name}: got {law!r}, whose sample takes no generator, expected a law that can be drawn by a seed; draw its noise by "
                "yourself in a callable (count, generator) → states"
            )
        draw = lambda count, generator: law.sample((count,), generator=generator)  # type: ignore[call-arg]  # noqa: E731
    elif callable(law):
        draw = law
    else:
        raise TypeError(
            f"{name}: got {type(law).__name__}, expected data [n, *event], a distribution, or a callable (count, generator) → states"
        )
    first = draw(1, torch.Generator().manual_seed(0))
    domain.check(first, name)
    if first.shape != (1, *domain.event_shape):
        raise ValueError(
            f"{name}: got a draw of shape {tuple(first.shape)} at count 1, expected {(1, *domain.event_shape)}: count states"
        )
    return draw
