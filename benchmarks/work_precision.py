"""Error against evaluations: every deterministic solver here and diffusers' schedulers, on exact problems, in one run.

Each rule follows the probability flow from the same starts at σ_max to σ_min; errors are relative, against the flow solved to
1e-11, and the median over starts is printed. A scheduler is given the exact ε at the σ it says it is at, and a table of levels with exactly
these ends (under EDM and VE one uniform in ln σ, kinder to it than the tables it comes with), so that it is compared as a rule, with each
of its spacings; its last step, to σ = 0, is left out on both sides. Our *tuned* grids were searched for on other starts than those of the
comparison. Prints the evaluations that an error of 1e-2, 1e-3 and 1e-4 needs, and draws work_precision.png.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timing import verdict
from torch import Tensor

from carom.domains import Domain, Euclidean, Hypercube
from carom.processes import EDM, VE, VP, Diffusion
from carom.scores import GaussianMixtureScore
from carom.solvers import (
    DEIS,
    IPNDM,
    KUTTA3,
    MIDPOINT,
    Adams,
    AdaptiveODE,
    DPMSolver,
    DPMSolverPP,
    Euler,
    ExponentialAdams,
    Heun,
    RungeKutta,
    Solver,
    UniPC,
    karras,
    polyexponential,
    rising,
    solve,
    tuned,
    uniform_lambda,
)
from carom.validation import problems

TARGETS = {1e-2: 1.0, 1e-3: 0.6, 1e-4: 0.6}  # error: most evaluations, as a share of the best peer's
TUNED_LADDER = (4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 23)
LADDER = sorted({4, *(round(5 * 1.13**k) for k in range(21))})
Curve = list[tuple[int, float]]


@dataclass
class Problem:
    """A process with its exact score, starts at σ_max, and where the flow takes them."""

    name: str
    process: Diffusion
    score: Any
    sigma_max: float
    sigma_min: float
    start: Tensor = field(init=False)  # x/s
    goal: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        process, grid = self.process, self.grid(uniform_lambda, 2)
        x = process.prior(torch.float64, t=float(grid[0])).sample((24,), generator=generator)  # type: ignore[call-arg]
        first, last = (process.level(t) for t in grid)
        end = solve(process.flow(self.score), x, grid, AdaptiveODE(1e-11, 1e-11)).x
        self.start, self.goal = x / first.scale, end / last.scale

    def grid(self, make: Callable[..., Tensor], n: int, **options: Any) -> Tensor:
        return make(self.process, n, sigma_max=self.sigma_max, sigma_min=self.sigma_min, **options)

    def noise(self, clean: Tensor, sigma: float) -> Tensor:
        """The exact ε at x/s and σ: −σ·s·score."""
        level = self.process.level(sigma=sigma)
        return -sigma * level.scale * self.score(level.scale * clean, level.t)

    def error(self, clean: Tensor) -> float:
        gap, size = ((v.flatten(1)).norm(dim=-1) for v in (clean - self.goal, self.goal))
        return float((gap / size).median())


def mixture(domain: Domain, schedule: Any, d: int, components: int, seed: int) -> tuple[Diffusion, Any]:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(components, d, generator=generator, dtype=torch.float64)
    variances = 0.02 + 0.2 * torch.rand(components, generator=generator, dtype=torch.float64)
    process = Diffusion(domain, schedule)
    return process, GaussianMixtureScore(process, [1 / components] * components, means, variances)


def exact_problems() -> Iterator[Problem]:
    yield Problem("2-D mixture, VP", *mixture(Euclidean((2,)), VP(), 2, 4, 1), 157.4, 0.01)
    yield Problem("64-D mixture of 10, EDM", *mixture(Euclidean((64,)), EDM(), 64, 10, 0), 80.0, 0.002)
    cube = Diffusion(Hypercube((3,)), VE())
    yield Problem("cosine product on the cube, VE", cube, problems.CosineScore(cube, 0.8), 2.0, 0.01)


# ---------------------------------------------------------------------------------------------------------------- ours


def our_rules() -> list[Solver]:
    return [
        Euler(),
        Heun(),
        RungeKutta(MIDPOINT),
        RungeKutta(KUTTA3),
        RungeKutta(),
        *(DPMSolver(p) for p in (2, 3)),
        *(DPMSolverPP(p) for p in (1, 2, 3)),
        *(UniPC(p) for p in (2, 3, 4)),
        *(UniPC(p, "velocity", orders=rising) for p in (2, 3, 4)),
        *(DEIS(p) for p in (2, 3, 4)),
        *(ExponentialAdams(p, form) for form in ("data", "velocity") for p in (3, 4, 5)),
        *(Adams(p) for p in (3, 4)),
        IPNDM(4, variable=True),
    ]


def our_curve(
    problem: Problem,
    solver: Solver,
    make: Callable[[int], Tensor],
    ladder: Sequence[int] = LADDER,
    enough: float = 1e-5,
) -> Curve:
    process, curve = problem.process, []
    for n in ladder:
        times = make(n + 1)
        first, last = process.level(times[0]), process.level(times[-1])
        run = solve(process.flow(problem.score), first.scale * problem.start, times, solver)
        curve.append((int(run.nfe), problem.error(run.x / last.scale)))
        if curve[-1][0] > LADDER[-1] or curve[-1][1] < enough:
            break
    return curve


def our_curves(problem: Problem) -> Iterator[tuple[str, Curve]]:
    grids = {
        "uniform λ": (uniform_lambda, {}),
        "Karras": (karras, {}),
        "polyexponential": (polyexponential, {"rho": 0.8}),
    }
    for solver in our_rules():
        for name, (make, options) in grids.items():
            yield f"{solver!r}, {name}", our_curve(problem, solver, lambda n: problem.grid(make, n, **options))  # noqa: B023
    for solver in (UniPC(2, "velocity", orders=rising), UniPC(3, "velocity", orders=rising)):
        fit = lambda n: problem.grid(tuned, n, score=problem.score, solver=solver)  # noqa: B023
        yield f"{solver!r}, tuned", our_curve(problem, solver, fit, TUNED_LADDER, enough=min(TARGETS))


# --------------------------------------------------------------------------------------------------------------- peers

SPACINGS: dict[str, dict[str, Any]] = {
    "linspace": {},
    "Karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}
#: (class, options, whether its state is x0 + σε rather than that at unit variance)
PEERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "Euler": ("EulerDiscreteScheduler", {}, True),
    "Heun": ("HeunDiscreteScheduler", {}, True),
    "LMS": ("LMSDiscreteScheduler", {}, True),
    **{
        f"DPM-Solver {p}M": (
            "DPMSolverMultistepScheduler",
            {"solver_order": p, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            False,
        )
        for p in (2, 3)
    },
    **{f"DPM-Solver++ {p}M": ("DPMSolverMultistepScheduler", {"solver_order": p}, False) for p in (2, 3)},
    **{f"DPM-Solver++ {p}S": ("DPMSolverSinglestepScheduler", {"solver_order": p}, False) for p in (2, 3)},
    **{f"DEIS {p}": ("DEISMultistepScheduler", {"solver_order": p}, False) for p in (2, 3)},
    **{f"UniPC {p}": ("UniPCMultistepScheduler", {"solver_order": p}, False) for p in (2, 3)},
}


def table_of_betas(problem: Problem) -> Any:
    """1000 levels from σ_min to σ_max as a scheduler's betas: DDPM's own under VP, uniform in ln σ elsewhere."""
    if isinstance(problem.process.schedule, VP):
        return {"beta_schedule": "linear"}
    sigma = torch.linspace(math.log(problem.sigma_min), math.log(problem.sigma_max), 1000, dtype=torch.float64).exp()
    kept = 1 / (1 + sigma**2)
    betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
    return {"trained_betas": betas.numpy()}


def peer_run(problem: Problem, scheduler: Any, n: int, plain: bool) -> tuple[int, float]:
    """Evaluations and error of n levels, up to the last positive one."""
    scheduler.set_timesteps(n)
    sigmas = [float(s) for s in scheduler.sigmas if s > 0]
    last, count, x = min(sigmas), 0, problem.start
    x = x if plain else x / (1 + sigmas[0] ** 2) ** 0.5
    sigma = sigmas[0]
    for i, t in enumerate(scheduler.timesteps):
        index = i if scheduler.step_index is None else scheduler.step_index
        sigma = float(scheduler.sigmas[index])
        second = not getattr(scheduler, "state_in_first_order", True)
        if second:  # Heun's second reading is at the next level
            sigma = float(scheduler.sigmas[index + 1])
        if sigma <= last * (1 + 1e-9) and not second:
            break
        clean = x if plain else x * (1 + sigma**2) ** 0.5
        scheduler.scale_model_input(x, t)
        x = scheduler.step(problem.noise(clean, sigma), t, x).prev_sample
        count += 1
    x = x if plain else x * (1 + last**2) ** 0.5
    return count, problem.error(x)


def peer_curves(problem: Problem) -> Iterator[tuple[str, Curve]]:
    diffusers = importlib.import_module("diffusers")
    diffusers.logging.set_verbosity_error()
    table = table_of_betas(problem)
    for name, (kind, options, plain) in PEERS.items():
        for spacing, more in SPACINGS.items():
            curve: Curve = []
            for n in LADDER:
                spacing_option = (
                    {} if "Singlestep" in kind else {"timestep_spacing": "linspace"}
                )  # which it takes anyway
                scheduler = getattr(diffusers, kind)(**table, **spacing_option, **options, **more)
                try:
                    curve.append(peer_run(problem, scheduler, n + 1, plain))
                except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                    curve.append((n, math.nan))
                    print(f"  {name}, {spacing}, {n} steps: {type(error).__name__}: {error}")
                    break
                if curve[-1][0] > LADDER[-1] or curve[-1][1] < 1e-5:
                    break
            yield f"diffusers {name}, {spacing}", curve


# -------------------------------------------------------------------------------------------------------------- report


def needed(curve: Curve, error: float) -> float:
    """The fewest evaluations with at most this error."""
    return min((n for n, e in curve if e <= error), default=math.inf)


def best_by_kind(curves: dict[str, Curve]) -> dict[str, Curve]:
    """Of each rule the spacing that reaches 1e-3 first, so that the table stays readable."""
    best: dict[str, tuple[tuple[float, ...], str]] = {}
    for name, curve in curves.items():
        rule = name.rpartition(", ")[0]
        rank = tuple(needed(curve, e) for e in (1e-3, 1e-4, 1e-2))
        if rule not in best or rank < best[rule][0]:
            best[rule] = (rank, name)
    return {name: curves[name] for _, name in best.values()}


def report(problem: Problem, ours: dict[str, Curve], peers: dict[str, Curve]) -> None:
    print(f"\n{problem.name}: evaluations for a median relative error of")
    print(f"{'':52}" + "".join(f"{e:>9.0e}" for e in TARGETS))
    for name, curve in {**best_by_kind(ours), **best_by_kind(peers)}.items():
        print(f"{name:52}" + "".join(f"{needed(curve, e):9.0f}" for e in TARGETS))
    plain = {name: curve for name, curve in ours.items() if not name.endswith("tuned")}
    for error, share in TARGETS.items():
        (mine, rule), (theirs, peer), (untuned, other) = (
            min((needed(c, error), name) for name, c in group.items()) for group in (ours, peers, plain)
        )
        print(
            f"at {error:.0e}: {rule} {mine:.0f}, {peer} {theirs:.0f}: {mine / theirs:.2f}×   {verdict(mine / theirs, share)}"
        )
        print(f"{'':10}without tuning {other} {untuned:.0f}: {untuned / theirs:.2f}×", flush=True)


def draw(results: list[tuple[Problem, dict[str, Curve], dict[str, Curve]]], path: str) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 5), squeeze=False)
    for axis, (problem, ours, peers) in zip(axes[0], results, strict=True):
        for group, style in ((ours, "-"), (peers, "--")):
            ranked = sorted(best_by_kind(group).items(), key=lambda item: [needed(item[1], e) for e in (1e-3, 1e-4)])
            for name, curve in ranked[:5]:
                axis.loglog(*zip(*curve, strict=True), style, marker=".", label=name, linewidth=1.2)
        axis.set(title=problem.name, xlabel="evaluations", ylabel="median relative error", ylim=(1e-5, 1))
        axis.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = []
    for problem in exact_problems():
        ours = dict(our_curves(problem))
        peers = dict(peer_curves(problem)) if importlib.util.find_spec("diffusers") else {}
        if not peers:
            print("diffusers is not installed (pip install 'carom[bench]'): no peers")
        report(problem, ours, peers)
        results.append((problem, ours, peers))
    draw(results, "work_precision.png")


if __name__ == "__main__":
    main()
