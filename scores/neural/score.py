"""A score made of a network: any network, any process, one file to keep it in."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...domains.tensors import check_event, per_batch
from ...processes import Diffusion, process_from_config
from . import checkpoint
from .networks import answer, network_from_config, network_to_config
from .objectives import DenoisingScoreMatching, Objective
from .preconditioning import Preconditioning, default_preconditioning, preconditioning_from_config


class NeuralScore(nn.Module):
    r"""∇ₓ log p_t(x) from a network: callable ``(x, t, **condition)``, as every score.

    With X = x/s(t) and σ = σ(t), the preconditioning turns ``network(c_in (X − centre), c_noise, **condition)`` into the
    score of X; dividing by s(t) gives that of x. The network computes in its own dtype, everything else in x's.

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

    def __init__(self, network: nn.Module, process: Diffusion, preconditioning: Preconditioning | None = None):
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: got {type(network).__name__}, expected an nn.Module, e.g. UNet(UNetConfig())")
        if not isinstance(process, Diffusion):
            raise TypeError(f"process: got {type(process).__name__}, expected a Diffusion(domain, schedule)")
        self.network = network
        self.ema: nn.Module | None = None
        self.use_ema = False
        self.process = process
        self.preconditioning = preconditioning or default_preconditioning(process.domain)
        self.preconditioning.check(process.domain)

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
        event = self.process.domain.event_shape
        batch = x.shape[: x.dim() - len(event)]
        flat, sigma = x.reshape(-1, *event), sigma.expand(batch).reshape(-1)
        level = self.process.event_sigma(sigma)
        condition = {k: _flatten(v, batch) for k, v in condition.items()}
        raw = self._raw(self.preconditioning.inputs(flat, level), self.preconditioning.c_noise(sigma), condition)
        return self.preconditioning.score(raw, flat, level).reshape(x.shape)

    def _raw(self, inputs: Tensor, c_noise: Tensor, condition: dict[str, Any]) -> Tensor:
        network = self.ema if self.use_ema and self.ema is not None else self.network
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), inputs.dtype)
        # a noise level rounded to bfloat16 would be another level
        raw = network(inputs.to(dtype), c_noise.to(torch.promote_types(dtype, torch.float32)), **condition)
        return answer(raw, inputs).to(inputs.dtype)

    def rows(self, index: Tensor) -> NeuralScore:
        """The score of some rows of a batch: itself, for a network looks at each row by itself."""
        return self

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

    def track_ema(self) -> nn.Module:
        """Start the moving average anew at the present weights; returns the network that carries it."""
        self.ema = copy.deepcopy(self.network).requires_grad_(False)
        return self.ema

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """ema ← decay·ema + (1 − decay)·network; buffers are copied."""
        if self.ema is None:
            raise RuntimeError("update_ema: there is no moving average yet; call track_ema() first")
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.network.parameters()), 1 - decay)
        for mean, value in zip(self.ema.buffers(), self.network.buffers(), strict=True):
            mean.copy_(value)

    @contextmanager
    def ema_weights(self, use: bool = True) -> Iterator[NeuralScore]:
        """Within the block the moving average answers (or, with ``use=False``, the trained weights); afterwards, what did before."""
        if use and self.ema is None:
            raise RuntimeError("ema_weights: there is no moving average; train with ema > 0, or call track_ema()")
        before, self.use_ema = self.use_ema, use
        try:
            yield self
        finally:
            self.use_ema = before

    def header(self) -> dict[str, Any]:
        """What a checkpoint says about this score, JSON-able."""
        return {
            "network": network_to_config(self.network),
            "preconditioning": self.preconditioning.config(),
            "process": self.process.config(),
            "ema": self.ema is not None,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write network, moving average and configuration to one safetensors file, atomically. The folder must exist."""
        checkpoint.write(path, self.header(), self.state_dict())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        network: nn.Module | None = None,
        *,
        process: Diffusion | None = None,
        preconditioning: Preconditioning | None = None,
    ) -> NeuralScore:
        """Rebuild a score from its file alone, in eval mode and answering with the moving average if there is one.

        Args:
            network: for classes the library does not know: an instance built with the settings of training.
            process, preconditioning: likewise, for user-written ones.

        Raises ``FileNotFoundError``; ``ValueError`` for a file that is damaged, of another kind, from a newer version, or that
        does not fit ``network``.
        """
        file = checkpoint.read(path)
        weights, average = file.part("network"), file.part("ema")
        if network is None:
            network = network_from_config(file.header["network"])
            # of weights, not of buffers, which may be kept in another precision
            dtypes = [weights[k].dtype for k, p in network.named_parameters() if k in weights and p.is_floating_point()]
            network = network.to(dtypes[0]) if dtypes else network
        elif type(network).__name__ != file.header["network"].get("type"):
            raise ValueError(
                f"network: got {type(network).__name__}, but {str(path)!r} holds the weights of "
                f"{file.header['network'].get('type')}; pass an instance of that class"
            )
        process = process or process_from_config(file.header["process"])
        if preconditioning is None:
            preconditioning = preconditioning_from_config(file.header["preconditioning"], process.domain)
        checkpoint.check_fit(network, weights, "weights")
        if file.header["ema"]:
            checkpoint.check_fit(network, average, "averaged weights")
        score = cls(network, process, preconditioning)
        score.restore(file)
        return score.eval()

    def restore(self, file: checkpoint.Checkpoint) -> None:
        """Take over the weights of a file that has been checked to fit."""
        self.network.load_state_dict(file.part("network"))
        if file.header["ema"]:
            self.track_ema().load_state_dict(file.part("ema"))
            self.use_ema = True


def _flatten(value: Any, batch: torch.Size) -> Any:
    """A conditioning tensor whose first dimensions are the batch, with these joined to one."""
    if len(batch) == 1 or not isinstance(value, Tensor) or value.shape[: len(batch)] != batch:
        return value
    return value.reshape(-1, *value.shape[len(batch) :])
