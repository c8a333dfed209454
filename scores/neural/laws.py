"""What a bridge is fitted to: a law given as data, as a distribution or as a callable, drawn from by a seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ...domains import Domain
from .resuming import describe

Draw = Callable[[int, torch.Generator], Tensor]
Law = Tensor | Distribution | Draw


def described(law: Law) -> Any:
    """A law as a checkpoint names it: data by their shape and the sums of values and squares, others by their names."""
    if not isinstance(law, Tensor):
        return describe(law)
    values = law.detach().double()
    return f"{list(law.shape)} of sum {float(values.sum())!r} and squares {float(values.square().sum())!r}"


def drawing(law: Law, name: str, domain: Domain) -> Draw:
    """The law as a callable (count, generator) → states, checked at its first draw or, for data, here."""
    if isinstance(law, Tensor):
        domain.check(law, name)
        if law.dim() == len(domain.event_shape) or not len(law) or not bool(law.isfinite().all()):
            raise ValueError(
                f"{name}: got shape {tuple(law.shape)}, expected data [n, *event] with n of at least 1 and finite numbers"
            )
        return lambda count, generator: law[torch.randint(len(law), (count,), generator=generator).to(law.device)]
    draw: Draw
    if isinstance(law, Distribution):
        if "generator" not in inspect.signature(law.sample).parameters:
            raise TypeError(
                f"{name}: got {law!r}, whose sample takes no generator, expected a law that can be drawn by a seed; draw its noise by "
                "yourself in a callable (count, generator) → states"
            )
        draw = lambda count, generator: law.sample((count,), generator=generator)  # type: ignore[call-arg]  # noqa: E731
    elif callable(law):
        draw = law
    else:
        raise TypeError(
            f"{name}: got {type(law).__name__}, expected data [n, *event], a distribution, or a callable (count, generator) → states"
        )
    first = draw(1, torch.Generator().manual_seed(0))
    domain.check(first, name)
    if first.shape != (1, *domain.event_shape):
        raise ValueError(
            f"{name}: got a draw of shape {tuple(first.shape)} at count 1, expected {(1, *domain.event_shape)}: count states"
        )
    return draw
