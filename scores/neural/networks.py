"""Networks that a score can be built on: ``network(x, c_noise)`` with x ``[B, *event]``, c_noise ``[B]`` → ``[B, *event]``.

Any ``nn.Module`` of this signature will do (further keywords are the condition). The two here are each configured by a
frozen dataclass that travels in the checkpoint; :func:`register_network` lets a class of one's own travel the same way.
Their last layer starts at zero, so that an untrained score is that of the stationary law on a bounded domain.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...domains.tensors import check_shape, number

N = TypeVar("N", bound=type[nn.Module])
_REGISTRY: dict[str, tuple[type[nn.Module], type]] = {}


def register_network(config: type) -> Callable[[N], N]:
    """Class decorator: ``network(config)`` builds it, ``network.config`` is an instance of this (JSON-able) dataclass.

    ``NeuralScore.load`` then rebuilds the network from the checkpoint alone.
    """

    def register(network: N) -> N:
        _REGISTRY[network.__name__] = (network, config)
        return network

    return register


def network_to_config(network: nn.Module) -> dict[str, Any]:
    """``{"type": name, **fields}``; the name only for a class that is not registered."""
    name = type(network).__name__
    if _REGISTRY.get(name, (None,))[0] is not type(network):
        return {"type": name}
    config: Any = network.config
    return {"type": name, **dataclasses.asdict(config)}


def network_from_config(config: Mapping[str, Any]) -> nn.Module:
    """The inverse of :func:`network_to_config`, for registered classes; unknown names and fields are refused."""
    fields = dict(config)
    name = fields.pop("type", None)
    if name not in _REGISTRY:
        raise ValueError(
            f"network: got class {name!r}, which is none of the known {', '.join(sorted(_REGISTRY))}; build it yourself "
            "and pass it: load(path, network=…), or register its class with register_network"
        )
    network, kind = _REGISTRY[name]
    expected = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(fields) - expected):
        raise ValueError(
            f"network {name}: got unknown settings {', '.join(unknown)}, expected a subset of {', '.join(sorted(expected))}; "
            "the checkpoint may come from a newer carom"
        )
    return network(kind(**fields))


class NoiseEmbedding(nn.Module):
    """c_noise ``[B]`` → ``[B, width]``: sines and cosines at geometric frequencies from 1 to ``highest``, then two layers.

    c_noise is about ln σ / 4, so ln σ is resolved down to a period of 8π/highest.
    """

    frequencies: Tensor

    def __init__(self, width: int, frequencies: int = 16, highest: float = 32.0):
        super().__init__()
        steps = torch.arange(frequencies, dtype=torch.float32) / max(frequencies - 1, 1)
        self.register_buffer("frequencies", highest**steps, persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        waves = torch.cat([angle.sin(), angle.cos()], -1)
        return self.layers(waves.to(next(self.layers.parameters()).dtype))


def _scale_shift(x: Tensor, modulation: Tensor) -> Tensor:
    """x·(1 + scale) + shift; ``modulation`` is ``[B, 2C]``, x ``[B, C, …]``."""
    scale, shift = modulation.reshape(*modulation.shape, *(1,) * (x.dim() - 2)).chunk(2, 1)
    return torch.addcmul(shift, x, 1 + scale)


@dataclass(frozen=True)
class MLPConfig:
    """Settings of :class:`MLP`.

    event_shape: shape of one state. width, depth: neurons per layer and number of residual blocks. dropout: in [0, 1).
    """

    event_shape: tuple[int, ...]
    width: int = 256
    depth: int = 3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_shape", check_shape(self.event_shape))
        _check_counts(self, "width", "depth")
        _check_dropout(self.dropout)


class _MLPBlock(nn.Module):
    """x + W₂ dropout(SiLU(W₁ modulated(norm(x))))."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + self.layers(_scale_shift(self.norm(x), self.modulation(embedding)))


@register_network(MLPConfig)
class MLP(nn.Module):
    """A residual network on the flattened event, modulated by the noise level: for vectors, and small images in a hurry."""

    def __init__(self, config: MLPConfig):
        super().__init__()
        self.config = config
        size, width = math.prod(config.event_shape), config.width
        self.embedding = NoiseEmbedding(width)
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_MLPBlock(width, config.dropout) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.last = _zeroed(nn.Linear(width, size))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x ``[B, *event]``, c_noise ``[B]`` → ``[B, *event]``."""
        if x.shape[1:] != self.config.event_shape:
            raise ValueError(
                f"MLP: got x of shape {tuple(x.shape)}, expected [B, {', '.join(map(str, self.config.event_shape))}]; set "
                "event_shape of MLPConfig to that of the domain"
            )
        embedding = functional.silu(self.embedding(c_noise))
        hidden = self.first(x.reshape(len(x), -1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.last(functional.silu(self.norm(hidden))).reshape(x.shape)


@dataclass(frozen=True)
class UNetConfig:
    """Settings of :class:`UNet`.

    image_channels: C of the ``[C, H, W]`` event. channels: width at full resolution; multipliers: width of each level in
    units of it, each level at half the resolution of the one before. blocks: residual blocks per level. heads: of the
    self-attention at the lowest resolution; 0 leaves it out. dropout: in [0, 1).

    The defaults (393,000 weights) suit 8×8 digits on two CPU cores, where twice the width learns no more in 90 s and samples
    at half the speed; for larger images widen ``channels``.
    """

    image_channels: int = 1
    channels: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 1
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", check_shape(self.multipliers, "multipliers"))
        _check_counts(self, "image_channels", "channels", "blocks")
        _check_dropout(self.dropout)
        if not self.multipliers:
            raise ValueError("multipliers: got (), expected one per level, e.g. (1, 2)")
        if self.heads < 0 or (self.heads and self.channels * self.multipliers[-1] % self.heads):
            raise ValueError(
                f"heads: got {self.heads}, expected 0 or a divisor of the lowest level's {self.channels * self.multipliers[-1]} "
                "channels"
            )


class _ResidualBlock(nn.Module):
    """Two convolutions around a modulation by the noise level; the skip is a 1×1 convolution where channels change."""

    def __init__(self, channels: int, out: int, embedding: int, dropout: float):
        super().__init__()
        self.norm_in, self.norm_out = _group_norm(channels), _group_norm(out)
        self.conv_in = nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv_in(functional.silu(self.norm_in(x)))
        hidden = functional.silu(_scale_shift(self.norm_out(hidden), self.modulation(embedding)))
        return self.skip(x) + self.conv_out(self.dropout(hidden))


class _Attention(nn.Module):
    """x + self-attention over the pixels."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = _group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2)
        mixed = functional.scaled_dot_product_attention(*qkv.unbind(1))
        return x + self.out(mixed.transpose(-1, -2).reshape(b, c, h, w))


@register_network(UNetConfig)
class UNet(nn.Module):
    """A small U-Net for events ``[C, H, W]``, H and W divisible by 2^(levels − 1) (Ho et al. 2020; scale-shift of ADM)."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths = [config.channels * m for m in config.multipliers]
        features = 4 * config.channels
        self.embedding = NoiseEmbedding(features)
        self.first = nn.Conv2d(config.image_channels, widths[0], 3, padding=1)

        def block(channels: int, out: int) -> _ResidualBlock:
            return _ResidualBlock(channels, out, features, config.dropout)

        # each block on the way up meets the output of its twin on the way down
        kept, width = [], widths[0]
        self.down = nn.ModuleList()
        for level, out in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
            for _ in range(config.blocks):
                self.down.append(block(width, out))
                width = out
                kept.append(width)
        self.middle = block(width, width)
        self.attention = _Attention(width, config.heads) if config.heads else nn.Identity()
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(config.blocks):
                self.up.append(block(width + kept.pop(), out))
                width = out
            if level:
                self.up.append(nn.Upsample(scale_factor=2.0, mode="nearest"))
        self.norm = _group_norm(width)
        self.last = _zeroed(nn.Conv2d(width, config.image_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x ``[B, C, H, W]``, c_noise ``[B]`` → ``[B, C, H, W]``."""
        self._check(x)
        embedding = functional.silu(self.embedding(c_noise))
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


def _zeroed(layer: Any) -> Any:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _check_counts(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{type(config).__name__}.{name}: got {value!r}, expected a whole number of at least 1")


def _check_dropout(value: float) -> None:
    if number(value, "dropout", low=0.0, high=1.0) == 1.0:
        raise ValueError("dropout: got 1, expected a share below 1")
