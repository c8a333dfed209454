"""The exact score of the reflected Gaussian against the plain way of writing it: time, memory and error in one run; then what other
domains that stand on the same engine cost.

The plain way is what reflected-diffusion code does: 20 cosine modes and 42 Gaussian images of every element in ``[..., terms]``
temporaries, a σ threshold between them, small numbers in the denominators. Ours writes each row by the regime it is in.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

# Before torch is imported. Threads that wait for one another should sleep: where other processes keep the cores busy,
# spinning costs a time slice per operation, for whoever is measured. And the profiler need not report to stderr.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from timing import interleaved, machine, settle_allocator, verdict
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from carom.domains import Ball, Hypercube, Orthant, RegularSimplex, Simplex, Torus
from carom.domains.interval import interval_score

BATCH, DIM = 128, 3072
SIGMA_MIN, SIGMA_MAX = 1e-2, 5.0
BANDS = ((1e-2, 0.16), (0.16, 0.4), (0.4, 0.8), (0.8, 1.6), (1.6, 5.0))


def plain_score(
    x: Tensor, x0: Tensor, sigma: Tensor, modes: int = 20, images: int = 21, switch: float = 0.1414
) -> Tensor:
    """∂ₓ log p on [0, 1] as it is usually written; sigma broadcasts against x."""
    x, x0, s = x[..., None], x0[..., None], sigma[..., None]
    k = torch.pi * torch.arange(1, modes + 1, dtype=x.dtype)
    weight = torch.exp(-0.5 * (k * s) ** 2) * torch.cos(k * x0)
    p = 1 + 2 * (weight * torch.cos(k * x)).sum(-1)
    slope = -2 * (k * weight * torch.sin(k * x)).sum(-1)
    by_modes = slope / (p + 1e-12)

    shift = 2.0 * (torch.arange(images, dtype=x.dtype) - images // 2)
    distance = torch.cat([x0 + shift, shift - x0], -1) - x
    weight = torch.exp(-0.5 * (distance / s) ** 2)
    by_images = (weight * distance).sum(-1) / (weight.sum(-1) + 1e-12) / sigma**2
    return torch.where(sigma < switch, by_images, by_modes)


def reference_score(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """In float64, and by other formulas than the library's: for σ < 1 a softmax over 30 images, the nearest left out 13σ away;
    6 modes above. One σ per row."""
    x, x0, sigma = x.double(), x0.double(), sigma.double()
    rows = []
    for a, a0, s in zip(x, x0, sigma.reshape(-1), strict=True):
        if s < 1:
            shift = 2.0 * torch.arange(-7, 8, dtype=torch.float64)
            distance = torch.cat([a0[:, None] + shift, shift - a0[:, None]], -1) - a[:, None]
            weight = torch.softmax(-0.5 * (distance / s) ** 2, -1)
            rows.append((weight * distance).sum(-1) / s**2)
        else:
            k = math.pi * torch.arange(1, 7, dtype=torch.float64)
            weight = torch.exp(-0.5 * (k * s) ** 2) * torch.cos(k * a0[:, None])
            p = 1 + 2 * (weight * torch.cos(k * a[:, None])).sum(-1)
            rows.append(-2 * (k * weight * torch.sin(k * a[:, None])).sum(-1) / p)
    return torch.stack(rows)


def log_uniform(low: float, high: float, n: int) -> Tensor:
    return low * (high / low) ** torch.rand(n)


def peak_memory(call: Callable[[], Tensor]) -> int:
    """The most bytes that the call held at a time, its result among them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = call()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert held >= result.nbytes, "the profiler did not see the result being allocated"
    return peak


def compiled_score() -> Callable[..., Tensor] | None:
    """The engine through torch.compile, where a C++ compiler is at hand."""
    compiled = torch.compile(lambda x, x0, sigma: interval_score(x, x0, sigma, 0.0, 1.0), fullgraph=True)
    x = torch.rand(BATCH, DIM)
    try:
        compiled(x, x, torch.rand(BATCH, 1))
    except Exception as error:
        print(f"not compiled: {type(error).__name__}")
        return None
    return compiled


def other_domains() -> None:
    """Time of a training pair and of an exact score, per coordinate and in exp passes over the same tensor, σ mixed."""
    pairs = [
        (Hypercube((DIM,)), BATCH),
        (Orthant((DIM,)), BATCH),
        (Torus((DIM,)), BATCH),
        (Simplex(4, (DIM // 3,)), BATCH),
        (Simplex(10), 4096),
        (Simplex(13), 256),
        (Simplex(1000), 4096),
        (RegularSimplex(3), 4096),
        (Ball(2), 1024),
        (Ball(3), 1024),
    ]
    print(f"\n{machine()}, float32, σ log-uniform in [0.05, 5]")
    print(
        f"{'':24}{'states':>8}{'pair, s':>10}{'ns/coord':>10}{'it / exp':>10}{'score, s':>10}{'ns/coord':>10}{'it / exp':>10}"
    )
    for domain, count in pairs:
        x0 = domain.uniform().sample((count,)) if domain.bounded else torch.rand(count, *domain.event_shape)
        kernel = domain.heat_kernel(x0, log_uniform(0.05, SIGMA_MAX, count))
        x = kernel.sample()
        cases: dict[str, Callable[[], object]] = {"pair": kernel.sample_with_target, "exp": x.exp}
        if not isinstance(domain, Simplex) or domain.categories <= 13:
            cases["score"] = lambda kernel=kernel, x=x: kernel.score(x)
        times = interleaved(cases, rounds=5, seconds=6)
        row = f"{domain!r:24}"[:24] + f"{count:8}"
        for name in ("pair", "score"):
            if name in cases:
                each = times.median(name) / x.numel() * 1e9
                row += f"{times.median(name):10.4f}{each:10.1f}{times.ratio(name, 'exp'):10.0f}"
        print(row)


def main() -> None:
    torch.manual_seed(0)
    settle_allocator()
    cube = Hypercube((DIM,))
    x0, sigma = torch.rand(BATCH, DIM), log_uniform(SIGMA_MIN, SIGMA_MAX, BATCH)
    x, column = cube.heat_kernel(x0, sigma).sample(), sigma[:, None]

    cases: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain_score(x, x0, column),
        "heat_kernel(x0, σ).score(x)": lambda: cube.heat_kernel(x0, sigma).score(x),
        "interval_score": lambda: interval_score(x, x0, column, 0.0, 1.0),
        "one exp pass": lambda: torch.exp(x),
    }
    if (compiled := compiled_score()) is not None:
        cases["interval_score, compiled"] = lambda: compiled(x, x0, column)
    for low, high in BANDS:
        s = log_uniform(low, high, BATCH)
        at = cube.heat_kernel(x0, s).sample()
        cases[f"interval_score, σ in [{low:g}, {high:g}]"] = lambda at=at, s=s[:, None]: interval_score(
            at, x0, s, 0.0, 1.0
        )

    print(
        f"score of the reflected Gaussian, {BATCH} × {DIM}, float32, σ log-uniform in [{SIGMA_MIN:g}, {SIGMA_MAX:g}] per sample"
    )
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times = interleaved(cases, rounds=15, seconds=25)
        print(f"\n{machine()}, {len(times.seconds['plain'])} rounds")
        print(f"{'':38}{'ns/element':>11}{'plain / it':>12}{'it / exp':>10}")
        for name in cases:
            faster, passes = 1 / times.ratio(name, "plain"), times.ratio(name, "one exp pass")
            row = f"{name:38}{times.median(name) / x.numel() * 1e9:11.2f}{faster:12.1f}{passes:10.1f}"
            if name.startswith("heat"):
                row += f"   plain / it {verdict(faster, 25, at_least=True)}"
            elif name == "interval_score":
                row += f"   it / exp {verdict(passes, 25)}"
            elif name.endswith("compiled"):
                row += f"   plain / it {verdict(faster, 80, at_least=True)}"
            print(row)

    torch.set_num_threads(1)
    exact = reference_score(x, x0, column)
    print(f"\n{'':38}{'peak memory / size of x':>24}{'max |error|·σ/(1 + |score|·σ)':>32}")
    for name in list(cases)[:3]:
        memory = peak_memory(cases[name]) / x.nbytes
        error = (((cases[name]() - exact).abs() * column) / (1 + exact.abs() * column)).max().item()
        row = f"{name:38}{memory:24.1f}{error:32.1e}"
        print(row if name == "plain" else row + f"   memory {verdict(memory, 4)}, error {verdict(error, 1e-5)}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        other_domains()


if __name__ == "__main__":
    main()
