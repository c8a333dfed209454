"""Times that can be compared on a busy machine: cases take turns, and ratios are formed round by round before the median.

Run as a script it says how steady the machine is; the figures of the other benchmarks are as good as that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of each case in each round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """How many times as long ``name`` takes as ``base``: the median of the rounds' own ratios."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleaved(
    cases: Mapping[str, Callable[[], Any]],
    rounds: int,
    seconds: float = 60.0,
    block: float = 0.02,
    device: torch.device | None = None,
) -> Times:
    """Time every case once per round; fewer rounds (at least 3) once ``seconds`` are over.

    Where torch runs one thread, its processor time is measured, which other processes hardly disturb; otherwise wall time.
    Short cases are repeated for about ``block`` seconds at a time: a call much shorter than a time slice would be measured
    undisturbed, and a long one beside it with its share of the others' work. On a CUDA ``device`` wall time, from an empty queue
    to an empty queue.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    if device is not None and device.type == "cuda":
        clock = partial(_when_done, device)

    def once(case: Callable[[], Any], number: int) -> float:
        start = clock()
        for _ in range(number):
            case()
        return (clock() - start) / number

    numbers = {}
    for name, case in cases.items():
        case()
        numbers[name] = max(1, round(block / once(case, 1)))
    taken: dict[str, list[float]] = {name: [] for name in cases}
    end = time.perf_counter() + seconds
    for index in range(rounds):
        for name, case in cases.items():
            taken[name].append(once(case, numbers[name]))
        if index >= 2 and time.perf_counter() > end:
            break
    return Times(taken)


def _when_done(device: torch.device) -> float:
    torch.cuda.synchronize(device)
    return time.perf_counter()


def settle_allocator() -> None:
    """Let malloc see one large block come and go, as any network makes it: before that glibc hands every block of the size
    of a state back to the system, and whoever is measured pays for page faults."""
    torch.empty(1 << 23).fill_(0.0)


def verdict(value: float, target: float, *, at_least: bool = False) -> str:
    met = value >= target if at_least else value <= target
    return f"{'≥' if at_least else '≤'} {target:g}: {'met' if met else 'MISSED'}"


def machine() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    torch.set_num_threads(1)
    settle_allocator()
    x = torch.rand(1 << 18)
    seconds = sorted(interleaved({"exp": x.exp}, 400, block=0.0).seconds["exp"])
    low, middle, high = (seconds[int(q * len(seconds))] / x.numel() * 1e9 for q in (0.05, 0.5, 0.95))
    print(f"{machine()}; one exp pass: {middle:.2f} ns per element, 90% of passes within [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
