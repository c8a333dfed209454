"""Particle flows at 20,000 particles in two dimensions: seconds of one step, and the memory it takes; then what sets both.

python particles.py [count]
"""

from __future__ import annotations

import os
import resource
import sys
import time

# Before torch is imported; see kernel.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from timing import machine, verdict
from torch import Tensor

from carom.domains import Euclidean
from carom.solvers import GFSD, GFSF, SVGD, Blob, Euler, MedianBandwidth, ParticleFlow, solve

PLANE = Euclidean((2,))


def score(x: Tensor) -> Tensor:
    """Of the mixture ½N((−2, 0), I) + ½N((2, 0), I)."""
    right = torch.sigmoid(4 * x[:, :1])
    return torch.cat([2 * (2 * right - 1) - x[:, :1], -x[:, 1:]], 1)


def peak_mib() -> float:
    """The most memory this process has held, the interpreter and torch among it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step(flow: ParticleFlow, x: Tensor, repeats: int = 2) -> tuple[float, float]:
    """Wall seconds of the fastest of ``repeats`` Euler steps, and the processor seconds of that one."""
    taken = []
    for _ in range(repeats):
        wall, own = time.perf_counter(), time.process_time()
        solve(flow, x, [0.0, 0.1], Euler(), raise_on_failure=True)
        taken.append((time.perf_counter() - wall, time.process_time() - own))
    return min(taken)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(1, count, 2, generator=generator)
    print(f"{machine()}; {count} particles in 2-D; this process holds {peak_mib():.0f} MiB before")
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64):
            wall, own = step(SVGD(score, PLANE, count), x.to(dtype))
            print(f"SVGD, {dtype}: {wall:5.2f} s a step ({own:.2f} s of processor time)   {verdict(wall, 10)}")
            print(f"    peak {peak_mib():.0f} MiB   {verdict(peak_mib(), 1024)}")
        for block in (2**16, 2**17, 2**19, 2**20):
            wall, own = step(SVGD(score, PLANE, count, block=block), x)
            print(f"SVGD, blocks of {block:8} pairs: {wall:5.2f} s ({own:.2f})")
        for kind in (GFSD, Blob):
            wall, own = step(kind(score, PLANE, count), x)
            print(f"{kind.__name__}: {wall:5.2f} s a step ({own:.2f})")
        begin = time.perf_counter()
        MedianBandwidth().of(x[0])
        print(f"the median of 1,000 particles' distances: {time.perf_counter() - begin:.3f} s")
        for ridge in (1e-2, 1e-3):
            wall, own = step(GFSF(score, PLANE, count, ridge=ridge, dense=0), x, 1)
            print(
                f"GFSF by conjugate gradients, ridge {ridge:g}: {wall:5.2f} s a step ({own:.2f})   {verdict(wall, 60)}"
            )


if __name__ == "__main__":
    main()
