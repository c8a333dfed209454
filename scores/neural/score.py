"""A score made of a network: any network, any process, one file to keep it in."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...domains.tensors import check_event, per_batch
from . import checkpoint
from .objectives import DenoisingScoreMatching, Objective
from .trainable import Trainable


class NeuralScore(Trainable):
    r"""∇ₓ log p_t(x) from a network: callable ``(x, t, **condition)``, as every score.

    With X = x/s(t) and σ = σ(t), the preconditioning turns ``network(c_in (X − centre), c_noise, **condition)`` into the
    score of X; dividing by s(t) gives that of x. The network computes in its own dtype, everything else in x's.

    ``network`` holds the weights that are trained, ``ema`` (None before training) their moving average; ``use_ema`` says which
    of the two answers. Training and ``load`` set it; ``with score.ema_weights():`` sets it for a block.

    Args:
        network: any ``nn.Module``; called with x ``[B, *event]``, c_noise ``[B]`` and the condition's keywords, and answers with
            x's shape. Of the condition, tensors that start with the batch dimensions arrive as ``[B, …]``.
        process: the :class:`~carom.processes.Diffusion` whose score this is.
        preconditioning: :class:`Reflected` on a bounded domain and :class:`EDMPreconditioning` on an unbounded one, by default.
    """

    kind: ClassVar[str] = checkpoint.SCORE

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """The score at x ``[*batch, *event]``, t a number, ``[*batch]`` or ``[*batch, 1, …, 1]``: x's shape and dtype."""
        event = self.process.domain.event_shape
        check_event(x, event)
        t = per_batch(t, x, len(event), "t")
        scale = self.process.event_level(t).scale
        return self.at_level(x / scale, self.process.schedule.sigma(t), **condition) / scale

    def at_level(self, x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        """The score of the heat flow itself, X at noise level σ, where no scale enters; σ broadcasts over the batch. Where the parts of
        a product have schedules of their own, σ is the level of the first, and theirs are those of the same time."""
        if x.numel() == 0:
            return torch.zeros_like(x)
        raw, flat, level = self.answer(x, sigma, condition)
        if raw.shape != flat.shape:
            raise ValueError(
                f"network: got an output of shape {tuple(raw.shape)} for an input of shape {tuple(flat.shape)}, expected the "
                "same shape"
            )
        return self.preconditioning.score(raw, flat, level).reshape(x.shape)

    def rows(self, index: Tensor) -> NeuralScore:
        """The score of some rows of a batch: itself, for a network looks at each row by itself."""
        return self

    def default_objective(self) -> Objective:
        return DenoisingScoreMatching()

    def loss(
        self,
        x0: Tensor,
        objective: Objective = DenoisingScoreMatching(),
        generator: torch.Generator | None = None,
        **condition: Any,
    ) -> Tensor:
        """The objective at data x0 ``[*batch, *event]``: a scalar to differentiate.

        Data outside the domain are refused on the CPU; on a GPU reading them would stall it, and :func:`train` checks once.
        """
        if x0.device.type == "cpu":
            self.process.domain.check(x0, "x0")
        return objective(self, x0, generator=generator, **condition)
