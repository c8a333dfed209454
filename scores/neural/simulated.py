r"""Scores of forward processes that have no kernel: any SDE, run from the data by any solver, and implicit score matching where it ends.

Denoising needs :math:`p(x_t | x_0)`; implicit matching needs only draws of :math:`x_t`. So an anharmonic drift, noise that depends on the
state, or a reflected drift are simulated; the loss is that of ``implicit``, damped at walls as there, where a drift through them makes
the true score non-zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...domains.tensors import expand_right, is_int, per_batch
from ...processes import SDE
from ...solvers import EulerMaruyama, Solver, integrate
from ...solvers.divergence import exact_diagonal, sliced_diagonal
from ...solvers.loop import default_wall
from ...solvers.solver import Record
from .implicit import Implicit
from .levels import Levels

if TYPE_CHECKING:
    from .score import NeuralScore


@torch.no_grad()
def simulate_sde(
    sde: SDE,
    x0: Tensor,
    t: float | Tensor,
    *,
    solver: Solver | None = None,
    steps: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A draw of :math:`x_t` from x0 at time 0, each sample to a time of its own: ``[*batch, *event]``.

    Every sample takes ``steps`` equal steps on its way, :math:`h = t/n`, so that early times are as well resolved as late ones; it is
    the solver's own scheme for :math:`dX = t f(X, tu)\,du + \sqrt t\,g(X, tu)\,dW_u`, u from 0 to 1. The error is that of the solver, of
    its weak order in h.

    Args:
        sde: forward, from t = 0 on. x0: inside its domain. t: above 0, a number, ``[*batch]`` or ``[*batch, 1, …, 1]``.
        solver: any with steps of its grid, ``EulerMaruyama()`` unless told, ``Milstein()``, ``ReflectedEulerMaruyama()``; walls are
            those it takes by default. steps: explicit rules need h|∂f| below 2 wherever x may go, and are accurate well below.

    Raises ``TypeError`` for other equations and solvers, ``ValueError`` for steps < 1, t ≤ 0 and points outside.
    """
    solver = EulerMaruyama() if solver is None else solver
    _check(sde, solver, steps)
    sde.domain.check(x0, "x0")
    span = per_batch(t, x0, len(sde.domain.event_shape), "t")
    if not bool(((span > 0) & span.isfinite()).all()):
        raise ValueError(
            f"t: got {float(span.min()):g} to {float(span.max()):g}, expected finite times above 0, where x0 is"
        )
    return _run(sde, x0, span, solver, steps, generator)


def _run(sde: SDE, x0: Tensor, t: Tensor, solver: Solver, steps: int, generator: torch.Generator | None) -> Tensor:
    """The same for loops over values that were checked before; t ``[*batch]``."""
    span = expand_right(t.expand(x0.shape[: x0.dim() - len(sde.domain.event_shape)]), len(sde.domain.event_shape))
    equation = _Clocked(sde, span)
    bound = equation.bound(default_wall(equation, solver))
    records = solver.plan(bound, torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    x, _ = integrate(bound, x0, records, solver, _draws(x0, records, generator))
    return bound.wall.show(sde.domain, x)


def _draws(x: Tensor, records: list[Record], generator: torch.Generator | None) -> Iterator[tuple[Tensor, ...]]:
    device = x.device if generator is None else generator.device
    for record in records:
        yield tuple(
            torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)
            for _ in range(record.draws)
        )


class _Clocked(SDE):
    """An SDE on a clock u ∈ [0, 1] that brings each sample to its own time, ``span`` in broadcast form."""

    def __init__(self, sde: SDE, span: Tensor):
        super().__init__(sde.drift, sde.diffusion, sde.domain)
        self.sde, self.span = sde, span

    def _field(self, x: Tensor, t: Tensor) -> Tensor:
        return self.span * self.sde._field(x, self.span * t)

    def _diffusion_at(self, x: Tensor, t: Tensor) -> tuple[Tensor, bool]:
        value, is_matrix = self.sde._diffusion_at(x, self.span * t)
        root = self.span.sqrt()
        return (root.unsqueeze(-1) if is_matrix else root) * value, is_matrix

    def spread_slope(self, x: Tensor, t: Tensor) -> Tensor | None:
        slope = self.sde.spread_slope(x, self.span * t)
        return None if slope is None else self.span * slope


@dataclass(frozen=True)
class SimulatedScoreMatching(Implicit):
    r""":math:`E_t\, w\,\tfrac1d \big(|score|^2 + 2 \nabla·score\big)(x_t, t) / v^2` with :math:`x_t` simulated: the score of any SDE.

    The process of the :class:`NeuralScore` is a clock here, and a unit: t runs from 0 to its ``t_max``, levels are drawn as its σ and
    turned into times, v and the preconditioning are those of its σ(t). Take one whose spread is near the SDE's: a ``VP`` for a drift
    that pulls in, an ``EDM`` or ``VE`` for one that does not; what differs, the network learns. Samples come from
    ``solve(TimeReversal(sde, score), …)``, not from ``sample``, which would take the clock for the process.

    Args:
        sde: from data at t = 0 to noise at the clock's end, on the domain of the score.
        solver, steps: of each simulation, see :func:`simulate_sde`; a batch costs as many evaluations of the drift.
        levels: as for denoising; ln σ of the clock is uniform by default.
        weight: w, a function of the clock's σ ``[*batch]``; 1 by default.
        probes: None for the exact divergence, one backward pass per axis of the event; else how many random sign vectors per sample,
            one backward pass each, for events of more than a few dimensions.

    The score it learns is that of the solver's law: its bias is O(t/steps) for rules of weak order 1. Raises ``TypeError`` for an SDE on
    another domain. Hyvärinen 2005, eq. 4; Song et al. 2019, eq. 8; Song et al. 2021, sect. 3.3 (general SDEs by sliced matching).
    """

    sde: SDE
    solver: Solver = field(default_factory=EulerMaruyama)
    steps: int = 64
    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None
    probes: int | None = None

    def __post_init__(self) -> None:
        _check(self.sde, self.solver, self.steps)
        if self.probes is not None and not is_int(self.probes, 1):
            raise ValueError(
                f"probes: got {self.probes!r}, expected a whole number of at least 1, or None for all axes"
            )

    def _states(self, score: NeuralScore, x0: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
        process, ours = score.process, self.sde.domain
        if type(ours) is not type(process.domain) or ours.config() != process.domain.config():
            raise TypeError(
                f"SimulatedScoreMatching: got an SDE on {ours!r}, expected {process.domain!r}, the score's domain"
            )
        t = process.schedule.time(sigma.double())
        x = _run(self.sde, x0, t.to(x0.dtype), self.solver, self.steps, generator)
        # the loss is taken in the clock's coordinates, x over its scale
        return x / process.event_level(t).scale.to(x.dtype)

    def _diagonal(self, value: Tensor, x: Tensor, ndim: int, keep: bool, generator: torch.Generator | None) -> Tensor:
        if self.probes is None:
            return exact_diagonal(value, x, ndim, keep)
        return sliced_diagonal(value, x, self.probes, keep, generator)


def _check(sde: Any, solver: Any, steps: Any) -> None:
    if not isinstance(sde, SDE) or sde.direction < 0:
        raise TypeError(
            f"sde: got {type(sde).__name__}, expected a forward SDE(drift, diffusion, domain); a Diffusion has DenoisingScoreMatching"
        )
    if not isinstance(solver, Solver) or not issubclass(SDE, solver.accepts) or solver.adaptive:
        raise TypeError(f"solver: got {solver!r}, expected one of fixed steps that takes any SDE, e.g. EulerMaruyama()")
    if not is_int(steps, 1):
        raise ValueError(f"steps: got {steps!r}, expected a whole number of at least 1")
