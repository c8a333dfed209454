"""What the library does on a GPU: the same numbers as on the CPU, at what speed, and how much of a step is not the network.

On a machine without CUDA it says so and ends. Sections, each of which can be asked for alone (``--only numerics``):

* numerics: kernels, schedules, losses and solvers on CUDA against the CPU, the same noise in both; each within a bound from rounding;
* bandwidth: the reflected kernel's score, log-density and draws, eager and compiled, as a share of the bandwidth of a copy;
* sampling: what a solve costs beyond its network evaluations, with and without a compiled network (CUDA graphs) and a compiled loop;
* training: images/s of a training step in bf16 against the network's bare forward and backward pass; the loss under sync-debug mode;
* memory: peak of a solve, in states.

``--markdown FILE`` writes the table. ``--device cpu --quick`` runs every section small, to test the script itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carom.domains import Ball, Euclidean, Hypercube, Orthant, RegularSimplex, Simplex, Torus
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
    UNet,
    UNetConfig,
    train,
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
    Solver,
    UniPC,
    bind,
    integrate,
    karras,
    solve,
    uniform_lambda,
)
from carom.validation.problems import CosineScore

DOMAINS = [Euclidean((6,)), Orthant((6,)), Hypercube((6,)), Torus((6,)), Simplex(7), RegularSimplex(3), Ball(2)]
SCHEDULES = [VP(), SubVP(), VE(), EDM(), CosineVP(), FlowMatching(), Discrete.ddpm(100)]
SOLVERS: list[Solver] = [
    *[Euler(), Heun(), DDIM(), DPMSolver(3), DPMSolverPP(2), DPMSolverPP(2, sde=True), UniPC(3), DEIS(3)],
    *[ExponentialAdams(3), EulerMaruyama(), EDMStochastic(), ReflectedStrang()],
]


class Row(NamedTuple):
    """A line of the report; ``passed`` is None where nothing is claimed."""

    what: str
    value: str
    passed: bool | None = None


class Setting(NamedTuple):
    device: torch.device
    quick: bool


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(case: Callable[[], Any], device: torch.device, rounds: int = 20) -> float:
    """Median wall time of a call after three warm ones, the device's queue empty before and after."""
    for _ in range(3):
        case()
    taken = []
    for _ in range(rounds):
        synchronise(device)
        start = time.perf_counter()
        case()
        synchronise(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to 1 + size."""
    one, other = one.double().cpu(), other.double().cpu()
    return float(((one - other).abs() / (1 + other.abs())).max())


# numerics ---------------------------------------------------------------------------------------------------------


def compared(what: str, on: Callable[[torch.device], Tensor], device: torch.device, bound: float) -> Row:
    error = difference(on(device), on(torch.device("cpu")))
    return Row(what, f"{error:.1e} (≤ {bound:.0e})", error <= bound)


def numerics(setting: Setting) -> Iterator[Row]:
    """float64 throughout but for the losses, so that what differs is order of summation and library functions: some hundred ulp."""
    device = setting.device
    for domain in DOMAINS:
        x0 = domain.project(0.3 + 0.1 * torch.randn(64, *domain.event_shape, dtype=torch.float64).abs())
        x = domain.project(x0 + 0.05 * torch.randn_like(x0))
        sigma = torch.linspace(0.06, 1.0, 64, dtype=torch.float64)
        for name in ("log_prob", "score"):

            def value(d: torch.device, domain=domain, name=name, x=x, x0=x0, sigma=sigma) -> Tensor:
                return getattr(domain.heat_kernel(x0.to(d), sigma.to(d)), name)(x.to(d))

            yield compared(f"kernel {name}, {domain!r}", value, device, 1e-9)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for schedule in SCHEDULES:

        def levels(d: torch.device, schedule=schedule) -> Tensor:
            u = t.to(d) * schedule.t_max
            return torch.stack([schedule.scale(u), schedule.sigma(u).log(), schedule.time(schedule.sigma(u))])

        yield compared(f"schedule {schedule!r}", levels, device, 1e-11)
    yield from _losses(device)
    yield from _solves(device)


def _losses(device: torch.device) -> Iterator[Row]:
    for domain in (Euclidean((6,)), Hypercube((6,)), Simplex(7)):
        process = Diffusion(domain, VE(sigma_max=2.0))
        torch.manual_seed(0)
        score = NeuralScore(MLP(MLPConfig((6,), 64, 2)), process)
        nn.init.normal_(score.network.last.weight)
        x0 = Hypercube((6,)).uniform().sample((256,)).sort(-1).values
        for objective in (
            *[DenoisingScoreMatching(), LatentImageScoreMatching(), ConditionalFlowMatching()],
            *([ImplicitScoreMatching()] if domain.bounded else []),
        ):

            def loss(d: torch.device, score=score, objective=objective, x0=x0) -> Tensor:
                model = score.to(d)
                # noise drawn on the CPU for both
                value = objective(model, x0.to(d), generator=torch.Generator().manual_seed(1))
                model.network.zero_grad()
                value.backward()
                gradients = torch.cat([p.grad.flatten() for p in model.network.parameters() if p.grad is not None])
                return torch.cat([value.detach().reshape(1), gradients]).cpu()

            # float32 with TF32 off: a thousand products a sum
            yield compared(f"{type(objective).__name__} and its gradient, {domain!r}", loss, device, 1e-3)


def _solves(device: torch.device) -> Iterator[Row]:
    cube, space = Diffusion(Hypercube((4,)), VE()), Diffusion(Euclidean((1,)), VP())
    exact = [CosineScore(cube, 0.8), GaussianMixtureScore(space, [0.3, 0.7], [-1.0, 0.8], [0.04, 0.09])]
    for process, score in zip((cube, space), exact, strict=True):
        x = process.prior(torch.float64).sample((64,), generator=torch.Generator().manual_seed(2))
        times = uniform_lambda(process, 12)
        for solver in SOLVERS:
            if isinstance(solver, ReflectedStrang) and not process.domain.bounded:
                continue

            def run(d: torch.device, process=process, score=score, solver=solver, x=x, times=times) -> Tensor:
                flow = process.flow(score) if type(process.flow(score)) in solver.accepts else process.reverse(score)
                return solve(flow, x.to(d), times, solver, noise=seeded()).x

            yield compared(f"{solver!r}, {process.domain!r}", run, device, 1e-8)


def seeded() -> Any:
    from carom.solvers import SampleNoise

    return SampleNoise(range(64))


# speed ------------------------------------------------------------------------------------------------------------


def bandwidth(setting: Setting) -> Iterator[Row]:
    device, quick = setting
    n, event = (8, (3, 8, 8)) if quick else (4096, (3, 32, 32))
    x0, x = torch.rand(2, n, *event, device=device)
    sigma = torch.rand(n, device=device) + 0.05
    source = torch.rand(2 * x0.numel(), device=device)
    target = torch.empty_like(source)
    rounds = 3 if quick else 20
    rate = 2 * source.numel() * 4 / seconds(lambda: target.copy_(source), device, rounds)
    yield Row("copy", f"{rate / 1e9:.0f} GB/s")
    domain = Hypercube(event)
    read_write = {"score": 3, "log_prob": 2, "sample": 2}
    for name, passes in read_write.items():

        def kernel(name=name) -> Any:
            return getattr(domain.unchecked_kernel(x0, sigma), name)(*([] if name == "sample" else [x]))

        for mode in ("eager",) if quick else ("eager", "compiled"):
            case = kernel if mode == "eager" else torch.compile(kernel)
            own = passes * x0.numel() * 4 / seconds(case, device, rounds)
            yield Row(f"{name} of the reflected kernel, {mode}", f"{own / 1e9:.0f} GB/s, {own / rate:.0%} of a copy")


def unet(setting: Setting) -> tuple[NeuralScore, tuple[int, ...], int]:
    event, batch = ((3, 8, 8), 4) if setting.quick else ((3, 32, 32), 64)
    config = UNetConfig(3, 8) if setting.quick else UNetConfig(3, 96, (1, 2, 2), blocks=2, attention=(1,))
    torch.manual_seed(0)
    network = UNet(config).to(memory_format=torch.channels_last)
    score = NeuralScore(network, Diffusion(Hypercube(event), VE())).to(setting.device).eval().requires_grad_(False)
    return score, event, batch


@torch.no_grad()
def sampling(setting: Setting) -> Iterator[Row]:
    device, quick = setting
    score, event, batch = unet(setting)
    x = torch.rand(batch, *event, device=device)
    process, rounds, n = score.process, 3 if quick else 10, 4 if quick else 18
    times = karras(process, n)
    plain = score.network
    for name in ("eager",) if quick else ("eager", "CUDA graphs"):
        score.network = plain if name == "eager" else torch.compile(plain, mode="reduce-overhead")
        network = seconds(lambda: score.network(x, torch.zeros(batch, device=device)).clone(), device, rounds)
        yield Row(
            f"network of {sum(p.numel() for p in plain.parameters()):,} weights, {name}", f"{network * 1e3:.2f} ms"
        )
        for solver in (Euler(), Heun(), DPMSolverPP(2), UniPC(3), ReflectedEulerMaruyama()):
            flow = process.flow(score) if type(process.flow(score)) in solver.accepts else process.reverse(score)
            evaluations = int(torch.as_tensor(solve(flow, x, times, solver).nfe).max())
            taken = seconds(lambda flow=flow, solver=solver: solve(flow, x, times, solver), device, rounds)
            over = taken / (evaluations * network) - 1
            yield Row(f"{solver!r}, {evaluations} evaluations, {name}", f"{over:+.1%} beyond the network")
    score.network = plain
    if not quick:
        yield from _compiled_loop(score, x, times, device)


def _compiled_loop(score: NeuralScore, x: Tensor, times: Tensor, device: torch.device) -> Iterator[Row]:
    """The whole of ``integrate`` in one graph, network and all."""
    solver = DPMSolverPP(2)
    flow = score.process.flow(score)
    records = bind(solver.plan(flow, times), x)
    draws = [() for _ in records]
    eager = seconds(lambda: integrate(flow, x, records, solver, draws), device, 5)
    compiled = torch.compile(lambda u: integrate(flow, u, records, solver, draws))
    yield Row(
        "integrate, DPM-Solver++(2M), compiled whole", f"{seconds(lambda: compiled(x), device, 5) / eager:.2f}× eager"
    )


# training ---------------------------------------------------------------------------------------------------------


@contextmanager
def no_sync(device: torch.device) -> Iterator[None]:
    """Any synchronisation raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def training(setting: Setting) -> Iterator[Row]:
    device, quick = setting
    score, event, _ = unet(setting)
    score.train().requires_grad_(True)
    batch, steps = (4, 3) if quick else (128, 60)
    x, c_noise = torch.rand(batch, *event, device=device), torch.zeros(batch, device=device)

    def bare() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = score.network(x, c_noise).square().mean()
        loss.backward()
        score.network.zero_grad(set_to_none=True)

    network = seconds(bare, device, 3 if quick else 20)
    score.loss(x).backward()
    score.network.zero_grad(set_to_none=True)
    with no_sync(device):
        score.loss(x).backward()
    yield Row(
        "loss and its backward pass under sync-debug mode", "no sync" if device.type == "cuda" else "no CUDA", True
    )
    data = torch.rand(8 * batch, *event, device=device)
    options: dict[str, Any] = {"batch_size": batch, "mixed_precision": "bf16", "progress": False}
    train(score, data, steps=3, **options)
    synchronise(device)
    start = time.perf_counter()
    train(score, data, steps=steps, **options)
    synchronise(device)
    step = (time.perf_counter() - start) / steps
    yield Row("bare forward and backward, bf16", f"{batch / network:,.0f} images/s")
    yield Row(
        "training step: loss, AdamW, average", f"{batch / step:,.0f} images/s, {network / step:.0%} of the bare network"
    )


def memory(setting: Setting) -> Iterator[Row]:
    device = setting.device
    if device.type != "cuda":
        yield Row("memory", "is measured on CUDA only")
        return
    process = Diffusion(Hypercube((64, 1024)), VE())
    x = torch.rand(256, 64, 1024, device=device)
    state = x.numel() * 4
    for solver in (Euler(), DPMSolverPP(2), UniPC(3)):
        flow = process.flow(lambda u, t: torch.zeros_like(u))
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        solve(flow, x, karras(process, 6), solver)
        peak = (torch.cuda.max_memory_allocated(device) - before) / state
        yield Row(
            f"{solver!r} on a cube",
            f"{peak:.1f} states beside the caller's (≤ {solver.order or 1} + 4)",
            peak <= (solver.order or 1) + 4,
        )


SECTIONS = {"numerics": numerics, "bandwidth": bandwidth, "sampling": sampling, "training": training, "memory": memory}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to test the script itself")
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--markdown", type=Path, help="a file for the table")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu.py: there is no CUDA device here; run it where there is one (--device cpu --quick tests the script itself)"
        )
        return 0
    setting = Setting(torch.device(options.device), options.quick)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name() if setting.device.type == "cuda" else "CPU"
    lines, failed = [f"{name}, torch {torch.__version__}\n", "| section | what | measured | |\n|---|---|---|---|"], 0
    print("\n".join(lines))
    for section, rows in SECTIONS.items():
        if options.only not in (None, section):
            continue
        for row in rows(setting):
            mark = "" if row.passed is None else "pass" if row.passed else "**FAIL**"
            failed += row.passed is False
            lines.append(f"| {section} | {row.what} | {row.value} | {mark} |")
            print(lines[-1], flush=True)
    if options.markdown is not None:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{failed} failed" if failed else "all passed")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
