"""One step of the weights: AdamW on clipped gradients, the moving average, and nothing at all once a value is not finite.

No value is read here. Whether a step is good is known on the device alone; a step that is not good leaves weights, averages, buffers
and the optimizer's state as they were, and so do all that follow it, until somebody reads the losses and finds out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...domains.tensors import is_int, number
from .objectives import Objective
from .trainable import Trainable
from .workers import Workers

LearningRate = float | Callable[[int], float]

# devices whose AdamW is one kernel that a flag on the device can keep from acting; elsewhere the flag is read in every step
_FUSED = ("cpu", "cuda")


@dataclass(frozen=True)
class Cosine:
    """A learning rate that falls from ``lr`` to ``final`` along half a cosine in ``steps`` steps, and stays there.

    Loshchilov & Hutter 2017, eq. 5, without restarts.
    """

    lr: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        number(self.lr, "lr", low=0.0)
        number(self.final, "final", low=0.0)
        number(self.steps, "steps", low=1)

    def __call__(self, step: int) -> float:
        return self.final + (self.lr - self.final) * (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2


def check_counts(**values: int) -> None:
    """Refuse what is no whole number of at least 1."""
    for name, value in values.items():
        if not is_int(value, 1):
            raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")


class Updates:
    """What happens to the weights of a model, and of an objective that learns, in a step.

    Args:
        rate: the learning rate as a function of the step. decay: of the moving average likewise, or None for none.
        weight_decay, clip, workers: as in ``train``. A parameter that the loss does not reach has the gradient 0.
    """

    def __init__(
        self,
        model: Trainable,
        objective: object,
        rate: Callable[[int], float],
        decay: Callable[[int], float] | None,
        weight_decay: float,
        clip: float | None,
        workers: Workers,
    ):
        self.model, self.rate, self.decay, self.clip, self.workers = model, rate, decay, clip, workers
        self.objective = objective if isinstance(objective, Objective) else None
        modules = [model.network, *([objective] if isinstance(objective, nn.Module) else [])]
        # one that both hold is trained once
        found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        self.parameters = list(found.values())
        if not any(p.requires_grad for p in model.network.parameters()):
            raise ValueError("train: got a network without trainable parameters; check requires_grad")
        self.device = self.parameters[0].device
        # fused on the CPU too, where the default would loop over the parameters in Python
        self.fused = self.device.type in _FUSED
        self.optimizer = torch.optim.AdamW(self.parameters, rate(0), weight_decay=weight_decay, fused=self.fused)
        self.bad = torch.zeros((), device=self.device)
        # such as running means, which the forward pass writes to
        self.buffers = _buffers(modules)

    def begin(self) -> None:
        """Before the forward pass of a step."""
        self.before = [buffer.clone() for buffer in self.buffers]
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def finish(self, loss: Tensor, step: int) -> Tensor:
        """After the backward pass, with this process's share of the loss: (loss, gradient norm) ``[2]`` of the whole batch."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        noted = [] if self.objective is None else self.objective.sums()
        self.workers.add([loss, *gradients, *noted])
        if self.objective is not None:
            self.objective.settle()
        norm = torch.nn.utils.get_total_norm(gradients)
        good = loss.isfinite() & norm.isfinite()
        self.bad = torch.maximum(self.bad, (~good).to(self.bad))
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        if self.fused:
            self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bool(self.bad):
            self.optimizer.step()
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(torch.where(self.bad > 0, before, buffer))
        if self.decay is not None:
            self.model.update_ema(1 - (1 - self.decay(step)) * (1 - self.bad))
        return torch.stack([loss.to(norm.device), norm.to(loss.dtype)])


def _buffers(modules: list[nn.Module]) -> list[Tensor]:
    """Buffers that travel in a state dict. Others are constants, by their own word."""
    names = [(module, set(module.state_dict())) for module in modules]
    return [buffer for module, kept in names for name, buffer in module.named_buffers() if name in kept]
