r"""The engine of structured solvers: steps that are linear combinations of the state, of predictions and of noise.

A step from t to s is a short programme of stages. Each stage may read a prediction P = p·u + q·score(u, time) at the point u
reached so far, and forms the next point as a row over everything known:

.. math:: u ← a\,x + \sum_j b_j P_j + \sum_k c_k z_k

with P_j the predictions of earlier steps (newest first) and of this one, z_k this step's normals. All a, b, c, p, q are floats
found before the loop; which predictions the next step inherits is part of the record as well. Singlestep, multistep,
predictor-corrector, ancestral and churning rules are all of this kind.

``LinearSolver.step`` is that programme and nothing else; a subclass gives ``plan``. Records of one kind have one structure, so
that a compiled step is traced once per kind.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..processes import Equation, ProbabilityFlow, ReverseSDE
from .forms import Array, Form, Levels, reading
from .solver import Number, Record, Row, Solver, combine


class Reading(NamedTuple):
    """When and how a prediction is read: P = p·u + q·score(u, time), or data·x0 + noise·ε of a score that offers ``prediction``.

    None stands for a zero left out.
    """

    time: Number
    p: Number
    q: Number
    data: Number
    noise: Number


class Stage(NamedTuple):
    """Read a prediction at the present point (unless ``reading`` is None), then move to the row's combination."""

    reading: Reading | None
    row: Row


def predict(equation: Equation, u: Tensor, at: Reading, start: Tensor | None) -> Tensor:
    """The prediction at u, through the wall."""
    offered = equation.prediction(u, at.time)
    if offered is not None:
        data, noise = offered
        if at.noise is None:
            return at.data * data
        return at.noise * noise if at.data is None else torch.addcmul(at.data * data, noise, at.noise)
    value = at.q * equation.field(u, at.time, start)
    return value if at.p is None else value.addcmul_(u, at.p)


class LinearSolver(Solver):
    """A solver whose records hold stages; see the module's text.

    ``coefficients`` of a record is (stages, kept): kept names, as positions among (earlier predictions, normals, predictions of this
    step), those that the next step finds as its earlier predictions, newest first.
    """

    accepts: tuple[type[Equation], ...] = (ProbabilityFlow,)

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        check_process(equation, self)
        if len(times) < 2 or float(equation.process.schedule.scale(times[0])) > 0:  # type: ignore[attr-defined]
            return self._plan(equation, times)
        # what follows a step out of pure noise begins anew: no polynomial passes through λ = −∞
        return [self._from_pure_noise(equation, times), *self._plan(equation, times[1:])]

    @abstractmethod
    def _plan(self, equation: Equation, times: Tensor) -> list[Record]:
        """The records of a grid on which the scale is positive."""

    def _renewed(self, equation: Equation, end: Levels) -> float:
        """Of a step out of pure noise: the std of fresh noise in units of std_s, 0 for flows, 1 for the reverse SDE."""
        return 0.0

    def _from_pure_noise(self, equation: Equation, times: Tensor) -> Record:
        """From s_t = 0, where x is nothing but noise, by DDIM's step from predicted data: x_s = s_s x0 + √(1 − f²) std_s ε + f std_s z."""
        schedule, t = equation.process.schedule, times[:2]  # type: ignore[attr-defined]
        if not self.reads_predictions or not hasattr(equation.score, "prediction"):  # type: ignore[attr-defined]
            raise ValueError(
                f"{self!r}: got a grid from t = {float(t[0]):g}, where the scale is 0, expected times from t_max = {schedule.t_max:g}; "
                f"with a "
                "score that offers prediction(x, t), DDIM() and the multistep rules may start there"
            )
        end = Levels.at(equation.process, t[1:])  # type: ignore[attr-defined]
        (before, after), scale, fresh = schedule.std(t).tolist(), float(end.scale[0]), self._renewed(equation, end)
        noise = (fresh * after,) if fresh else ()
        row = Row((1 - fresh**2) ** 0.5 * after / before, (*noise, scale))
        read = Reading(float(t[0]), None, None, 1.0, None)
        return Record(float(t[0]), float(t[1]), ((Stage(read, row),), ()), len(noise))

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        stages, kept = record.coefficients
        terms, u = [*state, *noise], x
        for stage in stages:
            if stage.reading is not None:
                terms.append(predict(equation, u, stage.reading, None if u is x else x))
            u = combine(stage.row, x, terms)
        # the first steps remember less than they might, and repeat it; compiled code would take one tensor twice for another case
        return u, tuple(terms[i].clone() if i in kept[:k] else terms[i] for k, i in enumerate(kept))


def check_process(equation: Equation, solver: Solver) -> None:
    """Structured rules are planned on one schedule."""
    if equation.process.parts:  # type: ignore[attr-defined]
        raise TypeError(
            f"{solver!r}: got a process with a schedule for each part, expected a single schedule; use Heun(), RungeKutta() or "
            "EulerMaruyama(), which read the drift itself"
        )


def noise_levels(equation: Equation, solver: Solver, levels: Levels, eta: float | None) -> Array:
    """η of each step on a grid: the solver's own, or the equation's where it states none; zeros for a flow.

    A function of time is read at the middle of a step in λ and held there: a path of η of its own, with the same marginals.
    """
    steps = len(levels.t) - 1
    own = equation.stochasticity if isinstance(equation, ReverseSDE) else 0.0
    if eta is not None:
        if callable(own) or own not in (1.0, eta):
            raise ValueError(
                f"{solver!r}: got an equation of stochasticity {own}, expected the default 1, or the solver's own {eta:g}; state η in "
                "one place"
            )
        own = eta
    if not callable(own):
        return np.full(steps, float(own))
    middle = Levels.at_lambda(equation.process, 0.5 * (levels.lam[1:] + levels.lam[:-1]))  # type: ignore[attr-defined]
    return np.asarray(torch.as_tensor(own(torch.as_tensor(middle.t)), dtype=torch.float64).expand(steps))


def own_noise(equation: Equation, solver: Solver) -> None:
    """Rules whose noise is part of their formula take the equation's default only."""
    if isinstance(equation, ReverseSDE) and (callable(equation.stochasticity) or equation.stochasticity != 1.0):
        raise ValueError(
            f"{solver!r}: got an equation of stochasticity {equation.stochasticity}, expected the default: this rule sets its noise "
            f"itself; "
            "for the family between flow and reverse SDE use EulerMaruyama(), ReverseDiffusion() or ExponentialAdams(sde=True)"
        )


def readings(form: Form, levels: Levels, times: Sequence[float] | None = None) -> list[Reading]:
    """One reading per level, zeros left out where they are zero at all levels."""
    columns = [_column(v) for v in reading(form, levels)]
    return [Reading(t, *row) for t, *row in zip(levels.t.tolist() if times is None else times, *columns, strict=True)]


def _column(values: Array) -> list[float | None]:
    return [None] * len(values) if not values.any() else values.tolist()


def rows(keep: Array, weights: Array) -> list[Row]:
    """One row per step from keep ``[n]`` and weights ``[n, m]``: a column of zeros is left out, as is a column of ones in keep."""
    kept = [None] * len(keep) if bool((keep == 1.0).all()) else keep.tolist()
    columns = [_column(weights[:, j]) for j in range(weights.shape[1])]
    return [Row(k, tuple(w)) for k, *w in zip(kept, *columns, strict=True)]
