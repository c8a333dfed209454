"""What a run remembers beside its state: finiteness, local time, saved states, callbacks, progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..domains.tensors import batch_shape
from ..processes import Equation
from .solution import Solution, Status


class Info(NamedTuple):
    """What a callback sees after each step: step number (1 … steps), steps in all, the time reached, the state shown."""

    step: int
    steps: int
    time: float
    x: Tensor


class _Finite:
    """Which samples stayed finite, and for how many steps: one sum per sample and step, looked at a block of steps at a time,
    so that the loop pays for the sum alone and memory does not grow with the number of steps."""

    _BLOCK = 64

    def __init__(self, batch: torch.Size, device: torch.device):
        self.ndim = len(batch)
        self.finite = torch.ones(batch, dtype=torch.bool, device=device)
        self.steps = torch.zeros(batch, dtype=torch.int64, device=device)
        self.sums: list[Tensor] = []

    def see(self, x: Tensor) -> None:
        x = x.detach()
        self.sums.append(x.flatten(self.ndim).sum(-1) if x.dim() > self.ndim else x)
        if len(self.sums) == self._BLOCK:
            self._read()

    def verdict(self) -> tuple[Tensor, Tensor]:
        """(failed, the step in which: −1 where none did)."""
        if self.sums:
            self._read()
        return ~self.finite, torch.where(self.finite, -1, self.steps)

    def _read(self) -> None:
        finite = torch.stack(self.sums).isfinite().cummin(0).values & self.finite
        self.steps = self.steps + finite.sum(0)
        self.finite = finite[-1]
        self.sums = []


class Keeper:
    """The bookkeeping of a run: finiteness, local time, saved states, callback, progress."""

    def __init__(
        self,
        equation: Equation,
        x: Tensor,
        grid: Tensor,
        save: Any,
        callback: Callable[[Info], Any] | None,
        progress: bool,
        pushes: bool,
    ):
        self.wall, self.domain, self.pushes = equation.wall, equation.domain, pushes
        self.ndim = len(self.domain.event_shape)
        self.grid, self.times, self.callback = grid, grid.tolist(), callback
        self.keep = _saved_indices(save, grid)
        self.saved = [self.wall.show(self.domain, x)] if self.keep is not None and 0 in self.keep else []
        self.push: Tensor | None = None
        batch = batch_shape(x, self.domain.event_shape)
        self.finite = _Finite(batch, x.device)
        self.bar = _bar(len(grid) - 1) if progress else None

    def observe(self, index: int, moved: Tensor, settled: Tensor) -> None:
        self.finite.see(moved)  # before the wall, which may hide an infinity
        if self.pushes:
            length = (
                torch.linalg.vector_norm(settled - moved, dim=tuple(range(-self.ndim, 0)))
                if self.ndim
                else (settled - moved).abs()
            )
            self.push = length if self.push is None else self.push + length
        if self.keep is not None and index + 1 in self.keep:
            self.saved.append(self.wall.show(self.domain, settled))
        if self.callback is not None:
            shown = self.wall.show(self.domain, settled)
            self.callback(Info(index + 1, len(self.times) - 1, self.times[index + 1], shown))
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def solution(self, x: Tensor, report: dict[str, Any]) -> Solution:
        x = self.wall.show(self.domain, x)
        report = {k: v for k, v in report.items() if self.wall.pushes or k != "local_time"}
        bad, step = self.finite.verdict()
        status = torch.where(bad, int(Status.NON_FINITE), report.pop("status", torch.zeros_like(step)))
        if bool(bad.any()):
            x = torch.where(bad.reshape(bad.shape + (1,) * self.ndim), math.nan, x)
        time = self.grid.to(x.device)[(step + 1).clamp(max=len(self.grid) - 1)]
        return Solution(
            x=x,
            times=self.grid if self.keep is None else self.grid[sorted(self.keep)],
            nfe=report.pop("nfe"),
            status=status,
            failed_step=torch.where(bad, step, report.pop("failed_step", step)),
            failed_time=torch.where(bad, time, report.pop("failed_time", torch.full_like(time, math.nan))),
            trajectory=torch.stack(self.saved) if self.keep is not None else None,
            local_time=report.pop("local_time", self.push),
            stats=report,
        )


def _saved_indices(save: Any, grid: Tensor) -> set[int] | None:
    """Which grid points to keep, as positions."""
    if save is None:
        return None
    last = len(grid) - 1
    if isinstance(save, str):
        if save != "all":
            raise ValueError(
                f"save: got {save!r}, expected None, 'all', an int k (every k-th state) or a list of times"
            )
        return set(range(last + 1))
    if isinstance(save, Integral):
        save = int(save) if not isinstance(save, bool) else 0
        if save < 1:
            raise ValueError(f"save: got {save}, expected k ≥ 1 (every k-th state)")
        return {*range(0, last + 1, save), last}
    wanted = torch.as_tensor(save, dtype=torch.float64).reshape(-1)
    if not len(wanted):
        raise ValueError("save: got an empty list, expected None, 'all', an int k or times of the grid")
    gap, index = (wanted[:, None] - grid[None, :]).abs().min(1)
    far = gap > 1e-12 * (1 + wanted.abs())
    if bool(far.any()):
        i = int(far.nonzero()[0])
        raise ValueError(
            f"save: got time {float(wanted[i]):g}, which is not on the grid (nearest: {float(grid[index[i]]):g}); "
            "add it to times"
        )
    return set(index.tolist())


def _bar(total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="step", leave=False)
