r"""Adaptive explicit Runge–Kutta, each sample with a step size of its own.

Error of a step: e = h Σ (b_j − b̂_j) K_j, measured per sample by the root mean square of e / (atol + rtol·max(|x|, |x'|)).
A step is taken where that is ≤ 1, and the next step is 0.9·h·err^{−1/p} (within [0.2, 10]·h), p the tableau's order: control
never looks across the batch, so a sample's answer and its evaluations do not depend on its batch mates.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..domains.tensors import batch_shape, event_sum, expand_right, number
from ..processes import Equation
from .runge_kutta import BOGACKI_SHAMPINE, DORMAND_PRINCE, Tableau
from .solution import Status
from .solver import DETERMINISTIC, Record, Solver

METHODS = {"dopri5": DORMAND_PRINCE, "bosh3": BOGACKI_SHAMPINE}
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


@dataclass
class _State:
    """Where each sample stands, flattened batch ``[B]``: time reached, signed step (0: not chosen), slope there and whether it
    is known, evaluations, accepted and rejected steps, status."""

    x: Tensor
    time: Tensor
    h: Tensor
    slope: Tensor
    known: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    batch: tuple[int, ...]

    @classmethod
    def start(cls, x: Tensor, event_shape: tuple[int, ...]) -> _State:
        batch = batch_shape(x, event_shape)
        flat = x.reshape(math.prod(batch), *event_shape)
        real = torch.zeros(len(flat), dtype=torch.float64, device=x.device)
        count = torch.zeros(len(flat), dtype=torch.int64, device=x.device)
        slope = torch.zeros_like(flat)
        return cls(flat, real, real, slope, count > 0, count, count, count, count, tuple(batch))

    def rows(self, index: Tensor) -> _State:
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "batch"})

    def put(self, index: Tensor, part: _State) -> _State:
        """Out of place, so that gradients flow."""
        names = [f.name for f in fields(self) if f.name != "batch"]
        return replace(self, **{n: getattr(self, n).index_copy(0, index, getattr(part, n)) for n in names})


class AdaptiveODE(Solver):
    """Embedded Runge–Kutta for flows and ODEs with per-sample control.

    Args:
        rtol, atol: relative and absolute tolerance per step; rtol ≥ 0, atol > 0.
        method: "dopri5" (order 5, 7 stages, 6 per step after the first), "bosh3" (order 3), or a Tableau with ``error``.
        max_nfe: evaluations after which a sample stops with ``Status.MAX_EVALUATIONS`` and its partial result.

    A grid's times are where the solution is handed out; between them the solver steps as it likes. Samples that have
    arrived leave the batch where the score offers ``rows(index)``; elsewhere they wait unchanged.
    """

    accepts = DETERMINISTIC
    adaptive = True
    multistage = True
    evaluations = "adaptive, 6 per step"
    order: float = 5
    order_note = "5 or 3, error ∝ rtol"
    source = "Hairer, Nørsett & Wanner, II.4"

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5, method: str | Tableau = "dopri5", max_nfe: int = 10_000):
        self.rtol, self.atol = number(rtol, "rtol", low=0.0), number(atol, "atol", low=0.0, open_low=True)
        if isinstance(method, str) and method not in METHODS:
            raise ValueError(
                f"method: got {method!r}, expected one of {', '.join(METHODS)} or a Tableau with an error row"
            )
        self.tableau = METHODS[method] if isinstance(method, str) else method
        if self.tableau.error is None:
            raise ValueError(
                f"method: got the tableau {self.tableau.name} without an error row, expected an embedded pair"
            )
        if max_nfe < self.tableau.stages:
            raise ValueError(f"max_nfe: got {max_nfe}, expected at least one step: {self.tableau.stages}")
        self.max_nfe, self.order = max_nfe, self.tableau.order

    def __repr__(self) -> str:
        return f"AdaptiveODE(rtol={self.rtol:g}, atol={self.atol:g}, method={self.tableau.name!r})"

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        return [Record(t, s, evaluations=0) for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True)]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        """Integrate every sample from record.t to record.s; time is float64 and per sample."""
        event_shape = equation.domain.event_shape
        state = state or _State.start(x, event_shape)
        start, end = float(record.t), float(record.s)
        going = state.status == int(Status.OK)
        state = replace(state, x=x.reshape(state.x.shape), time=torch.where(going, start, state.time))
        while True:
            active = (state.status == int(Status.OK)) & (state.time != end)
            index = active.nonzero().flatten()
            if not len(index):
                return state.x.reshape(*state.batch, *event_shape), state
            some = None if len(index) == len(active) else equation.rows(index)
            if some is None:
                state = self._attempt(equation, state, active, end)
            else:
                state = state.put(index, self._attempt(some, state.rows(index), active[index], end))

    def report(self, state: Any, records: Any) -> dict[str, Any]:
        if not state:
            return {"nfe": 0}
        failed = state.status != int(Status.OK)
        values = {
            "nfe": state.nfe,
            "status": state.status,
            "failed_step": torch.where(failed, state.accepted, -1),
            "failed_time": torch.where(failed, state.time, math.nan),
            "accepted": state.accepted,
            "rejected": state.rejected,
        }
        return {name: value.reshape(state.batch) for name, value in values.items()}

    def _attempt(self, equation: Equation, state: _State, active: Tensor, end: float) -> _State:
        """One trial step of every active sample; the others come back as they are."""
        ndim = len(equation.domain.event_shape)
        state = self._know_slope(equation, state, active)
        if bool((active & (state.h == 0)).any()):
            state = self._first_step(equation, state, active, end)
        left = end - state.time
        h = torch.where(active, state.h, 0.0)
        last = h.abs() >= left.abs() * 0.99  # a remainder of a hundredth of a step is not worth a step
        h = torch.where(active & last, left, h)
        y, slope, error = self._stages(equation, state, h)

        scale = self.atol + self.rtol * torch.maximum(state.x.abs(), y.abs()).detach()
        size = _rms(error / scale, ndim)
        accept = active & (size <= 1)
        factor = (_SAFETY * size ** (-1 / self.tableau.order)).clamp(_SHRINK, _GROW)
        factor = torch.where(size.isfinite(), factor, _SHRINK)
        settled = equation.settle(state.x, y)
        moved = (settled != y).reshape(len(y), -1).any(-1)
        taken = expand_right(accept, ndim)
        nfe = state.nfe + active * (self.tableau.stages - 1)
        time = torch.where(accept, torch.where(last, end, state.time + h), state.time)
        h_next = torch.where(active, h * factor, state.h)
        # a last step that was cut short says nothing about the step the problem allows
        h_next = torch.where(accept & last & (h_next.abs() < state.h.abs()), state.h, h_next)
        return replace(
            state,
            x=torch.where(taken, settled, state.x),
            slope=torch.where(taken, slope, state.slope),
            known=torch.where(accept, ~moved if self.tableau.fsal else False, state.known),
            time=time,
            h=h_next,
            nfe=nfe,
            accepted=state.accepted + accept,
            rejected=state.rejected + (active & ~accept),
            status=self._status(state, active & ~accept, active & (time != end), size, h_next, nfe),
        )

    def _status(
        self, state: _State, rejected: Tensor, unfinished: Tensor, size: Tensor, h: Tensor, nfe: Tensor
    ) -> Tensor:
        tiny = rejected & (h.abs() <= 16 * torch.finfo(torch.float64).eps * state.time.abs().clamp(min=1e-12))
        broken = torch.where(size.isfinite(), int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE))
        status = torch.where(tiny, broken, state.status)
        exhausted = unfinished & (status == 0) & (nfe + self.tableau.stages - 1 > self.max_nfe)
        return torch.where(exhausted, int(Status.MAX_EVALUATIONS), status)

    def _slope(self, equation: Equation, u: Tensor, time: Tensor, start: Tensor | None) -> Tensor:
        ndim = len(equation.domain.event_shape)
        a, b, _ = (expand_right(v.to(u.dtype), ndim) for v in equation.coefficients(time))
        return a * u + b * equation.field(u, expand_right(time.to(u.dtype), ndim), start)

    def _know_slope(self, equation: Equation, state: _State, active: Tensor) -> _State:
        missing = active & ~state.known
        if not bool(missing.any()):
            return state
        ndim = len(equation.domain.event_shape)
        slope = torch.where(expand_right(missing, ndim), self._slope(equation, state.x, state.time, None), state.slope)
        finite = event_sum(slope.detach(), ndim).isfinite()
        status = torch.where(missing & ~finite, int(Status.NON_FINITE), state.status)
        return replace(state, slope=slope, known=state.known | missing, nfe=state.nfe + missing, status=status)

    def _first_step(self, equation: Equation, state: _State, active: Tensor, end: float) -> _State:
        """Hairer, Nørsett & Wanner II.4: a step that moves x by a hundredth of its tolerance-scaled size, corrected by curvature."""
        ndim = len(equation.domain.event_shape)
        left = end - state.time
        scale = self.atol + self.rtol * state.x.detach().abs()
        d0, d1 = _rms(state.x.detach() / scale, ndim), _rms(state.slope.detach() / scale, ndim)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        h0 = torch.minimum(h0, left.abs()) * left.sign()
        ahead = equation.settle(state.x, state.x + expand_right(h0.to(state.x.dtype), ndim) * state.slope).detach()
        slope = self._slope(equation, ahead, state.time + h0, state.x).detach()
        d2 = _rms((slope - state.slope.detach()) / scale, ndim) / h0.abs()
        top = torch.maximum(d1, d2)
        h1 = torch.where(top <= 1e-15, (h0.abs() * 1e-3).clamp(min=1e-6), (0.01 / top) ** (1 / self.tableau.order))
        h = torch.minimum(torch.minimum(100 * h0.abs(), h1), left.abs()) * left.sign()
        h = torch.where(h.isfinite(), h, h0)
        new = active & (state.h == 0)
        return replace(state, h=torch.where(new, h, state.h), nfe=state.nfe + new)

    def _stages(self, equation: Equation, state: _State, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x', slope at the last stage, error estimate)."""
        ndim = len(equation.domain.event_shape)
        step = expand_right(h.to(state.x.dtype), ndim)
        slopes, u = [state.slope], state.x
        for row, node in zip(self.tableau.a[1:], self.tableau.c[1:], strict=True):
            u = state.x + step * _weighted(row, slopes)
            slopes.append(self._slope(equation, u, state.time + node * h, state.x))
        y = u if self.tableau.fsal else state.x + step * _weighted(self.tableau.b, slopes)
        return y, slopes[-1], (step * _weighted(self.tableau.error, slopes)).detach()  # type: ignore[arg-type]


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, [w * k for w, k in zip(weights, slopes, strict=True) if w])


def _rms(x: Tensor, ndim: int) -> Tensor:
    """Root mean square over the event, in float64: ``[B]``."""
    count = math.prod(x.shape[x.dim() - ndim :])
    return (event_sum(x.double() ** 2, ndim) / count).sqrt()
