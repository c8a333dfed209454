"""Other libraries' solvers behind the same protocol: references in tests, and their adjoints, for unbounded problems."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..processes import Equation
from .solver import DETERMINISTIC, Record, Solver

_FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
_ADAPTIVE = {"adaptive_heun": 2, "bosh3": 3, "fehlberg2": 2, "dopri5": 5, "dopri8": 8}


class TorchDiffEq(Solver):
    """torchdiffeq's ``odeint`` over each interval of the grid, for flows and ODEs on Euclidean domains.

    Args:
        method: "euler", "midpoint", "heun2", "heun3", "rk4" (one step per interval), or "dopri5", "bosh3", "dopri8",
            "adaptive_heun", "fehlberg2" (adaptive within each interval, one step size for the whole batch).
        rtol, atol: for the adaptive ones.
    """

    accepts = DETERMINISTIC
    adaptive = True  # time stays a float and evaluations are counted as they happen
    multistage = True
    order: float = 5
    order_note = "1 to 8, the method's"
    evaluations = "torchdiffeq's"
    source = "torchdiffeq (Chen 2018)"

    def __init__(self, method: str = "dopri5", *, rtol: float = 1e-7, atol: float = 1e-9):
        orders = {**_FIXED, **_ADAPTIVE}
        if method not in orders:
            raise ValueError(f"method: got {method!r}, expected one of {', '.join(orders)}")
        self.method, self.rtol, self.atol, self.order = method, rtol, atol, orders[method]

    def __repr__(self) -> str:
        return f"TorchDiffEq({self.method!r})"

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        from ..domains import Euclidean

        if not isinstance(equation.domain, Euclidean):
            raise TypeError(
                f"TorchDiffEq: got {equation.domain!r}, expected a Euclidean domain; torchdiffeq knows no walls"
            )
        return [Record(t, s, evaluations=0) for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True)]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        from torchdiffeq import odeint

        count = state or 0

        def slope(time: Tensor, u: Tensor) -> Tensor:
            nonlocal count
            count += 1
            a, b, _ = equation.coefficients(time.double())
            return a.to(u.dtype) * u + b.to(u.dtype) * equation.field(u, time.to(u.dtype))

        span = torch.tensor([record.t, record.s], dtype=torch.float64, device=x.device)
        if self.method in _FIXED:
            out = odeint(slope, x, span, method=self.method)
        else:
            # without step_t torchdiffeq steps past the end and interpolates, which may leave the schedule's range
            options = {"step_t": span[1:]}
            out = odeint(slope, x, span, method=self.method, rtol=self.rtol, atol=self.atol, options=options)
        return out[-1], count

    def report(self, state: Any, records: Any) -> dict[str, Any]:
        return {"nfe": state or 0}
