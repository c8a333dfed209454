"""docs/solvers.md, written from the facts that the solver classes state: ``carom solvers --markdown > docs/solvers.md``."""

from __future__ import annotations

_ABOUT = """# Solvers

This page is written by `carom solvers --markdown` from the facts of the classes. Orders are measured, not quoted: `python -m
carom.validation.order_matrix` measures every rule on a Gaussian, a mixture in the plane, the interval and the simplex of three categories,
and prints why a cell is blank. "weak" is the order of expectations, "strong" that of paths.

"""

_CHOOSING = """
## How to choose

**From noise to data in few evaluations.** `UniPC(3, "velocity", orders=rising)` on a `tuned` grid: on three exact problems it needed a
third to four fifths of the evaluations of the best rule elsewhere (the table below). On plain grids `UniPC(4, "velocity", orders=rising)`,
`DEIS(4)` and `ExponentialAdams(4, "velocity")` lead. `orders=rising` begins with low orders at one evaluation a step, which is best from a
wide prior; the default start of a rule of order above 2 costs one to five more and keeps the order from anywhere. `Heun` and `RungeKutta`
need no schedule and integrate any `ODE`, at 2 to 4 evaluations a step.

Counts in the table are per step: n levels are n − 1 steps, and `sample` ends with one evaluation more, the denoising step.

**With noise.** `DPMSolverPP(2, sde=True)`, `ERSDE(2)` and `SASolver(1, 2)` have weak order 2; a higher order of the polynomial does not
raise it. `EulerMaruyama` takes any `SDE`, `Milstein` those whose noise depends on the state. `DDIM(eta)`, `Ancestral` and
`ReverseDiffusion` are the rules of the papers, step by step.

**Between walls.** Deterministic rules with an exact score never notice the wall; the default is `Project`. `EulerMaruyama` takes `Reflect`.
Stochastic rules that read the field more than once, or remember it, need `Cover` for their order, and have it by default on domains
that fold (`Hypercube`, `Orthant`, `Torus`, `Simplex`). `ReflectedStrang` has weak order 2 where the drift's normal component vanishes at
the wall, and 1 otherwise. Half-lines with constant noise: `LepingleEulerMaruyama`.

**Langevin dynamics.** `Langevin` by `EulerMaruyama` (ULA) has a stationary law that errs by O(h), by `MALA` the law itself. `Kinetic` by
`BAOAB` is the choice for averages over positions; walls are specular. `CriticallyDamped` generates by `SSCS(2)`.

**To a tolerance.** `AdaptiveODE` and `AdaptiveSDE` choose steps for each sample on its own; `method="exponential"` needs
the fewest evaluations down to errors of about 1e-4, "dopri5" and "tsit5" beyond. `AdaptiveSDE` draws a Brownian path for each
sample: with a score that costs next to nothing that is what it costs, a tenth of a second or more a sample.

**Encoding.** `encode` runs any deterministic rule from data to noise, `round_trip` says what coming back costs.

**From pure noise** (scale 0 at the start: flow matching, tables with zero terminal SNR): the score must offer `prediction(x, t)`; `DDIM`
and the multistep rules read it.

**Grids.** `uniform_lambda` for the exponential rules, `karras` for those in σ, `polyexponential(rho=0.8)` between them; `discrete` and
`grid_from_diffusers` for a table of levels; `tuned` searches one for a score and a solver and judges it by measured error;
`optimal` for `AnalyticDPM`.

**A rule of your own**: derive from `Solver`, and let `check_solver` measure it (`examples/own_solver.py`).

## Evaluations that an error needs

![error against evaluations on three exact problems, ours and diffusers'](pictures/work_precision.png)

Median relative error of the probability flow, every peer given exact predictions, the same ends, and each of its spacings:

| problem | error | ours, tuned grid | ours, plain grids | best of diffusers |
|---|---|---|---|---|
| 2-D mixture, VP | 1e-2 | 6 | 9 `UniPC(4, "velocity", orders=rising)` | 12 DEIS 3, exponential |
| | 1e-3 | 10 | 17 the same | 22 DEIS 3, exponential |
| | 1e-4 | 16 | 28 the same | 45 DEIS 3, exponential |
| 64-D mixture of 10, EDM | 1e-2 | 7 | 10 `DEIS(3)` | 9 DEIS 3, Karras |
| | 1e-3 | 12 | 15 `UniPC(3, "velocity", orders=rising)` | 19 DEIS 3, Karras |
| | 1e-4 | 18 | 24 `UniPC(4, "velocity", orders=rising)` | 35 UniPC 3, exponential |
| cosine product on the cube, VE | 1e-2 | 4 | 7 `UniPC(3, "velocity", orders=rising)` | 5 DPM-Solver++ 3M, linspace |
| | 1e-3 | 6 | 12 `UniPC(4, "velocity", orders=rising)` | 17 UniPC 3, Karras |
| | 1e-4 | 9 | 19 `DEIS(4)` | 28 UniPC 3, Karras |

(Tuned: the better of `UniPC(2 or 3, "velocity", orders=rising)`; the search itself spends some 10⁵ evaluations, once.)
"""


def solver_page() -> str:
    """The page: a table of class facts, and how to choose."""
    from .solvers import LANGEVIN_SOLVERS, SOLVERS

    facts = [cls.facts() for cls in (*SOLVERS, *LANGEVIN_SOLVERS)]
    lines = [" | ".join(facts[0]), " | ".join("---" for _ in facts[0])]
    lines += [" | ".join(value.replace("|", "\\|") for value in row.values()) for row in facts]
    table = "".join(f"| {line} |\n" for line in lines)
    return _ABOUT + table + _CHOOSING
