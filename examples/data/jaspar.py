"""Binding profiles of transcription factors (JASPAR 2024): columns of four base frequencies, 59,257 points of the simplex.

The data come with the package pyjaspar (code MIT; the data set has terms of its own, and is not redistributed here).
``python jaspar.py FILE.npz`` writes the columns where ``carom.scores.neural.load_data(FILE.npz)`` reads them. One entry in seven is exactly
zero: a point on a wall, which a simplex holds as it is.
"""

import argparse
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HINT = "the JASPAR columns need the package pyjaspar: pip install --no-deps pyjaspar"


def jaspar() -> Tensor:
    """The columns of all count matrices, normalised, in the order A, C, G, T: float64 ``[N, 4]``.

    Raises ``ImportError`` with the install hint where the package is missing.
    """
    spec = find_spec("pyjaspar")  # found, not imported: the data need none of its dependencies
    if spec is None or spec.origin is None:
        raise ImportError(HINT)
    file = Path(spec.origin).parent / "data" / "JASPAR2024.sqlite"
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT val FROM MATRIX_DATA ORDER BY ID, col, row").fetchall()
    counts = np.array(rows, dtype=np.float64).reshape(-1, 4)
    counts = counts[counts.sum(1) > 0]
    return torch.from_numpy(counts / counts.sum(1, keepdims=True))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("file", nargs="?", type=Path, help="a .npz file to write; nothing is written without")
    file = arguments.parse_args().file
    try:
        p = jaspar()
    except ImportError as error:
        raise SystemExit(f"skipped: {error}") from None
    zeros = (p == 0).double().mean()
    print(f"{len(p)} points of the simplex of 4 categories; {zeros:.1%} of the entries are zero")
    if file is not None:
        np.savez_compressed(file, x=p.numpy())
        print(f"written to {file}")


if __name__ == "__main__":
    main()
