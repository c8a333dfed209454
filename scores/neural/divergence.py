r"""The diagonal of a field's Jacobian, exactly or by random probes, from the graph that led to the field's values.

``value`` is the field at ``x``, both ``[*batch, *event]``, and no row depends on another. Then one backward pass through a sum over the
batch gives one row of each sample's Jacobian. ``create_graph`` keeps the result differentiable in the field's parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor


def exact_diagonal(value: Tensor, x: Tensor, event_ndim: int, create_graph: bool) -> Tensor:
    """∂_i value_i: ``[*batch, *event]``, whose sum over the event is the divergence. One backward pass per axis of the event."""
    batch = x.shape[: x.dim() - event_ndim]
    flat = value.reshape(*batch, -1)
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
