"""docs/solvers.md, written from the facts that the solver classes state: ``carom solvers --markdown > docs/solvers.md``."""

from __future__ import annotations

_ABOUT = """# Solvers

This page is written by `carom solvers --markdown` from the facts of the classes. Orders are measured, not quoted: `python -m
carom.validation.order_matrix` measures every rule on a Gaussian, a mixture in the plane, the interval and the simplex of three categories,
and prints why a cell is blank. "weak" is the order of expectations, "strong" that of paths.

"""

_CHOOSING = """
## How to choose

**From noise to data in few evaluations.** `ExponentialAdams(4, "velocity")`, `ExponentialAdams(3)` or `UniPC(3)`: one evaluation a step; a
starter of a rule of order above 2 costs one to five more. With fewer than about eight evaluations `DPMSolverPP(2)` is steadier. `Heun` and
`RungeKutta` need no schedule and integrate any `ODE`, at 2 to 4 evaluations a step.

**With noise.** `DPMSolverPP(2, sde=True)`, `ERSDE(2)` and `SASolver(1, 2)` have weak order 2; a higher order of the polynomial does not
raise it. `EulerMaruyama` takes any `SDE`, `Milstein` those whose noise depends on the state. `DDIM(eta)`, `Ancestral` and
`ReverseDiffusion` are the rules of the papers, step by step.

**Between walls.** Deterministic rules with an exact score never notice the wall; the default is `Project`. `EulerMaruyama` takes `Reflect`.
Stochastic rules that read the field more than once, or remember it, need `Cover` for their order, and have it by default on domains
that fold (`Hypercube`, `Orthant`, `Torus`, `Simplex`). `ReflectedStrang` has weak order 2 where the drift's normal component vanishes at
the wall, and 1 otherwise. Half-lines with constant noise: `LepingleEulerMaruyama`.

**To a tolerance.** `AdaptiveODE` and `AdaptiveSDE` choose steps for each sample on its own; `method="exponential"` needs
the fewest evaluations down to errors of about 1e-4, "dopri5" and "tsit5" beyond.

**Encoding.** `encode` runs any deterministic rule from data to noise, `round_trip` says what coming back costs.

**From pure noise** (scale 0 at the start: flow matching, tables with zero terminal SNR): the score must offer `prediction(x, t)`; `DDIM`
and the multistep rules read it.

**Grids.** `uniform_lambda` for the exponential rules, `karras` for those in σ, `polyexponential(rho=0.8)` between them; `discrete` and
`grid_from_diffusers` for a table of levels; `tuned` searches one for a score and a solver and judges it by measured error;
`optimal` for `AnalyticDPM`.

**A rule of your own**: derive from `Solver`, and let `check_solver` measure it (`examples/own_solver.py`).
"""


def solver_page() -> str:
    """The page: a table of class facts, and how to choose."""
    from .solvers import SOLVERS

    facts = [cls.facts() for cls in SOLVERS]
    lines = [" | ".join(facts[0]), " | ".join("---" for _ in facts[0])]
    lines += [" | ".join(value.replace("|", "\\|") for value in row.values()) for row in facts]
    table = "".join(f"| {line} |\n" for line in lines)
    return _ABOUT + table + _CHOOSING
