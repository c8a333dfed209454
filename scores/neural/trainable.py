"""What ``train`` trains: a network, the moving average of its weights, one file for both, and most often a preconditioning.

Scores and noisy classifiers differ in what they make of the network's answer, and in the kind of their file; the rest is here.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from ...domains import Domain
from ...domains.tensors import check_event, per_batch
from ...processes import Diffusion, process_from_config
from . import checkpoint
from .networks import answer, network_of_weights, network_to_config
from .preconditioning import Preconditioning
from .preconditioning_registry import default_preconditioning, preconditioning_from_config
from .stored import Stored

if TYPE_CHECKING:
    from .objectives import Objective


class Answer(NamedTuple):
    """A network's output ``[B, …]`` in the dtype of x, beside what it was asked: X ``[B, *event]`` and σ in broadcast form."""

    raw: Tensor
    x: Tensor
    sigma: Tensor


class Trainable(nn.Module, ABC):
    """A network and its process. ``network`` holds the weights that are trained, ``ema`` (None before training) their moving average;
    ``use_ema`` says which of the two answers. ``stored`` says how the data were stored, where it is known."""

    #: the format its files name
    kind: ClassVar[str]
    #: the process, JSON-able by its ``config()``
    process: Any

    def __init__(self, network: nn.Module, process: Any):
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: got {type(network).__name__}, expected an nn.Module, e.g. UNet(UNetConfig())")
        self.network = network
        self.ema: nn.Module | None = None
        self.use_ema = False
        self.stored: Stored | None = None
        self.process = process
        self._caller: Callable[..., Any] | None = None

    @property
    @abstractmethod
    def data_domain(self) -> Domain:
        """Where the data live."""

    @property
    @abstractmethod
    def levels(self) -> tuple[float, float]:
        """From where to where the levels of its objectives go, for the loss as a function of them."""

    @abstractmethod
    def default_objective(self) -> Objective:
        """What ``train`` minimises when it is not told."""

    def check_objective(self, objective: Any) -> None:
        """Refuse an objective for another kind of model; by default none is refused."""
        return

    def ask(self, inputs: Tensor, c_noise: Tensor, condition: dict[str, Any]) -> Tensor:
        """What the network that answers says, in the dtype of the inputs."""
        network = self.ema if self.use_ema and self.ema is not None else self.network
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), inputs.dtype)
        call = self._caller if self._caller is not None and self.training and network is self.network else network
        # a noise level rounded to bfloat16 would be another level
        raw = call(inputs.to(dtype), c_noise.to(torch.promote_types(dtype, torch.float32)), **condition)
        return answer(raw).to(inputs.dtype)

    @contextmanager
    def called_by(self, call: Callable[..., Any] | None) -> Iterator[None]:
        """Within the block ``call`` answers for ``network`` in training mode: the network compiled, or in low precision. The network
        itself is not wrapped, so that names in the state dict stay as they are."""
        # a module would register as one, and its weights with it
        self._caller = None if call is None else lambda *inputs, **condition: call(*inputs, **condition)
        try:
            yield
        finally:
            self._caller = None

    def track_ema(self) -> nn.Module:
        """Start the moving average anew at the present weights; returns the network that carries it."""
        self.ema = copy.deepcopy(self.network).requires_grad_(False)
        return self.ema

    def update_ema(self, decay: float | Tensor) -> None:
        """ema ← decay·ema + (1 − decay)·network; buffers are copied. A decay in a 0-d tensor is not read: no host sync."""
        if self.ema is None:
            raise RuntimeError("update_ema: there is no moving average yet; call track_ema() first")
        move_average(self.ema, self.network, decay)

    @contextmanager
    def ema_weights(self, use: bool = True) -> Iterator[Self]:
        """Within the block the moving average answers (or, with ``use=False``, the trained weights); afterwards, what did before."""
        if use and self.ema is None:
            raise RuntimeError("ema_weights: there is no moving average; train with ema > 0, or call track_ema()")
        before, self.use_ema = self.use_ema, use
        try:
            yield self
        finally:
            self.use_ema = before

    def header(self) -> dict[str, Any]:
        """What a checkpoint says about this model, JSON-able."""
        return {
            "network": network_to_config(self.network),
            "process": self.process.config(),
            "ema": self.ema is not None,
        } | ({} if self.stored is None else {"data": self.stored.config()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write network, moving average and configuration to one safetensors file, atomically. The folder must exist."""
        checkpoint.write(path, self.header(), self.state_dict(), self.kind)

    @classmethod
    def _read(cls, path: str | os.PathLike[str], network: nn.Module | None) -> tuple[checkpoint.Checkpoint, nn.Module]:
        """A file of this kind, and the network that its weights fit: the one given, or the one it describes."""
        file = checkpoint.read(path, kind=cls.kind)
        weights = file.part("network")
        if network is None:
            network = network_of_weights(file.header["network"], weights)
        elif type(network).__name__ != file.header["network"].get("type"):
            raise ValueError(
                f"network: got {type(network).__name__}, but {str(path)!r} holds the weights of "
                f"{file.header['network'].get('type')}; pass an instance of that class"
            )
        checkpoint.check_fit(network, weights, "weights")
        if file.header["ema"]:
            checkpoint.check_fit(network, file.part("ema"), "averaged weights")
        return file, network

    def _as_read(self, file: checkpoint.Checkpoint) -> Self:
        """With all that the file holds, in eval mode."""
        self.restore(file)
        self.stored = Stored.from_config(file.header["data"]) if "data" in file.header else None
        return self.eval()

    def restore(self, file: checkpoint.Checkpoint) -> None:
        """Take over the weights of a file that has been checked to fit."""
        self.network.load_state_dict(file.part("network"))
        if file.header["ema"]:
            self.track_ema().load_state_dict(file.part("ema"))
            self.use_ema = True


class Preconditioned(Trainable):
    """One whose network works in the coordinates of a preconditioning: a :class:`NeuralScore`, a :class:`NoisyClassifier`."""

    process: Diffusion

    def __init__(self, network: nn.Module, process: Diffusion, preconditioning: Preconditioning | None = None):
        super().__init__(network, process)
        if not isinstance(process, Diffusion):
            raise TypeError(f"process: got {type(process).__name__}, expected a Diffusion(domain, schedule)")
        self.preconditioning = preconditioning or default_preconditioning(process.domain)
        self.preconditioning.check(process.domain)

    @property
    def data_domain(self) -> Domain:
        return self.process.domain

    @property
    def levels(self) -> tuple[float, float]:
        return self.process.schedule.sigma_min, self.process.schedule.sigma_max

    def undo_scale(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(X = x/s, σ, s) at x ``[*batch, *event]``, in x's dtype, σ as ``answer`` takes it and s in broadcast form; t a number,
        ``[*batch]`` or ``[*batch, 1, …, 1]``. Refuses x of another shape."""
        event = self.process.domain.event_shape
        check_event(x, event)
        # in float64: of a float32 σ(t), D = x/s + sσ²·score would multiply the rounding by x/sD
        t = per_batch(t, x, len(event), "t").double()
        scale = self.process.event_level(t).scale.to(x.dtype)
        return x / scale, self.process.schedule.sigma(t).to(x.dtype), scale

    def answer(self, x: Tensor, sigma: Tensor, condition: dict[str, Any]) -> Answer:
        """The network at X ``[*batch, *event]`` and noise levels that broadcast over the batch, as one batch of B rows.

        The network computes in its own dtype. Of the condition, tensors that start with the batch dimensions arrive as ``[B, …]``.
        """
        event = self.process.domain.event_shape
        batch = x.shape[: x.dim() - len(event)]
        flat, sigma = x.reshape(-1, *event), sigma.expand(batch).reshape(-1)
        level = self.process.event_sigma(sigma)
        condition = {k: flatten(v, batch) for k, v in condition.items()}
        raw = self.ask(self.preconditioning.inputs(flat, level), self.preconditioning.c_noise(sigma), condition)
        return Answer(raw, flat, level)

    def header(self) -> dict[str, Any]:
        return super().header() | {"preconditioning": self.preconditioning.config()}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        network: nn.Module | None = None,
        *,
        process: Diffusion | None = None,
        preconditioning: Preconditioning | None = None,
    ) -> Self:
        """Rebuild a model from its file alone, in eval mode and answering with the moving average if there is one.

        Args:
            network: for classes the library does not know: an instance built with the settings of training.
            process, preconditioning: likewise, for user-written ones.

        Raises ``FileNotFoundError``; ``ValueError`` for a file that is damaged, of another kind, from a newer version, or that
        does not fit ``network``.
        """
        file, network = cls._read(path, network)
        process = process or process_from_config(file.header["process"])
        if preconditioning is None:
            preconditioning = preconditioning_from_config(file.header["preconditioning"], process.domain)
        return cls(network, process, preconditioning)._as_read(file)


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, decay: float | Tensor) -> None:
    """average ← decay·average + (1 − decay)·network; buffers are copied."""
    means: list[Tensor] = list(average.parameters())
    values: list[Tensor] = list(network.parameters())
    if means:
        steps = torch._foreach_sub(values, means)
        torch._foreach_mul_(steps, 1 - decay)
        torch._foreach_add_(means, list(steps))
    for mean, value in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(value)


def rising(decay: float) -> Callable[[int], float]:
    """The decay of a moving average at each step: (1 + k)/(10 + k) until it is reached, for an average that begins at a guess."""
    return lambda step: min(decay, (1 + step) / (10 + step))


def flatten(value: Any, batch: torch.Size) -> Any:
    """A conditioning tensor whose first dimensions are the batch, with these joined to one."""
    if len(batch) == 1 or not isinstance(value, Tensor) or value.shape[: len(batch)] != batch:
        return value
    return value.reshape(-1, *value.shape[len(batch) :])
