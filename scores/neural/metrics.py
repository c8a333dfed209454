"""What a training writes about itself as it goes: lines of JSON, TensorBoard, and the loss as a function of σ."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .objectives import Terms

BINS = 16


class Step(NamedTuple):
    """What is known of a step once it has been read. step counts from 1; seconds in total."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float


class Curve:
    """The mean loss in each of 16 bins of ln σ between two levels, those beyond in the outer bins. Kept on the device."""

    def __init__(self, low: float, high: float, device: torch.device):
        width = math.log(high / low) / BINS
        self.centres = [low * math.exp((i + 0.5) * width) for i in range(BINS)]
        edges = [math.log(low) + i * width for i in range(1, BINS)]
        self.edges = torch.tensor(edges, device=device, dtype=torch.float32)
        #: [2, bins]: sums of losses and numbers of samples
        self.sums = torch.zeros(2, BINS, device=device)

    @torch.no_grad()
    def add(self, terms: Terms) -> None:
        # as a product with zeros and ones: sums by index are not deterministic on a GPU
        loss, level = (v.detach().flatten().float() for v in (terms.loss, terms.sigma))
        inside = torch.bucketize(level.log(), self.edges)[:, None] == torch.arange(BINS, device=level.device)
        self.sums += torch.stack([loss, torch.ones_like(loss)]) @ inside.float()

    def read(self) -> list[float | None]:
        """The means since the last reading, None where there was no sample."""
        sums, counts = self.sums.tolist()
        self.sums.zero_()
        return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


class Metrics:
    """Writes one line for every few steps: their mean loss and gradient norm, the last learning rate, the loss by σ, the speed.

    Args:
        path: of a file of JSON lines, or None. After a resume it is gone on with, less the lines of steps that are taken again.
        tensorboard: a folder for event files, or None.
        done, seconds: where the training stands. batch_size: to count samples per second.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        tensorboard: str | os.PathLike[str] | None,
        done: int,
        seconds: float,
        batch_size: int,
    ):
        self.path = None if path is None else Path(path)
        self.board = None if tensorboard is None else _board(tensorboard, done)
        self.last, self.batch_size = (done, seconds), batch_size
        self.steps: list[Step] = []
        if self.path is not None:
            _shorten(self.path, done)

    def write(self, centres: list[float], curve: list[float | None]) -> None:
        """A line about the steps noted since the last."""
        if not self.steps:
            return
        last = self.steps[-1]
        steps, seconds = last.step - self.last[0], last.seconds - self.last[1]
        line: dict[str, Any] = last._asdict() | {
            "loss": sum(s.loss for s in self.steps) / len(self.steps),
            "grad_norm": sum(s.grad_norm for s in self.steps) / len(self.steps),
            "samples_per_second": steps * self.batch_size / seconds if seconds > 0 else None,
        }
        self.last, self.steps = (last.step, last.seconds), []
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"sigma": centres, "loss_by_sigma": curve}) + "\n")
        if self.board is not None:
            by_sigma = {f"loss_by_sigma/{c:.3g}": v for c, v in zip(centres, curve, strict=True)}
            for name, value in (line | by_sigma).items():
                if value is not None and name != "step":
                    self.board.add_scalar(name, value, last.step)
            self.board.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *error: object) -> None:
        if self.board is not None:
            self.board.close()


def _board(folder: str | os.PathLike[str], done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "train: tensorboard= needs the package tensorboard; install it with: pip install tensorboard, or write "
            "metrics= instead, a file of JSON lines"
        ) from error
    return SummaryWriter(str(folder), purge_step=done + 1)


def _shorten(path: Path, done: int) -> None:
    """Keep the lines up to this step. What is left of a line cut short by a crash goes too; a file of another kind is refused."""
    lines = path.read_text(encoding="utf-8").splitlines() if done and path.exists() else []
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= done:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise ValueError(
                    f"metrics: got {str(path)!r}, whose line {number} is no JSON object with a step; expected a file that train "
                    "wrote; name another"
                ) from None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
