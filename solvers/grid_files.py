"""Time grids on disk, together with what they were made for: a grid tuned for one process is wrong for another."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ..processes import Diffusion
from .checks import check_times
from .solver import Solver

_FORMAT = "carom grid 1"


def save_grid(path: str | Path, times: Tensor, process: Diffusion, **made_for: Any) -> None:
    """Write times and the process they belong to as JSON; ``made_for`` is kept beside them, e.g. solver=UniPC(3), n=12, model="digits".

    Numbers come back to the bit. The file appears whole or not at all.
    """
    grid = check_times(times)
    content = {
        "format": _FORMAT,
        "process": process.config(),
        "times": grid.tolist(),
        "sigmas": process.schedule.sigma(grid).tolist(),
        "made_for": {name: _plain(value) for name, value in made_for.items()},
    }
    path = Path(path)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


def load_grid(path: str | Path, process: Diffusion | None = None, **made_for: Any) -> Tensor:
    """The times in a file of :func:`save_grid`, float64.

    Args: process: must be the one the grid was made for, else ``ValueError``; so must each value of ``made_for`` that is named.
    """
    content = read_grid_file(path)
    if process is not None and content["process"] != json.loads(json.dumps(process.config())):
        raise ValueError(
            f"{path}: got a grid made for {content['process']}, expected one for {process.config()}; tune it anew"
        )
    for name, value in made_for.items():
        kept = content["made_for"].get(name)
        if kept != json.loads(json.dumps(_plain(value))):
            raise ValueError(f"{path}: got a grid made for {name} = {kept!r}, expected {value!r}; tune it anew")
    return check_times(content["times"])


def _plain(value: Any) -> Any:
    """Solvers by what they read as."""
    return repr(value) if isinstance(value, Solver) else value


def read_grid_file(path: str | Path) -> dict[str, Any]:
    """All that a grid file holds: times, sigmas, process, made_for."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path}: got a file that is no grid, expected one written by save_grid")
    return content
