"""What a training hears and says at the terminal: Ctrl-C, the progress bar, how it ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed within the block. The first only notes it, so that no step is cut in half; the second raises."""
    pressed = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous if previous is not None else signal.default_int_handler)


class Bar:
    """A progress bar over steps, or over seconds where only these are limited; with the loss, each being worth 1 − ``memory`` of it."""

    def __init__(
        self,
        steps: int | None,
        seconds: float | None,
        done: int,
        progress: bool,
        *,
        step: str = "step",
        memory: float = 0.98,
    ):
        self.by_step, self.step, self.memory = steps is not None, step, memory
        self.mean: float | None = None
        layout = "{l_bar}{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}{postfix}]"
        total, unit = (steps, f"{step}s") if self.by_step else (seconds, "s")
        # tqdm forgets a total that has been passed
        start = 0 if steps is None else min(done, steps)
        self.bar = tqdm(total=total, initial=start, unit=unit, disable=not progress, bar_format=layout)
        self.bar.set_description("training")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def show(self, done: int, spent: float, loss: float) -> None:
        self.mean = loss if self.mean is None else self.memory * self.mean + (1 - self.memory) * loss
        self.bar.set_postfix_str(f"loss {self.mean:.4f}, {self.step} {done}", refresh=False)
        self.bar.update((done if self.by_step else min(spent, self.bar.total)) - self.bar.n)


def say_interrupted(done: int, place: str | None, step: str = "step", call: str = "train") -> None:
    saved = (
        f"saved to {place}; go on with {call}(…, checkpoint={place!r}, resume=True)"
        if place
        else "not saved: no checkpoint"
    )
    print(f"training interrupted after {step} {done}, {saved}", file=sys.stderr)


def explain(loss: float, norm: float, step: int, path: str | os.PathLike[str] | None) -> str:
    """Why a training stopped at a loss or a gradient that is not finite."""
    place = f" and in {str(path)!r}" if path is not None else ""
    return (
        f"train: step {step + 1} got loss {loss:g} with gradient norm {norm:g}, expected finite values; the weights of step "
        f"{step} are kept in the score{place}. Try a lower lr, a longer warmup or clip=1.0, and check the data"
    )
