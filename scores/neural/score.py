"""A score made of a network: any network, any process, one file to keep it in."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...domains import Euclidean
from ...domains.tensors import check_event, expand_right, per_batch
from ...processes import Diffusion
from . import checkpoint
from .denoisers import FinitePrediction
from .networks import parts
from .objectives import DenoisingScoreMatching, Objective
from .preconditioning import Preconditioning
from .trainable import Preconditioned, flatten


class NeuralScore(Preconditioned):
    r"""∇ₓ log p_t(x) from a network: callable ``(x, t, **condition)``, as every score.

    With X = x/s(t) and σ = σ(t), the preconditioning turns ``network(c_in (X − centre), c_noise, **condition)`` into the
    score of X; dividing by s(t) gives that of x. The network computes in its own dtype, everything else in x's.

    On R^d, with a preconditioning whose network predicts what stays finite at s = 0 and at σ = 0 (v or the velocity), the score offers
    ``prediction(x, t, **condition)`` = (E[x0 | x], E[ε | x]): grids may then begin at zero signal.

    ``network`` holds the weights that are trained, ``ema`` (None before training) their moving average; ``use_ema`` says which
    of the two answers. Training and ``load`` set it; ``with score.ema_weights():`` sets it for a block.

    Args:
        network: any ``nn.Module``; called with x ``[B, *event]``, c_noise ``[B]`` and the condition's keywords, and answers with
            x's shape, alone, first in a tuple or as the ``sample`` of an object (so diffusers' ``UNet2DModel`` as it is, with positional
            time embedding: its fourier one takes the logarithm again). Of the condition, tensors that start with the batch
            dimensions arrive as ``[B, …]``.
        process: the :class:`~carom.processes.Diffusion` whose score this is.
        preconditioning: :class:`Reflected` on a bounded domain and :class:`EDMPreconditioning` on an unbounded one, by default.
    """

    kind: ClassVar[str] = checkpoint.SCORE

    def __init__(self, network: nn.Module, process: Diffusion, preconditioning: Preconditioning | None = None):
        super().__init__(network, process, preconditioning)
        if isinstance(process.domain, Euclidean) and isinstance(self.preconditioning, FinitePrediction):
            self.prediction = self._prediction

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """The score at x ``[*batch, *event]``, t a number, ``[*batch]`` or ``[*batch, 1, …, 1]``: x's shape and dtype."""
        x, sigma, scale = self.undo_scale(x, t)
        return self.at_level(x, sigma, **condition) / scale

    def at_level(self, x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        """The score of the heat flow itself, X at noise level σ, where no scale enters; σ broadcasts over the batch. Where the parts of
        a product have schedules of their own, σ is the level of the first, and theirs are those of the same time."""
        return self.with_extra(x, sigma, **condition)[0]

    def with_extra(self, x: Tensor, sigma: Tensor, **condition: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(score of X, what else the network answers): of an output ``[B, m·C, …]`` for inputs ``[B, C, …]`` the first C channels make the
        score, the m − 1 others, each of x's shape, are handed out as they are: a variance, a second moment. σ as in ``at_level``."""
        if x.numel() == 0:
            return torch.zeros_like(x), ()
        raw, flat, level = self.answer(x, sigma, condition)
        first, *extra = parts(raw, flat)
        score = self.preconditioning.score(first, flat, level).reshape(x.shape)
        return score, tuple(part.reshape(x.shape) for part in extra)

    def _prediction(self, x: Tensor, t: float | Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """(E[x0 | x], E[ε | x]) of x's shape, exact at every level; t as in ``forward``."""
        assert isinstance(self.preconditioning, FinitePrediction)
        event = self.process.domain.event_shape
        check_event(x, event)
        if x.numel() == 0:
            return torch.zeros_like(x), torch.zeros_like(x)
        schedule, batch = self.process.schedule, x.shape[: x.dim() - len(event)]
        t = expand_right(per_batch(t, x, len(event), "t").expand(batch).reshape(-1), len(event))
        scale, std = self.preconditioning.standard(schedule.scale(t), schedule.std(t))
        ratio = torch.where(scale > std, scale / schedule.scale(t), std / schedule.std(t))
        flat = ratio * x.reshape(-1, *event)
        condition = {k: flatten(v, batch) for k, v in condition.items()}
        raw = self.ask(flat, self.preconditioning.c_noise(schedule.sigma(t)).reshape(-1), condition)
        data, noise = self.preconditioning.prediction(parts(raw, flat)[0], flat, scale, std)
        return data.reshape(x.shape), noise.reshape(x.shape)

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
