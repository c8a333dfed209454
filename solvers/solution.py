"""What a solve returns, and the words for how a sample ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor


class Status(IntEnum):
    """How one sample ended; :meth:`Solution.report` adds the step and the time."""

    OK = 0
    NON_FINITE = 1
    MAX_EVALUATIONS = 2
    STEP_UNDERFLOW = 3

    @property
    def message(self) -> str:
        return _MESSAGES[self]


_MESSAGES = {
    Status.OK: "reached the end of the grid",
    Status.NON_FINITE: "the state became NaN or infinite: look at the score there, or take smaller steps (on a polytope a step that "
    "bounces more often than its max_bounces ends so, too)",
    Status.MAX_EVALUATIONS: "max_nfe was reached before the end: raise max_nfe or loosen the tolerances",
    Status.STEP_UNDERFLOW: "the step fell below rounding: the field is not smooth there, or the tolerances ask for too much",
}


class SolveError(RuntimeError):
    """Raised with ``raise_on_failure=True``; ``solution`` holds everything that was computed."""

    def __init__(self, message: str, solution: Solution):
        super().__init__(message)
        self.solution = solution


@dataclass(frozen=True, repr=False)
class Solution:
    """The result of :func:`solve` and :func:`sample`.

    Attributes:
        x: final states ``[*batch, *event]``; rows of samples that failed by NaN or infinity are NaN.
        times: float64; the times of ``trajectory`` if states were saved, else the grid.
        trajectory: ``[saved, *batch, *event]`` or ``None``.
        nfe: field evaluations, an int, or ``[*batch]`` where it differs between samples.
        status: :class:`Status` values, int64 ``[*batch]``.
        failed_step: the step in which a sample failed, −1 where none did; int64 ``[*batch]``.
        failed_time: its time; NaN where none did.
        local_time: total length of the pushes off the walls ``[*batch]``, where the wall pushes (in one dimension and with
            ``Reflect``, the discrete Skorokhod local time L of dX = … + dL); ``None`` otherwise.
        stats: other diagnostics, by name.
    """

    x: Tensor
    times: Tensor
    nfe: int | Tensor
    status: Tensor
    failed_step: Tensor
    failed_time: Tensor
    trajectory: Tensor | None = None
    local_time: Tensor | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> Tensor:
        """Which samples ended well: Bool ``[*batch]``."""
        return self.status == Status.OK

    def __repr__(self) -> str:
        """What there is of it: no numbers of the states."""
        parts = [f"x: {_shape(self.x)}", f"nfe: {_range(self.nfe)}"]
        parts += [f"{n}: {_shape(v)}" for n in ("trajectory", "local_time") if (v := getattr(self, n)) is not None]
        failed = int((self.status != Status.OK).sum())
        parts += [f"failed: {failed} of {math.prod(self.status.shape)}"] if failed else []
        parts += [f"stats: {', '.join(self.stats)}"] if self.stats else []
        return f"Solution({'; '.join(parts)})"

    def report(self) -> str:
        """One line per way of failing, with counts, the first sample, its step and its time."""
        status, step, time = (v.reshape(-1).cpu() for v in (self.status, self.failed_step, self.failed_time))
        lines = []
        for kind in Status:
            index = torch.nonzero(status == kind).flatten()
            if kind is not Status.OK and len(index):
                first = int(index[0])
                lines.append(
                    f"{len(index)} of {_samples(len(status))}: {kind.message}; first: sample {first}, "
                    f"step {int(step[first])}, time {float(time[first]):.6g}"
                )
        return "\n".join(lines) or f"{'all ' if len(status) > 1 else ''}{_samples(len(status))}: {Status.OK.message}"

    def raise_on_failure(self) -> Solution:
        """Itself, or a :class:`SolveError` that holds it if any sample failed."""
        if not bool(self.ok.all()):
            raise SolveError(self.report(), self)
        return self

    def numpy(self) -> Solution:
        """The same with NumPy arrays in place of tensors."""
        arrays: dict[str, Any] = {n: v.detach().cpu().numpy() for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **arrays)


def _samples(number: int) -> str:
    return f"{number} sample{'' if number == 1 else 's'}"


def _shape(value: Any) -> str:
    """Shape, dtype and device of a tensor, or of the NumPy array that took its place."""
    device = f" on {value.device}" if isinstance(value, Tensor) else ""
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}{device}"


def _range(nfe: Any) -> str:
    """One number, or the fewest and the most."""
    if isinstance(nfe, int) or not math.prod(nfe.shape):
        return str(nfe) if isinstance(nfe, int) else "none"
    fewest, most = int(nfe.min()), int(nfe.max())
    return str(most) if fewest == most else f"{fewest} to {most}"
