"""What must hold on a GPU, for ``gpu.py``: the numbers of the CPU within rounding, and no step that waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carom.domains import Ball, Euclidean, Hypercube, KernelDomain, Orthant, RegularSimplex, Simplex, Torus
from carom.processes import EDM, VE, VP, CosineVP, Diffusion, Discrete, FlowMatching, SubVP
from carom.scores import GaussianMixtureScore
from carom.scores.neural import (
    MLP,
    ConditionalFlowMatching,
    DenoisingScoreMatching,
    ImplicitScoreMatching,
    LatentImageScoreMatching,
    MLPConfig,
    NeuralScore,
    Objective,
    SlicedScoreMatching,
)
from carom.solvers import (
    DDIM,
    DEIS,
    DPMSolver,
    DPMSolverPP,
    EDMStochastic,
    Euler,
    EulerMaruyama,
    ExponentialAdams,
    Heun,
    ReflectedEulerMaruyama,
    ReflectedStrang,
    SampleNoise,
    Solver,
    UniPC,
    WhiteNoise,
    solve,
    uniform_lambda,
)
from carom.validation.problems import CosineScore

CPU = torch.device("cpu")
DOMAINS: tuple[KernelDomain, ...] = (
    *(Euclidean((6,)), Orthant((6,)), Hypercube((6,)), Hypercube((2,), [0.0, -1.0], [1.0, 2.0]), Torus((6,))),
    *(Simplex(7), RegularSimplex(3), Ball(2)),
)
SCHEDULES = (VP(), SubVP(), VE(), EDM(), CosineVP(), FlowMatching(), Discrete.ddpm(100))
SOLVERS: tuple[Solver, ...] = (
    *(Euler(), Heun(), DDIM(), DPMSolver(3), DPMSolverPP(2), DPMSolverPP(2, sde=True), UniPC(3), DEIS(3)),
    *(ExponentialAdams(3), EulerMaruyama(), EDMStochastic(), ReflectedStrang()),
)


class Row(NamedTuple):
    """A line of the report; ``passed`` is None where nothing is claimed."""

    what: str
    value: str
    passed: bool | None = None


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference relative to 1 + size; infinite where one is not finite."""
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float(((one - other).abs() / (1 + other.abs())).nan_to_num(nan=torch.inf).max())


def compared(what: str, on: Callable[[torch.device], Tensor], device: torch.device, bound: float) -> Row:
    error = difference(on(device), on(CPU))
    return Row(what, f"{error:.1e} (≤ {bound:.0e})", error <= bound)


# numbers ------------------------------------------------------------------------------------------------------------


def numerics(device: torch.device) -> Iterator[Row]:
    """Bounds: what differs is the order of summation, library functions and, for kernels, which of two equal series is summed."""
    for domain in DOMAINS:
        yield from _kernels(domain, device)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for schedule in SCHEDULES:

        def levels(d: torch.device, schedule=schedule) -> Tensor:
            u = t.to(d) * schedule.t_max
            sigma = schedule.sigma(u)
            return torch.stack([schedule.scale(u), sigma.log(), schedule.time(sigma)])

        # some ulp of σ, times the condition of σ ↦ t
        yield compared(f"schedule {schedule!r}", levels, device, 1e-11)
    yield from _losses(device)
    yield from _solves(device)


def _kernels(domain: KernelDomain, device: torch.device) -> Iterator[Row]:
    # σ·score errs by 2e-15 and 5e-7, here σ ≥ 0.06; a ball's in float64 by 1e-13 and more between far points
    for dtype, bound in ((torch.float64, 1e-9 if isinstance(domain, Ball) else 1e-12), (torch.float32, 3e-5)):
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(2, 64, *domain.event_shape, dtype=dtype, generator=generator)
        x0 = domain.project(0.3 + 0.1 * z[0].abs())
        x = domain.project(x0 + 0.05 * z[1])
        sigma = torch.linspace(0.06, 1.0, 64, dtype=dtype)

        def value(d: torch.device, name: str, x=x, x0=x0, sigma=sigma) -> Tensor:
            kernel = domain.heat_kernel(x0.to(d), sigma.to(d))
            if name == "draw and target":
                # a generator of the CPU gives both the same normals
                return torch.cat(kernel.sample_with_target(generator=torch.Generator().manual_seed(1)))
            return getattr(kernel, name)(x.to(d))

        for name in ("log_prob", "score", "draw and target"):
            # draws of a ball are exact to 1e-9 in distribution, and targets at them as steep as σ⁻²
            loose = 100 if bound == 1e-9 and name == "draw and target" else 1
            yield compared(
                f"kernel {name}, {domain!r}, {str(dtype)[6:]}",
                lambda d, name=name, value=value: value(d, name),
                device,
                loose * bound,
            )


def _losses(device: torch.device) -> Iterator[Row]:
    for domain in (Euclidean((6,)), Hypercube((6,)), Simplex(7)):
        for objective in (
            *(DenoisingScoreMatching(), LatentImageScoreMatching(), ConditionalFlowMatching(), SlicedScoreMatching()),
            *((ImplicitScoreMatching(),) if domain.bounded else ()),
        ):

            def loss(d: torch.device, domain=domain, objective=objective) -> Tensor:
                value, network = small_loss(domain, objective, d, torch.Generator().manual_seed(1))
                value.backward()
                gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
                return torch.cat([value.detach().reshape(1), *gradients])

            # float32 with TF32 off: sums of a thousand products, squared
            yield compared(f"{type(objective).__name__} and its gradient, {domain!r}", loss, device, 1e-3)


def small_loss(
    domain: KernelDomain, objective: Objective, device: torch.device, generator: torch.Generator | None = None
) -> tuple[Tensor, MLP]:
    """(a loss on 256 states, its network), the same on every device."""
    torch.manual_seed(0)
    network = MLP(MLPConfig(domain.event_shape, 64, 2))
    nn.init.normal_(network.last.weight)
    x0 = domain.project(torch.rand(256, *domain.event_shape).sort(-1).values)
    score = NeuralScore(network.to(device), Diffusion(domain, VE() if domain.bounded else VE(sigma_max=2.0)))
    return objective(score, x0.to(device), generator=generator), network


def problems() -> Iterator[tuple[Diffusion, Any]]:
    """Processes with exact scores: between walls and in the open."""
    cube, line = Diffusion(Hypercube((4,)), VE()), Diffusion(Euclidean((1,)), VP())
    yield cube, CosineScore(cube, 0.8)
    yield line, GaussianMixtureScore(line, [0.3, 0.7], [-1.0, 0.8], [0.04, 0.09])


def _solves(device: torch.device) -> Iterator[Row]:
    for process, score in problems():
        x = process.prior(torch.float64).sample((64,), generator=torch.Generator().manual_seed(2))  # type: ignore[call-arg]
        for solver in SOLVERS:
            if isinstance(solver, ReflectedStrang) and not process.domain.bounded:
                continue

            def run(d: torch.device, process=process, score=score, solver=solver, x=x) -> Tensor:
                equation = solver.accepts[0](process, score)
                return solve(equation, x.to(d), uniform_lambda(process, 12), solver, noise=SampleNoise(range(64))).x

            # 12 steps of some ulp each, times what the flow expands them by
            yield compared(f"{solver!r}, {process.domain!r}", run, device, 1e-10)


# waits --------------------------------------------------------------------------------------------------------------


@contextmanager
def sync_debug(mode: str, device: torch.device) -> Iterator[None]:
    """On CUDA, what makes the CPU wait for the device warns or is an error within the block."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*prototype feature")
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def never_waits(what: str, call: Callable[[], Any], device: torch.device) -> Row:
    """The second call is looked at: the first may bring constants along."""
    call()
    try:
        with sync_debug("error", device):
            call()
    except RuntimeError as error:
        return Row(what, f"waits: {str(error).splitlines()[0]}", False)
    return Row(what, "no wait" if device.type == "cuda" else "there is nothing to wait for", True)


def waits(call: Callable[[], Any], device: torch.device) -> int:
    """How often a call waits for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sync_debug("warn", device):
            call()
    return sum("synchronizing" in str(w.message) for w in caught)


def syncs(device: torch.device) -> Iterator[Row]:
    for domain in DOMAINS:
        objectives: tuple[Objective, ...] = (DenoisingScoreMatching(), SlicedScoreMatching())
        if not isinstance(domain, Ball):
            objectives += (LatentImageScoreMatching(), ConditionalFlowMatching())
        for objective in objectives:
            yield _loss_waits(domain, objective, device)
    for process, score in problems():
        x = process.prior(torch.float32).sample((64,)).to(device)
        for solver in (Euler(), Heun(), DPMSolverPP(2), UniPC(3), EulerMaruyama(), ReflectedEulerMaruyama()):

            def run(steps: int, process=process, score=score, solver=solver, x=x) -> None:
                noise = WhiteNoise(0, device) if solver.stochastic else None
                times = uniform_lambda(process, steps + 1)
                solve(solver.accepts[0](process, score), x, times, solver, noise=noise)

            run(5)
            few, many = (waits(lambda steps=steps, run=run: run(steps), device) for steps in (5, 20))
            yield Row(
                f"{solver!r}, {process.domain!r}: waits of a solve in 5 and in 20 steps", f"{few}, {many}", few == many
            )


def _loss_waits(domain: KernelDomain, objective: Objective, device: torch.device) -> Row:
    network = MLP(MLPConfig(domain.event_shape, 64, 2)).to(device)
    score = NeuralScore(network, Diffusion(domain, VE() if domain.bounded else VE(sigma_max=2.0)))
    x0 = domain.project(torch.rand(256, *domain.event_shape)).to(device)
    return never_waits(
        f"{type(objective).__name__} and its gradient, {domain!r}", lambda: score.loss(x0, objective).backward(), device
    )
