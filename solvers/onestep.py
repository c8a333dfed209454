r"""One-step rules with one evaluation: DDIM, ancestral sampling, reverse diffusion.

With σ̃ the std of the fresh noise, σ_t, σ_s the noise levels, s_t, s_s the scales, and ε, D as in ``forms``:

==================  =========================================================================  ==================================
rule                mean of x_s                                                                variance of the fresh noise
==================  =========================================================================  ==================================
DDIM(η)             s_s D + √(s_s²σ_s² − σ̃²) ε                                                 η² × posterior
Ancestral           (s_s/s_t) [x + s_t²(σ_t² − σ_s²) score]                                    posterior β̃, or forward β
ReverseDiffusion    (2 − s_t/s_s) x + ½(1 + η) G² score, G² = s_t²(σ_t² − σ_s²)                η G²
==================  =========================================================================  ==================================

posterior: s_s²σ_s²(σ_t² − σ_s²)/σ_t², the variance of x_s given x_t and x_0; forward: G², that of x_t given x_s. With a
:class:`~carom.processes.Discrete` schedule and its own levels these are DDPM's β̃_i and β_i. DDIM(1) is Ancestral("posterior"). All
three may end at σ = 0 where ``solve`` is given such a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains import Euclidean
from ..domains.tensors import number
from ..processes import Diffusion, Equation, ProbabilityFlow, ReverseSDE
from .forms import DATA, NOISE, Array, Form, Levels
from .linear import LinearSolver, Stage, noise_levels, own_noise, readings, rows
from .solver import Record

Variances = Sequence[float] | np.ndarray | Tensor | Callable[[Diffusion, Tensor], Tensor]


def posterior_variance(start: Levels, end: Levels) -> Array:
    """Var[x_s | x_t, x_0] = s_s²σ_s²(σ_t² − σ_s²)/σ_t²; σ_t may be infinite."""
    ratio = end.sigma / start.sigma
    return end.std**2 * (1 - ratio) * (1 + ratio)


def forward_variance(start: Levels, end: Levels) -> Array:
    """Var[x_t | x_s] = s_t²(σ_t² − σ_s²)."""
    ratio = end.sigma / start.sigma
    return start.std**2 * (1 - ratio) * (1 + ratio)


class OneStep(LinearSolver):
    """A rule x' = keep·x + weight·P + √variance·z with P = ε, or what ``_form`` says. A subclass gives ``_table``."""

    order: float | None = 1

    def _plan(self, equation: Equation, times: Tensor) -> list[Record]:
        levels = Levels.at(equation.process, times)  # type: ignore[attr-defined]
        start, end = levels[:-1], levels[1:]
        keep, weight, variance = self._table(equation, levels)
        noise = np.sqrt(np.maximum(variance, 0.0))
        draws = int(bool(noise.any()))
        read = readings(self._form(equation), start)
        row = rows(keep, np.stack([*[noise] * draws, weight], 1))
        plan = []
        for i, (t, s) in enumerate(zip(start.t.tolist(), end.t.tolist(), strict=True)):
            silent = bool(noise[i] == 0.0)  # the last step of a plan that ends at σ = 0
            entry = row[i]._replace(weights=row[i].weights[draws:]) if silent and draws else row[i]
            plan.append(Record(t, s, ((Stage(read[i], entry),), ()), 0 if silent else draws))
        return plan

    def _table(self, equation: Equation, levels: Levels) -> tuple[Array, Array, Array]:
        """(keep, weight of the prediction, variance of the noise) of the n steps of a grid, each ``[n]``."""
        raise NotImplementedError

    def _form(self, equation: Equation) -> Form:
        """Which prediction the rule reads."""
        return NOISE


class DDIM(OneStep):
    """x_s = s_s D + √(std_s² − σ̃²) ε + σ̃ z with σ̃ = η·(posterior std): η = 0 is deterministic, η = 1 DDPM's posterior step.

    Order 1, one evaluation; marginals are those of the process for any σ̃. η = 0 equals DPM-Solver-1, DPM-Solver++(1) and Euler in σ;
    η = 1 equals ``Ancestral("posterior")`` and SDE-DPM-Solver++(1).

    Args:
        eta: ≥ 0; beyond 1 as long as σ̃ ≤ std_s.
        variances: in place of eta σ̃² of each step, 0 ≤ σ̃² ≤ std_s² (1 − ᾱ_s for DDPM): a list, or a function (process, times) → them.

    Source: Song, Meng & Ermon 2021, eq. 12, 16.
    """

    order_note = "1"
    reads_predictions = True
    source = "Song, Meng & Ermon 2021, eq. 12"

    def __init__(self, eta: float = 0.0, *, variances: Variances | None = None):
        self.eta, self.variances = number(eta, "eta", low=0.0), variances
        if variances is not None and eta:
            raise ValueError(f"DDIM: got eta = {eta:g} and variances, expected one of them")
        self.stochastic = eta > 0 or variances is not None
        if self.stochastic:
            self.accepts, self.weak_order, self.strong_order = (ReverseSDE,), 1, 1

    def _table(self, equation: Equation, levels: Levels) -> tuple[Array, Array, Array]:
        own_noise(equation, self)
        start, end = levels[:-1], levels[1:]
        variance = self._variance(equation.process, start, end)  # type: ignore[attr-defined]
        left = np.sqrt(np.maximum(end.std**2 - variance, 0.0))
        if self._form(equation) is DATA:
            keep = left / start.std
            return keep, end.scale - keep * start.scale, variance
        return end.scale / start.scale, left - end.scale * start.sigma, variance

    def _form(self, equation: Equation) -> Form:
        # from a level of scale s, x_s of size 1 would be a difference of numbers of size 1/s with ε; with D nothing cancels,
        # but D itself does where it has to be made of a score
        offered = isinstance(equation.domain, Euclidean) and hasattr(equation.score, "prediction")  # type: ignore[attr-defined]
        return DATA if offered else NOISE

    def _renewed(self, equation: Equation, end: Levels) -> float:
        if self.variances is not None or self.eta > 1:
            raise ValueError(f"{self!r}: got a grid that starts where the scale is 0, expected 0 ≤ eta ≤ 1 there")
        return self.eta

    def _variance(self, process: Diffusion, start: Levels, end: Levels) -> Array:
        if self.variances is None:
            variance = self.eta**2 * posterior_variance(start, end)
        else:
            given: Any = self.variances
            if callable(given):
                given = given(process, torch.as_tensor(np.append(start.t, end.t[-1:])))
            variance = np.asarray(torch.as_tensor(given, dtype=torch.float64))
            if variance.shape != start.t.shape:
                raise ValueError(f"variances: got {variance.shape}, expected one per step: {start.t.shape}")
        wrong = ~((variance >= 0) & (variance <= end.std**2 * (1 + 1e-12)))
        if wrong.any():
            i = int(np.nonzero(wrong)[0][0])
            raise ValueError(
                f"{self!r}: got σ̃² = {variance[i]:g} in step {i + 1}, expected a value between 0 and std² = {end.std[i] ** 2:g} of the "
                f"level it "
                "leads to; lower eta"
            )
        return variance


class Ancestral(OneStep):
    """DDPM's sampler, for any schedule: the mean of x_s given x_t and the predicted x_0, and noise of the variance

    * "posterior": β̃, that of x_s given x_t and x_0 (exact where the data is a point; the VE ancestral sampler of Song et al. 2021);
    * "forward": β, that of x_t given x_s (exact where the data is N(0, I) under VP).

    Weak order 1, one evaluation. The last denoising step of :func:`carom.solvers.sample` is its step to σ = 0.

    Source: Ho et al. 2020, alg. 2; Song et al. 2021, eq. 4, 47; notes l.94, 1061.
    """

    accepts: tuple[type[Equation], ...] = (ReverseSDE,)
    stochastic = True
    weak_order: float | None = 1
    strong_order: float | None = 1
    source = "Ho et al. 2020, alg. 2; Song et al. 2021, eq. 4, 47"

    def __init__(self, variance: str = "posterior"):
        if variance not in ("posterior", "forward"):
            raise ValueError(f"variance: got {variance!r}, expected 'posterior' (β̃) or 'forward' (β)")
        self.variance = variance

    def _table(self, equation: Equation, levels: Levels) -> tuple[Array, Array, Array]:
        own_noise(equation, self)
        start, end = levels[:-1], levels[1:]
        ratio = end.sigma / start.sigma
        variance = posterior_variance if self.variance == "posterior" else forward_variance
        weight = -end.scale * start.sigma * (1 - ratio) * (1 + ratio)
        return end.scale / start.scale, weight, variance(start, end)


class ReverseDiffusion(OneStep):
    """The step of the forward process turned round: with x_t = r x_s + G z, r = s_t/s_s, G² = s_t²(σ_t² − σ_s²),
    x_s = (2 − r) x_t + ½(1 + η) G² score + √η G z. ``flow=True`` is η = 0, the notes' "prob. flow" row.

    Order 1, one evaluation; it differs from :class:`Ancestral` by O(β²) a step. η is the equation's ``stochasticity``, 1 by default.

    Source: Song et al. 2021, eq. 46 and app. E; notes l.1046–1100.
    """

    accepts: tuple[type[Equation], ...] = (ReverseSDE,)
    stochastic = True
    weak_order: float | None = 1
    strong_order: float | None = 1
    source = "Song et al. 2021, eq. 46, app. E"

    def __init__(self, flow: bool = False):
        self.flow = flow
        if flow:
            self.accepts, self.stochastic, self.weak_order, self.strong_order = (ProbabilityFlow,), False, None, None

    def _table(self, equation: Equation, levels: Levels) -> tuple[Array, Array, Array]:
        start, end, eta = levels[:-1], levels[1:], noise_levels(equation, self, levels, None)
        added = forward_variance(start, end)
        return 2 - start.scale / end.scale, -0.5 * (1 + eta) * added / start.std, eta * added
