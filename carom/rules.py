"""Solvers, grids and walls by their names on the command line. Nothing heavy is imported until one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .short_names import nearest

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


#: what others call a solver here
ALSO = {"adaptive-ode": "adaptive", "rk45": "adaptive", "runge-kutta": "rk4"}
WALLS = ("default", "reflect", "project", "cover", "reject", "penalise")


def check_name(option: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is none of the known ones, with the one most like it."""
    if name not in known:
        known, other = list(known), ALSO.get(name.lower())
        guess = f" (did you mean {other}?)" if other in known else nearest(name, known)
        raise ValueError(f"{option}: got {name!r}{guess}, expected one of {', '.join(known)}")


def make_solver(rule: str) -> Solver:
    """A solver by its name in ``SOLVERS``."""
    from . import solvers as s

    name, arguments = SOLVERS[rule]
    return getattr(s, name)(**arguments)


def make_grid(name: str, process: Diffusion, levels: int) -> Tensor:
    """A grid by its name in ``GRIDS``, of so many noise levels."""
    from . import solvers as s

    return getattr(s, name.replace("-", "_"))(process, levels)


def make_wall(name: str) -> Wall | None:
    """A wall by its name; None for the solver's own."""
    from . import solvers as s

    walls: dict[str, Callable[[], Wall | None]] = {
        "default": lambda: None,
        "reflect": s.Reflect,
        "project": s.Project,
        "cover": s.Cover,
        "reject": s.Reject,
        "penalise": s.Penalise,
    }
    return walls[name]()
