r"""Linear measurements y = A x0 (+ noise): what inverse problems know of the data.

An operator maps events to measurements and back, and solves with its Gram matrix:

* ``forward(x)`` = A x, ``[*batch, *event] → [*batch, *shape]``;
* ``adjoint(y)`` = Aᵀ y, the other way, with ⟨Ax, y⟩ = ⟨x, Aᵀy⟩ over all coordinates;
* ``solve(y, variance, noise)`` = (variance·A Aᵀ + noise·I)⁻¹ y, variance and noise ≥ 0 numbers or broadcasting over the batch
  in the form ``[*batch, 1, …, 1]``. Directions of which neither says anything (both are 0 there) give 0, as a pseudo-inverse does.

To add one of your own, derive from :class:`LinearOperator` and give ``event_shape``, ``shape``, ``forward`` and ``adjoint``; ``solve`` is
then done by conjugate gradients. :func:`check_operator` measures whether the adjoint is one. A sample's result is the same in any batch, to
the bit but for Blur, which is made of matrix products.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..domains.constants import OnDevice
from ..domains.tensors import (
    batch_shape,
    check_event,
    check_shape,
    event_flat,
    event_sum,
    is_int,
    number,
)
from ..solvers.systems import conjugate_gradients

Variance = float | Tensor
Array = Sequence | np.ndarray | Tensor


class LinearOperator(ABC):
    """A linear map of events. Facts: ``event_shape`` of x and ``shape`` of y, without the batch.

    One of your own needs these two, ``forward`` and ``adjoint``; ``solve`` is done by conjugate gradients unless you know better::

        class LeftHalf(LinearOperator):
            event_shape, shape = (1, 8, 8), (1, 8, 4)

            def forward(self, x):
                return x[..., :4]

            def adjoint(self, y):
                return torch.nn.functional.pad(y, (0, 4))

    ``check_operator(LeftHalf())`` measures whether the adjoint is one; the guidances do so themselves.
    """

    event_shape: tuple[int, ...]
    shape: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x: ``[*batch, *shape]``."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y: ``[*batch, *event]``."""

    def solve(self, y: Tensor, variance: Variance, noise: Variance) -> Tensor:
        """(variance·A Aᵀ + noise·I)⁻¹ y, here by conjugate gradients."""
        return conjugate_gradients(
            lambda v: variance * self.forward(self.adjoint(v)) + noise * v,
            y,
            len(self.shape),
            2 * math.prod(self.shape),
        )[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.event_shape} → {self.shape})"


class Mask(LinearOperator):
    """The coordinates where ``mask`` ``[*event]`` is True, in order: y ``[n]``. ``forward(values)`` makes y of a whole event."""

    def __init__(self, mask: Tensor | np.ndarray):
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool or not bool(mask.any()):
            raise ValueError(f"mask: got {mask.dtype} with {int(mask.sum())} known, expected bool, True at least once")
        self.event_shape, self.shape = tuple(mask.shape), (int(mask.sum()),)
        self._index = OnDevice((mask.reshape(-1).nonzero().flatten().cpu(),))

    def forward(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        return event_flat(x, len(self.event_shape)).index_select(-1, *self._index(x.device))

    def adjoint(self, y: Tensor) -> Tensor:
        check_event(y, self.shape, "y")
        zeros = y.new_zeros(*batch_shape(y, self.shape), math.prod(self.event_shape))
        return zeros.index_copy(-1, *self._index(y.device), y).reshape(*zeros.shape[:-1], *self.event_shape)

    def solve(self, y: Tensor, variance: Variance, noise: Variance) -> Tensor:
        return _over(y, variance + noise)


class Grayscale(LinearOperator):
    """The weighted sum of the channels of images ``[C, H, W]``: y ``[1, H, W]``; its inverse problem is colourisation.

    Args: weights: one for each channel; those of luma (ITU-R BT.601) unless told.
    """

    def __init__(self, event_shape: Sequence[int], weights: Sequence[float] = (0.299, 0.587, 0.114)):
        self.event_shape = check_shape(event_shape)
        if len(self.event_shape) != 3 or len(weights) != self.event_shape[0]:
            raise ValueError(
                f"Grayscale: got events {self.event_shape} and {len(weights)} weights, expected (C, H, W) and C weights"
            )
        self.shape, self.weights = (1, *self.event_shape[1:]), tuple(float(w) for w in weights)
        self._square = sum(w * w for w in self.weights)

    def forward(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        return sum(w * x[..., k : k + 1, :, :] for k, w in enumerate(self.weights))  # type: ignore[return-value]

    def adjoint(self, y: Tensor) -> Tensor:
        check_event(y, self.shape, "y")
        return torch.cat([w * y for w in self.weights], -3)

    def solve(self, y: Tensor, variance: Variance, noise: Variance) -> Tensor:
        return _over(y, variance * self._square + noise)


class Downsample(LinearOperator):
    """The means of blocks of ``factor`` × ``factor`` of the last two dimensions; its inverse problem is super-resolution."""

    def __init__(self, event_shape: Sequence[int], factor: int):
        self.event_shape = check_shape(event_shape)
        if not is_int(factor, 1) or len(self.event_shape) < 2 or any(n % factor for n in self.event_shape[-2:]):
            raise ValueError(
                f"Downsample: got factor {factor!r} for events {self.event_shape}, expected an int that divides height and width"
            )
        self.factor = factor
        self.shape = (*self.event_shape[:-2], *(n // factor for n in self.event_shape[-2:]))

    def forward(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        blocks = x.unflatten(-1, (-1, self.factor)).unflatten(-3, (-1, self.factor))
        return event_sum(blocks.transpose(-2, -3), 2) / self.factor**2

    def adjoint(self, y: Tensor) -> Tensor:
        check_event(y, self.shape, "y")
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1) / self.factor**2

    def solve(self, y: Tensor, variance: Variance, noise: Variance) -> Tensor:
        return _over(y, variance / self.factor**2 + noise)


class Blur(LinearOperator):
    """A separable blur of the last two dimensions: rows and columns are convolved with ``kernel``, an odd number of weights.

    Args:
        boundary: "reflect", which continues the image by its mirror image (…, x₁, x₀ | x₀, x₁, …), or "circular".

    Each axis is a matrix whose singular vectors make ``solve`` exact.
    """

    def __init__(self, event_shape: Sequence[int], kernel: Sequence[float], boundary: str = "reflect"):
        self.event_shape = self.shape = check_shape(event_shape)
        if len(self.event_shape) < 2 or len(kernel) % 2 == 0:
            raise ValueError(
                f"Blur: got events {self.event_shape} and {len(kernel)} weights, expected at least two dimensions and an odd number"
            )
        if boundary not in ("reflect", "circular"):
            raise ValueError(f"boundary: got {boundary!r}, expected 'reflect' or 'circular'")
        matrices = [_convolution(n, [float(k) for k in kernel], boundary) for n in self.event_shape[-2:]]
        parts = [torch.linalg.svd(matrix) for matrix in matrices]
        self._tables = OnDevice((*matrices, *(u for u, _, _ in parts), torch.outer(parts[0].S ** 2, parts[1].S ** 2)))

    @classmethod
    def gaussian(cls, event_shape: Sequence[int], std: float, boundary: str = "reflect") -> Blur:
        """With the weights exp(−k²/(2 std²)), k = −⌈4 std⌉ … ⌈4 std⌉, made to sum to 1; std > 0 in pixels."""
        std = number(std, "std", low=0.0, open_low=True)
        radius = math.ceil(4 * std)
        weights = [math.exp(-0.5 * (k / std) * (k / std)) for k in range(-radius, radius + 1)]
        total = sum(weights)
        return cls(event_shape, [w / total for w in weights], boundary)

    def forward(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        rows, columns, *_ = self._on(x)
        return rows @ x @ columns.T

    def adjoint(self, y: Tensor) -> Tensor:
        check_event(y, self.shape, "y")
        rows, columns, *_ = self._on(y)
        return rows.T @ y @ columns

    def solve(self, y: Tensor, variance: Variance, noise: Variance) -> Tensor:
        _, _, left, right, square = self._on(y)
        return left @ _over(left.T @ y @ right, variance * square + noise, 2) @ right.T

    def _on(self, x: Tensor) -> list[Tensor]:
        return [table.to(x.dtype) for table in self._tables(x.device)]


class Dense(LinearOperator):
    """Any matrix ``[m, n]`` on flattened events of n coordinates; ``event_shape`` is (n,) unless told."""

    def __init__(self, matrix: Array, event_shape: Sequence[int] | None = None):
        table = torch.as_tensor(matrix, dtype=torch.float64).detach().cpu()
        if table.dim() != 2:
            raise ValueError(f"matrix: got shape {tuple(table.shape)}, expected [m, n]")
        self.event_shape = check_shape(table.shape[1:] if event_shape is None else event_shape)
        self.shape = (table.shape[0],)
        if math.prod(self.event_shape) != table.shape[1]:
            raise ValueError(
                f"event_shape: got {self.event_shape}, expected {table.shape[1]} coordinates, one a column"
            )
        left, singular, _ = torch.linalg.svd(table)
        square = torch.zeros(table.shape[0], dtype=torch.float64)
        square[: len(singular)] = singular**2
        self._tables = OnDevice((table, left, square))

    def forward(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        return _apply(self._on(x)[0], event_flat(x, len(self.event_shape)))

    def adjoint(self, y: Tensor) -> Tensor:
        check_event(y, self.shape, "y")
        return _apply(self._on(y)[0].T, y).reshape(*y.shape[:-1], *self.event_shape)

    def solve(self, y: Tensor, variance: Variance, noise: Variance) -> Tensor:
        _, left, square = self._on(y)
        return _apply(left, _over(_apply(left.T, y), variance * square + noise, 1))

    def _on(self, x: Tensor) -> list[Tensor]:
        return [table.to(x.dtype) for table in self._tables(x.device)]


def _apply(matrix: Tensor, v: Tensor) -> Tensor:
    """M v for ``[*batch, n]``, as sums over the last dimension, which do not depend on the batch to the bit."""
    return event_sum(matrix * v.unsqueeze(-2), 1)


def _over(v: Tensor, weight: Variance, ndim: int = 0) -> Tensor:
    """v/weight, and 0 where the weight is 0 up to the rounding of the largest of the last ``ndim`` dimensions."""
    weight = torch.as_tensor(weight, dtype=v.dtype, device=v.device)
    largest = weight.amax(tuple(range(-ndim, 0)), keepdim=True) if ndim else weight
    none = weight <= 4 * torch.finfo(v.dtype).eps * largest
    return torch.where(none, 0.0, v / torch.where(none, 1.0, weight))


def _convolution(n: int, kernel: Sequence[float], boundary: str) -> Tensor:
    """The matrix ``[n, n]`` of a convolution with this continuation."""
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for k, weight in enumerate(kernel):
        place = torch.arange(n) + k - len(kernel) // 2
        place = place % n if boundary == "circular" else place % (2 * n)
        place = torch.where(place < n, place, 2 * n - 1 - place)
        matrix.index_put_((torch.arange(n), place), torch.tensor(weight, dtype=torch.float64), accumulate=True)
    return matrix


def check_operator(
    operator: LinearOperator, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu"
) -> None:
    """Refuse an operator whose shapes are not those it states, or whose adjoint is none: ⟨Ax, y⟩ ≠ ⟨x, Aᵀy⟩ at random x, y."""
    for name in ("forward", "adjoint", "solve", "event_shape", "shape"):
        if not hasattr(operator, name):
            raise TypeError(
                f"operator: got a {type(operator).__name__} without {name}, expected a LinearOperator such as Mask(mask)"
            )
    generator = torch.Generator().manual_seed(0)
    event, shape = tuple(operator.event_shape), tuple(operator.shape)
    x, y = (torch.randn(2, *s, dtype=torch.float64, generator=generator).to(device, dtype) for s in (event, shape))
    image, back = operator.forward(x), operator.adjoint(y)
    if image.shape != y.shape or back.shape != x.shape:
        raise ValueError(
            f"operator: got forward → {tuple(image.shape[1:])} and adjoint → {tuple(back.shape[1:])}, expected the stated shapes {shape} "
            f"and {event}"
        )
    left, right = event_sum(image * y, len(shape)), event_sum(x * back, len(event))
    size = (event_sum((image * y).abs(), len(shape)) + event_sum((x * back).abs(), len(event))).clamp(min=1e-30)
    gap = float(((left - right).abs() / size).max())
    if gap > 1e3 * torch.finfo(dtype).eps:
        raise ValueError(
            f"operator: got <Ax, y> = {float(left[0]):g} and <x, Aᵀy> = {float(right[0]):g} with {operator!r}, expected them equal; "
            "its adjoint is not that of its forward"
        )
