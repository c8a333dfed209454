r"""Adaptive control in which each sample has a step size, a time, a status and an evaluation count of its own.

The error estimate e of a step is measured per sample by the root mean square of e / (atol + rtol·max(|x|, |x'|)); the step is taken
where that is ≤ 1, and the next is 0.9·h·err^{−κ} (within [0.2, 10]·h). Control never looks across the batch, so that a sample's answer
and its evaluations do not depend on its batch mates. Samples that have arrived leave the batch where the score offers ``rows(index)``;
elsewhere they wait unchanged.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..domains.tensors import batch_shape, event_sum, expand_right, number
from ..processes import Equation
from .noise import Source
from .solution import Status
from .solver import Record, Solver

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


@dataclass
class State:
    """Where each sample stands, flattened batch ``[B]``: time reached (on the rule's clock), signed step (0: not chosen), what was read
    there and whether it is known, evaluations, accepted and rejected steps, status, length of the pushes off walls, place in the whole
    batch, and t when last asked."""

    x: Tensor
    time: Tensor
    t: Tensor
    h: Tensor
    slope: Tensor
    known: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    pushed: Tensor
    place: Tensor
    batch: tuple[int, ...]
    #: of stochastic rules: each sample's Brownian path, by place
    paths: tuple[Source, ...] = ()

    @classmethod
    def begin(cls, x: Tensor, event_shape: tuple[int, ...]) -> State:
        batch = batch_shape(x, event_shape)
        flat = x.reshape(math.prod(batch), *event_shape)
        real = torch.zeros(len(flat), dtype=torch.float64, device=x.device)
        count = torch.zeros(len(flat), dtype=torch.int64, device=x.device)
        place = torch.arange(len(flat), device=x.device)
        slope = torch.zeros_like(flat)
        return cls(flat, real, real, real, slope, count > 0, count, count, count, count, real, place, tuple(batch))

    def rows(self, index: Tensor) -> State:
        return replace(self, **{n: getattr(self, n)[index] for n in self._names()})

    def put(self, index: Tensor, part: State) -> State:
        """Out of place, so that gradients flow."""
        return replace(self, **{n: getattr(self, n).index_copy(0, index, getattr(part, n)) for n in self._names()})

    def _names(self) -> list[str]:
        return [f.name for f in fields(self) if f.name not in ("batch", "paths")]


class Trial(NamedTuple):
    """A tried step: where it leads, its error estimate, and what was read at its end (None where nothing was)."""

    y: Tensor
    error: Tensor
    slope: Tensor | None


class PerSample(Solver):
    """An adaptive rule. A subclass gives ``_begin`` and ``_try``, and the facts ``cost`` (evaluations of a try), ``exponent`` κ.

    Args:
        rtol, atol: relative and absolute tolerance per step; rtol ≥ 0, atol > 0.
        max_nfe: evaluations after which a sample stops with ``Status.MAX_EVALUATIONS`` and its partial result.
    """

    adaptive = True
    multistage = True
    cost: int
    exponent: float

    def __init__(self, rtol: float, atol: float, max_nfe: int, at_least: int):
        self.rtol, self.atol = number(rtol, "rtol", low=0.0), number(atol, "atol", low=0.0, open_low=True)
        if max_nfe < at_least:
            raise ValueError(f"max_nfe: got {max_nfe}, expected at least one step: {at_least}")
        self.max_nfe = max_nfe

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        return [Record(t, s, evaluations=0) for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True)]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        """Integrate every sample from record.t to record.s; time is float64 and per sample."""
        event_shape = equation.domain.event_shape
        state = state or self.start(x, event_shape, noise)
        start, end = (self._clock(equation, float(t)) for t in (record.t, record.s))
        going = state.status == int(Status.OK)
        state = replace(state, x=x.reshape(state.x.shape), time=torch.where(going, start, state.time))
        while True:
            active = (state.status == int(Status.OK)) & (state.time != end)
            index = active.nonzero().flatten()
            if not len(index):
                state = replace(state, t=self._times(equation, state.time))
                return state.x.reshape(*state.batch, *event_shape), state
            some = None if len(index) == len(active) else equation.rows(index)
            if some is None:
                state = self._attempt(equation, state, active, end, noise)
            else:
                state = state.put(index, self._attempt(some, state.rows(index), active[index], end, noise))

    def start(self, x: Tensor, event_shape: tuple[int, ...], noise: Any) -> State:
        """The state before the first step."""
        return State.begin(x, event_shape)

    def report(self, state: Any, records: Any) -> dict[str, Any]:
        if not state:
            return {"nfe": 0}
        failed = state.status != int(Status.OK)
        values = {
            "nfe": state.nfe,
            "status": state.status,
            "failed_step": torch.where(failed, state.accepted, -1),
            "failed_time": torch.where(failed, state.t, math.nan),
            "accepted": state.accepted,
            "rejected": state.rejected,
            "local_time": state.pushed,
        }
        return {name: value.reshape(state.batch) for name, value in values.items()}

    def _clock(self, equation: Equation, t: float) -> float:
        """The variable in which steps are chosen, at time t."""
        return t

    def _times(self, equation: Equation, clock: Tensor) -> Tensor:
        """The times at which that variable has these values."""
        return clock

    @abstractmethod
    def _begin(self, equation: Equation, state: State, active: Tensor, end: float) -> State:
        """What every attempt needs: the reading at the present state, a first step size."""

    @abstractmethod
    def _try(self, equation: Equation, state: State, h: Tensor, end: Tensor, noise: Any) -> Trial:
        """A step of length h ``[B]`` to ``end`` ``[B]``, for all rows."""

    def _attempt(self, equation: Equation, state: State, active: Tensor, end: float, noise: Any) -> State:
        """One trial step of every active sample; the others come back as they are."""
        ndim = len(equation.domain.event_shape)
        state = self._begin(equation, state, active, end)
        left = end - state.time
        h = torch.where(active, state.h, 0.0)
        last = h.abs() >= left.abs() * 0.99  # a remainder of a hundredth of a step is not worth a step
        h = torch.where(active & last, left, h)
        reached = torch.where(last, end, state.time + h)
        y, error, slope = self._try(equation, state, h, reached, noise)

        scale = self.atol + self.rtol * torch.maximum(state.x.abs(), y.abs()).detach()
        size = rms(error.detach() / scale, ndim)
        accept = active & (size <= 1)
        factor = (_SAFETY * size ** (-self.exponent)).clamp(_SHRINK, _GROW)
        factor = torch.where(size.isfinite(), factor, _SHRINK)
        settled = equation.settle(state.x, y)
        moved = (settled != y).reshape(len(y), -1).any(-1)
        push = event_sum((settled - y).detach().double() ** 2, ndim).sqrt()
        taken = expand_right(accept, ndim)
        nfe = state.nfe + active * self.cost
        known = torch.where(accept, False if slope is None else ~moved, state.known)
        time = torch.where(accept, reached, state.time)
        h_next = torch.where(active, h * factor, state.h)
        # a last step that was cut short says nothing about the step the problem allows
        h_next = torch.where(accept & last & (h_next.abs() < state.h.abs()), state.h, h_next)
        return replace(
            state,
            x=torch.where(taken, settled, state.x),
            slope=state.slope if slope is None else torch.where(taken, slope, state.slope),
            known=known,
            time=time,
            h=h_next,
            nfe=nfe,
            accepted=state.accepted + accept,
            rejected=state.rejected + (active & ~accept),
            pushed=state.pushed + torch.where(accept, push, 0.0),
            status=self._status(state, active & ~accept, active & (time != end), size, h_next, nfe + ~known),
        )

    def _status(
        self, state: State, rejected: Tensor, unfinished: Tensor, size: Tensor, h: Tensor, read: Tensor
    ) -> Tensor:
        """Statuses after a try; ``read`` counts the evaluations up to the next one."""
        tiny = rejected & (h.abs() <= self._smallest(state.time))
        broken = torch.where(size.isfinite(), int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE))
        status = torch.where(tiny, broken, state.status)
        exhausted = unfinished & (status == 0) & (read + self.cost > self.max_nfe)
        return torch.where(exhausted, int(Status.MAX_EVALUATIONS), status)

    def _smallest(self, time: Tensor) -> Tensor:
        """Steps at most as long as this end a sample."""
        return 16 * torch.finfo(torch.float64).eps * time.abs().clamp(min=1e-12)


def known_at(state: State, active: Tensor, read: Callable[[], Tensor], ndim: int) -> State:
    """The state with ``read()`` at the present place of active samples where it is not known."""
    missing = active & ~state.known
    if not bool(missing.any()):
        return state
    slope = torch.where(expand_right(missing, ndim), read(), state.slope)
    finite = event_sum(slope.detach(), ndim).isfinite()
    status = torch.where(missing & ~finite, int(Status.NON_FINITE), state.status)
    return replace(state, slope=slope, known=state.known | missing, nfe=state.nfe + missing, status=status)


def rms(x: Tensor, ndim: int) -> Tensor:
    """Root mean square over the event, in float64: ``[B]``."""
    count = math.prod(x.shape[x.dim() - ndim :])
    return (event_sum(x.double() ** 2, ndim) / count).sqrt()
