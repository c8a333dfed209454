r"""What derivatives tell of an equation and a density, and of a score: no sampling, no grid, no reference solution.

* :func:`fokker_planck_residual`: whether p_t is what an equation makes of its start;
* :func:`family_residuals`: whether flow, SDEs and all between share p_t;
* :func:`asymmetry`: how far a score is from being a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..domains.tensors import (
    as_like,
    batch_shape,
    check_event,
    event_flat,
    event_sum,
    expand_right,
    is_int,
    per_batch,
    twice_differentiable,
)
from ..processes import Diffusion, Equation, ForwardSDE
from ..processes.equations import check_field
from ..solvers.divergence import exact_diagonal, signs, slope

#: the largest event whose Jacobian ``asymmetry`` takes in full unless told
EXACT = 64
#: its probes beyond
PROBES = 64


def fokker_planck_residual(
    equation: Equation,
    log_density: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: float | Tensor,
    *,
    direction: int | None = None,
) -> Tensor:
    r"""The residual of the Fokker–Planck equation over the density, :math:`r = [∂_t p + \nabla·(f p) ∓ ½ \nabla^2{:}(g g^\top p)]/p`.

    In the form :math:`r = ∂_t \log p + \nabla·v + v·\nabla\log p` with the velocity of the probability
    :math:`v = f ∓ ½(\nabla·D + D\,\nabla\log p)`, D = g gᵀ, − for an equation run towards growing t and + towards falling t. r = 0 at
    every x and t says that p_t is the law of the equation, up to what happens at walls: there v·n = 0 is wanted beside it. A drift
    wrong by δ has :math:`r = \nabla·δ + δ·\nabla\log p`.

    Args:
        equation: any: dx = [a x + b·field] dt + c·spread dW, on states of any shape.
        log_density: (x, t) → log p_t(x) ``[*batch]``, up to a constant in x and t; twice differentiable in x, once in t (or not
            dependent on it, as a stationary law).
        x: interior points ``[*batch, *event]``, float64 where digits matter. t: a number, ``[*batch]`` or ``[*batch, 1, …, 1]``.
        direction: 1 or −1, which way an equation that states none is run; 1 (time grows) unless told.

    Returns r ``[*batch]``. One backward pass per coordinate, and d² more where the noise depends on the state: for small events.

    Raises ``ValueError`` for a direction that is not the equation's, for a log density of another shape, and for one x does not enter.
    """
    sign = _direction(equation, direction)
    event = equation.domain.event_shape
    check_event(x, event)
    equation.domain.check(x)
    ndim, batch = len(event), batch_shape(x, event)
    with torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        # time by sample, so that one backward pass gives every sample's derivative
        time = expand_right(per_batch(t, x, ndim, "t").detach().expand(batch).clone(), ndim).requires_grad_()
        log_p = log_density(at, time)
        if not isinstance(log_p, Tensor) or log_p.shape != batch or not log_p.requires_grad:
            got = tuple(log_p.shape) if isinstance(log_p, Tensor) else type(log_p).__name__
            raise ValueError(
                f"log_density: got {got} for states {tuple(x.shape)}, "
                f"expected log p_t(x) of shape {tuple(batch)}, differentiable in x; sum over the event, without no_grad"
            )
        drift_time = slope(log_p.sum(), time).reshape(batch)
        gradient = slope(log_p.sum(), at, create_graph=True)
        a, b, c = equation.coefficients(time)
        velocity = a * at + b * equation.field(at, time)
        if equation.stochastic:
            columns = _columns(equation, at, time, c)
            velocity = velocity - 0.5 * sign * _diffusive(columns, at, gradient, ndim)
        change = event_sum(exact_diagonal(velocity, at, ndim, False), ndim)
        return (drift_time + change + event_sum(velocity * gradient, ndim)).detach()


def family_residuals(
    process: Diffusion,
    score: Callable[..., Tensor],
    log_density: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: float | Tensor,
    stochasticities: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
) -> dict[str, float]:
    """The largest |:func:`fokker_planck_residual`| over x of every equation of a process with this score: the "flow", and for each η
    the encoding "forward η" and the generating "reverse η". All 0 says that they share the marginals p_t.

    Args: as there; stochasticities: η ≥ 0.

    The residual of one differs from that of another by a multiple of ½g²[∇·(s − ∇log p) + (s − ∇log p)·∇log p] alone.
    """
    equations: dict[str, Equation] = {"flow": process.flow(score)}
    for eta in stochasticities:
        equations |= {
            f"forward {eta:g}": ForwardSDE(process, score, eta),
            f"reverse {eta:g}": process.reverse(score, eta),
        }
    return {
        name: float(fokker_planck_residual(equation, log_density, x, t).abs().max())
        for name, equation in equations.items()
    }


def _direction(equation: Equation, direction: int | None) -> int:
    if not isinstance(equation, Equation):
        raise TypeError(
            f"equation: got {type(equation).__name__}, expected an equation: process.flow(score), process.reverse(score), SDE(…)"
        )
    if direction not in (None, 1, -1):
        raise ValueError(f"direction: got {direction!r}, expected 1 (time grows), -1 (time falls) or None")
    if direction is not None and equation.direction not in (0, direction):
        raise ValueError(
            f"direction: got {direction}, but {type(equation).__name__} runs with direction {equation.direction}; leave it out"
        )
    return equation.direction or direction or 1


def _columns(equation: Equation, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """The noise's matrix, flat: entry [k, *batch, i] is what normal k does to coordinate i."""
    event = equation.domain.event_shape
    units = torch.eye(math.prod(event), dtype=x.dtype, device=x.device).reshape(-1, *event)
    return torch.stack([event_flat(c * equation.spread(x, t, unit.expand_as(x)), len(event)) for unit in units])


def _diffusive(columns: Tensor, x: Tensor, gradient: Tensor, ndim: int) -> Tensor:
    """∇·D + D∇log p with D_ij = Σ_k columns_ki columns_kj."""
    pull = (columns * (columns * event_flat(gradient, ndim)).sum(-1, keepdim=True)).sum(0)
    if columns.requires_grad:
        covariance = torch.einsum("k...i,k...j->...ij", columns, columns)
        pull = pull + torch.stack(
            [event_sum(exact_diagonal(row.reshape(x.shape), x, ndim, True), ndim) for row in covariance.unbind(-2)], -1
        )
    return pull.reshape(x.shape)


class Asymmetry(NamedTuple):
    """‖J − Jᵀ‖/‖J‖ and its standard error, both ``[*batch]``; the error is 0 where the Jacobian was taken in full."""

    value: Tensor
    standard_error: Tensor


def asymmetry(
    score: Callable[..., Tensor],
    x: Tensor,
    t: float | Tensor,
    *,
    event_ndim: int = 1,
    probes: int | None = None,
    seed: int = 0,
    **condition: Any,
) -> Asymmetry:
    r"""How far a score is from a gradient: :math:`\|J - J^\top\|_F / \|J\|_F` of its Jacobian J at each x, between 0 and 2.

    0 for the gradient of anything, 2 for a pure rotation. What is not conservative is the score of no density; its SDE and flow may
    still share marginals (:func:`fokker_planck_residual` tells).

    Args:
        score: any (x, t) → x's shape, twice differentiable if probes are used; no row may look at another.
        x: ``[*batch, *event]``. t: a number, ``[*batch]`` or in broadcast form. event_ndim: how many dimensions an event has.
        probes: how many random sign vectors v, at least 2: E|(J − Jᵀ)v|² = ‖J − Jᵀ‖² and ½E[|Jv|² + |Jᵀv|²] = ‖J‖² are means over
            them, with one forward-like and one backward pass each. None: the whole Jacobian up to 64 coordinates, 64 probes beyond.
        seed: of the probes. condition: keywords for the score.

    The standard error is that of a ratio of means, to first order in 1/√probes; it understates where probes are few. Where J is 0 the
    value is NaN.
    """
    if not 0 <= event_ndim <= x.dim():
        raise ValueError(f"event_ndim: got {event_ndim} for x of shape {tuple(x.shape)}, expected 0 to {x.dim()}")
    if probes is not None and not is_int(probes, 2):
        raise ValueError(f"probes: got {probes!r}, expected a whole number of at least 2, or None")
    event = x.shape[x.dim() - event_ndim :]
    time = as_like(t, x) if isinstance(t, (int, float)) else expand_right(per_batch(t, x, event_ndim, "t"), event_ndim)
    if probes is None and math.prod(event) > EXACT:
        probes = PROBES
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, expected float32 or float64")
    with torch.enable_grad(), twice_differentiable(probes is not None):
        at = x.detach().clone().requires_grad_()
        value = check_field(score(at, time, **condition), at)
        if not value.requires_grad:
            raise ValueError(
                "score: got a value that x does not enter differentiably; call it without detach or no_grad"
            )
        if probes is None:
            return _exact(event_flat(value, event_ndim), at, event_ndim)
        return _probed(value, at, event_ndim, probes, torch.Generator(x.device).manual_seed(seed))


def _exact(value: Tensor, x: Tensor, ndim: int) -> Asymmetry:
    jacobian = torch.stack([event_flat(slope(value[..., i].sum(), x), ndim) for i in range(value.shape[-1])], -2)
    ratio = (jacobian - jacobian.mT).square().sum((-1, -2)) / jacobian.square().sum((-1, -2))
    return Asymmetry(ratio.sqrt(), torch.zeros_like(ratio))


def _probed(value: Tensor, x: Tensor, ndim: int, probes: int, generator: torch.Generator) -> Asymmetry:
    # Jv is the derivative of u ↦ v·(Jᵀu), which is linear in u
    dummy = torch.zeros_like(x).requires_grad_()
    transposed = slope((value * dummy).sum(), x, create_graph=True)
    odd, size = [], []
    for _ in range(probes):
        v = signs(x, generator)
        back, forth = slope((value * v).sum(), x), slope((transposed * v).sum(), dummy)
        odd.append(event_sum((forth - back).square(), ndim))
        size.append(0.5 * event_sum(forth.square() + back.square(), ndim))
    a, b = torch.stack(odd), torch.stack(size)
    ratio = a.mean(0) / b.mean(0)
    of_ratio = (a - ratio * b).std(0) / (math.sqrt(probes) * b.mean(0))
    root = ratio.sqrt()
    # a gradient has a = 0 in every probe, and no error
    return Asymmetry(root.detach(), torch.where(root > 0, of_ratio / (2 * root), of_ratio).detach())
