"""Training a neural score: one loop, resumable bit for bit, the same on one process and on several.

Everything random in step k is a function of (seed, k) and of the piece of the batch: which samples, the noise levels, the noise,
dropout. So a checkpoint holds the weights, their average, the optimizer's state and the step, and no generator; a run that was
interrupted and resumed equals one that was not, bit for bit on the CPU at the same number of threads; and who computes a piece does not
matter. Losses and gradient norms stay on the device and are read every ``log_every`` steps: no other step waits for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import resuming
from .batches import Batches
from .checkpoint import check_place
from .dataset import DomainDataset
from .loop import Every, Loop
from .metrics import Curve, Metrics
from .objectives import Objective
from .terminal import Bar, interruptions, say_interrupted
from .trainable import Trainable, rising
from .updates import LearningRate, Updates, check_counts
from .workers import caller, find_workers, precision_of

if TYPE_CHECKING:
    from accelerate import Accelerator

M = TypeVar("M", bound=Trainable)


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
    score: M,
    data: Tensor | Dataset[Any],
    *,
    objective: Objective | None = None,
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
    log_every: int | None = None,
    metrics: str | os.PathLike[str] | None = None,
    metrics_every: int = 100,
    tensorboard: str | os.PathLike[str] | None = None,
    samples: Callable[[M, int], None] | None = None,
    samples_every: int = 1000,
    microbatches: int | None = None,
    mixed_precision: str | None = None,
    compile: bool | str = False,
    accelerator: Accelerator | None = None,
) -> TrainingResult:
    """Train ``score`` in place with AdamW; it ends in eval mode, answering with the moving average of its weights.

    Args:
        score: a :class:`NeuralScore`, :class:`NoisyClassifier` or :class:`MixedScore`.
        data: floating ``[N, *event]`` inside the domain, or a map-style dataset whose items are x ``[*event]`` or (x, label); labels
            reach the network as the keyword ``label``. Checked here once, or as items are read. Of ``Data.on(domain)`` the score
            notes how they are stored, so that samples can be written alike.
        objective: what to minimise; by default :class:`DenoisingScoreMatching`, for a classifier :class:`CrossEntropy`, for a score of
            velocities :class:`HybridScoreMatching`. One that is an
            ``nn.Module`` is trained along; the checkpoint keeps its weights for ``resume``.
        steps, seconds: budgets in total, runs before a resume included; at least one. The first to be spent ends the training.
        lr: learning rate, a number or a function of the step alone such as :class:`Cosine` (or resuming would not be exact);
            multiplied by a linear ramp over the first ``warmup`` steps.
        weight_decay, clip: AdamW's decay; the largest gradient norm, or None.
        ema: decay of the moving average, in [0, 1), approached as (1 + k)/(10 + k); None for none.
        seed: of everything random here. Initial weights are the caller's, of the first process where there are several.
        checkpoint: a file that ``load`` reads and ``resume=True`` continues, written every ``checkpoint_every`` steps and
            at the end, also by Ctrl-C (the step at work is finished first; a second Ctrl-C stops at once and saves nothing).
            A file of that name is replaced.
        log: called for every step with step, loss, lr, grad_norm and seconds, when these are read.
        log_every: how many steps run before their losses are read: 1 by default on the CPU, 25 on a device, which a reading stalls.
            Budgets in seconds and Ctrl-C are looked at in every step, or with several processes as often as losses are read.
        metrics: a file of JSON lines, one for every ``metrics_every`` steps and one at the end: step, loss and grad_norm (means
            since the last line), lr, seconds, samples_per_second, and ``loss_by_sigma`` at the levels ``sigma``, the middles of bins
            in ln σ (null where no sample was), for a score of velocities of t. Resuming drops the lines of steps that are taken again.
        tensorboard: a folder for the same as TensorBoard events. Needs the package tensorboard.
        samples: called as ``samples(score, step)`` every ``samples_every`` steps, without gradients, with the score in eval mode and
            its moving average answering, to draw a picture say. Nothing it draws changes the training.
        microbatches: gradient accumulation: each batch is computed in this many equal pieces, spread over the processes. By default as
            many as there are processes. Results depend on it, for each piece has levels and noise of its own.
        mixed_precision: "bf16" for the network's arithmetic alone (weights and all else stay as they are), or "no"; by default as
            ``accelerate launch`` was told.
        compile: compile the network while it is trained, with torch's default backend or the one named. Such a network has no second
            derivatives, which implicit score matching needs.
        accelerator: where there is one already. Under ``accelerate launch`` one is made. The score moves to its device; each process
            keeps a copy of the model and sums gradients, so DeepSpeed, FSDP and the like are refused.

    The first process alone writes files, calls ``log`` and ``samples`` and shows progress. Two processes equal one with the same
    batch_size and microbatches but for the order in which gradients are summed: with two pieces not at all, with more by about
    1e-7 of a gradient in each step. Buffers that a forward pass writes to, such as a batch norm's, are not summed.

    Raises ``FloatingPointError`` where the loss or the gradient turns non-finite: the weights are those before that step,
    and so is the checkpoint, even if the step is found out some steps later. ``ValueError`` for data outside the domain, bad settings,
    or a checkpoint that does not belong to this training; ``TypeError`` for an objective that is not for this model.
    """
    if steps is None and seconds is None:
        raise ValueError("train: got neither steps nor seconds, expected a budget, e.g. steps=2000")
    if resume and checkpoint is None:
        raise ValueError("train: got resume=True without a checkpoint; name the file to resume from")
    if checkpoint is not None:
        check_place(checkpoint)
    check_counts(batch_size=batch_size, checkpoint_every=checkpoint_every, samples_every=samples_every)
    optional = {"steps": steps, "log_every": log_every, "metrics_every": metrics_every, "microbatches": microbatches}
    check_counts(**{name: value for name, value in optional.items() if value is not None})
    _check_at_least(0, seconds=seconds, warmup=warmup, weight_decay=weight_decay, clip=clip)
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"ema: got {ema}, expected a decay in [0, 1), e.g. 0.999, or None")
    objective = score.default_objective() if objective is None else objective
    score.check_objective(objective)
    workers = find_workers(accelerator)
    workers.place(score, objective)
    precision = precision_of(workers, mixed_precision)
    batches = Batches(data, score.data_domain, batch_size, workers.pieces(microbatches), seed)
    if isinstance(data, DomainDataset):
        score.stored = data.stored
    rate, decay = _warmed(lr, warmup), None if ema is None else rising(ema)
    updates = Updates(score, objective, rate, decay, weight_decay, clip, workers)
    settings: dict[str, Any] = {
        "samples": batches.count,
        "batch_size": batch_size,
        "microbatches": batches.pieces,
        "mixed_precision": precision,
        "objective": resuming.describe(objective),
        "lr": resuming.describe(lr),
        "warmup": warmup,
        "weight_decay": weight_decay,
        "clip": clip,
        "ema": ema,
        "seed": seed,
    }
    done, spent = 0, 0.0
    if resume:
        assert checkpoint is not None
        done, spent = resuming.resume(checkpoint, updates, objective, settings)
    elif ema is None:
        score.ema, score.use_ema = None, False
    else:
        score.track_ema()
    workers.share(list(resuming.tensors(updates, objective).values()))
    device, first = updates.device, workers.first
    watched = metrics is not None or tensorboard is not None
    loop = Loop(
        updates=updates,
        objective=objective,
        batches=batches,
        seed=seed,
        settings=settings,
        every=Every(log_every or (1 if device.type == "cpu" else 25), metrics_every, samples_every, checkpoint_every),
        steps=steps,
        seconds=seconds,
        checkpoint=checkpoint,
        log=log,
        samples=samples,
        curve=Curve(*score.levels, device) if watched else None,
        done=done,
        spent=spent,
    )
    with (
        score.called_by(caller(score.network, device, precision, compile)),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        Metrics(metrics if first else None, tensorboard if first else None, done, spent, batch_size) as lines,
        interruptions() as interrupted,
        Bar(steps, seconds, done, progress and first) as bar,
    ):
        loop.run(interrupted, lines, bar)
    place = None if checkpoint is None else str(checkpoint)
    if loop.stopped and first:
        say_interrupted(loop.done, place)
    return TrainingResult(loop.done, loop.spent, loop.losses, loop.stopped, place)


def _warmed(lr: LearningRate, warmup: int) -> Callable[[int], float]:
    rate = lr if callable(lr) else (lambda step: lr)
    return lambda step: rate(step) * min(1.0, (step + 1) / (warmup + 1))


def _check_at_least(least: int, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name}: got {value!r}, expected a finite number of at least {least}")
