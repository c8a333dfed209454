"""Stored data, and the view of it that training takes: values as they lie in memory or on disk, points of a domain when asked for."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...domains import Domain, RegularSimplex, Simplex
from ...domains.transforms import AffineValues, DataTransform, Fit, Probabilities, affine_values
from .stored import Stored

#: rows that are mapped at a time, so that no float64 copy of a whole set is made
CHUNK = 1024


class Source(Protocol):
    """Rows that are read when they are asked for: what ``torch.utils.data.Dataset`` is to ``Data``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """N stored values ``[N, *event]`` with what is known of them.

    Args:
        source: a tensor of any real dtype, or a map-style dataset whose items are values ``[*event]`` or (values, label); a dataset is
            read when its rows are asked for.
        labels: int64 ``[N]``, or None; then the labels of a dataset's items count, where it has any.
        classes: names of the labels 0, 1, …, or None.
        bins: B where values are the whole numbers 0 … B − 1; None where they are continuous. 256 by itself for 8-bit tensors and 65536 for
            unsigned 16-bit ones.

    ``on(domain)`` is what ``train`` takes. Raises ``ValueError`` for labels that do not fit the rows.
    """

    source: Tensor | Source
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    bins: int | None = None
    _rows: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, Tensor) and self.source.dim() < 1:
            raise ValueError("data: got a single number, expected values [N, *event]")
        if not hasattr(self.source, "__len__") or not hasattr(self.source, "__getitem__"):
            raise TypeError(
                f"data: got {type(self.source).__name__}, expected a tensor or a dataset with __len__ and __getitem__"
            )
        if self.bins is None and isinstance(self.source, Tensor):
            object.__setattr__(self, "bins", default_bins(self.source.dtype))
        if self.labels is not None and tuple(self.labels.shape) != (len(self),):
            raise ValueError(
                f"labels: got shape {tuple(self.labels.shape)}, expected ({len(self)},), one for each of the rows"
            )
        if self.labels is not None and self.classes is not None and len(self):
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"labels: got {low} to {high} for {len(self.classes)} classes, expected 0 to {len(self.classes) - 1}"
                )

    def __len__(self) -> int:
        return len(self.source) if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        """What there is of it; no row is read."""
        if isinstance(self.source, Tensor):
            kind = (
                f"{list(self.source.shape[1:])} {str(self.source.dtype).removeprefix('torch.')} on {self.source.device}"
            )
        else:
            kind = f"of a {type(self.source).__name__}"
        parts = [f"{len(self)} {'row' if len(self) == 1 else 'rows'} {kind}"]
        parts += [] if self.bins is None else [f"{self.bins} levels"]
        parts += [] if self.classes is None else [f"{len(self.classes)} classes"]
        parts += ["labelled"] if self.labels is not None else []
        return f"Data({', '.join(parts)})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one row; a dataset is asked for its first."""
        return tuple(self.source.shape[1:] if isinstance(self.source, Tensor) else self.first.shape)

    @property
    def first(self) -> Tensor:
        """The values of the first row ``[*event]``."""
        if not len(self):
            raise ValueError("data: got no rows, expected at least 1")
        return self.read(torch.tensor([0]))[0][0]

    @property
    def values(self) -> Tensor:
        """All stored values ``[N, *event]`` in their own dtype; a dataset is read whole."""
        if isinstance(self.source, Tensor):
            return self.source if self._rows is None else self.source[self._rows]
        return self.read(torch.arange(len(self)))[0]

    def take(self, index: Tensor) -> Data:
        """The rows ``index``, numbers or a mask ``[N]``, labels with them; nothing is read or copied."""
        index = torch.arange(len(self))[index]
        rows = index if self._rows is None else self._rows[index]
        labels = None if self.labels is None else self.labels[index]
        return dataclasses.replace(self, labels=labels, _rows=rows)

    def read(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """(values ``[n, *event]``, labels ``[n]`` or None) of the rows ``index``, in their stored dtype."""
        labels = None if self.labels is None else self.labels[index]
        rows = index if self._rows is None else self._rows[index]
        if isinstance(self.source, Tensor):
            return self.source[rows], labels
        numbers = rows.tolist()
        several = getattr(self.source, "__getitems__", None)  # torch's own name for reading many rows at once
        items = several(numbers) if several is not None else [self.source[i] for i in numbers]
        if items and isinstance(items[0], (tuple, list)):
            if len(items[0]) != 2:
                raise TypeError(f"data: got items of {len(items[0])} parts, expected values or (values, label)")
            if labels is None:
                labels = torch.as_tensor([int(item[1]) for item in items])
            items = [item[0] for item in items]
        return _stacked(items), labels

    def on(
        self,
        domain: Domain,
        *,
        fit: Fit = "levels",
        between: tuple[float, float] | None = None,
        labels: bool = False,
        dequantise: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> DomainDataset:
        """These data as points of ``domain``, read and mapped as they are asked for.

        Args:
            domain: its event is that of the values. On a simplex values are probability vectors over its categories.
            fit, between: how values are laid between the walls; see ``affine_values``.
            labels: items are (x, label), for networks that take the keyword ``label``; otherwise x alone.
            dequantise: a seed. Every coordinate is drawn from the bin of its level, row i the same at each visit; None leaves x at the
                level itself.
            dtype: of x, float32 or float64.

        Raises ``ValueError`` for values outside the domain, with their number and the first of them: at once where they are in memory,
        on reading where they are not.
        """
        return DomainDataset(
            self, domain, self._transform(domain, fit, between), labels=labels, dequantise=dequantise, dtype=dtype
        )

    def _transform(self, domain: Domain, fit: Fit, between: tuple[float, float] | None) -> DataTransform:
        on_simplex = isinstance(domain, (Simplex, RegularSimplex)) and self.event_shape != domain.event_shape
        if on_simplex and self.bins is None and between is None:
            return Probabilities(cast("Simplex | RegularSimplex", domain))
        dtype = self.source.dtype if isinstance(self.source, Tensor) else self.first.dtype
        if self.bins is None and between is None and not dtype.is_floating_point:
            raise ValueError(
                f"data: got {dtype} values without their number of levels, expected bins = B for levels 0 … B − 1, or floats"
            )
        return affine_values(domain, self.bins, fit=fit, between=between)


class DomainDataset(Dataset[Any]):
    """A map-style dataset of points in a domain: items are x ``[*event]``, or (x, label). Made by ``Data.on``."""

    def __init__(
        self,
        data: Data,
        domain: Domain,
        transform: DataTransform,
        *,
        labels: bool = False,
        dequantise: int | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        if dequantise is not None and not (isinstance(transform, AffineValues) and transform.bins is not None):
            raise ValueError(
                f"dequantise: got seed {dequantise} for continuous values, expected None; only levels have bins to draw from"
            )
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"dtype: got {dtype}, expected torch.float32 or torch.float64; low precision stays in the network"
            )
        self.data, self.domain, self.transform, self.dtype = data, domain, transform, dtype
        self.labels, self.dequantise = labels, dequantise
        if labels and len(data) and data.read(torch.tensor([0]))[1] is None:
            raise ValueError("labels: got data without labels, expected labels=False")
        self._check()

    def _check(self) -> None:
        expected = self.domain.event_shape
        if isinstance(self.transform, Probabilities):
            expected = (*expected[:-1], self.transform.domain.categories)
        if len(self.data) and self.data.event_shape != expected:
            raise ValueError(
                f"data: got rows of shape {self.data.event_shape} for {self.domain}, expected {expected}; reshape them, or make the domain "
                "with their shape"
            )
        if isinstance(self.data.source, Tensor):
            for part in torch.arange(len(self)).split(CHUNK):
                self._states(self.data.read(part)[0])

    def __repr__(self) -> str:
        return f"DomainDataset({self.data!r} in {self.domain!r})"

    @property
    def stored(self) -> Stored:
        """What turns points back into values, for the checkpoint of what is trained on them."""
        return Stored(self.transform, self.data.classes)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many rows at once: the name by which ``torch.utils.data.DataLoader`` asks for a batch."""
        x, labels = self.batch(torch.as_tensor(indices))
        return list(x) if labels is None else list(zip(x, labels, strict=True))

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """(x ``[n, *event]``, labels ``[n]`` or None) of rows 0 ≤ index < N; negative numbers count from the end."""
        if len(index) and not bool(((index >= -len(self)) & (index < len(self))).all()):
            raise IndexError(f"index: got {index.tolist()[:8]}, expected rows of a set of {len(self)}")
        index = index % max(len(self), 1)
        values, labels = self.data.read(index)
        x = self._states(values)
        if self.dequantise is not None:
            x = torch.stack([self._dequantised(row, i) for row, i in zip(x, index.tolist(), strict=True)])
        return x.to(self.dtype), labels if self.labels else None

    def tensor(self) -> Tensor:
        """All points ``[N, *event]`` at once: the fastest food for ``train`` where they fit in memory."""
        parts = [self.batch(part)[0] for part in torch.arange(len(self)).split(CHUNK)]
        return torch.cat(parts) if parts else torch.empty(0, *self.domain.event_shape, dtype=self.dtype)

    def _states(self, values: Tensor) -> Tensor:
        x = self.transform.forward(values)
        self.domain.check(x.to(self.dtype), "data")
        return x

    def _dequantised(self, x: Tensor, row: int) -> Tensor:
        """In x's row, noise that is a function of (seed, row): a resumed training reads the same numbers."""
        assert isinstance(self.transform, AffineValues) and self.dequantise is not None
        digest = hashlib.blake2b(f"{self.dequantise}/dequantise/{row}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        return self.transform.dequantise(x.to(self.dtype), generator)


class _Converted(Dataset[Any]):
    def __init__(self, source: Source, convert: Callable[[Any], Any]):
        self.source, self.convert = source, convert

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        item = self.source[index]
        return (self.convert(item[0]), *item[1:]) if isinstance(item, (tuple, list)) else self.convert(item)


def from_dataset(
    dataset: Source,
    convert: Callable[[Any], Any] | None = None,
    *,
    classes: Iterable[str] | None = None,
    bins: int | None = None,
) -> Data:
    """Any ``torch.utils.data.Dataset`` with a length, as ``Data``.

    Args:
        dataset: items are values or (values, label); values are tensors or whatever NumPy makes an array of, e.g. pictures.
        convert: applied to the values of each item: pictures ``[H, W, C]`` become ``[C, H, W]`` by
            ``lambda v: np.moveaxis(np.asarray(v), -1, 0)``.
        classes, bins: as in ``Data``; bins is 256 by itself where the first item holds 8-bit values.
    """
    source = dataset if convert is None else cast(Source, _Converted(dataset, convert))
    data = Data(source, classes=None if classes is None else tuple(classes), bins=bins)
    return data if bins is not None else dataclasses.replace(data, bins=default_bins(data.first.dtype))


def default_bins(dtype: torch.dtype) -> int | None:
    """256 for 8-bit and 65536 for 16-bit unsigned values; None for all others, which do not say how many levels they have."""
    return {torch.uint8: 256, torch.uint16: 65536}.get(dtype)


def _stacked(items: Sequence[Any]) -> Tensor:
    rows = [v if isinstance(v, Tensor) else torch.from_numpy(np.array(v)) for v in items]
    if len({tuple(v.shape) for v in rows}) > 1:
        shapes = sorted({tuple(v.shape) for v in rows})
        raise ValueError(
            f"data: got items of shapes {shapes[0]} and {shapes[1]}, expected one shape; bring them to one size"
        )
    return torch.stack(rows) if rows else torch.empty(0)
