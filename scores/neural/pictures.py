"""Pictures in a folder: PNG, JPEG and what else Pillow reads, in any mode and size, as 8-bit values ``[C, H, W]``."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...domains.tensors import is_int
from .dataset import Data
from .readers import IN_MEMORY, PathLike

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L")


class PictureFiles(Dataset[Any]):
    """Pictures on disk, decoded when they are asked for: uint8 ``[channels, height, width]``.

    Args:
        paths: the files.
        size: (height, width); pictures are resized to cover it and their middle is cut out. None takes them as they are.
        channels: 1 grey, 3 red, green and blue.
    """

    def __init__(self, paths: Iterable[PathLike], size: tuple[int, int] | None, channels: int):
        self.paths, self.size, self.channels = [Path(p) for p in paths], size, channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with _opened(self.paths[index]) as picture:
            try:
                picture.load()
            except (OSError, SyntaxError, EOFError, struct.error) as error:  # Pillow's, by format
                raise ValueError(f"image_folder: got {str(self.paths[index])!r}, which is damaged ({error})") from None
            return picture_values(picture, self.size, self.channels)


def picture_values(picture: Image, size: tuple[int, int] | None = None, channels: int = 3) -> Tensor:
    """A Pillow image as uint8 ``[channels, height, width]``: the first frame, turned as its camera noted, on white where it is
    transparent, and then resized to cover ``size`` with its middle cut out.

    The filter (Hamming) widens with the reduction, so that nothing aliases, and has no negative lobes, so that it does not push values
    to 0 or 255.
    """
    from PIL import Image, ImageOps

    if picture.mode in _DEEP:
        raise ValueError(
            f"picture: got mode {picture.mode!r}, more than 8 bits, expected 8-bit pictures; convert it, or pass arrays with bins"
        )
    upright = ImageOps.exif_transpose(picture)
    if "A" in upright.mode or "transparency" in upright.info or upright.mode == "P":
        coloured = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    flat = upright.convert("L" if channels == 1 else "RGB")
    if size is not None and flat.size != (size[1], size[0]):
        flat = ImageOps.fit(flat, (size[1], size[0]), method=Image.Resampling.HAMMING)
    values = np.array(flat).reshape(flat.height, flat.width, channels)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))


def image_folder(
    path: PathLike,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    *,
    in_memory: bool | None = None,
) -> Data:
    """The pictures under a folder, in the order of their names; the sub-folders right below it are classes.

    Args:
        path: either all pictures lie in sub-folders (at any depth), whose sorted names become ``classes``, or all in the folder itself.
        size: height and width, one number for both; see ``picture_values``. Needed where pictures differ in size.
        channels: 1 or 3; None takes 1 where every picture is grey, else 3.
        in_memory: decode everything now, or each picture when asked for; None decides by the size (now up to 256 MiB).

    Raises ``ImportError`` with the install hint where Pillow is missing, ``ValueError`` for folders without pictures, files that are none,
    and sizes that differ.
    """
    _needs_pillow()
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"image_folder: got {str(path)!r}, which is no folder")
    paths = sorted(_pictures(folder), key=lambda p: p.relative_to(folder).parts)
    if not paths:
        raise ValueError(
            f"image_folder: got {str(path)!r} without pictures, expected files that end in {', '.join(SUFFIXES)}"
        )
    labels, classes = _classes(folder, paths)
    shape = None if size is None else _size(size)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels: got {channels}, expected 1, 3 or None")
    shape_found, channels = _survey(paths, shape, channels)
    source = PictureFiles(paths, shape, channels)
    if in_memory is None:
        in_memory = len(paths) * channels * shape_found[0] * shape_found[1] <= IN_MEMORY
    return Data(
        torch.stack([source[i] for i in range(len(source))]) if in_memory else source, labels, classes, bins=256
    )


def _needs_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError("image_folder needs Pillow; install it with: pip install 'carom[train]'") from error


def _pictures(folder: Path) -> list[Path]:
    """Files by their endings; what a dot hides is left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def _classes(folder: Path, paths: list[Path]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    parts = [p.relative_to(folder).parts for p in paths]
    here = sum(len(p) == 1 for p in parts)
    if here == len(parts):
        return None, None
    if here:
        raise ValueError(
            f"image_folder: got {here} pictures in {str(folder)!r} itself and {len(parts) - here} in sub-folders, expected all in one "
            "place; move them into a class"
        )
    classes = tuple(sorted({p[0] for p in parts}))
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[p[0]] for p in parts]), classes


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(is_int(n, 1) for n in pair):
        raise ValueError(f"size: got {size!r}, expected a whole number of at least 1, or (height, width)")
    return pair[0], pair[1]


def _survey(paths: list[Path], size: tuple[int, int] | None, channels: int | None) -> tuple[tuple[int, int], int]:
    """((height, width), channels) of all pictures, from their headers alone."""
    first: tuple[int, int] | None = size
    grey = True
    for path in paths:
        with _opened(path) as picture:
            grey &= picture.mode in _GREY
            # orientations that swap height and width; asked for its Exif data, a PNG without is decoded to the end
            noted = picture.format != "PNG" or "exif" in picture.info
            turned = noted and picture.getexif().get(0x0112, 1) >= 5
            found = (picture.width, picture.height) if turned else (picture.height, picture.width)
        if first is None:
            first = found
        if size is None and found != first:
            raise ValueError(
                f"image_folder: got {paths[0].name} of {first[0]} × {first[1]} and {path.name} of {found[0]} × {found[1]}, expected one "
                "size; pass size=(height, width) to resize"
            )
    assert first is not None
    return first, channels if channels is not None else (1 if grey else 3)


def _opened(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"image_folder: got {str(path)!r}, which is no readable picture ({error})") from None
