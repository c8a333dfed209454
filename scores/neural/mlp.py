"""A network for vectors: residual layers on the flattened event."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from ...domains.tensors import check_shape
from .layers import (
    ClassEmbedding,
    Conditioned,
    LayerNorm,
    NoiseEmbedding,
    check_counts,
    check_share,
    scale_shift,
    zeroed,
)
from .networks import register_network


@dataclass(frozen=True)
class MLPConfig(Conditioned):
    """Settings of :class:`MLP`; those of :class:`Conditioned` by keyword.

    event_shape: shape of one state. width, depth: neurons per layer and number of residual blocks. dropout: in [0, 1).

    The defaults have 870,000 weights on an event of 10 numbers.
    """

    event_shape: tuple[int, ...]
    width: int = 256
    depth: int = 3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "event_shape", check_shape(self.event_shape))
        check_counts(self, "width", "depth")
        check_share(self.dropout, "dropout")


class _Block(nn.Module):
    """x + W₂ dropout(SiLU(W₁ modulated(norm(x))))."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + self.layers(scale_shift(self.norm(x), self.modulation(embedding)))


@register_network(MLPConfig)
class MLP(nn.Module):
    """A residual network on the flattened event, modulated by the noise level: for vectors, and small images in a hurry."""

    def __init__(self, config: MLPConfig):
        super().__init__()
        self.config = config
        size, width = math.prod(config.event_shape), config.width
        self.embedding = NoiseEmbedding(width, kind=config.embedding)
        self.label = ClassEmbedding(config.classes, width, config.label_dropout)
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width, config.dropout) for _ in range(config.depth))
        self.norm = LayerNorm(width)
        self.last = zeroed(nn.Linear(width, size))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | int | None = None) -> Tensor:
        """x ``[B, *event]``, c_noise ``[B]``, label as in :class:`ClassEmbedding` → ``[B, *event]``."""
        if x.shape[1:] != self.config.event_shape:
            raise ValueError(
                f"MLP: got x of shape {tuple(x.shape)}, expected [B, {', '.join(map(str, self.config.event_shape))}]; set "
                "event_shape of MLPConfig to that of the domain"
            )
        embedding = functional.silu(self.label(self.embedding(c_noise), label))
        hidden = self.first(x.reshape(len(x), -1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.last(functional.silu(self.norm(hidden))).reshape(x.shape)
