r"""Scores that are gradients: :math:`-\nabla_x E(x, t)` of a scalar energy, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..domains.tensors import batch_shape, check_event, twice_differentiable
from ..processes import Diffusion


def descent(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """−∇ₓ of the sum of the energies, whose rows are independent: x's shape.

    Works whether or not x requires grad, under ``no_grad`` and ``inference_mode``, and compiled; where grad is enabled, the result can be
    differentiated further, in x and in whatever the energy holds.
    """

    def total(v: Tensor) -> Tensor:
        value = energy(v).sum()
        if not value.requires_grad:
            raise ValueError(
                "energy: got values that PyTorch cannot follow back to x, expected no detach() and no no_grad() on the way"
            )
        return value

    with twice_differentiable(torch.is_grad_enabled()):
        return -torch.func.grad(total)(x)


class EnergyScore(nn.Module):
    r"""The score of the density :math:`p_t(x) ∝ e^{-E(x, t)}`: callable ``(x, t, **condition)`` → :math:`-\nabla_x E`.

    Its Jacobian is symmetric, as that of a true score is, and log-densities at one t can be compared: ``log_density``. One
    evaluation costs a forward and a backward pass. Grad mode is the caller's: enabled, the score stays differentiable in x and in
    the energy's parameters, at the price of its graph; under ``no_grad`` (as ``sample`` runs) and ``inference_mode`` it is plain.

    Args:
        energy: any callable ``(x, t, **condition)`` → ``[*batch]``, each row of its own x, differentiable by PyTorch; t arrives as
            scores get it, a number or a tensor that broadcasts against x. An ``nn.Module``'s parameters are those of this one.
        process: optional; with it the shapes of x and of the energies are checked exactly, without it that the energies' shape is
            x's without its last dimensions.

    Raises ``TypeError`` or ``ValueError`` for energies that are no tensor or not one number per sample.
    """

    def __init__(self, energy: Callable[..., Tensor], process: Diffusion | None = None):
        super().__init__()
        if not callable(energy):
            raise TypeError(f"energy: got {type(energy).__name__}, expected a callable (x, t) -> [*batch]")
        if process is not None and not isinstance(process, Diffusion):
            raise TypeError(f"process: got {type(process).__name__}, expected a Diffusion(domain, schedule), or None")
        self.energy, self.process = energy, process

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """−∇ₓE: x's shape and dtype."""
        if self.process is not None:
            check_event(x, self.process.domain.event_shape)
        return descent(lambda v: self._energy(v, t, condition), x)

    def log_density(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """log p_t(x) up to a constant of t and the condition, −E: ``[*batch]``."""
        return -self._energy(x, t, condition)

    def rows(self, index: Tensor) -> EnergyScore | None:
        """The score of some rows of a batch: itself, or of the energy's ``rows`` where it has them."""
        restrict = getattr(self.energy, "rows", None)
        if restrict is None:
            return self
        energy = restrict(index)
        return None if energy is None else EnergyScore(energy, self.process)

    def _energy(self, x: Tensor, t: float | Tensor, condition: dict[str, Any]) -> Tensor:
        value = self.energy(x, t, **condition)
        if not isinstance(value, Tensor):
            raise TypeError(f"energy: got an output of type {type(value).__name__}, expected a tensor [*batch]")
        if self.process is not None:
            fits = value.shape == batch_shape(x, self.process.domain.event_shape)
        else:
            fits = value.dim() < x.dim() and value.shape == x.shape[: value.dim()]
        if not fits:
            raise ValueError(
                f"energy: got an output of shape {tuple(value.shape)} for x of shape {tuple(x.shape)}, expected one number per "
                "sample, [*batch]; sum it over the event (where events are numbers, pass process=)"
            )
        return value
