"""Checkpoints that come with the library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

#: what ``carom sample`` takes where it is told nothing
DEFAULT = "fashion-mnist"


def bundled() -> list[str]:
    """The names of the checkpoints that came along."""
    folder = resources.files(__package__) / "checkpoints"
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return sorted(name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors"))


@contextmanager
def find_checkpoint(name: str) -> Iterator[Path]:
    """The file of this path, or else the checkpoint of this name that came with the library.

    Raises ``FileNotFoundError`` with the names there are.
    """
    if Path(name).exists():
        yield Path(name)
        return
    known = bundled()
    if name not in known:
        there = (
            f"a file or one of {', '.join(known)}"
            if known
            else "a file; this installation has no checkpoints of its own"
        )
        raise FileNotFoundError(f"checkpoint: got {name!r}, which does not exist, expected {there}")
    with resources.as_file(resources.files(__package__) / "checkpoints" / f"{name}.safetensors") as path:
        yield path
