r"""The diagonal of a field's Jacobian, exactly or by random probes, from the graph that led to the field's values.

``Exact`` and ``Hutchinson`` are how :func:`~carom.solvers.log_likelihood` finds the divergence of a score on its way; the functions below
them serve score matching as well. There ``value`` is the field at ``x``, both ``[*batch, *event]``, and no row depends on another. Then one
backward pass through a sum over the batch gives one row of each sample's Jacobian. ``create_graph`` keeps the result differentiable in
the field's parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..domains.tensors import event_flat, event_sum, is_int, twice_differentiable
from ..processes.equations import check_field
from .noise import Source


class Divergence(ABC):
    """How the divergence of a score is found. ``size`` estimates are made beside each other; their mean is the answer."""

    size: int

    def directions(self, source: Source) -> Tensor | None:
        """What a run holds fixed on its way: probes ``[B, size, *event]``, or None."""
        return None

    def __call__(
        self,
        score: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        directions: Tensor | None,
        weight: Tensor | None = None,
        keep_graph: bool = False,
        **condition: Any,
    ) -> tuple[Tensor, Tensor]:
        """(score, the estimates of its divergence ``[B, size]``) at x ``[B, *event]``, t as scores take it.

        Args: weight: broadcasts against x; then Σ_i weight_i ∂_i score_i is estimated. keep_graph: leave both differentiable.
        """
        with torch.enable_grad(), twice_differentiable(keep_graph):
            at = x if keep_graph and x.requires_grad else x.detach().requires_grad_()
            value = check_field(score(at, t, **condition), at)
            total = self._estimates(value, at, directions, torch.ones_like(x) if weight is None else weight, keep_graph)
        return (value, total) if keep_graph else (value.detach(), total.detach())

    @abstractmethod
    def _estimates(
        self, value: Tensor, x: Tensor, directions: Tensor | None, weight: Tensor, keep_graph: bool
    ) -> Tensor:
        """From the graph that leads from x to the score's value."""


@dataclass(frozen=True)
class Exact(Divergence):
    """The divergence itself: the score's own ``divergence(x, t, **condition)`` where it offers one, else one backward pass per axis."""

    size = 1

    def __call__(
        self,
        score: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        directions: Tensor | None,
        weight: Tensor | None = None,
        keep_graph: bool = False,
        **condition: Any,
    ) -> tuple[Tensor, Tensor]:
        if weight is None and hasattr(score, "divergence"):
            return check_field(score(x, t, **condition), x), score.divergence(x, t, **condition)[:, None]
        return super().__call__(score, x, t, directions, weight, keep_graph, **condition)

    def _estimates(
        self, value: Tensor, x: Tensor, directions: Tensor | None, weight: Tensor, keep_graph: bool
    ) -> Tensor:
        ndim = x.dim() - 1
        return event_sum(weight * exact_diagonal(value, x, ndim, keep_graph), ndim)[:, None]


@dataclass(frozen=True)
class Hutchinson(Divergence):
    r"""Estimates :math:`v^\top \nabla s\, v` with random v, the same along the whole way of a sample (FFJORD, Grathwohl et al. 2019).

    Args:
        probes: how many v, each with a backward pass; two and more tell the standard error of their mean.
        law: of the entries of v: "rademacher", random signs, whose variance is the smallest of all, or "gaussian".
    """

    probes: int = 1
    law: Literal["rademacher", "gaussian"] = "rademacher"

    def __post_init__(self) -> None:
        if not is_int(self.probes, 1):
            raise ValueError(f"probes: got {self.probes!r}, expected a whole number of at least 1")
        if self.law not in ("rademacher", "gaussian"):
            raise ValueError(f"law: got {self.law!r}, expected 'rademacher' or 'gaussian'")

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.probes

    def directions(self, source: Source) -> Tensor:
        draws = torch.stack([source(0.0, 1.0, stream=k) for k in range(self.probes)], 1)
        return draws if self.law == "gaussian" else torch.where(draws < 0, -1.0, 1.0).to(draws)

    def _estimates(
        self, value: Tensor, x: Tensor, directions: Tensor | None, weight: Tensor, keep_graph: bool
    ) -> Tensor:
        assert directions is not None
        ndim, estimates = x.dim() - 1, []
        for v in directions.unbind(1):
            estimates.append(event_sum(v * slope((weight * v * value).sum(), x, keep_graph), ndim))
        return torch.stack(estimates, -1)


def exact_diagonal(value: Tensor, x: Tensor, event_ndim: int, create_graph: bool) -> Tensor:
    """∂_i value_i: ``[*batch, *event]``, whose sum over the event is the divergence. One backward pass per axis of the event."""
    flat = event_flat(value, event_ndim)
    columns = [slope(flat[..., i].sum(), x, create_graph).reshape(flat.shape)[..., i] for i in range(flat.shape[-1])]
    return torch.stack(columns, -1).reshape(x.shape)


def sliced_diagonal(
    value: Tensor, x: Tensor, probes: int, create_graph: bool, generator: torch.Generator | None = None
) -> Tensor:
    r""":math:`v_i\,∂_i (v·value)` with random signs v (Rademacher), averaged over ``probes``: ``[*batch, *event]``, mean ∂_i value_i.

    One backward pass per probe. The sum over the event is Hutchinson's estimator. Of all laws of v with independent entries of
    variance 1, signs give it the smallest variance, :math:`2 (|S|_F^2 - \sum_i S_{ii}^2)` with S the Jacobian's symmetric part.
    """
    total = torch.zeros_like(x)
    for _ in range(probes):
        v = signs(x, generator)
        total = total + v * slope((v * value).sum(), x, create_graph)
    return total / probes


def signs(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Random signs of x's shape, dtype and device, drawn on the generator's."""
    device = x.device if generator is None else generator.device
    return (2 * torch.randint(0, 2, x.shape, generator=generator, device=device) - 1).to(x)


def slope(scalar: Tensor, x: Tensor, create_graph: bool = False) -> Tensor:
    """The derivative of a scalar by x; 0 where it does not depend on x."""
    if not scalar.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(scalar, x, create_graph=create_graph, retain_graph=True, materialize_grads=True)[0]
