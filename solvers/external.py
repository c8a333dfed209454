"""Other libraries' solvers behind the same protocol: references in tests, and their adjoints, for unbounded problems.

With ``adjoint=True`` memory does not grow with the number of steps: gradients come from a second solve backwards in time (for the state
and for ``parameters``), which is exact in the limit of small steps or tolerances only. Exact gradients of the discrete rules, at more
memory, are what plain backpropagation through ``solve`` gives, or ``solve(..., checkpoint=k)`` at less.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..domains import Euclidean
from ..processes import SDE, Equation
from .noise import Source
from .solver import DETERMINISTIC, STOCHASTIC, Record, Solver

_FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
_ADAPTIVE = {"adaptive_heun": 2, "bosh3": 3, "fehlberg2": 2, "dopri5": 5, "dopri8": 8}
#: torchsde's methods: weak and strong order for additive noise
_ITO = {"euler": (1, 1), "milstein": (1, 1), "srk": (2, 1.5)}
_STRATONOVICH = {"midpoint": (2, 1), "heun": (2, 1), "euler_heun": (1, 1), "reversible_heun": (2, 1)}


class _External(Solver):
    """One call of the other library per interval of the grid."""

    adaptive = True  # time stays a float and evaluations are counted as they happen
    multistage = True
    adjoint: bool
    parameters: tuple[Tensor, ...] | None

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        if not isinstance(equation.domain, Euclidean):
            library = "torchsde" if self.stochastic else "torchdiffeq"
            raise TypeError(f"{self!r}: got {equation.domain!r}, expected a Euclidean domain; {library} knows no walls")
        return [Record(t, s, evaluations=0) for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True)]

    def report(self, state: Any, records: Any) -> dict[str, Any]:
        return {"nfe": state.calls if state else 0}

    def _parameters(self, equation: Equation) -> tuple[Tensor, ...]:
        """What gradients go to beside the state: named ones, or those of a score or drift that is a module."""
        if self.parameters is not None:
            return self.parameters
        field = getattr(equation, "score", None) or getattr(equation, "drift", None)
        return tuple(field.parameters()) if isinstance(field, nn.Module) else ()


class _Drift(nn.Module):
    """The drift of an equation as other libraries call it, counting its calls; ``sign`` −1 turns time round."""

    def __init__(self, equation: Equation, shape: torch.Size, calls: int, sign: int = 1):
        super().__init__()
        self.equation, self.shape, self.calls, self.sign = equation, shape, calls, sign

    def forward(self, time: Tensor, u: Tensor) -> Tensor:
        self.calls += 1
        t, x = self.sign * time, u.reshape(self.shape)
        a, b, _ = self.equation.coefficients(t.double())
        slope = a.to(x.dtype) * x + b.to(x.dtype) * self.equation.field(x, t.to(x.dtype))
        return (self.sign * slope).reshape(u.shape)


class TorchDiffEq(_External):
    """torchdiffeq's ``odeint`` over each interval of the grid, for flows and ODEs on Euclidean domains.

    Args:
        method: "euler", "midpoint", "heun2", "heun3", "rk4" (one step per interval), or "dopri5", "bosh3", "dopri8",
            "adaptive_heun", "fehlberg2" (adaptive within each interval, one step size for the whole batch).
        rtol, atol: for the adaptive ones.
        adjoint: use ``odeint_adjoint``; parameters: what its gradients go to, by default those of a score or drift that is a module.
    """

    accepts = DETERMINISTIC
    order: float = 5
    order_note = "1 to 8, the method's"
    evaluations = "torchdiffeq's"
    source = "torchdiffeq (Chen 2018)"

    def __init__(
        self,
        method: str = "dopri5",
        *,
        rtol: float = 1e-7,
        atol: float = 1e-9,
        adjoint: bool = False,
        parameters: Iterable[Tensor] | None = None,
    ):
        orders = {**_FIXED, **_ADAPTIVE}
        if method not in orders:
            raise ValueError(f"method: got {method!r}, expected one of {', '.join(orders)}")
        self.method, self.rtol, self.atol, self.order = method, rtol, atol, orders[method]
        self.adjoint, self.parameters = adjoint, None if parameters is None else tuple(parameters)

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        from torchdiffeq import odeint, odeint_adjoint

        slope = _Drift(equation, x.shape, state.calls if state else 0)
        span = torch.tensor([record.t, record.s], dtype=torch.float64, device=x.device)
        # without step_t torchdiffeq steps past the end and interpolates, which may leave the schedule's range
        options: dict[str, Any] = {"method": self.method}
        if self.method not in _FIXED:
            options |= {"rtol": self.rtol, "atol": self.atol, "options": {"step_t": span[1:]}}
        if not self.adjoint:
            return odeint(slope, x, span, **options)[-1], slope
        backward: dict[str, Any] = {"adjoint_options": {}} if self.method not in _FIXED else {}
        return odeint_adjoint(slope, x, span, **options, **backward, adjoint_params=self._parameters(equation))[
            -1
        ], slope


class TorchSDE(_External):
    """torchsde's ``sdeint``, one step per interval of the grid, for SDEs on Euclidean domains, either direction of time.

    Its Brownian motion is our noise source, so that seeds, per-sample seeds and ``BrownianPath`` mean what they mean elsewhere.

    Args:
        method: Itô rules "euler", "milstein", "srk"; for additive noise also the Stratonovich ones "midpoint", "heun", "euler_heun",
            "reversible_heun".
        adjoint: use ``sdeint_adjoint``; parameters: what its gradients go to, by default those of a score or drift that is a module.
    """

    accepts = STOCHASTIC
    stochastic = True
    order: float = 2
    weak_order = 2
    strong_order = 1.5
    order_note = "weak 1 or 2, strong to 1.5, the method's"
    evaluations = "torchsde's"
    source = "torchsde (Li et al. 2020)"

    def __init__(self, method: str = "srk", *, adjoint: bool = False, parameters: Iterable[Tensor] | None = None):
        orders = {**_ITO, **_STRATONOVICH}
        if method not in orders:
            raise ValueError(f"method: got {method!r}, expected one of {', '.join(orders)}")
        if adjoint and method == "srk":
            raise ValueError(
                "method: got 'srk' with adjoint=True, which torchsde does not offer, expected e.g. 'milstein'"
            )
        self.method, (self.weak_order, self.strong_order) = method, orders[method]
        self.order = self.weak_order
        self.adjoint, self.parameters = adjoint, None if parameters is None else tuple(parameters)

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        if self.method in _STRATONOVICH and isinstance(equation, SDE) and callable(equation.diffusion):
            raise TypeError(
                f"{self!r}: got an SDE whose diffusion is a function, in the sense of Itô, expected additive noise; use 'milstein' or 'srk'"
            )
        draws = 2 if self.method == "srk" else 1
        return [record._replace(draws=draws) for record in super().plan(equation, times)]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        import torchsde

        sign = 1 if record.s > record.t else -1
        ndim = len(equation.domain.event_shape)
        flat = x.reshape(-1, max(1, x[(0,) * (x.dim() - ndim)].numel()) if x.numel() else 1)
        sde = _Sde(
            equation, x, state.calls if state else 0, sign, "stratonovich" if self.method in _STRATONOVICH else "ito"
        )
        span = torch.tensor([sign * record.t, sign * record.s], dtype=torch.float64, device=x.device)
        path = _Increment(noise, flat, record.t, record.s)
        # one step, whatever rounding makes of t + (s − t)
        options: dict[str, Any] = {"bm": path, "method": self.method, "dt": abs(record.s - record.t) * (1 + 1e-9)}
        if not self.adjoint:
            return torchsde.sdeint(sde, flat, span, **options)[-1].reshape(x.shape), sde.drift
        parameters = self._parameters(equation)
        return torchsde.sdeint_adjoint(sde, flat, span, **options, adjoint_params=parameters)[-1].reshape(
            x.shape
        ), sde.drift


class _Sde(nn.Module):
    """An equation as torchsde calls it: states ``[B, d]``, diagonal noise."""

    noise_type = "diagonal"

    def __init__(self, equation: Equation, x: Tensor, calls: int, sign: int, kind: str):
        super().__init__()
        self.drift, self.sde_type = _Drift(equation, x.shape, calls, sign), kind

    def f(self, time: Tensor, y: Tensor) -> Tensor:
        return self.drift(time, y)

    def g(self, time: Tensor, y: Tensor) -> Tensor:
        equation, t = self.drift.equation, self.drift.sign * time
        x = y.reshape(self.drift.shape)
        spread = equation.diagonal(x, t.to(x.dtype))
        return (equation.coefficients(t.double())[2].to(x.dtype) * spread).reshape(y.shape)


class _Increment:
    """The Brownian motion of one step, from our noise source: W, and the space-time integral U that "srk" asks for."""

    levy_area_approximation = "space-time"

    def __init__(self, source: Source, like: Tensor, t: float, s: float):
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device
        h = abs(s - t)
        self.h = h
        self.w = source(t, s).reshape(like.shape) * h**0.5
        self._bridge = (source, t, s)
        self._area: Tensor | None = None

    def size(self) -> torch.Size:
        return self.shape

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        if not return_U:
            return self.w
        if self._area is None:
            source, t, s = self._bridge
            # H, the space-time Lévy area, is independent of W with variance h/12
            self._area = source(t, s, stream=1).reshape(self.shape) * (self.h / 12) ** 0.5
        return self.w, self.h * (0.5 * self.w + self._area)
