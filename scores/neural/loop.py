"""The loop of a training: steps that nobody waits for, and what happens between them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import checkpoint as files
from . import resuming
from .batches import Batches, mix
from .metrics import Curve, Metrics, Step
from .objectives import Objective
from .terminal import Bar, explain
from .trainable import Trainable
from .updates import Updates


class Every(NamedTuple):
    """After how many steps losses are read, a line of metrics is written, samples are drawn, the state is saved."""

    read: int
    metrics: int
    samples: int
    save: int


@dataclass
class Loop:
    """A training at work. ``done`` steps, ``spent`` seconds and ``losses`` are what it has come to; see ``train`` for the rest."""

    updates: Updates
    objective: Objective
    batches: Batches
    seed: int
    settings: dict[str, Any]
    every: Every
    steps: int | None
    seconds: float | None
    checkpoint: str | os.PathLike[str] | None
    log: Callable[[dict[str, float]], None] | None
    samples: Callable[[Any, int], None] | None
    curve: Curve | None
    done: int = 0
    spent: float = 0.0
    losses: list[float] = field(default_factory=list)
    stopped: bool = False
    #: steps whose loss and gradient norm are still on the device: the step, NaN for both, and the two
    pending: list[tuple[Step, Tensor]] = field(default_factory=list)

    def run(self, interrupted: Callable[[], bool], metrics: Metrics, bar: Bar) -> None:
        """Until a budget is spent, or ``interrupted()``."""
        device = self.updates.device
        self.generator = torch.Generator(device if device.type == "cuda" else "cpu")
        self.started = time.monotonic() - self.spent
        with _in_training(self.updates.model, self.objective):
            while not self._over(interrupted):
                self._step()
                if self.done % self.every.read == 0:
                    self._read(metrics, bar)
                if self.done % self.every.metrics == 0:
                    self._read(metrics, bar)
                    self._write(metrics)
                if self.samples is not None and self.done % self.every.samples == 0:
                    self._read(metrics, bar)
                    self._sample(self.samples)
                if self.done % self.every.save == 0 and self.done != self.steps:
                    self._read(metrics, bar)
                    self._save()
            self._read(metrics, bar)
            self._write(metrics)
            self._save()

    def _over(self, interrupted: Callable[[], bool]) -> bool:
        if self.steps is not None and self.done >= self.steps:
            return True
        workers = self.updates.workers
        if workers.count > 1 and self.pending:
            return False  # they have to agree, which takes a reading
        late = self.seconds is not None and self.spent >= self.seconds
        pressed, late = workers.any(interrupted(), late)
        self.stopped = pressed and not late
        return pressed or late

    def _step(self) -> None:
        self.updates.begin()
        pieces, losses = self.batches.pieces, []
        for piece in self.updates.workers.own(pieces):
            count = self.done * pieces + piece
            torch.manual_seed(mix(self.seed, "dropout", count))
            self.generator.manual_seed(mix(self.seed, "noise", count))
            loss = self._loss(*self.batches.at(self.done, piece, self.updates.device)) / pieces
            loss.backward()
            losses.append(loss.detach())
        found = self.updates.finish(torch.stack(losses).sum(), self.done)
        lr = self.updates.rate(self.done)
        self.done += 1
        self.spent = time.monotonic() - self.started
        self.pending.append((Step(self.done, math.nan, lr, math.nan, self.spent), found))

    def _loss(self, x: Tensor, condition: dict[str, Tensor]) -> Tensor:
        objective, model = self.objective, self.updates.model
        if type(objective).__call__ is not Objective.__call__:
            return objective(model, x, generator=self.generator, **condition)  # type: ignore[arg-type]
        terms = objective.terms(model, x, self.generator, **condition)  # type: ignore[arg-type]
        if self.curve is not None:
            self.curve.add(terms)
        return terms.loss.mean()

    def _read(self, metrics: Metrics, bar: Bar) -> None:
        """Read the losses of the steps since the last reading, the only moment that waits for the device."""
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        values = torch.stack([found for _, found in pending]).tolist()
        self.spent = time.monotonic() - self.started
        for (step, _), (loss, norm) in zip(pending, values, strict=True):
            step = step._replace(loss=loss, grad_norm=norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                # neither this step nor those after it were taken
                self.done, self.spent = step.step - 1, step.seconds
                self._save()
                raise FloatingPointError(explain(loss, norm, self.done, self.checkpoint))
            self.losses.append(loss)
            bar.show(step.step, step.seconds, loss)
            metrics.steps.append(step)
            if self.log is not None and self.updates.workers.first:
                self.log(step._asdict())

    def _write(self, metrics: Metrics) -> None:
        if self.curve is not None:
            self.updates.workers.add([self.curve.sums])
            metrics.write(self.curve.centres, self.curve.read())

    def _sample(self, samples: Callable[[Any, int], None]) -> None:
        model = self.updates.model
        if self.updates.workers.first:
            model.eval()
            torch.manual_seed(mix(self.seed, "samples", self.done))
            with torch.no_grad(), model.ema_weights(model.ema is not None):
                samples(model, self.done)
            model.train()

    def _save(self) -> None:
        workers, model = self.updates.workers, self.updates.model
        if self.checkpoint is not None and workers.first:
            state = {"step": self.done, "seconds": self.spent, "settings": self.settings}
            tensors = resuming.tensors(self.updates, self.objective)
            files.write(self.checkpoint, model.header() | {"training": state}, tensors, model.kind)
        workers.wait()


@contextmanager
def _in_training(model: Trainable, objective: object) -> Iterator[None]:
    """Modules in training mode, the trained weights answering; afterwards in eval mode, and the moving average where there is one."""
    modules: list[nn.Module] = [model, *([objective] if isinstance(objective, nn.Module) else [])]
    for module in modules:
        module.train()
    model.use_ema = False
    try:
        yield
    finally:
        for module in modules:
            module.eval()
        model.use_ema = model.ema is not None
