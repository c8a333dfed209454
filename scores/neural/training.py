"""Training a neural score: one loop, resumable bit for bit.

Everything random in step k is a function of (seed, k): the batch, the noise levels, the noise, dropout. So a checkpoint holds the
weights, their average, the optimizer's state and the step, and no generator; a run that was interrupted and resumed equals
one that was not, bit for bit on the CPU at the same number of threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ...domains import Domain
from . import checkpoint as files
from .objectives import DenoisingScoreMatching, Objective
from .score import NeuralScore

LearningRate = float | Callable[[int], float]


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    steps, seconds: in total, runs before a resume included. losses: of every step of this run; ``loss`` the mean of its last 100.
    interrupted: by Ctrl-C. checkpoint: where the state is, if anywhere.
    """

    steps: int
    seconds: float
    losses: list[float] = field(repr=False)
    interrupted: bool
    checkpoint: str | None

    @property
    def loss(self) -> float:
        recent = self.losses[-100:]
        return sum(recent) / len(recent) if recent else math.nan


def train(
    score: NeuralScore,
    data: Tensor | Dataset[Any],
    *,
    objective: Objective = DenoisingScoreMatching(),
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int = 64,
    lr: LearningRate = 2e-3,
    warmup: int = 100,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    ema: float | None = 0.999,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    resume: bool = False,
    progress: bool = True,
    log: Callable[[dict[str, float]], None] | None = None,
) -> TrainingResult:
    """Train ``score`` in place with AdamW; it ends in eval mode, answering with the moving average of its weights.

    Args:
        data: floating ``[N, *event]`` inside the domain, or a map-style dataset whose items are x ``[*event]`` or (x, label); labels
            reach the network as the keyword ``label``. Checked here once, or as items are read.
        objective: what to minimise.
        steps, seconds: budgets in total, runs before a resume included; at least one. The first to be spent ends the training.
        lr: learning rate, a number or a function of the step alone (or resuming would not be exact); multiplied by a linear
            ramp over the first ``warmup`` steps.
        weight_decay, clip: AdamW's decay; the largest gradient norm, or None.
        ema: decay of the moving average, in [0, 1), approached as (1 + k)/(10 + k); None for none.
        seed: of everything random here. Initial weights are the caller's.
        checkpoint: a file that ``NeuralScore.load`` reads and ``resume=True`` continues, written every ``checkpoint_every`` steps and
            at the end, also by Ctrl-C (the step at work is finished first; a second Ctrl-C stops at once and saves nothing).
            A file of that name is replaced.
        log: called after every step with step, loss, lr, grad_norm and seconds.

    Raises ``FloatingPointError`` where the loss or the gradient turns non-finite: the weights are those before that step,
    and so is the checkpoint. ``ValueError`` for data outside the domain, bad settings, or a checkpoint that does not belong to
    this training.
    """
    if steps is None and seconds is None:
        raise ValueError("train: got neither steps nor seconds, expected a budget, e.g. steps=2000")
    if resume and checkpoint is None:
        raise ValueError("train: got resume=True without a checkpoint; name the file to resume from")
    _check_at_least(1, steps=steps, batch_size=batch_size, checkpoint_every=checkpoint_every)
    _check_at_least(0, seconds=seconds, warmup=warmup, weight_decay=weight_decay, clip=clip)
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"ema: got {ema}, expected a decay in [0, 1), e.g. 0.999, or None")
    batches = _Batches(data, score.process.domain, batch_size, seed)
    parameters = [p for p in score.network.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("train: got a network without trainable parameters; check requires_grad")
    device = parameters[0].device
    rate = lr if callable(lr) else (lambda step: lr)
    # fused on the CPU too, where the default would loop over the parameters in Python
    optimizer = torch.optim.AdamW(parameters, rate(0), weight_decay=weight_decay, fused=device.type in ("cpu", "cuda"))
    settings: dict[str, Any] = {
        "samples": batches.count,
        "batch_size": batch_size,
        "objective": _describe(objective),
        "lr": _describe(lr),
        "warmup": warmup,
        "weight_decay": weight_decay,
        "clip": clip,
        "ema": ema,
        "seed": seed,
    }
    done, spent = 0, 0.0
    if resume:
        assert checkpoint is not None
        done, spent = _resume(checkpoint, score, optimizer, settings)
    elif ema is None:
        score.ema, score.use_ema = None, False
    else:
        score.track_ema()

    def save() -> None:
        if checkpoint is not None:
            state = {"step": done, "seconds": spent, "settings": settings}
            files.write(checkpoint, score.header() | {"training": state}, score.state_dict() | _pack(optimizer))

    def finished() -> bool:
        return (steps is not None and done >= steps) or (seconds is not None and spent >= seconds)

    losses: list[float] = []
    start, before = time.monotonic(), spent
    cuda = [device] if device.type == "cuda" else []
    generator = torch.Generator(device if cuda else "cpu")
    score.train()
    score.use_ema = False
    try:
        with torch.random.fork_rng(cuda), _interruptions() as interrupted, _Bar(steps, seconds, done, progress) as bar:
            while not finished() and not interrupted():
                torch.manual_seed(_mix(seed, "dropout", done))
                generator.manual_seed(_mix(seed, "noise", done))
                x, condition = batches.at(done, device)
                loss = score.loss(x, objective, generator, **condition)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                gradients = [p.grad for p in parameters if p.grad is not None]
                norm = torch.nn.utils.get_total_norm(gradients)
                value, size = loss.item(), norm.item()
                if not (math.isfinite(value) and math.isfinite(size)):
                    save()
                    raise FloatingPointError(_explain(value, size, done, checkpoint))
                if clip is not None:
                    torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
                step_size = rate(done) * min(1.0, (done + 1) / (warmup + 1))
                for group in optimizer.param_groups:
                    group["lr"] = step_size
                optimizer.step()
                if ema is not None:
                    score.update_ema(min(ema, (1 + done) / (10 + done)))
                done += 1
                spent = before + time.monotonic() - start
                losses.append(value)
                bar.show(done, spent, value)
                if log is not None:
                    log({"step": done, "loss": value, "lr": step_size, "grad_norm": size, "seconds": spent})
                if done % checkpoint_every == 0 and done != steps:
                    save()
            save()
            stopped = interrupted() and not finished()
    finally:
        score.eval()
        score.use_ema = score.ema is not None
    place = None if checkpoint is None else str(checkpoint)
    if stopped:
        saved = (
            f"saved to {place}; go on with train(…, checkpoint={place!r}, resume=True)"
            if place
            else "not saved: no checkpoint"
        )
        print(f"training interrupted after step {done}, {saved}", file=sys.stderr)
    return TrainingResult(done, spent, losses, stopped, place)


class _Batches:
    """The batch of each step: the data as one endless stream of epochs, each in an order of its own, cut into batches."""

    def __init__(self, data: Tensor | Dataset[Any], domain: Domain, size: int, seed: int):
        self.data, self.domain, self.size, self.seed = data, domain, size, seed
        if isinstance(data, Tensor):
            if data.dim() != 1 + len(domain.event_shape):
                raise ValueError(
                    f"data: got shape {tuple(data.shape)}, expected [N, {', '.join(map(str, domain.event_shape))}]"
                )
            for part in data.split(4096):
                domain.check(part, "data")
        elif not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise TypeError(
                f"data: got {type(data).__name__}, expected a tensor [N, *event] or a dataset with __len__ and __getitem__"
            )
        self.count = len(data)
        if self.count < 1:
            raise ValueError("data: got no samples, expected at least 1")
        self._epoch, self._order = -1, torch.empty(0)

    def _index(self, step: int) -> Tensor:
        start, parts = step * self.size, []
        missing = self.size
        while missing:
            epoch, offset = divmod(start, self.count)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(_mix(self.seed, "order", epoch))
                self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator)
            parts.append(self._order[offset : offset + missing])
            start, missing = start + len(parts[-1]), missing - len(parts[-1])
        return torch.cat(parts)

    def at(self, step: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """(x, condition) of a step, on the device."""
        index = self._index(step)
        if isinstance(self.data, Tensor):
            return self.data[index.to(self.data.device)].to(device), {}
        items = [self.data[i] for i in index.tolist()]
        if not isinstance(items[0], Sequence):
            x, condition = torch.stack(items), {}
        elif len(items[0]) == 2:
            x = torch.stack([item[0] for item in items])
            condition = {"label": torch.as_tensor([item[1] for item in items], device=device)}
        else:
            raise TypeError(f"data: got items of {len(items[0])} parts, expected x or (x, label)")
        self.domain.check(x, "data")
        return x.to(device), condition


def _pack(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors under the names of a checkpoint."""
    state = optimizer.state_dict()["state"]
    return {f"training.{i}.{name}": v for i, values in state.items() for name, v in values.items()}


def _resume(
    path: str | os.PathLike[str], score: NeuralScore, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> tuple[int, float]:
    """Take over weights and optimizer state after everything has been checked: (step, seconds spent)."""
    file = files.read(path, ("network.", "ema.", "training."))
    state = file.header.get("training")
    if state is None:
        raise ValueError(
            f"resume: got {str(path)!r}, which holds a finished score without training state; expected a file written by "
            "train(checkpoint=…). To start from its weights: NeuralScore.load, then train without resume"
        )
    ours = json.loads(json.dumps(score.header() | {"ema": settings["ema"] is not None}))
    theirs = {k: v for k, v in file.header.items() if k != "training"}
    differences = _differences(theirs, ours) + _differences(state["settings"], json.loads(json.dumps(settings)))
    if differences:
        raise ValueError(
            f"resume: {str(path)!r} belongs to another training: {'; '.join(differences)}; pass the settings it was started "
            "with, or resume=False to start anew"
        )
    parameters = optimizer.param_groups[0]["params"]
    packed = file.part("training")
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in packed.items():
        index, _, key = name.partition(".")
        slots.setdefault(int(index), {})[key] = value
    if slots.keys() - set(range(len(parameters))) or any(
        slot["exp_avg"].shape != parameters[i].shape for i, slot in slots.items()
    ):
        raise ValueError(
            f"resume: the optimizer state in {str(path)!r} does not fit the network; resume=False starts anew"
        )
    files.check_fit(score.network, file.part("network"), "weights")
    if file.header["ema"]:
        files.check_fit(score.network, file.part("ema"), "averaged weights")
    score.restore(file)
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(state["step"]), float(state["seconds"])


def _describe(value: Any) -> Any:
    """A setting as a checkpoint names it: the same in every process, so functions go by their names."""
    if dataclasses.is_dataclass(value):
        return {"type": type(value).__name__} | {
            f.name: _describe(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if value is None or isinstance(value, (int, float, str)):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    keys = sorted(theirs.keys() | ours.keys())
    return [f"{k} is {theirs.get(k)!r} there and {ours.get(k)!r} here" for k in keys if theirs.get(k) != ours.get(k)]


def _explain(loss: float, norm: float, step: int, path: str | os.PathLike[str] | None) -> str:
    place = f" and in {str(path)!r}" if path is not None else ""
    return (
        f"train: step {step + 1} got loss {loss:g} with gradient norm {norm:g}, expected finite values; the weights of step "
        f"{step} are kept in the score{place}. Try a lower lr, a longer warmup or clip=1.0, and check the data"
    )


def _check_at_least(least: int, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name}: got {value!r}, expected a finite number of at least {least}")


def _mix(seed: int, purpose: str, count: int) -> int:
    """A seed of its own for every purpose and step."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{count}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
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


class _Bar:
    """A progress bar over steps, or over seconds where only these are limited."""

    def __init__(self, steps: int | None, seconds: float | None, done: int, progress: bool):
        self.by_step = steps is not None
        self.mean: float | None = None
        layout = "{l_bar}{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}{postfix}]"
        total, unit = (steps, "steps") if self.by_step else (seconds, "s")
        self.bar = tqdm(
            total=total, initial=done if self.by_step else 0, unit=unit, disable=not progress, bar_format=layout
        )
        self.bar.set_description("training")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def show(self, done: int, spent: float, loss: float) -> None:
        self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
        self.bar.set_postfix_str(f"loss {self.mean:.4f}, step {done}", refresh=False)
        self.bar.update((done if self.by_step else min(spent, self.bar.total)) - self.bar.n)
