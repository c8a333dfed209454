r"""Langevin steps at a noise level, x ← x + e·score(x, s) + √(2e) z: as correctors of a predictor, and on their own (NCSN).

Their step size is planned: e = 2α(r·s·σ)² for correctors, with r the signal-to-noise ratio and α the square of s over that of the next
level below (1 − β_i of a DDPM table, 1 under VE); e = step_lr·(s·σ/σ_last)² for NCSN. On a bounded domain it is never more than the
squared width. At a fixed step a chain has a stationary law of its own: for a
Gaussian of variance v its variance is v/(1 − e/2v). So these rules have no order of convergence (``order`` is None); what holds is
that law.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..domains.tensors import event_sum, expand_right, is_int, number
from ..processes import Equation, ProbabilityFlow, ReverseSDE
from .linear import check_process
from .solver import Number, Record, Row, Solver, combine


class Kick(NamedTuple):
    """One Langevin step at a time: the row over (score, noise); by the norm rule only √(2α)·r, from which the step follows."""

    time: Number
    row: Row
    norm: Number | None


class LangevinCorrector:
    """``steps`` Langevin steps at the level a predictor has reached.

    Args:
        snr: r > 0.
        steps: how many, each one evaluation and one draw.
        norm_rule: take e = 2α(r |z|/|score|)², from each sample's own norms, as score_sde does with means over the batch. Refused on
            bounded domains, where the score vanishes at large σ and the rule would jump without bound.

    Source: Song et al. 2021, alg. 4, 5.
    """

    def __init__(self, snr: float = 0.16, steps: int = 1, *, norm_rule: bool = False):
        self.snr = number(snr, "snr", low=0.0, open_low=True)
        if not is_int(steps, 1):
            raise ValueError(f"steps: got {steps!r}, expected an int ≥ 1")
        self.steps, self.norm_rule = steps, norm_rule

    def __repr__(self) -> str:
        rule = ", norm_rule=True" if self.norm_rule else ""
        return f"LangevinCorrector(snr={self.snr:g}, steps={self.steps}{rule})"

    def plan(self, equation: Equation, times: Tensor) -> list[Kick]:
        """One kick per time; none, a step of zero, where σ vanishes."""
        if self.norm_rule and equation.domain.bounded:
            raise ValueError(
                f"{self!r}: got norm_rule=True on {equation.domain!r}, where the score vanishes at large σ and steps would grow without "
                "bound, expected the planned step; leave norm_rule out"
            )
        level = equation.process.level(times)  # type: ignore[attr-defined]
        alpha = (level.scale / torch.cat([level.scale[1:], torch.ones_like(level.scale[:1])])) ** 2
        if self.norm_rule:
            factors = (2 * alpha).sqrt() * self.snr
            return [Kick(t, Row(None, ()), f) for t, f in zip(times.tolist(), factors.tolist(), strict=True)]
        sizes = capped(2 * alpha * (self.snr * level.scale * level.sigma) ** 2, equation)
        return [kick(t, e) for t, e in zip(times.tolist(), sizes.tolist(), strict=True)]


def capped(sizes: Tensor, equation: Equation) -> Tensor:
    return sizes.clamp(max=equation.domain.width**2) if equation.domain.bounded else sizes


def kick(t: float, size: float) -> Kick:
    return Kick(t, Row(None, (size, math.sqrt(2 * size))), None)


def langevin_step(equation: Equation, x: Tensor, at: Kick, z: Tensor) -> Tensor:
    """x + e·score + √(2e) z, through the wall."""
    score = equation.field(x, at.time)
    if at.norm is None:
        return equation.settle(x, combine(at.row, x, (score, z)))
    ndim = len(equation.domain.event_shape)
    sizes = [expand_right(event_sum(v * v, ndim), ndim) for v in (z, score)]
    # √e of each sample: √2·α^½·r·|z|/|score|
    root = at.norm * (sizes[0] / sizes[1].clamp(min=torch.finfo(x.dtype).tiny)).sqrt()
    return equation.settle(x, x + root * root * score + math.sqrt(2) * root * z)


class PredictorCorrector(Solver):
    """A step of the predictor from t to s, then Langevin steps at s.

    Has no order of convergence at a fixed snr: the law it approaches is the corrector's stationary one.

    Args:
        predictor: any fixed-step rule for a flow or the reverse SDE; corrector: a :class:`LangevinCorrector`.

    Source: Song et al. 2021, alg. 1 (the order P, C at the new level; score_sde itself does C, P at the same level).
    """

    accepts: tuple[type[Equation], ...] = (ReverseSDE, ProbabilityFlow)
    stochastic = True
    multistage = True
    order = None
    order_note = "stationary law of the corrector"
    evaluations = "predictor's + steps"
    source = "Song et al. 2021, alg. 1"

    def __init__(self, predictor: Solver, corrector: LangevinCorrector | None = None):
        if not isinstance(predictor, Solver) or predictor.adaptive:
            raise TypeError(f"predictor: got {predictor!r}, expected a rule with fixed steps, e.g. ReverseDiffusion()")
        corrector = LangevinCorrector() if corrector is None else corrector
        if not isinstance(corrector, LangevinCorrector):
            raise TypeError(f"corrector: got {corrector!r}, expected a LangevinCorrector")
        self.predictor, self.corrector = predictor, corrector
        self.accepts = tuple(c for c in predictor.accepts if issubclass(c, PredictorCorrector.accepts))

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        check_process(equation, self)
        plan, count = [], self.corrector.steps
        kicks = self.corrector.plan(equation, times[1:])
        sigmas = equation.process.schedule.sigma(times[1:]).tolist()  # type: ignore[attr-defined]
        for record, each, sigma in zip(self.predictor.plan(equation, times), kicks, sigmas, strict=True):
            repeats = count if sigma > 0 else 0
            draws, evaluations = record.draws + repeats, record.evaluations + repeats
            plan.append(Record(record.t, record.s, (record, (each,) * repeats), draws, evaluations))
        return plan

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        inner, kicks = record.coefficients
        y, state = self.predictor.step(equation, x, inner, state, [noise[k] for k in range(inner.draws)])
        x = equation.settle(x, y)
        for k, each in enumerate(kicks, inner.draws):
            x = langevin_step(equation, x, each, noise[k])
        return x, state


class AnnealedLangevin(Solver):
    """Annealed Langevin dynamics (NCSN): at each level of the grid, from the largest σ down, ``steps`` Langevin steps of size
    e = step_lr·(σ/σ_last)². A grid of L levels is visited L times: the first record covers its first two.

    ``sample(..., denoise=True)`` adds NCSNv2's final denoising. Use a grid with equal ratios, e.g. ``uniform_lambda(process, 10)``.

    Args: steps: Langevin steps at each level, one evaluation and one draw each; step_lr: of the last level, in units of x².

    Source: Song & Ermon 2019, alg. 1; 2020, alg. 1.
    """

    accepts: tuple[type[Equation], ...] = (ReverseSDE, ProbabilityFlow)
    stochastic = True
    multistage = True
    order = None
    order_note = "stationary law"
    evaluations = "steps"
    source = "Song & Ermon 2019, alg. 1"

    def __init__(self, steps: int = 100, step_lr: float = 2e-5):
        if not is_int(steps, 1):
            raise ValueError(f"steps: got {steps!r}, expected an int ≥ 1")
        self.steps, self.step_lr = steps, number(step_lr, "step_lr", low=0.0, open_low=True)

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        check_process(equation, self)
        level = equation.process.level(times)  # type: ignore[attr-defined]
        ratio = level.sigma / level.sigma[-1] if len(times) else level.sigma
        sizes = capped(self.step_lr * (level.scale * ratio) ** 2, equation).tolist()
        kicks = [kick(t, e) for t, e in zip(times.tolist(), sizes, strict=True)]
        plan = []
        for i in range(len(times) - 1):
            visits = (kicks[i], kicks[i + 1]) if i == 0 else (kicks[i + 1],)
            count = self.steps * len(visits)
            plan.append(Record(kicks[i].time, kicks[i + 1].time, (visits,), count, count))
        return plan

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        (visits,) = record.coefficients
        for i, each in enumerate(visits):
            for k in range(i * self.steps, (i + 1) * self.steps):
                x = langevin_step(equation, x, each, noise[k])
        return x, ()
