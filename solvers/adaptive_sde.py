r"""Adaptive improved Euler for SDEs with additive noise, each sample on a Brownian path and with step sizes of its own.

A try is an Euler–Maruyama step y, and the improved Euler step with the same increment ΔW:

.. math:: y = x + h b(x, t) + c(t)ΔW,\qquad
          \bar y = x + \tfrac h2 [b(x, t) + b(y, s)] + \tfrac12 [c(t) + c(s)] ΔW,\qquad e = y - \bar y

and :math:`\bar y` is kept where e is small enough. A rejected step is tried again on a shorter piece of *the same path*: drawing afresh
would prefer paths on which the error happens to be small.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..domains.tensors import expand_right
from ..processes import Equation
from .noise import RESOLUTION
from .per_sample import PerSample, State, Trial, known_at
from .solver import STOCHASTIC


class AdaptiveSDE(PerSample):
    """Improved Euler with an embedded Euler–Maruyama step, for the reverse family, the forward process and SDEs with additive noise.

    Each sample follows a virtual Brownian tree built from its seed (with ``WhiteNoise(seed)`` sample i has a seed made of both), so that
    its answer does not depend on its neighbours, and a tighter tolerance refines the same path. Strong order 1 for fixed steps; steps of
    length h err by h^{3/2}, so that the error falls as rtol^{2/3} or faster.

    Args:
        rtol, atol: per step; 1e-2 of the state's size gives images, 1e-3 is fine. max_nfe: as for :class:`AdaptiveODE`.

    Each sample draws its own path at times of its own, some 20 draws a try: with a cheap score that, and not the score, is the cost (a few
    seconds for ten samples, in proportion to their number); with a network it is small.

    Time must be of order 1 (a process's is): steps cannot be shorter than 2⁻²³.
    Source: Jolicoeur-Martineau et al. 2021 (Gotta Go Fast), alg. 1, with the rejection bridged.
    """

    accepts = STOCHASTIC
    stochastic = True
    order = 1
    weak_order = 1
    strong_order = 1
    evaluations = "adaptive, 2 per step"
    order_note = "strong 1, error ∝ rtol^⅔"
    source = "Jolicoeur-Martineau et al. 2021, alg. 1"
    cost = 1  # and the reading at the start, which a rejection keeps
    exponent = 2 / 3

    def __init__(self, rtol: float = 1e-2, atol: float = 1e-2, max_nfe: int = 10_000):
        super().__init__(rtol, atol, max_nfe, 2)

    def start(self, x: Tensor, event_shape: tuple[int, ...], noise: Any) -> State:
        return replace(super().start(x, event_shape, noise), paths=tuple(noise.paths()))

    def _read(self, equation: Equation, u: Tensor, time: Tensor, start: Tensor | None) -> Tensor:
        """The drift b(u, t)."""
        ndim = len(equation.domain.event_shape)
        a, b, _ = (expand_right(v.to(u.dtype), ndim) for v in equation.coefficients(time))
        return a * u + b * equation.field(u, expand_right(time.to(u.dtype), ndim), start)

    def _begin(self, equation: Equation, state: State, active: Tensor, end: float) -> State:
        read = functools.partial(self._read, equation, state.x, state.time, None)
        state = known_at(state, active, read, len(equation.domain.event_shape))
        new = active & (state.h == 0)
        return replace(state, h=torch.where(new, 0.01 * (end - state.time), state.h))

    def _try(self, equation: Equation, state: State, h: Tensor, end: Tensor, noise: Any) -> Trial:
        ndim, x = len(equation.domain.event_shape), state.x
        moves = zip(state.place.tolist(), state.time.tolist(), end.tolist(), h.tolist(), strict=True)
        drawn = [state.paths[i](t, s)[0] if step else torch.zeros_like(x[0]) for i, t, s, step in moves]
        z = torch.stack(drawn) if drawn else torch.zeros_like(x)
        step, root = (expand_right(v.to(x.dtype), ndim) for v in (h, h.abs().sqrt()))
        shocks = []
        for time in (state.time, end):
            c = expand_right(equation.coefficients(time)[2].to(x.dtype), ndim)
            shocks.append(c * root * equation.spread(x, expand_right(time.to(x.dtype), ndim), z))
        euler = x + step * state.slope + shocks[0]
        ahead = self._read(equation, euler, end, x)
        better = x + 0.5 * step * (state.slope + ahead) + 0.5 * (shocks[0] + shocks[1])
        return Trial(better, euler - better, None)

    def _smallest(self, time: Tensor) -> Tensor:
        return torch.full_like(time, 2 * RESOLUTION)
