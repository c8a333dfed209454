"""What the library does on a GPU: the same numbers as on the CPU, at what speed, and how much of a step is not the network.

On a machine without CUDA it says so and ends. Sections, each of which can be asked for alone (``--only numerics``):

* numerics: kernels, schedules, losses and solvers on CUDA against the CPU, the same noise in both; each within a bound from rounding;
* syncs: losses under sync-debug mode, where waiting for the device is an error; solves, whose waits must not grow with their steps;
* bandwidth: the reflected kernel's score, log-density and draws, eager and compiled, as a share of the bandwidth of a copy;
* sampling: what a solve costs beyond its network evaluations: eager, with CUDA graphs of the network, with a compiled step;
* training: images/s of a training step in bf16 against the network's bare forward and backward pass;
* memory: the peak of a solve, in states.

Exit status 1 if anything that is claimed fails. ``--markdown docs/gpu.md`` puts the table under the heading "Measured" of that page.
``--device cpu --quick`` runs every section small, to test the script itself. carom has to be importable (installed, or the tree of links
that ``make types`` lays out on PYTHONPATH), with numpy, scipy, tqdm and safetensors; the whole is made to fit into 8 minutes.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_checks import Row, numerics, syncs
from timing import Times, interleaved
from torch import Tensor, nn

from carom.domains import Euclidean, Hypercube
from carom.processes import VE, Diffusion
from carom.scores.neural import NeuralScore, UNet, UNetConfig, train
from carom.solvers import (
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    Solver,
    UniPC,
    WhiteNoise,
    karras,
    solve,
)


class Setting(NamedTuple):
    """Where, how small, and until when (of the monotonic clock) costly extras are begun."""

    device: torch.device
    quick: bool
    until: float

    def timed(self, cases: dict[str, Callable[[], Any]]) -> Times:
        for case in cases.values():
            for _ in range(1 if self.quick else 3):  # compiling, warming up, recording a CUDA graph
                case()
        rounds, block = (1, 0.0) if self.quick else (15, 0.05)
        return interleaved(cases, rounds, seconds=30, block=block, device=self.device)

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        # the small run tests that it can be traced
        return torch.compile(function, **({"backend": "eager"} if self.quick else options))


def precision(tf32: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def exactly(checks: Callable[[torch.device], Iterator[Row]]) -> Callable[[Setting], Iterator[Row]]:
    """A section of checks, without TF32."""

    def section(setting: Setting) -> Iterator[Row]:
        precision(tf32=False)
        yield from checks(setting.device)

    return section


# bandwidth ----------------------------------------------------------------------------------------------------------


def bandwidth(setting: Setting) -> Iterator[Row]:
    precision(tf32=True)
    for count in (8,) if setting.quick else (128, 4096):
        yield from _bandwidth(setting, count, (3, 8, 8) if setting.quick else (3, 32, 32))


def _bandwidth(setting: Setting, count: int, event: tuple[int, ...]) -> Iterator[Row]:
    """Bytes that have to be read and written, states only, over the time: x, x0 and the score; x and x0; x0 and x."""
    domain, device = Hypercube(event), setting.device
    x0, x = torch.rand(2, count, *event, device=device)
    sigma = torch.rand(count, device=device) + 0.05
    functions: dict[str, tuple[int, Callable[..., Tensor]]] = {
        "score": (3, lambda x, x0, sigma: domain.unchecked_kernel(x0, sigma).score(x)),
        "log_prob": (2, lambda x, x0, sigma: domain.unchecked_kernel(x0, sigma).log_prob(x)),
        "sample": (2, lambda x, x0, sigma: domain.unchecked_kernel(x0, sigma).sample()),
    }
    cases: dict[str, Callable[[], Any]] = {"copy": lambda target=torch.empty_like(x): target.copy_(x)}
    for name, (_, function) in functions.items():
        cases[f"{name}, eager"] = lambda f=function: f(x, x0, sigma)
        cases[f"{name}, compiled"] = lambda f=setting.compiled(function): f(x, x0, sigma)
    times = setting.timed(cases)
    states = f"{count} × {' × '.join(map(str, event))}"
    yield Row(f"copy, {states}", f"{2 * x.nbytes / times.median('copy') / 1e9:.0f} GB/s")
    for case in list(cases)[1:]:
        passes = functions[case.split(",")[0]][0]
        rate, share = passes * x.nbytes / times.median(case), passes / 2 / times.ratio(case, "copy")
        yield Row(f"{case}, {states}", f"{rate / 1e9:.0f} GB/s, {share:.0%} of a copy")


# sampling -----------------------------------------------------------------------------------------------------------


def image_score(setting: Setting) -> tuple[NeuralScore, int]:
    """(a score of 32×32 images, a batch size)."""
    config = (
        UNetConfig(3, 8, (1, 2), heads=0) if setting.quick else UNetConfig(3, 96, (1, 2, 2), blocks=2, attention=(1,))
    )
    torch.manual_seed(0)
    network = UNet(config)
    nn.init.normal_(network.last.weight, std=0.02)  # which starts at zero
    network.to(setting.device, memory_format=torch.channels_last)
    size = 8 if setting.quick else 32
    return NeuralScore(network, Diffusion(Hypercube((3, size, size)), VE())), 4 if setting.quick else 64


def sampling(setting: Setting) -> Iterator[Row]:
    precision(tf32=True)
    score, batch = image_score(setting)
    score.eval().requires_grad_(False)
    x = torch.rand(batch, *score.process.domain.event_shape, device=setting.device)
    plain = score.network
    with torch.no_grad():
        yield from _overheads("eager", score, x, setting)
        score.network = setting.compiled(plain, mode="reduce-overhead")  # type: ignore[assignment]
        yield from _overheads("CUDA graphs of the network", score, x, setting)
        score.network = plain
        yield from _compiled_step(score, x, setting)


def _overheads(how: str, score: NeuralScore, x: Tensor, setting: Setting) -> Iterator[Row]:
    process, device = score.process, setting.device
    times, c_noise = karras(process, 4 if setting.quick else 18), torch.zeros(len(x), device=device)
    rules: dict[str, tuple[Solver, WhiteNoise | None]] = {
        **{repr(s): (s, None) for s in (Euler(), Heun(), DPMSolverPP(2), UniPC(3))},
        "EulerMaruyama(), noise drawn on the CPU": (EulerMaruyama(), WhiteNoise(0)),
        "EulerMaruyama(), noise drawn on the device": (EulerMaruyama(), WhiteNoise(0, device)),
    }
    # a clone, for the output of a CUDA graph is overwritten by the next
    cases: dict[str, Callable[[], Any]] = {"network": lambda: score.network(x, c_noise).clone()}
    counts = {}
    for name, (solver, noise) in rules.items():
        run = lambda s=solver, n=noise: solve(s.accepts[0](process, score), x, times, s, noise=n)  # type: ignore[call-arg]
        cases[name], counts[name] = run, int(torch.as_tensor(run().nfe).max())
    measured = setting.timed(cases)
    weights = sum(p.numel() for p in score.network.parameters())
    images = " × ".join(map(str, x.shape))
    yield Row(f"network of {weights:,} weights at {images}, {how}", f"{1e3 * measured.median('network'):.2f} ms")
    for name, count in counts.items():
        over = measured.ratio(name, "network") / count - 1
        yield Row(f"{name}, {count} evaluations, {how}", f"{over:+.1%} beyond the network")


def _compiled_step(score: NeuralScore, x: Tensor, setting: Setting) -> Iterator[Row]:
    """One compiled step, network and all, for every step of a grid."""
    what = "DPMSolverPP(2), step compiled with its network"
    if time.monotonic() > setting.until:
        yield Row(what, "left out: time was up")
        return
    solver, process = DPMSolverPP(2), score.process
    ours = copy.copy(solver)
    ours.step = setting.compiled(solver.step, fullgraph=True)  # type: ignore[method-assign]
    times = karras(process, 4 if setting.quick else 18)
    cases: dict[str, Callable[[], Any]] = {
        name: lambda s=s: solve(process.flow(score), x, times, s) for name, s in (("eager", solver), ("compiled", ours))
    }
    error = float((cases["compiled"]().x - cases["eager"]().x).abs().max())
    # TF32 carries 11 bits, and a fused network rounds elsewhere
    yield Row(f"{what}: difference from eager", f"{error:.1e} (≤ 1e-01)", error <= 0.1)
    yield Row(what, f"{setting.timed(cases).ratio('compiled', 'eager'):.2f} × the time of eager")


# training -----------------------------------------------------------------------------------------------------------


def training(setting: Setting) -> Iterator[Row]:
    precision(tf32=True)
    device = setting.device
    score, _ = image_score(setting)
    batch, few, many = (4, 1, 3) if setting.quick else (128, 20, 120)
    x = torch.rand(batch, *score.process.domain.event_shape, device=device)
    c_noise, gradient = torch.zeros(batch, device=device), torch.randn_like(x) / batch
    data = torch.rand(8 * batch, *x.shape[1:], device=device)

    def bare() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out = score.network(x, c_noise)
        out.backward(gradient.to(out.dtype))
        score.network.zero_grad(set_to_none=True)

    def trained(steps: int) -> Callable[[], Any]:
        return lambda: train(score, data, steps=steps, batch_size=batch, mixed_precision="bf16", progress=False)

    times = setting.timed({"bare": bare, "few": trained(few), "many": trained(many)})
    # what a training does once is in both
    step = (times.median("many") - times.median("few")) / (many - few)
    network = times.median("bare")
    yield Row(f"bare forward and backward pass in bf16, batch {batch}", f"{batch / network:,.0f} images/s")
    yield Row(
        "training step: loss, gradient norm, AdamW, moving average",
        f"{batch / step:,.0f} images/s, {1 - network / step:+.1%} of the step beside the network",
    )


# memory -------------------------------------------------------------------------------------------------------------


def memory(setting: Setting) -> Iterator[Row]:
    device = setting.device
    event = (8,) if setting.quick else (1 << 18,)
    for domain in (Euclidean(event), Hypercube(event)):
        process = Diffusion(domain, VE(sigma_max=2.0))
        x = torch.rand(64, *event, device=device)
        for solver in (Euler(), Heun(), DPMSolverPP(2), UniPC(3)):
            run = lambda s=solver, p=process, x=x: solve(p.flow(lambda u, t: torch.zeros_like(u)), x, karras(p, 8), s)
            run()
            if device.type != "cuda":
                yield Row(f"{solver!r}, {type(domain).__name__}", "is measured on CUDA alone")
                continue
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run()
            peak = (torch.cuda.max_memory_allocated(device) - before) / x.nbytes
            yield Row(f"{solver!r}, {type(domain).__name__}", f"{peak:.1f} states beside the caller's")


SECTIONS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "numerics": exactly(numerics),
    "syncs": exactly(syncs),
    "bandwidth": bandwidth,
    "sampling": sampling,
    "training": training,
    "memory": memory,
}


def rows_of(section: str, setting: Setting) -> Iterator[Row]:
    """A section that fails is a row of the report, and the others go on."""
    try:
        yield from SECTIONS[section](setting)
    except Exception as error:
        yield Row(f"ended by {type(error).__name__}", str(error).strip().splitlines()[0] if str(error) else "", False)


def write(page: Path, table: str) -> None:
    heading = "## Measured\n"
    before = page.read_text(encoding="utf-8").partition(heading)[0] if page.exists() else "# On a GPU\n\n"
    page.write_text(f"{before}{heading}\n{table}\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to test the script itself")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--minutes", type=float, default=5.0, help="after which the compiled step is left out")
    parser.add_argument("--markdown", type=Path, help="a page, under whose heading 'Measured' the table goes")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("gpu.py: there is no CUDA device here; run it where there is one (--device cpu --quick tests the script)")
        return 0
    device = torch.device(options.device)
    setting = Setting(device, options.quick, time.monotonic() + 60 * options.minutes)
    name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}" if device.type == "cuda" else "CPU"
    lines, failed = (
        [f"{name}, torch {torch.__version__}", "", "| section | what | measured | |", "|---|---|---|---|"],
        0,
    )
    print("\n".join(lines))
    for section in options.only:
        for row in rows_of(section, setting):
            mark = "" if row.passed is None else "pass" if row.passed else "**FAIL**"
            failed += row.passed is False
            lines.append(f"| {section} | {row.what} | {row.value.replace('|', '/')} | {mark} |")
            print(lines[-1], flush=True)
    if options.markdown is not None:
        write(options.markdown, "\n".join(lines))
    print(f"{failed} failed" if failed else "nothing failed")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
