r"""Inpainting: samples of which some coordinates are known, by any rule with fixed steps.

Before each step the known coordinates are replaced by draws of what the forward process makes of them at that level,

.. math:: x_t ← m\,\mathrm{fold}(s\,x_0 + sσ\,z) + (1 - m)\,x_t

with the fold of the domain: the known part is exact in law, walls and all. The unknown part hears of it through the score alone and through
fresh noise, and what it learns early on is blurred: replacement is biased however fine the grid. *Resampling* (RePaint) takes each step
r times, with the forward process in between to lead back up, so that the unknown part comes to rest at each level before the next. On fine
grids r steps down and r − 1 up are one step down and r − 1 of Langevin dynamics: replacement in the reverse SDE of stochasticity 2r − 1.
For a Gaussian the bias vanishes as r and the grid grow (``benchmarks/inverse.py``).

Sources: replacement Song et al. 2021, app. I.2; resampling Lugmayr et al. 2022, alg. 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains import Domain, Euclidean, FoldedDomain, Hypercube, Orthant, Product, Simplex, Torus
from ..domains.tensors import batch_shape, check_event, event_flat, expand_right, is_int
from ..processes import Diffusion, Equation
from ..processes.equations import Field
from .checks import as_state, check_process_and_score
from .linear import check_process
from .loop import sample
from .solution import Solution
from .solver import Record, Row, Solver, combine


class Inpaint(Solver):
    """A rule with fixed steps that is told before each of them that the coordinates ``mask`` are known to be ``values``.

    With :func:`carom.solvers.sample` or ``solve``; :func:`inpaint` also puts the values themselves into the samples at the end. Noise,
    order and wall are those of ``solver``; deterministic rules become stochastic, for the known part is noised afresh.

    Args:
        solver: any rule with fixed steps, deterministic or stochastic; not an adaptive one.
        values: what is known ``[*event]`` or ``[*batch, *event]``, inside the domain; where mask is False they are not read and may be NaN.
        mask: Bool, True where they are known; broadcasts against values. On a domain that is no box by itself the coordinates of one
            point are known together or not at all: all categories of a position of a :class:`~carom.domains.Simplex`, a part of a
            :class:`~carom.domains.Product`.
        resamplings: r ≥ 1, how often each step is taken (RePaint's U); 1 is replacement alone.
        jump: the number of steps taken before going back up (RePaint's jump length), where r > 1. Multistep rules keep their history
            only that long; so 1 makes a rule of one step of each.

    Resampling costs r times the evaluations. Raises ``TypeError``/``ValueError`` for adaptive rules, shapes that do not fit, values
    outside, and domains without a fold.
    """

    stochastic = True
    order = None
    order_note = "its solver's"
    evaluations = "its solver's, times resamplings"
    source = "Song et al. 2021, app. I.2; Lugmayr et al. 2022, alg. 1"

    def __init__(
        self,
        solver: Solver,
        values: Tensor | np.ndarray,
        mask: Tensor | np.ndarray,
        resamplings: int = 1,
        jump: int = 1,
    ):
        if not isinstance(solver, Solver) or solver.adaptive:
            raise TypeError(f"solver: got {solver!r}, expected a rule with fixed steps, e.g. Ancestral() or DDIM()")
        for name, count in (("resamplings", resamplings), ("jump", jump)):
            if not is_int(count, 1):
                raise ValueError(f"{name}: got {count!r}, expected an int of at least 1")
        self.solver, self.values, self.mask = solver, as_state(values), _mask(mask)
        self.resamplings, self.jump = resamplings, jump
        self.accepts, self.multistage, self.wall = solver.accepts, solver.multistage, solver.wall
        self.reads_predictions = solver.reads_predictions
        self.order, self.weak_order = solver.order, solver.weak_order

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        check_process(equation, self)
        self._check(equation.process)  # type: ignore[attr-defined]
        schedule = equation.process.schedule  # type: ignore[attr-defined]
        scale, std, sigma = (f(times).tolist() for f in (schedule.scale, schedule.std, schedule.sigma))
        known = list(zip(scale, std, strict=True))
        steps, again = len(times) - 1, self.resamplings - 1
        size = self.jump if again else max(steps, 1)
        plan: list[Record] = []
        for begin in range(0, steps, size):
            end = min(begin + size, steps)
            inner = self.solver.plan(equation, times[begin : end + 1])
            visits = tuple(zip(known[begin:end], inner, strict=True))
            passes: list[list[Any]] = [[(None, (visit,))] for visit in visits]
            if again:
                # the variance of x_t given x_s, s_t²(σ_t² − σ_s²), where σ_t may be infinite
                ratio = sigma[end] / sigma[begin]
                back = Row.of(scale[begin] / scale[end], std[begin] * math.sqrt((1 - ratio) * (1 + ratio)))
                passes[-1] += [(back, visits)] * again
            plan += [_record(record.t, record.s, each) for record, each in zip(inner, passes, strict=True)]
        if plan:  # the last denoising step, too, is to see the known part
            plan[-1] = _record(plan[-1].t, plan[-1].s, plan[-1].coefficients[0], known[-1])
        return plan

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        passes, last = record.coefficients
        draws = (noise[k] for k in range(record.draws))
        y = x  # where a move has led to, not yet settled by the wall

        def settled() -> Tensor:
            return x if y is x else equation.settle(x, y)

        for back, visits in passes:
            if back is not None:
                x = settled()
                y, state = combine(back, x, (next(draws),)), ()
            for level, inner in visits:
                x = self._replaced(equation.domain, settled(), level, next(draws))
                own = tuple(next(draws) for _ in range(inner.draws))
                y, state = self.solver.step(equation, x, inner, state, own)
        if len(passes) > 1:  # the end of a jump: the next steps are a plan of their own, that begins without history
            state = ()
        return (y if last is None else self._replaced(equation.domain, settled(), last, next(draws))), state

    def pasted(self, x: Tensor) -> Tensor:
        """x with the values themselves where they are known."""
        values, mask = self.values.to(x), self.mask.to(x.device)
        if _together(values.shape, mask.shape, x.shape) != x.shape:
            raise ValueError(
                f"values: got shape {tuple(values.shape)} with a mask of shape {tuple(mask.shape)}, expected shapes that "
                f"broadcast to those of the states {tuple(x.shape)}"
            )
        return torch.where(mask, values, x)

    def _replaced(self, domain: Domain, x: Tensor, level: tuple[Any, Any], z: Tensor) -> Tensor:
        """x with the forward draw of what is known: a Gaussian from s·x0, folded."""
        scale, std = level
        known = self.pasted(x)
        return torch.where(self.mask.to(x.device), domain.reflect(scale * known, std * z), x)

    def _check(self, process: Diffusion) -> None:
        domain, event = process.domain, process.domain.event_shape
        if not isinstance(domain, (Euclidean, FoldedDomain)) or process.parts:
            raise TypeError(
                f"Inpaint: got {process!r}, expected a Euclidean domain, or one whose reflection is a fold (a box, an orthant, a torus, a "
                "simplex or a product of them), under one schedule"
            )
        check_event(self.values, event, "values")
        shape = _together(self.values.shape, self.mask.shape)
        if shape is None or tuple(shape[len(shape) - len(event) :]) != event:
            raise ValueError(
                f"mask: got shape {tuple(self.mask.shape)}, expected one that broadcasts against that of the values "
                f"{tuple(self.values.shape)}"
            )
        mask, values = torch.broadcast_tensors(self.mask.to(self.values.device), self.values)
        _check_mask(domain, mask)
        # what is not known is not read: any point of the domain will do in its place
        inside = domain.project(torch.zeros_like(values))
        domain.check(torch.where(mask, values, inside), "values")


def _record(t: float, s: float, passes: Sequence[Any], last: Any = None) -> Record:
    """The record of some passes, each (the way back up or None, visits (level, inner record))."""
    inner = [record for _, visits in passes for _, record in visits]
    jumps = sum(back is not None for back, _ in passes)
    draws = sum(1 + record.draws for record in inner) + jumps + (last is not None)
    return Record(t, s, (tuple(passes), last), draws, sum(record.evaluations for record in inner))


def _mask(mask: Any) -> Tensor:
    value = as_state(mask)
    if value.dtype != torch.bool:
        raise TypeError(f"mask: got {value.dtype}, expected bool, True where values are known; write mask > 0.5")
    return value


def _together(*shapes: torch.Size) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return None


def _check_mask(domain: Domain, mask: Tensor) -> None:
    """Refuse a mask that separates coordinates which share their walls: put together they might lie outside."""
    if isinstance(domain, Product):
        for part, share in zip(domain.domains, domain.split(mask.double()), strict=True):
            _check_mask(part, share > 0)
        return
    if isinstance(domain, (Euclidean, Hypercube, Orthant, Torus)):
        return
    ndim = 1 if isinstance(domain, Simplex) else len(domain.event_shape)
    flat = event_flat(mask, ndim)
    if bool((flat.any(-1) & ~flat.all(-1)).any()):
        raise ValueError(
            f"mask: got one that knows some coordinates of a point of {domain!r} and not others, expected all or none: they share walls"
        )


@torch.no_grad()
def inpaint(
    process: Diffusion,
    score: Field,
    solver: Solver,
    times: Tensor | np.ndarray | Sequence[float],
    values: Tensor | np.ndarray,
    mask: Tensor | np.ndarray,
    *,
    shape: int | Sequence[int] | None = None,
    resamplings: int = 1,
    jump: int = 1,
    **options: Any,
) -> Solution:
    """Samples that agree with ``values`` where ``mask`` is True: :func:`carom.solvers.sample` by :class:`Inpaint`, with the values
    themselves put in at the end. A sample of its own seed is the same alone and in any batch.

    Args:
        process, score, solver, times: as for ``sample``; any rule with fixed steps.
        values, mask, resamplings, jump: as for :class:`Inpaint`.
        shape: batch shape; that of the values unless told.
        options: seed, condition, wall, … as for ``sample``.

    Raises ``TypeError``/``ValueError`` for input that does not fit.
    """
    check_process_and_score(process, score)
    rule = Inpaint(solver, values, mask, resamplings, jump)
    check_event(rule.values, process.domain.event_shape, "values")
    if shape is None:
        shape = batch_shape(rule.values, process.domain.event_shape)
    if options.get("initial") is None:
        options = {"dtype": rule.values.dtype, "device": rule.values.device, **options}
    found = sample(process, score, rule, times, shape=shape, **options)
    kept = expand_right(found.ok, len(process.domain.event_shape))
    return replace(found, x=torch.where(kept, rule.pasted(found.x), found.x))
