"""A U-Net for images, of the kind that DDPM++ and ADM are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...domains.tensors import check_shape, is_int
from .layers import (
    ClassEmbedding,
    Conditioned,
    NoiseEmbedding,
    attend,
    check_counts,
    check_heads,
    check_share,
    group_norm,
    scale_shift,
    zeroed,
)
from .networks import register_network


@dataclass(frozen=True)
class UNetConfig(Conditioned):
    """Settings of :class:`UNet`; those of :class:`Conditioned` by keyword.

    image_channels: C of the ``[C, H, W]`` event. channels: width at full resolution; multipliers: width of each level in
    units of it, each level at half the resolution of the one before. blocks: residual blocks per level. heads: of every
    self-attention; 0 leaves the one at the lowest resolution out. dropout: in [0, 1).
    attention: the levels, 0 at full resolution, where a self-attention follows each residual block, besides the one in the middle;
    its cost grows with the square of the number of pixels.
    rescale: divide each sum of a branch and its skip by √2, so that their size does not grow with depth (Song et al. 2021, app. H).

    The defaults (393,000 weights) suit 8×8 digits on two CPU cores, where twice the width learns no more in 90 s and samples
    at half the speed; for larger images widen ``channels``: the DDPM++ of 32×32 images is about
    ``UNetConfig(3, 128, (2, 2, 2), blocks=4, heads=1, dropout=0.1, attention=(1,), rescale=True)``, with 49 million weights.
    """

    image_channels: int = 1
    channels: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 1
    heads: int = 4
    dropout: float = 0.0
    attention: tuple[int, ...] = ()
    rescale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "multipliers", check_shape(self.multipliers, "multipliers"))
        object.__setattr__(self, "attention", tuple(self.attention))
        check_counts(self, "image_channels", "channels", "blocks")
        check_share(self.dropout, "dropout")
        levels = len(self.multipliers)
        if not levels:
            raise ValueError("multipliers: got (), expected one per level, e.g. (1, 2)")
        if not all(is_int(level, 0, levels - 1) for level in self.attention):
            raise ValueError(f"attention: got {self.attention}, expected levels from 0 to {levels - 1}")
        if self.attention and not self.heads:
            raise ValueError(f"attention: got {self.attention} with heads=0, expected at least 1 head")
        if self.heads != 0:
            check_heads(self.heads, self.channels * self.multipliers[-1], "the lowest level's")
        for level in self.attention:
            check_heads(self.heads, self.channels * self.multipliers[level], f"level {level}'s")


class _Attention(nn.Module):
    """x + self-attention over the pixels."""

    def __init__(self, channels: int, heads: int, scale: float):
        super().__init__()
        self.heads, self.scale = heads, scale
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # channels-last images are tokens already: no copy
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).contiguous()
        mixed = attend(tokens, self.heads).transpose(1, 2).unflatten(2, x.shape[2:])
        return _scaled(x + self.out(mixed), self.scale)


class _ResidualBlock(nn.Module):
    """Two convolutions around a modulation by the embedding, and attention if wished; the skip is a 1×1 convolution where channels
    change."""

    def __init__(self, channels: int, out: int, embedding: int, config: UNetConfig, attend: bool):
        super().__init__()
        self.scale = math.sqrt(0.5) if config.rescale else 1.0
        self.norm_in, self.norm_out = group_norm(channels), group_norm(out)
        self.conv_in = nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.attention = _Attention(out, config.heads, self.scale) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv_in(functional.silu(self.norm_in(x)))
        hidden = functional.silu(scale_shift(self.norm_out(hidden), self.modulation(embedding)))
        return self.attention(_scaled(self.skip(x) + self.conv_out(self.dropout(hidden)), self.scale))


@register_network(UNetConfig)
class UNet(nn.Module):
    """A U-Net for events ``[C, H, W]``, H and W divisible by 2^(levels − 1) (Ho et al. 2020; scale-shift of ADM, Dhariwal & Nichol 2021).

    Weights and images may be channels-last (``network.to(memory_format=torch.channels_last)``), and in bfloat16, where norms still
    sum in float32.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths = [config.channels * m for m in config.multipliers]
        features = 4 * config.channels
        self.embedding = NoiseEmbedding(features, kind=config.embedding)
        self.label = ClassEmbedding(config.classes, features, config.label_dropout)
        self.first = nn.Conv2d(config.image_channels, widths[0], 3, padding=1)

        def block(channels: int, out: int, level: int) -> _ResidualBlock:
            return _ResidualBlock(channels, out, features, config, level in config.attention)

        # each block on the way up meets the output of its twin on the way down
        kept, width = [], widths[0]
        self.down = nn.ModuleList()
        for level, out in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
            for _ in range(config.blocks):
                self.down.append(block(width, out, level))
                width = out
                kept.append(width)
        self.middle = _ResidualBlock(width, width, features, config, False)
        self.attention = _Attention(width, config.heads, self.middle.scale) if config.heads else nn.Identity()
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(config.blocks):
                self.up.append(block(width + kept.pop(), out, level))
                width = out
            if level:
                self.up.append(nn.Upsample(scale_factor=2.0, mode="nearest"))
        self.norm = group_norm(width)
        self.last = zeroed(nn.Conv2d(width, config.image_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | int | None = None) -> Tensor:
        """x ``[B, C, H, W]``, c_noise ``[B]``, label as in :class:`ClassEmbedding` → ``[B, C, H, W]``."""
        self._check(x)
        embedding = functional.silu(self.label(self.embedding(c_noise), label))
        hidden, kept = self.first(x), []
        for layer in self.down:
            if isinstance(layer, _ResidualBlock):
                hidden = layer(hidden, embedding)
                kept.append(hidden)
            else:
                hidden = layer(hidden)
        hidden = self.attention(self.middle(hidden, embedding))
        for layer in self.up:
            if isinstance(layer, _ResidualBlock):
                hidden = layer(torch.cat([hidden, kept.pop()], 1), embedding)
            else:
                hidden = layer(hidden)
        return self.last(functional.silu(self.norm(hidden)))

    def _check(self, x: Tensor) -> None:
        factor = 2 ** (len(self.config.multipliers) - 1)
        fits = x.dim() == 4 and x.shape[1] == self.config.image_channels
        if not fits or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"UNet: got x of shape {tuple(x.shape)}, expected [B, {self.config.image_channels}, H, W] with H and W "
                f"divisible by {factor}; set image_channels or multipliers of UNetConfig to fit the event"
            )


def _scaled(x: Tensor, scale: float) -> Tensor:
    """x itself where the scale is 1."""
    return x if scale == 1.0 else scale * x
