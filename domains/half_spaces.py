r"""Polytopes read and checked: A x ≤ b as given, rows of unit length, the largest ball inside, the bounding box, hulls of points.

All in numpy's float64 and by linear programmes, in units in which nothing cancels; what is empty, flat or unbounded is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.spatial import ConvexHull
from torch import Tensor

Numbers = Sequence[float] | Sequence[Sequence[float]] | np.ndarray | Tensor

#: An inradius, or a width of points, below this part of the largest number at hand is rounding.
FLAT = 1e-9


def half_spaces(A: Numbers, b: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """A and b as float64 arrays that fit and are finite."""
    matrix, right = numbers(A, "A"), numbers(b, "b")
    if matrix.ndim != 2 or matrix.shape[1] < 1:
        raise ValueError(
            f"A: got shape {matrix.shape}, expected [m, d], one row per inequality and one column per axis"
        )
    if right.shape != matrix.shape[:1]:
        raise ValueError(f"b: got shape {right.shape}, expected {matrix.shape[:1]}, one number per row of A")
    return matrix, right


def numbers(value: Numbers, name: str) -> np.ndarray:
    """A copy in float64, all finite."""
    try:
        value = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: got {value!r}, expected numbers in rows of one length, e.g. [[1, 0], [0, 1]]"
        ) from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: got entries that are not finite; leave out the rows they are in")
    return array


def hull(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and b of the convex hull of points ``[n, d]``."""
    count, dim = points.shape
    middle = points.mean(0) if count else np.zeros(dim)
    extent = float(np.abs(points - middle).max(initial=0.0)) or 1.0
    spread = np.linalg.svd((points - middle) / extent, compute_uv=False)
    rank = int((spread > FLAT).sum())
    if rank < dim:
        raise ValueError(
            f"Polytope.from_vertices: got {count} points that span {rank} of {dim} dimensions, expected points that do not lie "
            f"in one plane; add points outside it, or drop dimensions by coordinates in the plane"
        )
    if dim == 1:
        outward = np.array([[1.0], [-1.0]])
    else:
        # one row for all the simplices into which a facet is cut
        planes = ConvexHull((points - middle) / extent).equations
        outward = planes[np.unique(np.round(planes, 9), axis=0, return_index=True)[1], :-1]
    # as far out as the farthest point, so that all are inside
    return outward, (outward @ (points - middle).T).max(1) + outward @ middle


def normalised(matrix: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unit length; rows of zeros say 0 ≤ b, which is true and left out, or false and refused."""
    # scaled first, because squares of tiny or huge entries leave float64
    largest = np.abs(matrix).max(1)
    zero = largest == 0
    if (zero & (right < 0)).any():
        row = int(np.argmax(zero & (right < 0)))
        raise ValueError(f"Polytope: row {row} of A is 0 and b is {right[row]:g}, so it is empty; leave that row out")
    matrix, right = matrix[~zero] / largest[~zero, None], right[~zero] / largest[~zero]
    length = np.sqrt((matrix**2).sum(1))
    return matrix / length[:, None], right / length


def programme(cost: np.ndarray, matrix: np.ndarray, right: np.ndarray) -> Any:
    """Minimise cost·x subject to matrix·x ≤ right, by HiGHS at its tightest tolerances."""
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    return linprog(cost, matrix, right, bounds=(None, None), method="highs", options=tight)


def largest_ball(outward: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float]:
    """(centre, radius) of the largest ball inside (the Chebyshev centre), or an error that says what is wrong."""
    dim = outward.shape[1]
    scale = float(np.abs(right).max(initial=0.0)) or 1.0
    lifted = np.concatenate([outward, np.ones((len(outward), 1))], 1)
    result = programme(np.eye(dim + 1)[-1] * -1.0, lifted, right / scale)
    # the programme has feasible points whatever A and b, so without an optimum it is unbounded
    if result.x is None:
        raise _unbounded(outward, right, np.zeros(dim))
    radius = float(result.x[-1])
    if radius < -FLAT:
        raise ValueError(
            f"Polytope: the inequalities contradict each other: every point violates one by at least {-radius * scale:.3g}; "
            f"check the signs, inside is A x ≤ b"
        )
    if radius <= FLAT:
        raise ValueError(
            f"Polytope: got an inradius of {radius * scale:.3g}, expected a positive one; the set is flat and has no inside: "
            f"drop a dimension by coordinates in its plane"
        )
    return result.x[:-1] * scale, radius * scale


def bounding_box(outward: np.ndarray, right: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest value of each coordinate, seen from the centre so that nothing cancels."""
    reach = right - outward @ centre
    scale = float(reach.max())
    ends = np.empty((2, len(centre)))
    for axis, side in np.ndindex(len(centre), 2):
        cost = np.zeros(len(centre))
        cost[axis] = 1.0 if side == 0 else -1.0
        result = programme(cost, outward, reach / scale)
        if result.x is None:
            raise _unbounded(outward, right, centre, axis, "-+"[side])
        ends[side, axis] = centre[axis] + scale * result.x[axis]
    return ends[0], ends[1]


def _unbounded(
    outward: np.ndarray, right: np.ndarray, centre: np.ndarray, axis: int | None = None, side: str = ""
) -> ValueError:
    """The error, naming an axis along which the set goes on for ever; found here if it is not known."""
    for i in range(len(centre)) if axis is None else ():
        for sign, name in ((1.0, "-"), (-1.0, "+")):
            if axis is None and programme(sign * np.eye(len(centre))[i], outward, np.maximum(right, 0.0)).x is None:
                axis, side = i, name
    return ValueError(
        f"Polytope: got a set that is unbounded towards {side}x[{axis}], expected a bounded one (boxes open at "
        f"some ends are Hypercube with infinite bounds); add an inequality that bounds it, or use Orthant or Euclidean for "
        f"axes that are open"
    )
