"""Noise sources: recipes that every solve opens anew, so that two solves never share state.

``recipe.open(x)`` returns a source for states like ``x``; ``source(t, s, stream=0, rows=None)`` returns unit normals for
the step [t, s], one stream per draw within a step, for all batch rows or for ``rows`` (an index into the flattened batch);
``source.initial(distribution)`` draws the start of generation from the same stream of randomness, so that the first
noise is never tied to it. Normals are drawn on the CPU unless told otherwise, so that a seed means the same everywhere.

========================  ==============================================================  =================================
recipe                    one seed for                                                    a sample's noise depends on
========================  ==============================================================  =================================
``WhiteNoise(seed)``      the batch                                                       the batch and the order of draws
``SampleNoise(seeds)``    each sample                                                     its seed and the order of draws
``BrownianPath(seeds)``   each sample                                                     its seed and the interval [t, s]
========================  ==============================================================  =================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

_MASK = (1 << 64) - 1
_START = 0x9E3779B97F4A7C15
_LEVELS = 24  # dyadic levels of a Brownian path per unit of time
#: steps on a Brownian path must be longer than this
RESOLUTION = 2.0**-_LEVELS


def mix(*words: int) -> int:
    """A 63-bit hash of integers (SplitMix64 finaliser, chained): neighbouring inputs give unrelated seeds."""
    return _absorb(_START, *words) >> 1


def _absorb(h: int, *words: int) -> int:
    """The state of that hash after more words."""
    for word in words:
        h = (h ^ (word & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB & _MASK
        h ^= h >> 31
    return h


def seeded(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def global_seed() -> int:
    """A fresh seed from torch's global generator, so that ``torch.manual_seed`` governs unseeded runs."""
    return int(torch.randint(0, 2**62, (), dtype=torch.int64))


class Source(ABC):
    """An open source of noise for states of one shape, dtype and device."""

    def __init__(self, x: Tensor, batch_ndim: int):
        self.shape, self.dtype, self.device = tuple(x.shape), x.dtype, x.device
        self.batch, self.event = self.shape[:batch_ndim], self.shape[batch_ndim:]

    @abstractmethod
    def __call__(self, t: float, s: float, stream: int = 0, rows: Tensor | None = None) -> Tensor:
        """Unit normals ``[*batch, *event]``, or ``[len(rows), *event]``."""

    @abstractmethod
    def initial(self, distribution: Distribution) -> Tensor:
        """Draws of the distribution for the whole batch: ``[*batch, *event]``."""

    def given(self, law: Callable[[Tensor], Distribution], x: Tensor) -> Tensor:
        """A draw of law(x), a law of its own for each sample x ``[*batch, *event]``, as ``initial`` draws of one for all."""
        raise NotImplementedError(f"{type(self).__name__} draws normals only; start from WhiteNoise or SampleNoise")

    @abstractmethod
    def paths(self) -> list[Source]:
        """A Brownian path for each sample, to be read at times of its own: sources for one row each. Of the same seeds, always the same."""

    def _normals(self, generator: torch.Generator, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, dtype=self.dtype, device=generator.device)


class Noise(ABC):
    """A recipe of noise."""

    @abstractmethod
    def open(self, x: Tensor, event_ndim: int | None = None) -> Any:
        """A fresh source for states like ``x``; the batch is its dimensions before the last ``event_ndim`` (all but the
        first where it is not given)."""

    @staticmethod
    def _batch_ndim(x: Tensor, event_ndim: int | None) -> int:
        return min(1, x.dim()) if event_ndim is None else x.dim() - event_ndim


class _WhiteSource(Source):
    def __init__(self, x: Tensor, batch_ndim: int, seed: int, device: str | torch.device):
        super().__init__(x, batch_ndim)
        self.seed, self.generator = seed, seeded(seed, device)

    def paths(self) -> list[Source]:
        return _paths([mix(self.seed, i) for i in range(math.prod(self.batch))], self)

    def __call__(self, t: float, s: float, stream: int = 0, rows: Tensor | None = None) -> Tensor:
        shape = self.shape if rows is None else (len(rows), *self.event)
        return self._normals(self.generator, shape).to(self.device)

    def initial(self, distribution: Distribution) -> Tensor:
        return distribution.sample(self.batch, generator=self.generator).to(self.device, self.dtype)  # type: ignore[call-arg]

    def given(self, law: Callable[[Tensor], Distribution], x: Tensor) -> Tensor:
        return law(x).sample(generator=self.generator).to(self.device, self.dtype)  # type: ignore[call-arg]


class WhiteNoise(Noise):
    """Independent normals in the order of the draws, one generator for the batch.

    Args:
        seed: an int, or ``None`` for a fresh one from torch's global generator at each opening.
        device: where to draw; on another device the same seed gives other numbers.
    """

    def __init__(self, seed: int | None = None, device: str | torch.device = "cpu"):
        self.seed, self.device = seed, device

    def open(self, x: Tensor, event_ndim: int | None = None) -> Source:
        seed = global_seed() if self.seed is None else self.seed
        return _WhiteSource(x, self._batch_ndim(x, event_ndim), seed, self.device)


class _SampleSource(Source):
    def __init__(self, x: Tensor, batch_ndim: int, seeds: list[int]):
        super().__init__(x, batch_ndim)
        self.seeds, self.generators = seeds, [seeded(mix(seed)) for seed in seeds]

    def paths(self) -> list[Source]:
        return _paths(self.seeds, self)

    def __call__(self, t: float, s: float, stream: int = 0, rows: Tensor | None = None) -> Tensor:
        chosen = self.generators if rows is None else [self.generators[i] for i in rows.tolist()]
        out = torch.empty((len(chosen), *self.event), dtype=self.dtype)
        for row, generator in zip(out.unbind(), chosen, strict=True):
            row.normal_(generator=generator)
        return (out.reshape(self.shape) if rows is None else out).to(self.device)

    def initial(self, distribution: Distribution) -> Tensor:
        draws = [distribution.sample((), generator=g) for g in self.generators]  # type: ignore[call-arg]
        out = torch.stack(draws) if draws else torch.empty((0, *self.event))
        return out.reshape(self.shape).to(self.device, self.dtype)

    def given(self, law: Callable[[Tensor], Distribution], x: Tensor) -> Tensor:
        return _row_by_row(law, x, self.event, self.generators)


class SampleNoise(Noise):
    """Independent normals, one generator per sample: a sample is the same alone and in any batch.

    Args: seeds: one int per sample, in the order of the flattened batch.
    """

    def __init__(self, seeds: Sequence[int]):
        self.seeds = checked_seeds(seeds)

    def open(self, x: Tensor, event_ndim: int | None = None) -> Source:
        batch_ndim = self._batch_ndim(x, event_ndim)
        check_count(self.seeds, x, batch_ndim)
        return _SampleSource(x, batch_ndim, self.seeds)


class _PathSource(Source):
    """A virtual Brownian tree per sample: W at a dyadic time is the mean of its parents' plus a normal of its own seed.

    Times are rounded to multiples of 2^-24 and increments divided by the root of the *rounded* length: the law of each
    is exactly normal, and disjoint intervals are independent. The walk from the root is cached, so that a sweep over a grid
    pays only for nodes it has not just visited.
    """

    def __init__(self, x: Tensor, batch_ndim: int, seeds: Sequence[int]):
        super().__init__(x, batch_ndim)
        self.seeds, self.generator = list(seeds), torch.Generator()
        self._cache: dict[tuple[int, ...], list[tuple[int, int, Tensor, Tensor]]] = {}
        self._hashes: dict[tuple[int, int], list[int]] = {}

    def __call__(self, t: float, s: float, stream: int = 0, rows: Tensor | None = None) -> Tensor:
        unit = 1 << _LEVELS
        i, j = round(float(t) * unit), round(float(s) * unit)
        if i == j:
            raise ValueError(
                f"BrownianPath: got the step [{t:g}, {s:g}], expected steps longer than {RESOLUTION:.1e}; "
                "rescale time or use SampleNoise"
            )
        low, high = min(i, j), max(i, j)
        increment = self._between(low, high, stream) * math.copysign(1 / math.sqrt((high - low) / unit), j - i)
        increment = increment.to(self.dtype)
        if rows is not None:
            return increment[rows.cpu()].to(self.device)
        return increment.reshape(self.shape).to(self.device)

    def paths(self) -> list[Source]:
        return _paths(self.seeds, self)

    def initial(self, distribution: Distribution) -> Tensor:
        draws = [distribution.sample((), generator=seeded(mix(seed, -1))) for seed in self.seeds]  # type: ignore[call-arg]
        out = torch.stack(draws) if draws else torch.empty((0, *self.event))
        return out.reshape(self.shape).to(self.device, self.dtype)

    def given(self, law: Callable[[Tensor], Distribution], x: Tensor) -> Tensor:
        return _row_by_row(law, x, self.event, [seeded(mix(seed, -1)) for seed in self.seeds])

    def _between(self, low: int, high: int, stream: int) -> Tensor:
        """W(high) − W(low), cell by cell of unit length."""
        unit = 1 << _LEVELS
        total = None
        for cell in range(low // unit, -(-high // unit)):
            a, b = max(low, cell * unit) - cell * unit, min(high, (cell + 1) * unit) - cell * unit
            part = self._at(b, cell, stream) - self._at(a, cell, stream)
            total = part if total is None else total + part
        return total  # type: ignore[return-value]

    def _at(self, i: int, cell: int, stream: int) -> Tensor:
        """W at offset i of a cell, relative to the cell's start."""
        unit = 1 << _LEVELS
        if i == 0:
            return torch.zeros((), dtype=torch.float64)
        if (cell, stream) not in self._cache:
            start = torch.zeros((), dtype=torch.float64)
            self._cache[cell, stream] = [(0, unit, start, self._node(cell, stream, unit))]
        path = self._cache[cell, stream]
        while not path[-1][0] <= i <= path[-1][1]:
            path.pop()
        while True:
            a, b, wa, wb = path[-1]
            if i in (a, b):
                return wa if i == a else wb
            middle = (a + b) // 2
            # Brownian bridge: the midpoint given both ends has variance (b − a)/4
            spread = math.sqrt((b - a) / unit) / 2
            w = torch.lerp(wa, wb, 0.5).add_(self._node(cell, stream, middle), alpha=spread)
            path.append((a, middle, wa, w) if i <= middle else (middle, b, w, wb))

    def _node(self, cell: int, stream: int, place: int) -> Tensor:
        """The normals that belong to a place of the tree; drawn in float32, so that both precisions share a path."""
        if (cell, stream) not in self._hashes:
            self._hashes[cell, stream] = [_absorb(_START, seed, cell, stream) for seed in self.seeds]
        out, generator = torch.empty((len(self.seeds), *self.event), dtype=torch.float32), self.generator
        for row, h in zip(out.unbind(), self._hashes[cell, stream], strict=True):
            row.normal_(generator=generator.manual_seed(_absorb(h, place) >> 1))
        return out.double()


def _row_by_row(
    law: Callable[[Tensor], Distribution], x: Tensor, event: Sequence[int], generators: Sequence[torch.Generator]
) -> Tensor:
    rows = zip(x.reshape(len(generators), *event), generators, strict=True)
    draws = [law(row).sample(generator=generator) for row, generator in rows]  # type: ignore[call-arg]
    return (torch.stack(draws) if draws else torch.empty_like(x)).reshape(x.shape).to(x)


def _paths(seeds: Sequence[int], like: Source) -> list[Source]:
    row = torch.empty((1, *like.event), dtype=like.dtype, device=like.device)
    return [_PathSource(row, 1, [seed]) for seed in seeds]


class BrownianPath(Noise):
    """One Brownian path per sample and stream: noise belongs to the interval, so two step sizes share one path.

    Args: seeds: one int per sample, in the order of the flattened batch.

    Steps must be longer than 2⁻²⁴; times are rounded to that. A dyadic tree of our own, any time span.
    """

    def __init__(self, seeds: Sequence[int]):
        self.seeds = checked_seeds(seeds)

    def open(self, x: Tensor, event_ndim: int | None = None) -> Source:
        batch_ndim = self._batch_ndim(x, event_ndim)
        check_count(self.seeds, x, batch_ndim)
        return _PathSource(x, batch_ndim, self.seeds)


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    if isinstance(seeds, int):
        raise TypeError(
            f"seeds: got the number {seeds}, expected one int per sample, e.g. range(16); WhiteNoise takes one seed"
        )
    return [int(seed) for seed in seeds]


def check_count(seeds: list[int], x: Tensor, batch_ndim: int) -> None:
    expected = math.prod(x.shape[:batch_ndim])
    if len(seeds) != expected:
        raise ValueError(
            f"seeds: got {len(seeds)}, expected one per sample: {expected} for the batch {tuple(x.shape[:batch_ndim])}"
        )
