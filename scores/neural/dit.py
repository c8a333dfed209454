"""A transformer over the patches of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...domains.tensors import check_shape, is_int
from .layers import (
    ClassEmbedding,
    Conditioned,
    LayerNorm,
    NoiseEmbedding,
    attend,
    check_counts,
    check_heads,
    check_share,
    zeroed,
)
from .networks import register_network


@dataclass(frozen=True)
class DiTConfig(Conditioned):
    """Settings of :class:`DiT`; those of :class:`Conditioned` by keyword.

    image_channels: C of the ``[C, H, W]`` event. image_size: H and W, or one number for both. patch: side of the squares that become
    tokens, a divisor of both. width, depth, heads: of the transformer; heads divides width, and 4 does. dropout: in [0, 1), on
    what attention and the two layers after it add.

    The defaults have 314,000 weights for 8×8 digits; DiT-S/2 of Peebles & Xie is ``DiTConfig(4, 32, 2, 384, 12, 6)``.
    """

    image_channels: int = 1
    image_size: int | tuple[int, int] = 8
    patch: int = 2
    width: int = 64
    depth: int = 4
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "image_channels", "patch", "width", "depth", "heads")
        check_share(self.dropout, "dropout")
        size: Any = (self.image_size, self.image_size) if is_int(self.image_size, 1) else self.image_size
        if (
            not isinstance(size, Sequence)
            or len(size) != 2
            or any(n % self.patch for n in check_shape(size, "image_size"))
        ):
            raise ValueError(
                f"image_size: got {self.image_size!r}, expected one or two multiples of the patch {self.patch}"
            )
        object.__setattr__(self, "image_size", check_shape(size, "image_size"))
        if self.width % 4:
            raise ValueError(
                f"width: got {self.width}, expected a multiple of 4, for sines and cosines of rows and columns"
            )
        check_heads(self.heads, self.width, "the")


class _Block(nn.Module):
    """Attention, then two layers, each added to x through a gate that starts at zero (adaLN-Zero)."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm = LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        a_scale, a_shift, a_gate, b_scale, b_shift, b_gate = self.modulation(embedding).unsqueeze(1).chunk(6, -1)
        mixed = self.out(attend(self.qkv(torch.addcmul(a_shift, self.norm(x), 1 + a_scale)), self.heads))
        x = torch.addcmul(x, a_gate, self.dropout(mixed))
        mixed = self.layers(torch.addcmul(b_shift, self.norm(x), 1 + b_scale))
        return torch.addcmul(x, b_gate, self.dropout(mixed))


@register_network(DiTConfig)
class DiT(nn.Module):
    """A small diffusion transformer for events ``[C, H, W]`` (Peebles & Xie 2023, with adaLN-Zero).

    Patches are told apart by fixed sines and cosines of their row and column, so that any convolution-like bias has to be learned:
    it wants more data than a :class:`UNet`, and gains more by width.
    """

    positions: Tensor

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        width, pixels = config.width, config.image_channels * config.patch**2
        self.embedding = NoiseEmbedding(width, kind=config.embedding)
        self.label = ClassEmbedding(config.classes, width, config.label_dropout)
        rows, columns = (n // config.patch for n in _sides(config))
        self.register_buffer("positions", grid_positions(rows, columns, width), persistent=False)
        self.first = nn.Linear(pixels, width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, pixels))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | int | None = None) -> Tensor:
        """x ``[B, C, H, W]``, c_noise ``[B]``, label as in :class:`ClassEmbedding` → ``[B, C, H, W]``."""
        expected = (self.config.image_channels, *_sides(self.config))
        if x.shape[1:] != expected:
            raise ValueError(
                f"DiT: got x of shape {tuple(x.shape)}, expected [B, {', '.join(map(str, expected))}]; set image_channels and "
                "image_size of DiTConfig to fit the event"
            )
        embedding = functional.silu(self.label(self.embedding(c_noise), label))
        patches = functional.pixel_unshuffle(x, self.config.patch)
        hidden = self.first(patches.flatten(2).transpose(1, 2)) + self.positions
        for block in self.blocks:
            hidden = block(hidden, embedding)
        scale, shift = self.modulation(embedding).unsqueeze(1).chunk(2, -1)
        hidden = self.last(torch.addcmul(shift, self.norm(hidden), 1 + scale))
        return functional.pixel_shuffle(hidden.transpose(1, 2).unflatten(2, patches.shape[2:]), self.config.patch)


def grid_positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of row and column, ``[rows·columns, width]``: angular frequencies geometric from 1 to 1/(longest side)."""
    count = width // 4
    frequencies = float(max(rows, columns)) ** (-torch.arange(count) / max(count - 1, 1))
    row, column = (torch.arange(n)[:, None] * frequencies for n in (rows, columns))
    row = torch.cat([row.sin(), row.cos()], -1)[:, None].expand(rows, columns, -1)
    column = torch.cat([column.sin(), column.cos()], -1)[None].expand(rows, columns, -1)
    return torch.cat([row, column], -1).flatten(0, 1)


def _sides(config: DiTConfig) -> tuple[int, int]:
    """H and W, which the config keeps as a pair."""
    size = config.image_size
    return (size, size) if isinstance(size, int) else size
