r"""Equations: what a solver integrates, :math:`dx = [a\,x + b\,F(x, t)]\,dt + c\,dW`, and how it meets the walls.

The linear part a, the weight b and the noise c depend on time alone, so that solvers can plan with them; F is the score or
a drift. F is read through the *wall*, one hook with three moments: reading the field (``evaluate``), after a move
(``settle``), handing out (``show``). An equation is immutable; ``bound`` returns it with a wall and a condition.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..domains import Domain, Euclidean
from ..domains.tensors import as_like

if TYPE_CHECKING:
    from .diffusion import Diffusion
    from .schedule import Schedule

Field = Callable[..., Tensor]
Coefficient = float | Tensor


class Wall:
    """The wall that does nothing, for domains that have none; and the contract of the others.

    ``pushes`` says whether ``settle`` moves states, so that the length of the pushes (local time) is worth recording.
    """

    pushes = False

    def check(self, domain: Domain) -> None:
        """Refuse a domain on which this wall cannot act."""

    def evaluate(self, domain: Domain, field: Field, u: Tensor, t: Tensor, start: Tensor | None) -> Tensor:
        """The field at ``u``, which may lie outside; ``start`` is the step's x, given at inner stages. Never calls the field outside."""
        return field(u, t)

    def settle(self, domain: Domain, x: Tensor, y: Tensor) -> Tensor:
        """Where a move from x to y ends."""
        return y

    def show(self, domain: Domain, x: Tensor) -> Tensor:
        """The state as it is handed out: inside the domain."""
        return x

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def check_field(value: Any, u: Tensor) -> Tensor:
    """The value of a score or drift at u, or an error that says what it lacks."""
    if not isinstance(value, Tensor):
        raise TypeError(f"score/drift: got {type(value).__name__}, expected a tensor of x's shape {tuple(u.shape)}")
    if value.shape != u.shape or value.dtype != u.dtype:
        raise ValueError(
            f"score/drift: got {tuple(value.shape)} {value.dtype} for a state of shape {tuple(u.shape)} {u.dtype}, "
            "expected the same shape and dtype; broadcast t against x, do not flatten the event"
        )
    return value


def check_timeless(score: Any) -> None:
    """Refuse what is no score(x) of one level: not callable, or one that takes a time as those of processes do."""
    if not callable(score) or getattr(score, "process", None) is not None or _asked_for(score) > 1:
        what = "" if not callable(score) else ", a function of x and t"
        raise TypeError(
            f"score: got {type(score).__name__}{what}, expected a callable score(x) -> tensor of x's shape; fix the level of one that "
            "takes a time: lambda x: score(x, 0.1)"
        )


def _asked_for(function: Callable[..., Any]) -> int:
    """How many positional arguments a callable cannot do without; 1 where that cannot be told."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


class Equation(ABC):
    """dx = [a·x + b·field(x, t)]dt + c dW on ``domain``. Subclasses give ``coefficients`` and ``_field``."""

    stochastic: bool
    #: +1: only forward in time, −1: only backward, 0: either
    direction: int = 0
    domain: Domain
    wall: Wall = Wall()
    #: the wall of a run that names none, where it is not for the solver to choose
    usual_wall: Wall | None = None
    condition: Mapping[str, Any] = {}

    @abstractmethod
    def coefficients(self, t: Coefficient) -> tuple[Any, Any, Any]:
        """(a, b, c) at t: floats for a float, tensors of t's shape and dtype for a tensor (a whole grid at once)."""

    @abstractmethod
    def _field(self, x: Tensor, t: Tensor) -> Tensor:
        """The score or the drift at points inside the domain."""

    def field(self, u: Tensor, t: Tensor, start: Tensor | None = None) -> Tensor:
        """The field read through the wall; refuses a value of another shape or dtype."""
        return check_field(self.wall.evaluate(self.domain, self._field, u, t, start), u)

    def prediction(self, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(E[x0 | x], E[ε | x]) where the score offers them and no wall is in the way, else None. Unlike a score they stay finite
        where the scale or σ vanish, and keep their digits near there."""
        return None

    def spread(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The noise as it enters at x, before the factor c: itself, unless the diffusion depends on the state."""
        return noise

    def diagonal(self, x: Tensor, t: Tensor) -> Tensor:
        """What each coordinate's own normal is multiplied by at x, before the factor c; refuses diffusions that mix coordinates."""
        return self.spread(x, t, torch.ones_like(x))

    def spread_slope(self, x: Tensor, t: Tensor) -> Tensor | None:
        """c ∂c/∂x of a diagonal diffusion c(x, t), coordinate by coordinate; None where it does not depend on the state."""
        return None

    def settle(self, x: Tensor, y: Tensor) -> Tensor:
        """The wall after a move x → y; the loop calls it after each step, composite rules between moves."""
        return self.wall.settle(self.domain, x, y)

    def rows(self, index: Tensor) -> Equation | None:
        """The equation of some batch rows, or None where its field cannot be restricted (a drift may look at the whole batch)."""
        return None

    def bound(self, wall: Wall | None = None, condition: Mapping[str, Any] | None = None) -> Equation:
        """A copy with this wall and these keywords for the score."""
        other = copy.copy(self)
        if wall is not None:
            other.wall = wall
        if condition:
            other.condition = dict(condition)
        return other


def _tensors(t: Coefficient, function: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Any, Any, Any]:
    values = function(t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64))
    return tuple(values) if isinstance(t, Tensor) else tuple(float(v) for v in values)  # type: ignore[return-value]


def _plain(t: Coefficient, stochastic: bool) -> tuple[Any, Any, Any]:
    """a = 0, b = 1, c = 1 (0 without noise): all is in the field and in the spread."""
    noise = float(stochastic)
    if isinstance(t, Tensor):
        return torch.zeros_like(t), torch.ones_like(t), torch.full_like(t, noise)
    return 0.0, 1.0, noise


class _General(Equation):
    """dx = drift dt + …: a = 0, b = 1, c = 1 (0 for an ODE)."""

    def __init__(self, drift: Field, domain: Domain, *, direction: int = 0):
        if not callable(drift):
            raise TypeError(
                f"drift: got {type(drift).__name__}, expected a callable drift(x, t) -> tensor of x's shape"
            )
        if not isinstance(domain, Domain):
            raise TypeError(f"domain: got {type(domain).__name__}, expected a Domain, e.g. Euclidean((2,))")
        if direction not in (-1, 0, 1):
            raise ValueError(f"direction: got {direction!r}, expected 1 (time rises), -1 (it falls) or 0 (either)")
        self.drift, self.domain = drift, domain
        if direction:
            self.direction = direction

    def coefficients(self, t: Coefficient) -> tuple[Any, Any, Any]:
        return _plain(t, self.stochastic)

    def _field(self, x: Tensor, t: Tensor) -> Tensor:
        return self.drift(x, t, **self.condition)


class ODE(_General):
    """dx = drift(x, t) dt on any time span; ``drift(x, t)`` is any callable.

    ``direction``: 1 or −1 if time may only rise or fall, 0 if either.
    """

    stochastic = False


class SDE(_General):
    """dx = drift(x, t) dt + diffusion(x, t) dW (Itô) on any time span.

    Args:
        drift: callable (x, t) → tensor of x's shape.
        diffusion: a number or tensor, or a callable (x, t) → a scalar, a diagonal (a shape that broadcasts against x) or,
            for 1-d events, a matrix ``[*batch, d, d]`` (one dimension more than x); a constant ``[d, d]`` tensor is a matrix.
        domain: where x lives; ``Euclidean`` if nowhere in particular.
        direction: 1 or −1 if time may only rise or fall, 0 if either.
    """

    stochastic = True

    def __init__(self, drift: Field, diffusion: float | Tensor | Field, domain: Domain, *, direction: int = 0):
        super().__init__(drift, domain, direction=direction)
        if isinstance(diffusion, (np.ndarray, np.number)):
            diffusion = torch.as_tensor(diffusion)
        self.diffusion = diffusion
        self._matrix = isinstance(diffusion, Tensor) and diffusion.dim() == 2 and len(domain.event_shape) == 1
        if not callable(diffusion) and not isinstance(diffusion, (int, float, Tensor)):
            raise TypeError(
                f"diffusion: got {type(diffusion).__name__}, expected a number, a tensor or a callable (x, t)"
            )
        if self._matrix and diffusion.shape != (*domain.event_shape, *domain.event_shape):  # type: ignore[union-attr]
            d = domain.event_shape[0]
            raise ValueError(f"diffusion: got a matrix {tuple(diffusion.shape)}, expected [{d}, {d}] in {domain!r}")  # type: ignore[union-attr]

    def spread(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        value, is_matrix = self._diffusion_at(x, t)
        return (value * noise.unsqueeze(-2)).sum(-1) if is_matrix else value * noise

    def diagonal(self, x: Tensor, t: Tensor) -> Tensor:
        value, is_matrix = self._diffusion_at(x, t)
        if is_matrix:
            raise TypeError(
                f"diffusion: got a matrix of shape {tuple(value.shape)} for states {tuple(x.shape)}, expected a scalar or a diagonal "
                f"for this "
                "solver; use EulerMaruyama()"
            )
        return torch.broadcast_to(value, x.shape)

    def spread_slope(self, x: Tensor, t: Tensor) -> Tensor | None:
        diffusion = self.diffusion
        if not callable(diffusion):
            return None
        at = self.diagonal(x, t)
        _, slope, *_ = torch.func.jvp(lambda u: torch.broadcast_to(as_like(diffusion(u, t), u), u.shape), (x,), (at,))
        return slope

    def _diffusion_at(self, x: Tensor, t: Tensor) -> tuple[Tensor, bool]:
        """The diffusion's value, and whether it is a matrix."""
        value = as_like(self.diffusion(x, t) if callable(self.diffusion) else self.diffusion, x)
        return value, self._matrix or value.dim() == x.dim() + 1 or self._shared_matrix(value, x, t)

    def _shared_matrix(self, value: Tensor, x: Tensor, t: Tensor) -> bool:
        """Whether a callable's [d, d] for states [B, d] is one matrix for all rows. Where B = d its shape does not tell it from
        diagonals; then the answer to one more row does."""
        d = x.shape[-1] if x.dim() else 0
        if (
            not callable(self.diffusion)
            or len(self.domain.event_shape) != 1
            or x.dim() != 2
            or value.shape != (d, d)
            or d == 1
        ):
            return False
        if len(x) != d:
            return True
        more = torch.cat([t, t[:1]]) if t.dim() else t
        return as_like(self.diffusion(torch.cat([x, x[:1]]), more), x).shape == (d, d)


class _OfProcess(Equation):
    """What the equations of a diffusion process share."""

    def __init__(self, process: Diffusion, score: Field | None = None):
        if score is not None and not callable(score):
            raise TypeError(
                f"score: got {type(score).__name__}, expected a callable score(x, t) -> tensor of x's shape"
            )
        self.process, self.score, self.domain = process, score, process.domain

    @abstractmethod
    def _triple(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, c) under one schedule."""

    def coefficients(self, t: Coefficient) -> tuple[Any, Any, Any]:
        if self.process.parts:
            # parts with clocks of their own: the numbers move into the field and into the noise
            return _plain(t, self.stochastic)
        return _tensors(t, lambda u: self._triple(self.process.schedule, u))

    def _field(self, x: Tensor, t: Tensor) -> Tensor:
        value = self._value(x, t)
        if not self.process.parts:
            return value
        a, b, _ = self._by_part(t)
        return a * x + b * value

    def _value(self, x: Tensor, t: Tensor) -> Tensor:
        return self.score(x, t, **self.condition)  # type: ignore[misc]

    def prediction(self, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
        # only vectors can be carried across a wall, and a predicted x0 is a point
        if self.process.parts or not isinstance(self.domain, Euclidean) or not hasattr(self.score, "prediction"):
            return None
        data, noise = self.score.prediction(u, t, **self.condition)  # type: ignore[union-attr]
        return check_field(data, u), check_field(noise, u)

    def spread(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self._by_part(t)[2] * noise if self.process.parts else noise

    def _by_part(self, t: Tensor) -> tuple[Tensor, ...]:
        """(a, b, c) coordinate by coordinate; t 0-d or ``[*batch, 1]``."""
        at = t.squeeze(-1) if t.dim() else t
        triples = [self._triple(part.schedule, at) for part in self.process.parts]
        return tuple(self.process._beside(values) for values in zip(*triples, strict=True))

    def rows(self, index: Tensor) -> Equation | None:
        restrict = getattr(self.score, "rows", None)
        if restrict is None or self.condition:
            return None
        score = restrict(index)
        if score is None:
            return None
        other = copy.copy(self)
        other.score = score
        return other


class _Family(_OfProcess):
    r"""The equations that share the marginals of the process, at any noise η = ``stochasticity`` ≥ 0, a number or a function of t."""

    stochastic = True

    def __init__(
        self, process: Diffusion, score: Field | None, stochasticity: float | Callable[[Tensor], Tensor] = 1.0
    ):
        super().__init__(process, score)
        if not callable(stochasticity) and not stochasticity >= 0:
            raise ValueError(
                f"stochasticity: got {stochasticity:g}, expected a number ≥ 0 (0 the flow, 1 the reverse SDE)"
            )
        self.stochasticity = stochasticity

    def _triple(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given: Any = self.stochasticity
        eta = given(t) if callable(given) else given
        eta = torch.as_tensor(eta, dtype=t.dtype, device=t.device).expand_as(t)
        g = schedule.diffusion(t)
        return schedule.drift_rate(t), -0.5 * (1 - self.direction * eta) * g * g, eta.sqrt() * g


class ForwardSDE(_Family):
    r"""The family in the direction of growing t: :math:`dx = [a x - \tfrac{1-η}2 g^2\,score] dt + \sqrt η\, g\, dW`.

    η = 1, the default, is the noising process, dx = a x dt + g dW, which needs no score; 0 the probability flow, any other encodes with
    noise and needs one.
    """

    direction = 1

    def __init__(
        self, process: Diffusion, score: Field | None = None, stochasticity: float | Callable[[Tensor], Tensor] = 1.0
    ):
        super().__init__(process, score, stochasticity)
        if score is None and stochasticity != 1.0:
            raise ValueError(
                f"ForwardSDE: got stochasticity {stochasticity} without a score, expected a score: only the noising process itself, of "
                "stochasticity 1, needs none"
            )

    def _value(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.score is None else super()._value(x, t)


class ReverseSDE(_Family):
    r"""The family with the marginals of the process: :math:`dx = [a x - \tfrac{1+η}2 g^2\,score] dt + \sqrt η\, g\, d\bar W`.

    η = ``stochasticity`` ≥ 0, a number or a function of t: 1 is the reverse SDE (Anderson 1982), 0 the probability flow,
    between and beyond all have the same marginals (with β of Karras et al. 2022, eq. 6: η = βσ/σ'). It runs in the
    direction of falling t.
    """

    direction = -1


class ProbabilityFlow(_OfProcess):
    r"""The deterministic flow with the marginals of the process: :math:`dx = [a x - \tfrac12 g^2\,score]\,dt`; either direction."""

    stochastic = False

    def _triple(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return schedule.drift_rate(t), -0.5 * schedule.diffusion(t) ** 2, torch.zeros_like(t)
