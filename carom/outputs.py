"""Where samples go: an array on disk, a folder of pictures, one picture of all. Each takes any rows in any order and holds none."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .brightness import brightness, check_images
from .scores.neural import NeuralScore

#: the most images in one picture
PICTURED = 1024


class Output(ABC):
    """Args: path: where the samples go. score: whose they are. points: write points of the domain, not the values they stand for."""

    #: whether ``begin`` may replace what is there without being told
    replaces = False

    def __init__(self, path: Path, score: NeuralScore, n: int, points: bool = False):
        self.path, self.score, self.n, self.points = path, score, n, points

    @property
    def journal(self) -> Path:
        """The file that says what is done."""
        return self.path.with_name(self.path.name + ".journal")

    @property
    def exists(self) -> bool:
        return self.path.exists()

    @abstractmethod
    def begin(self) -> None:
        """Make room for n samples, in place of any there were."""

    @abstractmethod
    def write(self, start: int, x: Tensor) -> None:
        """Samples start, start + 1, …, as points ``[count, *event]``; on disk when this returns."""

    def end(self) -> None:
        """All are there."""
        return

    def resumable(self) -> bool:
        """Whether the room is there."""
        return self.exists


class ArrayFile(Output):
    """A .npy file ``[n, *event]`` of the full size from the start, written in place."""

    def rows(self, x: Tensor) -> np.ndarray:
        """Points as they are written."""
        stored = self.score.stored
        return (x if self.points or stored is None else stored.values(x)).cpu().numpy()

    def begin(self) -> None:
        like = self.rows(torch.zeros((1, *self.score.process.domain.event_shape), dtype=self.dtype))
        self.journal.unlink(missing_ok=True)  # first: it speaks of what goes now
        self.room.unlink(missing_ok=True)
        # sparse: what is not written takes no space
        np.lib.format.open_memmap(self.room, mode="w+", dtype=like.dtype, shape=(self.n, *like.shape[1:])).flush()

    def write(self, start: int, x: Tensor) -> None:
        # opened for each batch: pages that stay mapped would count as memory of this process
        array = np.lib.format.open_memmap(self.room, mode="r+")
        array[start : start + len(x)] = self.rows(x)
        array.flush()

    @property
    def room(self) -> Path:
        return self.path

    dtype: torch.dtype = torch.float32

    def resumable(self) -> bool:
        return self.room.exists()


class Picture(ArrayFile):
    """A .png of all samples on a grid; until it is drawn they lie in an array beside it."""

    replaces = True

    def __init__(self, path: Path, score: NeuralScore, n: int, points: bool = False):
        super().__init__(path, score, n)
        check_images(score.process.domain.event_shape, f"--out {path.name}")
        if n > PICTURED:
            raise ValueError(
                f"--out: got {path.name!r} for {n} images, expected at most {PICTURED} in one picture; name a folder, or samples.npy"
            )

    @property
    def room(self) -> Path:
        return self.path.with_name(f".{self.path.name}.npy")

    def rows(self, x: Tensor) -> np.ndarray:
        return brightness(self.score, x).cpu().numpy()

    def end(self) -> None:
        from .validation import pictures

        pictures.image_grid(np.load(self.room), self.path)
        self.room.unlink()
        self.journal.unlink()


class Folder(Output):
    """A folder with a .png file for each sample, named by its index."""

    def __init__(self, path: Path, score: NeuralScore, n: int, points: bool = False):
        super().__init__(path, score, n)
        check_images(score.process.domain.event_shape, f"--out {path.name}")
        try:
            import PIL  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "a folder of pictures needs Pillow; install it with: pip install 'carom[train]'"
            ) from error

    @property
    def journal(self) -> Path:
        return self.path / "samples.journal"

    @property
    def exists(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def begin(self) -> None:
        if self.exists and not self.journal.exists():
            raise ValueError(f"--overwrite: {self.path} holds other things than samples; name another folder")
        self.journal.unlink(missing_ok=True)  # first: it speaks of what goes now
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)

    def write(self, start: int, x: Tensor) -> None:
        from PIL import Image

        # black where a sample failed
        levels = brightness(self.score, x).nan_to_num(0.0).mul(255).round().to(torch.uint8).cpu().numpy()
        digits = max(6, len(str(self.n - 1)))
        for i, picture in enumerate(levels, start):
            values = picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1)
            name = self.path / f"{i:0{digits}d}.png"
            with open(name, "wb") as file:
                Image.fromarray(values).save(file, format="png")
                file.flush()
                os.fsync(file.fileno())


def find_output(path: Path, score: NeuralScore, n: int, points: bool, dtype: torch.dtype) -> Output:
    """The output that a path stands for: .npy, .png, or a folder where it has no ending."""
    if path.suffix == ".npy":
        array = ArrayFile(path, score, n, points)
        array.dtype = dtype
        return array
    if points:
        raise ValueError(f"--points: got it for {path.name!r}, expected it for a .npy file")
    if path.suffix == ".png":
        return Picture(path, score, n)
    if path.suffix and not path.is_dir():
        raise ValueError(
            f"--out: got {path.name!r}, expected a name that ends in .npy or .png, or a folder, whose name has no ending"
        )
    return Folder(path, score, n)
