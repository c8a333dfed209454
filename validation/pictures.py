"""Pictures of samples, of trajectories and of orders, written as PNG files. matplotlib (the extra ``plot``) is imported when used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

_FAILED = (0.85, 0.1, 0.1)  # red: samples that are NaN


def image_grid(
    x: Any,
    path: str | Path,
    *,
    columns: int | None = None,
    title: str | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> Path:
    """Images on a grid, row by row.

    Args:
        x: ``[n, C, H, W]`` with C = 1 or 3, or ``[n, H, W]``.
        path: where the PNG goes; folders are made.
        columns: images per row; by default as square as possible.
        low, high: the values shown black and white. What lies outside is shown saturated, NaN in red.
    """
    pixels = _pixels(x, low, high)
    columns = columns or math.ceil(math.sqrt(len(pixels)))
    canvas = _tile(pixels, columns)
    width = min(12.0, max(2.0, 0.6 * columns))
    height = width * canvas.shape[0] / canvas.shape[1]
    figure = _figure(width, height + (0.35 if title else 0.0))
    axes = figure.add_axes((0.0, 0.0, 1.0, height / (height + 0.35) if title else 1.0))
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()
    if title:
        figure.suptitle(title, fontsize=10, y=0.995)
    return _save(figure, path)


def trajectory_strip(
    trajectory: Any,
    times: Any,
    path: str | Path,
    *,
    rows: int = 4,
    columns: int = 10,
    title: str | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> Path:
    """How samples come about: one row per sample, time from left to right.

    Args:
        trajectory: ``[saved, n, C, H, W]`` or ``[saved, n, H, W]``, as in ``Solution.trajectory``.
        times: ``[saved]``, as in ``Solution.times``.
        rows, columns: at most so many samples and times; times are taken at equal distances of the saved ones.
        path, title, low, high: as for :func:`image_grid`.
    """
    trajectory, times = torch.as_tensor(trajectory).detach().cpu(), torch.as_tensor(times).detach().cpu()
    if trajectory.dim() not in (4, 5) or len(trajectory) != len(times):
        raise ValueError(
            f"trajectory: got shape {tuple(trajectory.shape)} with {len(times)} times, expected [saved, n, C, H, W] and as many times"
        )
    rows, columns = min(rows, trajectory.shape[1]), min(columns, len(trajectory))
    kept = torch.linspace(0, len(trajectory) - 1, columns).round().long()
    chosen = trajectory[kept][:, :rows].transpose(0, 1).flatten(0, 1)  # sample by sample
    canvas = _tile(_pixels(chosen, low, high), columns)
    width = max(4.0, 0.9 * columns)
    height = width * canvas.shape[0] / canvas.shape[1]
    extra = 0.55 if title else 0.3
    figure = _figure(width, height + extra)
    axes = figure.add_axes((0.0, 0.0, 1.0, height / (height + extra)))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    cell = canvas.shape[1] / columns
    for i, time in enumerate(times[kept].tolist()):
        axes.text((i + 0.5) * cell, -0.02 * canvas.shape[0], f"t = {time:.2g}", ha="center", va="bottom", fontsize=7)
    if title:
        figure.suptitle(title, fontsize=10, y=0.995)
    return _save(figure, path)


def order_plot(
    steps: Sequence[int], errors: Mapping[str, Sequence[float]], path: str | Path, *, title: str | None = None
) -> Path:
    """Errors against the number of steps, both logarithmic, one line per name with its last slope."""
    figure = _figure(5.5, 4.0)
    axes = figure.add_subplot()
    for name, values in errors.items():
        points = [(n, float(e)) for n, e in zip(steps, values, strict=True) if float(e) > 0]
        slope = ""
        if len(points) > 1:
            (n0, e0), (n1, e1) = points[-2:]
            slope = f" (slope {math.log(e0 / e1) / math.log(n1 / n0):.2f})"
        axes.loglog([n for n, _ in points], [e for _, e in points], marker="o", markersize=3, label=name + slope)
    axes.set_xlabel("steps")
    axes.set_ylabel("error")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    if title:
        axes.set_title(title, fontsize=10)
    return _save(figure, path, tight=True)


def line_plot(
    x: Any, lines: Mapping[str, Any], path: str | Path, *, xlabel: str = "", ylabel: str = "", title: str | None = None
) -> Path:
    """Curves over a common axis: densities, training losses, noise levels."""
    figure = _figure(5.5, 4.0)
    axes = figure.add_subplot()
    for name, values in lines.items():
        axes.plot(np.asarray(torch.as_tensor(x).cpu()), np.asarray(torch.as_tensor(values).detach().cpu()), label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=8)
    if title:
        axes.set_title(title, fontsize=10)
    return _save(figure, path, tight=True)


def particle_paths(
    trajectory: Any,
    path: str | Path,
    *,
    log_prob: Callable[[torch.Tensor], torch.Tensor] | None = None,
    title: str | None = None,
) -> Path:
    """Where particles of a plane came from, how they went and where they rest.

    Args:
        trajectory: ``[saved, N, 2]``, e.g. ``Solution.trajectory[:, 0]`` of a run of one ensemble.
        log_prob: of the target, ``[*batch, 2]`` → ``[*batch]`` up to a constant: its density is drawn behind them.
    """
    states = torch.as_tensor(trajectory).detach().cpu()
    if states.dim() != 3 or states.shape[-1] != 2 or not len(states):
        raise ValueError(f"trajectory: got shape {tuple(states.shape)}, expected [saved, N, 2]: particles of a plane")
    figure = _figure(4.5, 4.5)
    axes = figure.add_subplot()
    axes.plot(*states.unbind(-1), color="0.75", linewidth=0.5)
    if log_prob is not None:
        sides = [torch.linspace(low, high, 161) for low, high in (axes.get_xlim(), axes.get_ylim())]
        grid = torch.meshgrid(*sides, indexing="xy")
        with torch.no_grad():
            density = log_prob(torch.stack(grid, -1))
        axes.contourf(*grid, (density - density.max()).exp(), cmap="Oranges", levels=8, alpha=0.6, zorder=0)
    axes.scatter(*states[0].T, s=6, color="0.6", label="start")
    axes.scatter(*states[-1].T, s=10, color="tab:blue", label="end", zorder=3)
    axes.set_aspect("equal")
    axes.legend(fontsize=8)
    if title:
        axes.set_title(title, fontsize=10)
    return _save(figure, path, tight=True)


def _pixels(x: Any, low: float, high: float) -> np.ndarray:
    """``[n, H, W, 3]`` within [0, 1]."""
    x = torch.as_tensor(x).detach().to("cpu", torch.float32)
    if x.dim() == 3:
        x = x.unsqueeze(1)
    if x.dim() != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected at least one image [n, C, H, W] with C = 1 or 3, or [n, H, W]"
        )
    shown = ((x - low) / (high - low)).clamp(0, 1).movedim(1, -1).expand(-1, -1, -1, 3)
    return torch.where(shown.isnan(), torch.tensor(_FAILED), shown).numpy()


def _tile(pixels: np.ndarray, columns: int) -> np.ndarray:
    """One white canvas with a line of one pixel (two on larger images) between images."""
    count, height, width, _ = pixels.shape
    gap = 1 if height < 32 else 2
    rows = math.ceil(count / columns)
    canvas = np.ones((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), dtype=np.float32)
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        canvas[top : top + height, left : left + width] = image
    return canvas


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure  # not pyplot: no global state, no display
    except ImportError as error:
        raise ImportError("pictures need matplotlib; install the extra: pip install 'carom[plot]'") from error
    return Figure(figsize=(width, height), dpi=150)


def _save(figure: Any, path: str | Path, tight: bool = False) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if tight:
        figure.tight_layout()
    figure.savefig(path, facecolor="white")
    return path
