"""The batch of each step, and everything else about a step that is a function of (seed, step) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ...domains import Domain
from .dataset import DomainDataset


def mix(seed: int, purpose: str, count: int) -> int:
    """A seed of its own for every purpose and count."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{count}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def send(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from the CPU by way of pinned memory, so that nobody waits for it to arrive."""
    if value.device.type == "cpu" and device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


class Batches:
    """The data as one endless stream of epochs, each in an order of its own, cut into batches and these into equal pieces."""

    def __init__(self, data: Tensor | Dataset[Any], domain: Domain, size: int, pieces: int, seed: int):
        if size % pieces:
            raise ValueError(
                f"batch_size: got {size}, which {pieces} microbatches do not divide, expected a multiple, e.g. "
                f"{pieces * -(-size // pieces)}"
            )
        self.data, self.domain, self.size, self.pieces, self.seed = data, domain, size, pieces, seed
        if isinstance(data, Tensor):
            if data.dim() != 1 + len(domain.event_shape):
                raise ValueError(
                    f"data: got shape {tuple(data.shape)}, expected [N, {', '.join(map(str, domain.event_shape))}]"
                )
            for part in data.split(4096):
                domain.check(part, "data")
        elif isinstance(data, np.ndarray):
            raise TypeError("data: got a numpy array, expected a tensor; convert it with torch.as_tensor")
        elif isinstance(data, tuple):  # (x, labels) would read as a dataset of two samples
            raise TypeError(
                f"data: got a tuple of {len(data)}, expected a tensor or a dataset, e.g. torch.utils.data.TensorDataset(x, labels)"
            )
        elif not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise TypeError(
                f"data: got {type(data).__name__}, expected a tensor [N, *event] or a dataset with __len__ and __getitem__"
            )
        self.count = len(data)
        if self.count < 1:
            raise ValueError("data: got no samples, expected at least 1")
        self._epoch, self._order = -1, torch.empty(0)

    def _index(self, start: int, missing: int) -> Tensor:
        """Which samples stand at ``start`` and after in the stream; on the device of the data, where they are a tensor."""
        parts = []
        while missing:
            epoch, offset = divmod(start, self.count)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(mix(self.seed, "order", epoch))
                order = torch.randperm(self.count, generator=generator)
                # once an epoch, or every step would send its own
                self._epoch = epoch
                self._order = send(order, self.data.device) if isinstance(self.data, Tensor) else order
            parts.append(self._order[offset : offset + missing])
            start, missing = start + len(parts[-1]), missing - len(parts[-1])
        return torch.cat(parts)

    def at(self, step: int, piece: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """(x, condition) of a piece of a step, on the device."""
        length = self.size // self.pieces
        index = self._index(step * self.size + piece * length, length)
        if isinstance(self.data, Tensor):
            return send(self.data[index], device), {}
        parts = self._items(index)
        self.domain.check(parts[0], "data")
        return send(parts[0], device), {name: send(v, device) for name, v in zip(("label",), parts[1:], strict=False)}

    def _items(self, index: Tensor) -> list[Tensor]:
        """[x] or [x, label] of these samples."""
        if isinstance(self.data, TensorDataset):
            return _one_or_two(list(self.data[index]))
        if isinstance(self.data, DomainDataset):  # reads and maps a batch at once
            x, labels = self.data.batch(index)
            return [x] if labels is None else [x, labels]
        several = getattr(self.data, "__getitems__", None)  # torch's own name for reading many rows at once
        items = [self.data[i] for i in index.tolist()] if several is None else several(index.tolist())
        if not isinstance(items[0], Sequence):
            return [torch.stack(items)]
        _one_or_two(items[0])
        x = torch.stack([item[0] for item in items])
        return [x, *(torch.as_tensor(v) for v in zip(*(item[1:] for item in items), strict=True))]


def _one_or_two(parts: Sequence[Any]) -> Any:
    if len(parts) not in (1, 2):
        raise TypeError(f"data: got items of {len(parts)} parts, expected x or (x, label)")
    return parts
