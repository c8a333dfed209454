"""What the networks share: how they hear the noise level and the class, and small layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...domains.tensors import is_int, number, values_are_readable

_KINDS = ("sinusoidal", "fourier")


@dataclass(frozen=True, kw_only=True)
class Conditioned:
    """Settings that all networks here have, by keyword.

    embedding: of the noise level, "sinusoidal" or "fourier", see :class:`NoiseEmbedding`.
    classes: how many classes there are; the network then takes ``label``, see :class:`ClassEmbedding`. 0: none, and ``label`` is
    refused.
    label_dropout: in [0, 1), the share of labels withheld in training, so that the network also learns the score without a class,
    which classifier-free guidance needs (Ho & Salimans 2022).
    """

    embedding: str = "sinusoidal"
    classes: int = 0
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.embedding not in _KINDS:
            raise ValueError(f"embedding: got {self.embedding!r}, expected one of {', '.join(map(repr, _KINDS))}")
        if not is_int(self.classes, 0):
            raise ValueError(f"classes: got {self.classes!r}, expected a whole number, 0 for none")
        check_share(self.label_dropout, "label_dropout")
        if self.label_dropout and not self.classes:
            raise ValueError(
                f"label_dropout: got {self.label_dropout} with classes=0, where there are no labels to drop"
            )


class KeepsPrecision(nn.Module):
    """A module whose buffers follow it to other devices but keep their dtype: a frequency in bfloat16 would be another one."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in before.items():
            after = self._buffers[name]
            if value is not None and after is not None and after.dtype != value.dtype:
                self._buffers[name] = value.to(after.device)
        return self


class NoiseEmbedding(KeepsPrecision):
    r"""c_noise ``[B]`` → ``[B, width]``: sines and cosines of it at some frequencies, then two layers.

    c_noise is about ln σ / 4, so that a frequency f has the period 8π/f in ln σ.

    Args:
        kind: "sinusoidal": geometric from 1 to ``highest`` (Vaswani et al. 2017). "fourier": random, :math:`N(0, highest^2/4)`, so
            that 95 % are below ``highest`` (Tancik et al. 2020); drawn from ``seed`` and kept in checkpoints.
    """

    frequencies: Tensor

    def __init__(
        self, width: int, frequencies: int = 16, highest: float = 32.0, kind: str = "sinusoidal", seed: int = 0
    ):
        super().__init__()
        random = kind == "fourier"
        if random:
            values = torch.randn(frequencies, generator=torch.Generator().manual_seed(seed)) * (highest / 2)
        else:
            values = highest ** (torch.arange(frequencies, dtype=torch.float32) / max(frequencies - 1, 1))
        self.register_buffer("frequencies", values, persistent=random)
        self.layers = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        waves = torch.cat([angle.sin(), angle.cos()], -1)
        return self.layers(waves.to(next(self.layers.parameters()).dtype))


class ClassEmbedding(nn.Module):
    """Adds to an embedding ``[B, width]`` that of the class: a table of one row per class, and one for "no class".

    ``label`` is ``[B]``, or one number for all, of whole numbers from 0 to classes − 1. The *null token* ``classes``, for which −1 may
    be written too, says "no class", and None says it of the whole batch. Other labels are refused on the CPU; on a GPU reading
    them would stall it, and the look-up fails there by itself.

    Args:
        classes: how many; with 0 the embedding is left as it is, and a label refused.
        dropout: the share of labels that become the null token in training; no value is read for it.
    """

    def __init__(self, classes: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.classes, self.dropout = classes, dropout
        self.table = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, embedding: Tensor, label: Tensor | int | None) -> Tensor:
        if self.table is not None:
            return embedding + self.table(self._tokens(embedding, label))
        if label is not None:
            raise ValueError(
                "label: got one for a network without classes; set classes in its config to their number, or leave label out"
            )
        return embedding

    def _tokens(self, embedding: Tensor, label: Tensor | int | None) -> Tensor:
        null = self.classes
        token = null if label is None else label
        # a number is written on the device: copied from here, it would stall every step and end the capture of a CUDA graph
        if isinstance(token, int):
            token = torch.full((), token, device=embedding.device)
        tokens = torch.as_tensor(token, device=embedding.device)
        if tokens.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise TypeError(f"label: got dtype {tokens.dtype}, expected whole numbers, e.g. label.long()")
        if tokens.shape not in ((), embedding.shape[:1]):
            raise ValueError(
                f"label: got shape {tuple(tokens.shape)}, expected one for each row of the batch, [{len(embedding)}]"
            )
        on_cpu = tokens.device.type == "cpu" and values_are_readable(tokens)
        if on_cpu and bool(((tokens < -1) | (tokens > null)).any()):
            raise ValueError(
                f"label: got values from {int(tokens.min())} to {int(tokens.max())}, expected 0 … {null - 1}, or {null} or −1 for "
                "no class"
            )
        tokens = tokens.long().expand(len(embedding))
        tokens = torch.where(tokens == -1, null, tokens)
        if not (self.training and self.dropout):
            return tokens
        return torch.where(torch.rand(tokens.shape, device=tokens.device) < self.dropout, null, tokens)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last dimension whose derivatives inside ``torch.func.grad`` are right at every order.

    PyTorch's own takes mean and variance for constants in third derivatives (pytorch issue 175754), of which implicit score matching of
    a network that is a gradient itself is made. Group normalisation with one group is the same and does not, but is slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and not torch._C._functorch.is_functorch_wrapped_tensor(x):
            return super().forward(x)
        rows = functional.group_norm(x.reshape(-1, x.shape[-1]), 1, self.weight, self.bias, self.eps)
        return rows.reshape(x.shape)


def scale_shift(x: Tensor, modulation: Tensor) -> Tensor:
    """x·(1 + scale) + shift; ``modulation`` is ``[B, 2C]``, x ``[B, C, …]``."""
    scale, shift = modulation.reshape(*modulation.shape, *(1,) * (x.dim() - 2)).chunk(2, 1)
    return torch.addcmul(shift, x, 1 + scale)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention among N tokens: queries, keys and values side by side ``[B, N, 3C]`` → ``[B, N, C]``."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def zeroed(layer: Any) -> Any:
    """The layer, starting at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def check_counts(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not is_int(value, 1):
            raise ValueError(f"{type(config).__name__}.{name}: got {value!r}, expected a whole number of at least 1")


def check_share(value: float, name: str) -> None:
    if number(value, name, low=0.0, high=1.0) == 1.0:
        raise ValueError(f"{name}: got 1, expected a share below 1")


def check_heads(heads: int, channels: int, where: str) -> None:
    if not is_int(heads, 1) or channels % heads:
        raise ValueError(f"heads: got {heads}, expected 0 or a divisor of {where} {channels} channels")
