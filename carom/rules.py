"""Solvers, grids and walls by their names on the command line. Nothing heavy is imported until one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .processes import Diffusion, Wall
    from .solvers import Solver

#: solvers by their command-line names: class and arguments, looked up when asked for
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("Euler", {}),
    "heun": ("Heun", {}),
    "rk4": ("RungeKutta", {}),
    "adaptive": ("AdaptiveODE", {}),
    "adaptive-sde": ("AdaptiveSDE", {}),
    "ddim": ("DDIM", {}),
    "dpm-solver-2": ("DPMSolver", {"order": 2}),
    "dpm-solver-3": ("DPMSolver", {"order": 3}),
    "dpm-solver++-2m": ("DPMSolverPP", {"order": 2}),
    "dpm-solver++-3m": ("DPMSolverPP", {"order": 3}),
    "dpm-solver++-2m-sde": ("DPMSolverPP", {"order": 2, "sde": True}),
    "unipc-2": ("UniPC", {"p": 2}),
    "unipc-3": ("UniPC", {"p": 3}),
    "deis-3": ("DEIS", {"p": 3}),
    "exponential-adams-3": ("ExponentialAdams", {"p": 3}),
    "exponential-adams-4": ("ExponentialAdams", {"p": 4, "form": "velocity"}),
    "adams-4": ("Adams", {"p": 4}),
    "ancestral": ("Ancestral", {}),
    "reverse-diffusion": ("ReverseDiffusion", {}),
    "er-sde-3": ("ERSDE", {"order": 3}),
    "sa-solver": ("SASolver", {}),
    "edm-stochastic": ("EDMStochastic", {}),
    "euler-maruyama": ("EulerMaruyama", {}),
    "reflected-euler-maruyama": ("ReflectedEulerMaruyama", {}),
    "reflected-strang": ("ReflectedStrang", {}),
}
GRIDS = ("karras", "uniform", "quadratic", "uniform-lambda", "polyexponential", "beta")
Rule = StrEnum("Rule", {name: name for name in SOLVERS})  # type: ignore[misc]
GridName = StrEnum("GridName", {name: name for name in GRIDS})  # type: ignore[misc]


class WallName(StrEnum):
    default = "default"
    reflect = "reflect"
    project = "project"
    cover = "cover"
    reject = "reject"
    penalise = "penalise"


def make_solver(rule: str) -> Solver:
    """A solver by its name in ``SOLVERS``."""
    from . import solvers as s

    name, arguments = SOLVERS[rule]
    return getattr(s, name)(**arguments)


def make_grid(name: str, process: Diffusion, levels: int) -> Tensor:
    """A grid by its name in ``GRIDS``, of so many noise levels."""
    from . import solvers as s

    return getattr(s, name.replace("-", "_"))(process, levels)


def make_wall(name: WallName) -> Wall | None:
    """A wall by its name; None for the solver's own."""
    from . import solvers as s

    walls: dict[WallName, Callable[[], Wall | None]] = {
        WallName.default: lambda: None,
        WallName.reflect: s.Reflect,
        WallName.project: s.Project,
        WallName.cover: s.Cover,
        WallName.reject: s.Reject,
        WallName.penalise: s.Penalise,
    }
    return walls[name]()
