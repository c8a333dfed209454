"""Colour palettes that people liked: five colours each, red, green and blue; points of a cube of 15 dimensions that are no pictures.

The data come with the npm package nice-color-palettes (MIT): ``npm pack nice-color-palettes``, and name the file package/1000.json in it.
``python palettes.py package/1000.json FILE.npz`` writes them where ``carom.scores.neural.load_data(FILE.npz)`` reads them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HINT = "the palettes need the npm package nice-color-palettes: npm pack nice-color-palettes, unpack it, and name its file package/1000.json"


def palettes(file: str | Path) -> Tensor:
    """The palettes, each in the order in which it was published: uint8 ``[N, 15]``.

    Raises ``FileNotFoundError`` with the install hint where the file is missing, ``ValueError`` where it holds something else.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: not found; {HINT}")
    rows = json.loads(Path(file).read_text(encoding="utf-8"))
    try:
        values = [b"".join(bytes.fromhex(colour.removeprefix("#")) for colour in row) for row in rows]
    except (ValueError, TypeError, AttributeError):
        values = []
    if not values or {len(v) for v in values} != {15}:
        raise ValueError(f"palettes: got {str(file)!r}, expected a list of palettes of five colours #rrggbb; {HINT}")
    return torch.tensor([list(v) for v in values], dtype=torch.uint8)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("source", nargs="?", type=Path, default=Path("package/1000.json"))
    arguments.add_argument("file", nargs="?", type=Path, help="a .npz file to write; nothing is written without")
    options = arguments.parse_args()
    try:
        values = palettes(options.source)
    except FileNotFoundError as error:
        raise SystemExit(f"skipped: {error}") from None
    on_wall = ((values == 0) | (values == 255)).double().mean()
    print(f"{len(values)} palettes of five colours; {on_wall:.1%} of the values lie on a wall")
    if options.file is not None:
        np.savez_compressed(options.file, x=values.numpy())
        print(f"written to {options.file}")


if __name__ == "__main__":
    main()
