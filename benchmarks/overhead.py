"""What a solver costs beside the score: time per step at (16, 3, 32, 32) with a score that costs nothing.

Every solver that torchdiffeq or diffusers has as well against the fastest of them, and the stochastic ones against drawing their noise.
A step is the slope between runs of few and of many steps, so that checking input, planning grids and the like (once per run) stand in a
column of their own. A step is one of ours, whatever evaluations it takes: a scheduler whose loop counts evaluations makes as many.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from timing import Times, interleaved, machine, settle_allocator, verdict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchdiffeq import odeint

from carom.domains import Euclidean
from carom.processes import EDM, Diffusion
from carom.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    MIDPOINT,
    Adams,
    Ancestral,
    BrownianPath,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    Noise,
    ReverseDiffusion,
    RungeKutta,
    SampleNoise,
    SASolver,
    Solver,
    UniPC,
    WhiteNoise,
    karras,
    solve,
)

SHAPE = (16, 3, 32, 32)
FEW, MANY = 20, 100
Run = Callable[[], Any]

process = Diffusion(Euclidean(SHAPE[1:]), EDM())
start = 80 * torch.randn(SHAPE)
answer = torch.randn(SHAPE)


def score(x: Tensor, t: Tensor) -> Tensor:
    return answer


def by_solve(solver: Solver, noise: Noise | None = None) -> Callable[[int], Run]:
    def runs(steps: int) -> Run:
        times, equation = karras(process, steps + 1), solver.accepts[0](process, score)  # type: ignore[call-arg]
        return lambda: solve(equation, start, times, solver, noise=noise)

    return runs


def by_torchdiffeq(method: str) -> Callable[[int], Run]:
    def runs(steps: int) -> Run:
        times = torch.linspace(1.0, 0.01, steps + 1)
        return lambda: odeint(lambda t, x: score(x, t), start, times, method=method)

    return runs


def by_diffusers(name: str, **options: Any) -> Callable[[int], Run]:
    """The loop of a diffusers pipeline; for Heun a step is two of its timesteps."""
    import diffusers

    diffusers.logging.set_verbosity_error()
    scheduler = getattr(diffusers, name)(**options)
    seeded = {"generator": torch.Generator()} if "generator" in inspect.signature(scheduler.step).parameters else {}

    def runs(steps: int) -> Run:
        def run() -> Tensor:
            scheduler.set_timesteps(steps)
            x = start
            for t in scheduler.timesteps:
                x = scheduler.step(score(scheduler.scale_model_input(x, t), t), t, x, **seeded).prev_sample
            return x

        return run

    return runs


def drawing(noise: Noise | None) -> Callable[[int], Run]:
    """Nothing but the normals of every step: from a source, or from one generator."""

    def runs(steps: int) -> Run:
        times = karras(process, steps + 1).tolist()
        generator = torch.Generator().manual_seed(0)

        def run() -> None:
            source = noise.open(start, 3) if noise else lambda t, s: torch.randn(SHAPE, generator=generator)
            for t, s in pairwise(times):
                source(t, s)

        return run

    return runs


def calls(times: int) -> Callable[[int], Run]:
    """The score alone, which is subtracted."""
    t = torch.zeros(())

    def runs(steps: int) -> Run:
        def run() -> None:
            for _ in range(times * steps):
                score(start, t)

        return run

    return runs


class Steps:
    """Cases measured at FEW and at MANY steps: microseconds per step and per run, round by round."""

    def __init__(
        self, cases: dict[str, Callable[[int], Run]], rounds: int, few: int = FEW, many: int = MANY, seconds: float = 30
    ):
        runs = {(name, n): case(n) for name, case in cases.items() for n in (few, many)}
        self.times: Times = interleaved(
            {f"{name} {n}": run for (name, n), run in runs.items()}, rounds, seconds=seconds
        )
        self.few, self.many = few, many

    def _rounds(self, name: str) -> Iterator[tuple[float, float]]:
        few, many = (self.times.seconds[f"{name} {n}"] for n in (self.few, self.many))
        for a, b in zip(few, many, strict=True):
            step = (b - a) / (self.many - self.few)
            yield 1e6 * step, 1e6 * (a - self.few * step)

    def step(self, name: str, without: str | None = None) -> float:
        own = statistics.median(step for step, _ in self._rounds(name))
        return own if without is None else own - self.step(without)

    def once(self, name: str) -> float:
        return statistics.median(once for _, once in self._rounds(name))


class Family(NamedTuple):
    """A rule of ours, the evaluations of its step, and the same rule elsewhere."""

    ours: Solver
    evaluations: int
    diffusers: tuple[str, dict[str, Any]] | None = None
    torchdiffeq: str | None = None


def multistep(**options: Any) -> tuple[str, dict[str, Any]]:
    return "DPMSolverMultistepScheduler", options


FAMILIES = (
    Family(Euler(), 1, ("EulerDiscreteScheduler", {}), "euler"),
    Family(Heun(), 2, ("HeunDiscreteScheduler", {}), "heun2"),
    Family(RungeKutta(MIDPOINT), 2, ("KDPM2DiscreteScheduler", {}), "midpoint"),
    Family(RungeKutta(), 4, None, "rk4"),
    Family(DDIM(), 1, ("DDIMScheduler", {"clip_sample": False})),
    Family(DPMSolver(2, multistep=True), 1, multistep(algorithm_type="dpmsolver", final_sigmas_type="sigma_min")),
    Family(
        DPMSolver(3, multistep=True),
        1,
        multistep(algorithm_type="dpmsolver", final_sigmas_type="sigma_min", solver_order=3),
    ),
    Family(DPMSolverPP(2), 1, multistep()),
    Family(DPMSolverPP(3), 1, multistep(solver_order=3)),
    Family(DPMSolverPP(2, multistep=False), 2, ("DPMSolverSinglestepScheduler", {"solver_order": 2})),
    Family(DPMSolverPP(3, multistep=False), 3, ("DPMSolverSinglestepScheduler", {"solver_order": 3})),
    Family(UniPC(2), 1, ("UniPCMultistepScheduler", {"solver_order": 2})),
    Family(UniPC(3), 1, ("UniPCMultistepScheduler", {"solver_order": 3})),
    Family(DEIS(2), 1, ("DEISMultistepScheduler", {"solver_order": 2})),
    Family(DEIS(3), 1, ("DEISMultistepScheduler", {"solver_order": 3})),
    Family(Adams(4), 1, ("LMSDiscreteScheduler", {})),
    Family(IPNDM(4), 1, ("IPNDMScheduler", {})),
)
STOCHASTIC = (
    Family(EulerMaruyama(), 1),
    Family(Ancestral(), 1, ("EulerAncestralDiscreteScheduler", {})),
    Family(DDIM(1.0), 1, ("DDPMScheduler", {"clip_sample": False})),
    Family(ReverseDiffusion(), 1),
    Family(DPMSolverPP(2, sde=True), 1, multistep(algorithm_type="sde-dpmsolver++")),
    Family(DPMSolverPP(3, sde=True), 1, multistep(algorithm_type="sde-dpmsolver++", solver_order=3)),
    Family(SASolver(), 1, ("SASolverScheduler", {})),
    Family(ERSDE(3), 1),
)
# schedulers that spend one evaluation a step on rules that spend several
_ONE_A_STEP = ("DPMSolverSinglestepScheduler",)


def cases(family: Family, noise: Noise | None = None) -> dict[str, Callable[[int], Run]]:
    """Named runs of a family."""
    out = {f"carom {family.ours!r}": by_solve(family.ours, noise)}
    if family.torchdiffeq:
        out[f"torchdiffeq {family.torchdiffeq}"] = by_torchdiffeq(family.torchdiffeq)
    if family.diffusers and importlib.util.find_spec("diffusers"):
        name, options = family.diffusers
        runs = by_diffusers(name, **options)
        many = family.evaluations if name in _ONE_A_STEP else 1
        out[f"diffusers {name}"] = lambda steps: runs(many * steps)
    return out


def against_peers() -> None:
    print(f"\n{'beside the evaluations of the score':56}{'µs/step':>9}{'/ best peer':>13}{'µs once a run':>15}")
    for family in FAMILIES:
        case = cases(family)
        measured = Steps({"score": calls(family.evaluations), **case}, rounds=9, seconds=8)
        ours, *peers = case
        best = min((measured.step(name, "score") for name in peers), default=math.nan)
        for name in case:
            step = measured.step(name, "score")
            row = f"{name:56}{step:9.1f}{step / best:13.2f}{measured.once(name):15.0f}"
            print(row + f"   {verdict(step / best, 0.5)}" if name == ours else row, flush=True)


def against_drawing() -> None:
    """A stochastic step, from either source of noise, and its peer's in units of drawing as many normals from one generator."""
    white, own = WhiteNoise(0), SampleNoise(range(SHAPE[0]))
    print(f"\n{'stochastic rules':56}{'µs/step':>9}{'/ randn':>13}")
    for family in STOCHASTIC:
        peer = {name: case for name, case in cases(family, white).items() if name.startswith("diffusers")}
        named = {
            f"carom {family.ours!r}, {type(noise).__name__}": (noise, most)
            for noise, most in ((white, 1.3), (own, 1.5))
        }
        runs = {name: by_solve(family.ours, noise) for name, (noise, _) in named.items()}
        measured = Steps({"score": calls(1), "torch.randn": drawing(None), **runs, **peer}, rounds=9, seconds=8)
        draw = measured.step("torch.randn")
        for name in (*runs, *peer):
            step = measured.step(name, "score")
            row = f"{name:56}{step:9.1f}{step / draw:13.2f}"
            print(row + f"   {verdict(step / draw, named[name][1])}" if name in runs else row, flush=True)


class Draws(TorchDispatchMode):
    """How many rows of normals are drawn."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten.normal_.default
        return function(*args, **(kwargs or {}))


def draws(runs: Callable[[int], Run], few: int, many: int) -> float:
    """Draws of a whole state per step."""
    counts = []
    for steps in (few, many):
        with Draws() as mode:
            runs(steps)()
        counts.append(mode.count / SHAPE[0])
    return (counts[1] - counts[0]) / (many - few)


def sources() -> None:
    white, own, path = WhiteNoise(0), SampleNoise(range(SHAPE[0])), BrownianPath(range(SHAPE[0]))
    measured = Steps(
        {"torch.randn": drawing(None), "WhiteNoise": drawing(white), "SampleNoise": drawing(own)}, rounds=9, seconds=8
    )
    walked = Steps({"BrownianPath": drawing(path)}, rounds=5, few=20, many=60)
    draw = measured.step("torch.randn")
    print(f"\n{'noise alone':56}{'µs/draw':>9}{'/ randn':>13}")
    for name in ("torch.randn", "WhiteNoise", "SampleNoise"):
        print(f"{name:56}{measured.step(name):9.1f}{measured.step(name) / draw:13.2f}")
    step, count = walked.step("BrownianPath"), draws(drawing(path), 20, 60)
    print(f"{'BrownianPath':56}{step:9.1f}{step / draw:13.2f}   {verdict(step / draw, 25)} (a walk down a dyadic tree:")
    print(f"{'':56}{count:9.1f} draws of a state a step   {verdict(count, 25)})")


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    settle_allocator()
    if not importlib.util.find_spec("diffusers"):
        print("diffusers is not installed (pip install 'carom[bench]'): compared with torchdiffeq only")
    print(f"overhead per step at {SHAPE}, float32, beyond the score; {machine()}")
    against_peers()
    against_drawing()
    sources()


if __name__ == "__main__":
    main()
