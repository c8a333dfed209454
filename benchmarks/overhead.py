"""What a solver costs beside the score: time per step at (16, 3, 32, 32) with a score that costs nothing.

Ours against torchdiffeq and diffusers, and Euler–Maruyama against drawing its noise. A step is the slope between runs of
few and of many steps, so that checking input, planning grids and the like (once per run) stand in a column of their own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from timing import Times, interleaved, machine, settle_allocator, verdict
from torch import Tensor
from torchdiffeq import odeint

from carom.domains import Euclidean
from carom.processes import EDM, Diffusion
from carom.solvers import (
    BrownianPath,
    Euler,
    EulerMaruyama,
    Heun,
    Noise,
    SampleNoise,
    Solver,
    WhiteNoise,
    karras,
    sample,
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


def by_sample(solver: Solver) -> Callable[[int], Run]:
    def runs(steps: int) -> Run:
        times = karras(process, steps + 1)
        return lambda: sample(process, score, solver, times, shape=SHAPE[0], initial=start, denoise=False)

    return runs


def by_torchdiffeq(method: str) -> Callable[[int], Run]:
    def runs(steps: int) -> Run:
        times = torch.linspace(1.0, 0.01, steps + 1)
        return lambda: odeint(lambda t, x: score(x, t), start, times, method=method)

    return runs


def by_diffusers(name: str) -> Callable[[int], Run]:
    """The loop of a diffusers pipeline; for Heun a step is two of its timesteps."""
    import diffusers

    scheduler = getattr(diffusers, name)()

    def runs(steps: int) -> Run:
        def run() -> Tensor:
            scheduler.set_timesteps(steps)
            x = start
            for t in scheduler.timesteps:
                x = scheduler.step(score(scheduler.scale_model_input(x, t), t), t, x).prev_sample
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

    def __init__(self, cases: dict[str, Callable[[int], Run]], rounds: int, few: int = FEW, many: int = MANY):
        runs = {(name, n): case(n) for name, case in cases.items() for n in (few, many)}
        self.times: Times = interleaved({f"{name} {n}": run for (name, n), run in runs.items()}, rounds, seconds=30)
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


def against_peers(order: int, ours: dict[str, Callable[[int], Run]], peers: dict[str, Callable[[int], Run]]) -> None:
    measured = Steps({"score": calls(order), **ours, **peers}, rounds=15)
    best = min(measured.step(name, "score") for name in peers)
    print(f"\n{f'order {order}, {order} evaluations a step':44}{'µs/step':>9}{'/ best peer':>13}{'µs once a run':>15}")
    for name in (*ours, *peers):
        step = measured.step(name, "score")
        row = f"{name:44}{step:9.1f}{step / best:13.2f}{measured.once(name):15.0f}"
        print(row + f"   {verdict(step / best, 0.5)}" if name in ours else row)


def against_drawing() -> None:
    white, own = WhiteNoise(0), SampleNoise(range(SHAPE[0]))
    measured = Steps(
        {
            "score": calls(1),
            "torch.randn": drawing(None),
            "WhiteNoise alone": drawing(white),
            "SampleNoise alone": drawing(own),
            "EulerMaruyama, WhiteNoise": by_solve(EulerMaruyama(), white),
            "EulerMaruyama, SampleNoise": by_solve(EulerMaruyama(), own),
        },
        rounds=15,
    )
    path = BrownianPath(range(SHAPE[0]))
    walked = Steps({"BrownianPath alone": drawing(path)}, rounds=5, few=4, many=12)
    draw = measured.step("torch.randn")
    targets = {"EulerMaruyama, WhiteNoise": 1.3, "EulerMaruyama, SampleNoise": 1.5}
    print(f"\n{'noise':44}{'µs/step':>9}{'/ randn':>13}")
    for name in ("torch.randn", "WhiteNoise alone", "SampleNoise alone", *targets):
        step = measured.step(name, "score" if name in targets else None)
        row = f"{name:44}{step:9.1f}{step / draw:13.2f}"
        print(row + f"   {verdict(step / draw, targets[name])}" if name in targets else row)
    step = walked.step("BrownianPath alone")
    print(
        f"{'BrownianPath alone':44}{step:9.1f}{step / draw:13.2f}   a walk down a dyadic tree: steps share it, whatever their size"
    )


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    settle_allocator()
    first, second = {"torchdiffeq euler": by_torchdiffeq("euler")}, {"torchdiffeq heun2": by_torchdiffeq("heun2")}
    try:
        first["diffusers EulerDiscreteScheduler"] = by_diffusers("EulerDiscreteScheduler")
        second["diffusers HeunDiscreteScheduler"] = by_diffusers("HeunDiscreteScheduler")
    except ImportError:
        print("diffusers is not installed (pip install 'carom[bench]'): compared with torchdiffeq only")
    print(f"overhead per step at {SHAPE}, float32, beyond the score; {machine()}")
    against_peers(1, {"carom Euler, solve": by_solve(Euler()), "carom Euler, sample": by_sample(Euler())}, first)
    against_peers(2, {"carom Heun, solve": by_solve(Heun()), "carom Heun, sample": by_sample(Heun())}, second)
    against_drawing()


if __name__ == "__main__":
    main()
