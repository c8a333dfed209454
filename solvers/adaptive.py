"""Adaptive rules for flows and ODEs, each sample with a step size of its own; see ``per_sample`` for the control."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..domains.tensors import expand_right
from ..processes import Equation, ProbabilityFlow
from .dpm import exponential_stages
from .linear import check_process
from .multistep import finite_levels
from .per_sample import PerSample, State, Trial, known_at, rms
from .runge_kutta import BOGACKI_SHAMPINE, DORMAND_PRINCE, TSITOURAS, Tableau
from .solver import DETERMINISTIC, Record


class Pair(Protocol):
    """Two rules of neighbouring orders that share their stages."""

    @property
    def name(self) -> str: ...

    @property
    def order(self) -> int: ...

    @property
    def stages(self) -> int: ...

    @property
    def cost(self) -> int:
        """Evaluations of a try whose first reading is known."""

    def clock(self, equation: Equation, t: float) -> float: ...

    def times(self, equation: Equation, clock: Tensor) -> Tensor: ...

    def read(self, equation: Equation, u: Tensor, at: Tensor, start: Tensor | None) -> Tensor: ...

    def first_step(self, equation: Equation, state: State, end: float, scale: Tensor) -> tuple[Tensor, int]: ...

    def attempt(self, equation: Equation, state: State, h: Tensor, end: Tensor) -> Trial: ...


@dataclass(frozen=True)
class ExplicitPair:
    """An embedded Runge–Kutta tableau, in t."""

    tableau: Tableau

    def __post_init__(self) -> None:
        if self.tableau.error is None:
            raise ValueError(
                f"method: got the tableau {self.tableau.name} without an error row, expected an embedded pair"
            )

    @property
    def name(self) -> str:
        return self.tableau.name

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def stages(self) -> int:
        return self.tableau.stages

    @property
    def cost(self) -> int:
        return self.tableau.stages - 1

    def clock(self, equation: Equation, t: float) -> float:
        return t

    def times(self, equation: Equation, clock: Tensor) -> Tensor:
        return clock

    def read(self, equation: Equation, u: Tensor, at: Tensor, start: Tensor | None) -> Tensor:
        """The slope dx/dt."""
        ndim = len(equation.domain.event_shape)
        a, b, _ = (expand_right(v.to(u.dtype), ndim) for v in equation.coefficients(at))
        return a * u + b * equation.field(u, expand_right(at.to(u.dtype), ndim), start)

    def first_step(self, equation: Equation, state: State, end: float, scale: Tensor) -> tuple[Tensor, int]:
        """Hairer, Nørsett & Wanner II.4: a step that moves x by a hundredth of its tolerance-scaled size, corrected by curvature."""
        ndim = len(equation.domain.event_shape)
        left = end - state.time
        d0, d1 = rms(state.x.detach() / scale, ndim), rms(state.slope.detach() / scale, ndim)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        h0 = torch.minimum(h0, left.abs()) * left.sign()
        ahead = equation.settle(state.x, state.x + expand_right(h0.to(state.x.dtype), ndim) * state.slope).detach()
        slope = self.read(equation, ahead, state.time + h0, state.x).detach()
        d2 = rms((slope - state.slope.detach()) / scale, ndim) / h0.abs()
        top = torch.maximum(d1, d2)
        h1 = torch.where(top <= 1e-15, (h0.abs() * 1e-3).clamp(min=1e-6), (0.01 / top) ** (1 / self.order))
        h = torch.minimum(torch.minimum(100 * h0.abs(), h1), left.abs()) * left.sign()
        return torch.where(h.isfinite(), h, h0), 1

    def attempt(self, equation: Equation, state: State, h: Tensor, end: Tensor) -> Trial:
        table = self.tableau
        step = expand_right(h.to(state.x.dtype), len(equation.domain.event_shape))
        slopes, u = [state.slope], state.x
        for row, node in zip(table.a[1:], table.c[1:], strict=True):
            u = state.x + step * _weighted(row, slopes)
            slopes.append(self.read(equation, u, state.time + node * h, state.x))
        y = u if table.fsal else state.x + step * _weighted(table.b, slopes)
        error = step * _weighted(table.error, slopes)  # type: ignore[arg-type]
        return Trial(y, error, slopes[-1] if table.fsal else None)


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, [w * k for w, k in zip(weights, slopes, strict=True) if w])


@dataclass(frozen=True)
class ExponentialPair:
    """Singlestep DPM-Solver++ of orders 3 and 2 with the same stages, in λ."""

    r1: float = 1 / 3
    r2: float = 2 / 3
    name = "exponential"
    order = 3
    stages = 3
    cost = 2

    def clock(self, equation: Equation, t: float) -> float:
        return float(equation.process.schedule.half_log_snr(t))  # type: ignore[attr-defined]

    def times(self, equation: Equation, clock: Tensor) -> Tensor:
        return equation.process.schedule.time((-clock).exp())  # type: ignore[attr-defined]

    def read(self, equation: Equation, u: Tensor, at: Tensor, start: Tensor | None) -> Tensor:
        """The data prediction D = x/s + sσ²·score."""
        ndim = len(equation.domain.event_shape)
        t = self.times(equation, at)
        offered = equation.prediction(u, expand_right(t.to(u.dtype), ndim))
        if offered is not None:
            return offered[0]
        scale = equation.process.schedule.scale(t)  # type: ignore[attr-defined]
        p, q = (expand_right(v.to(u.dtype), ndim) for v in (1 / scale, scale * (-2 * at).exp()))
        return p * u + q * equation.field(u, expand_right(t.to(u.dtype), ndim), start)

    def first_step(self, equation: Equation, state: State, end: float, scale: Tensor) -> tuple[Tensor, int]:
        return 0.1 * (end - state.time).sign(), 0

    def attempt(self, equation: Equation, state: State, h: Tensor, end: Tensor) -> Trial:
        stops = (state.time + self.r1 * h, state.time + self.r2 * h, end)
        first, *levels = (self._level(equation, lam) for lam in (state.time, *stops))
        readings = [state.slope]

        def row(stop: int, table: Mapping[int, Tensor]) -> Tensor:
            scale, std = levels[stop]
            weights = [std / first[1], *(h * scale * w for w in table.values())]
            terms = [state.x, *(readings[j] for j in table)]
            ndim = len(equation.domain.event_shape)
            parts = [expand_right(w.to(state.x.dtype), ndim) * v for w, v in zip(weights, terms, strict=True)]
            return functools.reduce(torch.add, parts)

        *inner, third = exponential_stages(3, self.r1, self.r2, -h)
        for i, table in enumerate(inner):
            readings.append(self.read(equation, row(i, table), stops[i], state.x))
        y = row(2, third)
        _, second = exponential_stages(2, self.r1, self.r2, -h)
        return Trial(y, y - row(2, second), None)

    def _level(self, equation: Equation, lam: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, std) at λ, float64 ``[B]``."""
        scale = equation.process.schedule.scale(self.times(equation, lam))  # type: ignore[attr-defined]
        return scale, scale * (-lam).exp()


METHODS: dict[str, Pair] = {
    "dopri5": ExplicitPair(DORMAND_PRINCE),
    "tsit5": ExplicitPair(TSITOURAS),
    "bosh3": ExplicitPair(BOGACKI_SHAMPINE),
    "exponential": ExponentialPair(),
}


class AdaptiveODE(PerSample):
    """Embedded pairs with per-sample control.

    Args:
        rtol, atol: relative and absolute tolerance per step; rtol ≥ 0, atol > 0.
        method: "dopri5" or "tsit5" (order 5, 6 evaluations per step after the first), "bosh3" (order 3, 3 per step), or a Tableau with
            ``error``: explicit Runge–Kutta in t, for flows and ODEs. "exponential", for probability flows: singlestep DPM-Solver++ of
            orders
            3 and 2 with steps in λ, 3 per step (2 after a rejection); fewest evaluations at loose tolerances.
        max_nfe: evaluations after which a sample stops with ``Status.MAX_EVALUATIONS`` and its partial result.

    A grid's times are where the solution is handed out; between them the solver steps as it likes.

    Source: Hairer, Nørsett & Wanner, II.4; Tsitouras 2011; Lu et al. 2022 (DPM-Solver), app. C.
    """

    accepts = DETERMINISTIC
    evaluations = "adaptive, 6 per step"
    order: float = 5
    order_note = "5 or 3, error ∝ rtol"
    source = "Hairer, Nørsett & Wanner, II.4"

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5, method: str | Tableau = "dopri5", max_nfe: int = 10_000):
        if isinstance(method, str) and method not in METHODS:
            raise ValueError(
                f"method: got {method!r}, expected one of {', '.join(METHODS)} or a Tableau with an error row"
            )
        self.pair = METHODS[method] if isinstance(method, str) else ExplicitPair(method)
        super().__init__(rtol, atol, max_nfe, self.pair.stages)
        self.order, self.cost, self.exponent = self.pair.order, self.pair.cost, 1 / self.pair.order
        if isinstance(self.pair, ExponentialPair):
            self.accepts = (ProbabilityFlow,)

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        if isinstance(self.pair, ExponentialPair):
            check_process(equation, self)
            finite_levels(equation.process, times, self)  # type: ignore[attr-defined]
        return super().plan(equation, times)

    def _clock(self, equation: Equation, t: float) -> float:
        return self.pair.clock(equation, t)

    def _times(self, equation: Equation, clock: Tensor) -> Tensor:
        return self.pair.times(equation, clock)

    def _begin(self, equation: Equation, state: State, active: Tensor, end: float) -> State:
        read = functools.partial(self.pair.read, equation, state.x, state.time, None)
        state = known_at(state, active, read, len(equation.domain.event_shape))
        new = active & (state.h == 0)
        if not bool(new.any()):
            return state
        h, evaluations = self.pair.first_step(equation, state, end, self.atol + self.rtol * state.x.detach().abs())
        return replace(state, h=torch.where(new, h, state.h), nfe=state.nfe + evaluations * new)

    def _try(self, equation: Equation, state: State, h: Tensor, end: Tensor, noise: Any) -> Trial:
        return self.pair.attempt(equation, state, h, end)
