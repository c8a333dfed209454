"""What all commands say alike: the console, refusals in one line, the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import typer
from rich.console import Console
from rich.markup import escape

console = Console()


class DeviceName(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@contextmanager
def clear_errors() -> Iterator[None]:
    """What the library refuses, in one line instead of a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        Console(stderr=True).print("[red]error:[/red]", escape(str(error)), highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


@contextmanager
def interruptible(so_far: str) -> Iterator[None]:
    """After Ctrl-C a line that says what has come of it, and the exit status of an interruption."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: {so_far}")
        raise typer.Exit(130) from None


def say(text: str) -> None:
    """A line that is not wrapped, so that paths in it stay whole."""
    console.print(escape(text), highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """What a user should look at, in yellow."""
    console.print(escape(text), style="yellow", highlight=False, soft_wrap=True)


def plural(number: int, thing: str) -> str:
    """What goes after a number: "row" after 1, else "rows"."""
    return thing if number == 1 else f"{thing}s"


def find_device(name: DeviceName) -> str:
    """ "cpu" or "cuda"; by itself a GPU where there is one."""
    import torch

    there = torch.cuda.is_available()
    if name is DeviceName.cuda and not there:
        raise ValueError("--device: got cuda, but torch finds no GPU; use --device cpu")
    return "cuda" if there and name is not DeviceName.cpu else "cpu"
