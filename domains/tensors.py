"""Small tensor helpers that every floor shares: shapes, sums over an event, boundary checks.

Shape names: ``x`` is ``[*batch, *event]``; a per-sample quantity is ``[*batch]``; "broadcast form" is ``[*batch, 1, …, 1]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# An event is summed in stages of at most this many terms: one contiguous stage of this length is reduced by one thread
# in a fixed order, so a sample's sum does not depend on how many batch mates share the reduction.
_STAGE = 1024


def batch_shape(x: Tensor, event_shape: Sequence[int]) -> torch.Size:
    """The leading dimensions of ``x`` before its event."""
    return x.shape[: x.dim() - len(event_shape)]


def check_event(x: Tensor, event_shape: Sequence[int], name: str = "x") -> None:
    """Refuse a tensor that is not floating point or whose last dimensions are not ``event_shape``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, expected a torch.Tensor; convert it with torch.as_tensor")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name}: got dtype {x.dtype}, expected a floating dtype; convert it, e.g. {name}.float()")
    event = tuple(event_shape)
    if tuple(x.shape[x.dim() - len(event) :]) != event or x.dim() < len(event):
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, expected [*batch, {', '.join(map(str, event))}]; "
            f"reshape it so that its last dimensions are the event shape {event}"
        )


def check_positive(value: Tensor, name: str) -> None:
    """Refuse values that are not finite and above zero. Skipped while tracing, where values do not exist."""
    if values_are_readable(value) and not bool(((value > 0) & value.isfinite()).all()):
        worst = value[~((value > 0) & value.isfinite())].flatten()[0].item()
        raise ValueError(f"{name}: got {worst:g}, expected finite values above 0; {name} = 0 is the data itself")


def values_are_readable(*tensors: Tensor) -> bool:
    """False under ``torch.compile``, ``torch.func.vmap`` and for fake and meta tensors, where a check cannot read values."""
    if torch.compiler.is_compiling():
        return False
    return not any(x.is_meta or _is_fake_or_batched(x) for x in tensors)


def _is_fake_or_batched(x: Tensor) -> bool:
    """Whether x is fake or ``vmap`` is at work on it, also beneath the wrappers of other transforms of ``torch.func``."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return isinstance(x, FakeTensor)


def event_sum(x: Tensor, event_ndim: int) -> Tensor:
    """Sum over the last ``event_ndim`` dimensions, batch-invariant to the bit: ``[*batch, *event] -> [*batch]``."""
    if event_ndim == 0:
        return x
    x = x.flatten(-event_ndim) if event_ndim > 1 else x
    while x.shape[-1] > _STAGE:
        whole = x.shape[-1] // _STAGE * _STAGE
        stages = x[..., :whole].unflatten(-1, (-1, _STAGE)).contiguous().sum(-1)
        if whole < x.shape[-1]:
            tail = x[..., whole:].contiguous().sum(-1, keepdim=True)
            stages = torch.cat([stages, tail], -1)
        x = stages
    return x.contiguous().sum(-1)


def event_flat(x: Tensor, event_ndim: int) -> Tensor:
    """The event as one dimension: ``[*batch, *event] -> [*batch, n]``, for reductions that need one."""
    return x.flatten(x.dim() - event_ndim) if event_ndim else x.unsqueeze(-1)


def expand_right(value: Tensor, ndim: int) -> Tensor:
    """``[*batch] -> [*batch, 1, …, 1]`` with ``ndim`` ones."""
    return value.reshape(value.shape + (1,) * ndim)


def entries(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` for a table ``[n]`` and an index of any shape: plain indexing would read one that is 0-d on the host."""
    return table[index.unsqueeze(-1)].squeeze(-1)


def as_like(value: float | Tensor | np.ndarray, x: Tensor) -> Tensor:
    """``value`` as a tensor of x's dtype and device."""
    if x.device.type != "cpu" and isinstance(value, (int, float)):
        # filled in there: a copy from here would wait for the device
        return torch.full((), value, dtype=x.dtype, device=x.device)
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def per_batch(value: float | Tensor, x: Tensor, event_ndim: int, name: str) -> Tensor:
    """Read a per-sample quantity given as a number, as ``[*batch]`` or in broadcast form; return it as ``[*batch]``-broadcastable.

    A tensor with x's number of dimensions and ones in place of the event is the broadcast form (the score's
    convention for ``t``); anything else must broadcast over the batch.
    """
    value = as_like(value, x)
    given = tuple(value.shape)
    if event_ndim and value.dim() == x.dim() and all(n == 1 for n in value.shape[-event_ndim:]):
        value = value.reshape(value.shape[:-event_ndim])
    batch = tuple(x.shape[: x.dim() - event_ndim])
    try:
        torch.broadcast_shapes(value.shape, batch)
    except RuntimeError:
        ones = ", 1" * event_ndim
        raise ValueError(
            f"{name}: got shape {given}, expected a number, a shape that broadcasts over the batch {batch}, "
            f"or [*batch{ones}]"
        ) from None
    return value


def number(value: float, name: str, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False) -> float:
    """A finite Python float within [low, high] ((low, high] when ``open_low``), or an error that says so."""
    try:
        if isinstance(value, str):  # which float would read
            raise TypeError
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: got {value!r}, expected a number") from None
    if not math.isfinite(result) or result > high or result < low or (open_low and result == low):
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}: got {result:g}, expected a finite number in {bracket}{low:g}, {high:g}]")
    return result


def is_int(value: object, low: int, high: float = math.inf) -> bool:
    """Whether this is an int, and no bool, within [low, high]."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def per_axis(
    value: float | Sequence[float] | np.ndarray | Tensor, event_shape: tuple[int, ...], name: str
) -> np.ndarray:
    """A parameter of each axis in float64, 0-d where all axes agree; refuses NaN and shapes that do not broadcast."""
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    try:
        whole = np.broadcast_to(array, event_shape)
    except ValueError:
        raise ValueError(
            f"{name}: got shape {array.shape}, expected a number or a shape that broadcasts to {event_shape}"
        ) from None
    if np.isnan(whole).any():
        raise ValueError(f"{name}: got NaN, expected numbers")
    return np.array(whole.flat[0]) if (whole == whole.flat[0]).all() else whole.copy()


def check_shape(shape: Sequence[int], name: str = "event_shape") -> tuple[int, ...]:
    """A tuple of positive sizes, or an error."""
    if isinstance(shape, int):
        raise TypeError(f"{name}: got the number {shape}, expected a tuple of sizes; write ({shape},)")
    result = tuple(int(n) for n in shape)
    if any(n < 1 for n in result):
        raise ValueError(f"{name}: got {result}, expected sizes of at least 1")
    return result


def shown(value: np.ndarray) -> str:
    """A parameter per axis in a repr: a number, a short list, or how many there are."""
    if value.ndim == 0:
        return f"{value:g}"
    return f"[{', '.join(f'{v:g}' for v in value.ravel())}]" if value.size <= 4 else f"array of {value.size}"


def clamped(x: Tensor, low: float, high: float) -> Tensor:
    """x between its bounds, with the derivative 1 throughout: the functions that follow go on smoothly across walls."""
    return x + (x.clamp(low, high) - x).detach()


def twice_differentiable(needed: bool = True) -> AbstractContextManager:
    """Where networks are to be read whose derivatives are themselves differentiated: fused kernels of attention have no second one."""
    return sdpa_kernel(SDPBackend.MATH) if needed else nullcontext()
