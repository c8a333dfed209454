"""Files of numbers: IDX (MNIST and its kin), .npy and .npz."""

from __future__ import annotations

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .dataset import Data, Source, default_bins

PathLike = str | os.PathLike[str]
Layout = Literal["HW", "HWC"]
#: bytes up to which a set is read into memory at once, unless one says otherwise
IN_MEMORY = 256 * 2**20

_GZIP = b"\x1f\x8b"
# type code of an IDX file: how its numbers lie there, always with the high byte first
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(path: PathLike) -> Tensor:
    """The array in an IDX file, gzipped or not, in its own shape and dtype.

    The format: two zero bytes, the type, the number of dimensions, each dimension as an unsigned 32-bit number, then the values, all with
    the high byte first. Raises ``ValueError`` for a file that is none, is cut short or goes on after its end.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == _GZIP
    try:
        with gzip.open(path, "rb") if zipped else open(path, "rb") as stream:
            return _idx_array(cast(Any, stream), path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"idx: got {str(path)!r}, a gzip file that is cut short or damaged ({error}); fetch it again"
        ) from None


def is_idx(path: PathLike) -> bool:
    """Whether a file begins as an IDX file does."""
    with open(path, "rb") as file:
        head = file.read(4)
    if head[:2] == _GZIP:
        try:
            with gzip.open(path, "rb") as stream:
                head = stream.read(4)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return False
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in _IDX_TYPES


def _idx_array(stream: Any, path: PathLike) -> Tensor:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
        raise ValueError(
            f"idx: got {str(path)!r}, which begins with {head.hex(' ') or 'nothing'}, expected an IDX file (00 00 type dimensions)"
        )
    sizes = stream.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise ValueError(f"idx: got {str(path)!r}, which ends within its header; fetch it again")
    shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())
    dtype = np.dtype(_IDX_TYPES[head[2]])
    expected = math.prod(shape) * dtype.itemsize
    body = stream.read(expected)
    rest = stream.read(1)
    if len(body) < expected or rest:
        held = f"{len(body)}" if not rest else f"more than {expected}"
        raise ValueError(
            f"idx: got {str(path)!r} with {held} bytes of values, expected {expected} for shape {shape}; fetch it again"
        )
    return torch.from_numpy(np.frombuffer(body, dtype=dtype).astype(dtype.newbyteorder("=")).reshape(shape))


class ArrayRows(Dataset[Any]):
    """The rows of an array on disk, read when they are asked for."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Tensor:
        return _native(self.array[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        return list(_native(self.array[list(indices)]))


def arrays(
    path: PathLike,
    *,
    x: str | None = None,
    label: str | None = None,
    layout: Layout | None = None,
    bins: int | None = None,
    in_memory: bool | None = None,
) -> Data:
    """Values from a .npy or .npz file; nothing in them is unpickled.

    Args:
        x, label: names of the arrays of values and labels in a .npz file. Without ``x`` the file holds ``x`` and, if anything else,
            ``label`` or ``y``.
        layout: of pictures, which become ``[N, C, H, W]``: ``"HW"`` for ``[N, H, W]``, ``"HWC"`` for ``[N, H, W, C]``; None leaves
            arrays as they are.
        bins: levels of whole numbers 0 … bins − 1; 256 by itself for 8-bit values, 65536 for 16-bit ones.
        in_memory: read a .npy file at once, or row by row when asked for; None decides by its size (at once up to 256 MiB).
            A .npz file is read at once.

    Raises ``ValueError`` for anything but real numbers, and for names that are not there.
    """
    path = Path(path)
    labels = None
    if _is_zip(path):
        if in_memory is False:
            raise ValueError(
                f"in_memory: got False for {str(path)!r}, expected it for .npy files only; a .npz file is read at once"
            )
        values, labels = _read_npz(path, x, label)
        in_memory = True
    elif x is not None or label is not None:
        raise ValueError(f"arrays: got names of arrays for {str(path)!r}, expected them for .npz files only")
    else:
        values = _mapped_npy(path)
    values = _arranged(_real(values, path), layout)
    if in_memory is None:
        in_memory = values.nbytes <= IN_MEMORY
    source = _native(values) if in_memory else cast(Source, ArrayRows(values))
    if bins is None:
        bins = default_bins(_native(values[:0]).dtype)
    return Data(source, None if labels is None else whole_labels(labels), bins=bins)


def _is_zip(path: Path) -> bool:
    """Whether it is a .npz rather than a .npy file. NumPy takes anything else for a pickle, and would say that instead."""
    with open(path, "rb") as file:
        start = file.read(6)
    if not start.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        raise ValueError(f"arrays: got {str(path)!r}, expected a .npy or .npz file")
    return start.startswith(b"PK")


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """What NumPy says of files that it cannot read, as one error that names the file."""
    try:
        yield
    except (ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(
            f"arrays: got {str(path)!r}, which holds Python objects or is damaged ({error}); expected real numbers"
        ) from None


def _mapped_npy(path: Path) -> np.ndarray:
    with _undamaged(path):
        return cast(np.ndarray, np.load(path, mmap_mode="r", allow_pickle=False))


def _read_npz(path: Path, x: str | None, label: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    with open(path, "rb") as stream:  # opened here, for NumPy leaves a damaged file open
        with _undamaged(path):
            file = np.load(stream, allow_pickle=False)
        x, label = _names(file.files, path, x, label)
        with _undamaged(path):
            return file[x], None if label is None else file[label]


def _names(held: Sequence[str], path: Path, x: str | None, label: str | None) -> tuple[str, str | None]:
    """The names of values and labels: those given, or x and, next to it, at most one of label and y."""
    for name in (x, label):
        if name is not None and name not in held:
            raise ValueError(
                f"arrays: got the name {name!r}, expected one of those in {str(path)!r}: {', '.join(held)}"
            )
    if x is not None:
        return x, label
    others = [name for name in held if name not in ("x", label)]
    if "x" in held and not others:
        return "x", label
    if "x" in held and label is None and others in (["label"], ["y"]):
        return "x", others[0]
    raise ValueError(
        f"arrays: got {str(path)!r} with arrays {', '.join(held) or 'none'}; expected x and label (or y), or their names: "
        "arrays(path, x=…, label=…)"
    )


def _real(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim < 1 or values.dtype.kind not in "buif" or values.dtype.itemsize > 8:
        raise ValueError(
            f"arrays: got {values.dtype} of shape {values.shape} in {str(path)!r}, expected real numbers [N, …]"
        )
    return values


def _arranged(values: np.ndarray, layout: Layout | None) -> np.ndarray:
    if layout is None:
        return values
    if layout not in ("HW", "HWC"):
        raise ValueError(f"layout: got {layout!r}, expected 'HW', 'HWC' or None")
    if values.ndim != 1 + len(layout):
        raise ValueError(
            f"layout: got {layout!r} for an array of shape {values.shape}, expected [N, {', '.join(layout)}]"
        )
    return values[:, None] if layout == "HW" else np.moveaxis(values, -1, 1)


def whole_labels(labels: np.ndarray) -> Tensor:
    """Labels as int64 ``[N]``, from any whole numbers ``[N]`` or ``[N, 1]``."""
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or flat.dtype.kind not in "bui":
        raise ValueError(f"labels: got {labels.dtype} of shape {labels.shape}, expected whole numbers [N]")
    return torch.from_numpy(flat.astype(np.int64))


def _native(values: np.ndarray) -> Tensor:
    """A tensor of its own memory, in this machine's byte order."""
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))
