"""The colour emoji of the font Noto Color Emoji on white: 3,926 pictures. At 32 × 32 two fifths of the values are exactly 255, on the
wall; in the pictures as they are, more than half.

The font comes with Debian's fonts-noto-color-emoji (OFL 1.1). ``python emoji.py FILE.npz`` writes the pictures where
``carom.scores.neural.load_data(FILE.npz)`` reads them.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from carom.scores.neural.pictures import picture_values

if TYPE_CHECKING:
    from PIL.Image import Image

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
HINT = (
    "the emoji need the font (apt install fonts-noto-color-emoji), fontTools and Pillow (pip install fonttools pillow)"
)


def bitmaps(font: str | Path = FONT) -> Iterator[Image]:
    """The pictures as they lie in the font, in the order of its glyphs, without glyphs that have none.

    Raises ``FileNotFoundError`` and ``ImportError`` with the install hint where the font or the package is missing.
    """
    try:
        from fontTools.ttLib import TTFont
        from PIL.Image import open as read
    except ImportError as error:
        raise ImportError(HINT) from error
    if not Path(font).is_file():
        raise FileNotFoundError(f"{font}: not found; {HINT}")
    with TTFont(font) as opened:
        if "CBDT" not in opened:
            raise ValueError(
                f"font: got {str(font)!r} without colour bitmaps (CBDT), expected Noto Color Emoji; {HINT}"
            )
        strike = opened["CBDT"].strikeData[0]
        for name in opened.getGlyphOrder():
            data = getattr(strike.get(name), "imageData", b"")
            if not data:  # letters and spaces
                continue
            yield read(io.BytesIO(data))


def emoji(size: int | None = 32, font: str | Path = FONT, *, unique: bool = True) -> Tensor:
    """Pictures on white: uint8 ``[N, 3, size, size]``.

    Args:
        size: height and width; the middle is cut out where a picture is not square. None leaves all as they are, 128 × 136.
        unique: keep the first of pictures that are equal, as some flags are, so that none lies in both halves of a split.
    """
    square = None if size is None else (size, size)
    values = torch.stack([picture_values(picture, square) for picture in bitmaps(font)])
    return values[first_of_each(values)] if unique else values


def first_of_each(values: Tensor) -> Tensor:
    """The rows that equal no row before them."""
    first: dict[bytes, int] = {}
    for i, row in enumerate(values.numpy()):
        first.setdefault(row.tobytes(), i)
    return torch.tensor(list(first.values()))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("file", nargs="?", type=Path, help="a .npz file to write; nothing is written without")
    arguments.add_argument("--size", type=int, default=32)
    options = arguments.parse_args()
    try:
        whole = emoji(None, unique=False)
        small = emoji(options.size)
    except (ImportError, FileNotFoundError) as error:
        raise SystemExit(f"skipped: {error}") from None
    for name, values in (("as they are", whole), (f"{options.size} × {options.size}, all different", small)):
        saturated = (values == 255).double().mean()
        print(f"{len(values)} pictures {name}; {saturated:.1%} of their values are exactly 255")
    if options.file is not None:
        np.savez_compressed(options.file, x=small.numpy())
        print(f"written to {options.file}")


if __name__ == "__main__":
    main()
