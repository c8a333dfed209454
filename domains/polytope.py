r"""Convex polytopes given by inequalities: exact projection, reflection by ray marching, uniform law by hit-and-run.

There is no heat kernel and no folding for polytopes at large; those that have them (boxes, simplices, the equilateral triangle)
are domains of their own. Scores are then learned by implicit score matching.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection
from torch import Tensor
from torch.distributions import Distribution

from .domain import Domain, Uniform
from .facets import Bounce, damp_facets, facet_distances, march
from .tensors import as_like, event_sum, values_are_readable

Numbers = Sequence[float] | Sequence[Sequence[float]] | np.ndarray | Tensor

#: Beyond this dimension the facets of the hull of the vertices are too many for an exact volume.
MAX_VOLUME_DIM = 8
# Rounding that contains() forgives, in units of eps · (|b_j| + Σ_i |A_ji| max |x_i|); project() comes nearer than half of it.
_SLACK = 8
# An inradius below this part of the largest number at hand is rounding of the linear programme.
_FLAT = 1e-9


class Polytope(Domain):
    r""":math:`\{x ∈ R^d : A x ≤ b\}`, bounded and with an inside.

    Args:
        A: ``[m, d]``, one outward normal per row, of any length; redundant rows do no harm.
        b: ``[m]``.
        max_bounces: a displacement that would bounce more often comes back from ``reflect`` as NaN, so that the status of a
            solve names the sample; ``bounce`` returns the point and a status instead. Under ``torch.compile`` and ``vmap`` all
            bounces are unrolled: give a small number there.

    Facts: ``width``, ``centre`` and ``inradius`` (of the largest ball inside), ``low`` and ``high`` (the bounding box), ``vertices``,
    ``log_volume``. Distances, projections and paths are computed in float64 whatever the dtype of the states.

    Raises:
        ValueError: A and b that are not finite or do not fit, and polytopes that are empty, flat or unbounded.
    """

    def __init__(self, A: Numbers, b: Numbers, max_bounces: int = 1000):
        matrix, right = _half_spaces(A, b)
        self._given = matrix.tolist(), right.tolist()
        if max_bounces < 1:
            raise ValueError(f"max_bounces: got {max_bounces}, expected at least 1")
        self.max_bounces = int(max_bounces)
        self.event_shape = (matrix.shape[1],)

        outward, right = _normalised(matrix, right)
        centre, self.inradius = _largest_ball(outward, right)
        low, high = _bounding_box(outward, right, centre)
        scale = np.abs(right) + np.abs(outward) @ np.maximum(np.abs(low), np.abs(high))
        self._normals, self._offsets = torch.from_numpy(-outward), torch.from_numpy(right)
        self._scale, self._gram = torch.from_numpy(scale), torch.from_numpy(outward @ outward.T)
        #: centre of the largest ball inside, float64 ``[d]``; lower and upper ends of the bounding box, float64 ``[d]``
        self.centre, self.low, self.high = (torch.from_numpy(v) for v in (centre, low, high))

    def __repr__(self) -> str:
        return f"Polytope({len(self._given[1])} inequalities in {self.event_shape[0]} dimensions)"

    def config(self) -> dict[str, Any]:
        return {"type": "Polytope", "A": self._given[0], "b": self._given[1], "max_bounces": self.max_bounces}

    @property
    def width(self) -> float:
        return float((self.high - self.low).max())

    def _distances(self, x: Tensor) -> Tensor:
        """Signed distances of the facets' planes, float64: ``[*batch, m]``."""
        return facet_distances(x.double(), self._normals.to(x.device), self._offsets.to(x.device))

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        slack = _SLACK * torch.finfo(x.dtype).eps * self._scale.to(x.device)
        return (self._distances(x) >= -atol - slack).all(-1)

    def project(self, x: Tensor) -> Tensor:
        """The nearest point, by the dual active-set method of Goldfarb & Idnani (1983): exact after finitely many steps, all samples
        at once. Error about 1e-15 of the largest coordinate, times the condition of the corner it lands in."""
        inside = self.contains(x)
        flat, inside = x.reshape(-1, x.shape[-1]), inside.reshape(-1)
        if values_are_readable(x):
            rows = (~inside).nonzero().flatten()
            return flat.index_put((rows,), self._nearest(flat[rows])).reshape(x.shape)
        return torch.where(inside.unsqueeze(-1), flat, self._nearest(flat)).reshape(x.shape)

    def _nearest(self, x: Tensor) -> Tensor:
        normals, offsets, gram = (v.to(x.device) for v in (self._normals, self._offsets, self._gram))
        tolerance = _SLACK / 4 * torch.finfo(torch.float64).eps * self._scale.to(x.device)
        return _nearest(x.double(), normals, offsets, gram, tolerance).to(x.dtype)

    def bounce(self, x: Tensor, displacement: Tensor) -> Bounce:
        """The reflected path's end, the number of its bounces, and whether they sufficed; see ``facets.march``."""
        return march(x, displacement, self._normals, self._offsets, self.max_bounces)

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        end, _, finished = self.bounce(x, displacement)
        return torch.where(finished.unsqueeze(-1), end, math.nan)

    def boundary_distance(self, x: Tensor) -> Tensor:
        return self._distances(x).min(-1).values.to(x.dtype)

    def inward_normal(self, x: Tensor) -> Tensor:
        return self._normals.to(x)[self._distances(x).argmin(-1)]

    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        walls = self._walls.to(x.device)
        distance = self._distances(x)[..., walls].to(x.dtype)
        return damp_facets(vector, distance, self._normals.to(x)[walls], as_like(width, x))

    def uniform(self, dtype: torch.dtype | None = None) -> Distribution:
        """The uniform law, by hit-and-run; see :class:`HitAndRun`."""
        return HitAndRun(self, dtype)

    @cached_property
    def _walls(self) -> Tensor:
        """The facets that are not redundant, int64 ``[k]``: only they may damp, or a wall given twice would damp twice."""
        outward = -self._normals.numpy()
        right = (self._offsets.numpy() - outward @ self.centre.numpy()) / self.inradius
        kept = list(range(len(right)))
        for j in range(len(right)):
            others = [i for i in kept if i != j]
            result = _programme(-outward[j], outward[others], right[others])
            if result.x is not None and outward[j] @ result.x <= right[j] * (1 + _FLAT):
                kept = others
        return torch.tensor(kept)

    @cached_property
    def vertices(self) -> Tensor:
        """The corners, float64 ``[n, d]``, in the order of the plane's angle if d = 2 and of the coordinates else."""
        if self.event_shape == (1,):
            return torch.stack([self.low, self.high])
        centre = self.centre.numpy()
        right = (self._offsets.numpy() + self._normals.numpy() @ centre) / self.inradius
        planes = np.concatenate([-self._normals.numpy(), -right[:, None]], 1)
        corners = HalfspaceIntersection(planes, np.zeros_like(centre)).intersections
        # facets that meet in a point of more than d of them, and redundant ones, give it several times
        corners = corners[np.unique(np.round(corners, 9), axis=0, return_index=True)[1]]
        if len(centre) == 2:
            corners = corners[np.argsort(np.arctan2(corners[:, 1], corners[:, 0]))]
        return torch.from_numpy(centre + self.inradius * corners)

    @cached_property
    def log_volume(self) -> float:
        """Exact, from the hull of the vertices; refused beyond ``MAX_VOLUME_DIM`` dimensions, where that takes for ever."""
        dim = self.event_shape[0]
        if dim > MAX_VOLUME_DIM:
            raise ValueError(
                f"{self!r}: got {dim} dimensions, expected at most {MAX_VOLUME_DIM} for an exact volume, which log_prob and "
                f"entropy of the uniform law need; its samples do not: use uniform().sample(...)"
            )
        if dim == 1:
            return math.log(self.width)
        corners = (self.vertices - self.centre).numpy() / self.inradius
        return math.log(ConvexHull(corners).volume) + dim * math.log(self.inradius)

    @cached_property
    def _round_basis(self) -> Tensor:
        """A basis ``[d, d]`` in which the body is about as long in every direction: square root of the covariance of pilot runs,
        the first in the bounding box."""
        generator = torch.Generator().manual_seed(0)
        basis = torch.diag(self.high - self.low)
        x = self.centre.expand(200 + 20 * len(self.centre), -1)
        for _ in range(3):
            x = _hit_and_run(x, basis, self._normals, self._offsets, _steps(len(self.centre)), generator)
            centred = x - x.mean(0)
            basis = torch.linalg.cholesky(centred.T @ centred / len(x))
        return basis


class HitAndRun(Uniform):
    r"""The uniform law on a polytope: every draw is the end of a Markov chain of its own, :math:`8 (d + 1)^2` steps long, from the centre
    of the largest ball inside.

    A step takes a direction at random and a point at random on the chord along it (Smith 1984), directions in a basis in which
    pilot runs had unit covariance. Draws are independent and have the uniform law up to the chain's memory of its start, which is
    forgotten after O(d²) steps from a warm start in a round body, O(d³) in the proofs from a point (Lovász & Vempala 2006).
    Measured on simplices of side ratios up to 100 in 2, 4 and 6 dimensions: after a quarter of the steps here the first two
    moments are off by 0.01, 0.01 and 0.02 standard deviations or less, and the error falls by e in 16 to 25 further steps.
    """

    domain: Polytope

    def __init__(self, domain: Polytope, dtype: torch.dtype | None = None):
        super().__init__(domain, self._draw, math.nan, dtype)

    def entropy(self) -> Tensor:
        return torch.tensor(self.domain.log_volume, dtype=torch.float64)

    def _draw(
        self, shape: torch.Size, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        body, dim = self.domain, self.domain.event_shape[0]
        basis, normals, offsets = (v.to(device) for v in (body._round_basis, body._normals, body._offsets))
        start = body.centre.to(device).expand(shape.numel(), dim)
        return _hit_and_run(start, basis, normals, offsets, _steps(dim), generator).to(dtype).reshape(*shape, dim)


def _steps(dim: int) -> int:
    return 8 * (dim + 1) ** 2


def _hit_and_run(
    x: Tensor, basis: Tensor, normals: Tensor, offsets: Tensor, steps: int, generator: torch.Generator | None
) -> Tensor:
    """The ends of that many steps from x ``[n, d]``."""
    for _ in range(steps):
        z = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        u = torch.rand(x.shape[:1], dtype=x.dtype, device=x.device, generator=generator)
        direction = z @ basis.T
        rate, distance = direction @ normals.T, (x @ normals.T + offsets).clamp(min=0)
        reach = distance / rate.abs().clamp(min=torch.finfo(x.dtype).tiny)
        ahead = torch.where(rate < 0, reach, math.inf).amin(-1)
        behind = torch.where(rate > 0, reach, math.inf).amin(-1)
        x = x + (u * (ahead + behind) - behind).unsqueeze(-1) * direction
    return x


class _Held(NamedTuple):
    """The walls a projection leans on: at most d ``slots [n, d]``, of which those in ``use`` hold a facet and its ``force`` ≥ 0."""

    slots: Tensor
    use: Tensor
    force: Tensor

    def gram(self, products: Tensor) -> Tensor:
        """The Gram matrix of the walls held, the identity elsewhere: ``[n, d, d]``."""
        both = self.use.unsqueeze(-1) & self.use.unsqueeze(-2)
        eye = torch.eye(self.slots.shape[-1], dtype=products.dtype, device=products.device)
        return torch.where(both, products[self.slots.unsqueeze(-1), self.slots.unsqueeze(-2)], eye)

    def coefficients(self, gram: Tensor, values: Tensor) -> Tensor:
        """λ with Σ_k λ_k n_k·n_j = values_j on the walls held, values ``[n, m]``; 0 in empty slots."""
        right = torch.where(self.use, values.gather(-1, self.slots), 0.0)
        return torch.linalg.solve(gram, right.unsqueeze(-1)).squeeze(-1)

    def combine(self, normals: Tensor, weights: Tensor) -> Tensor:
        """Σ_k weights_k n_k: ``[n, d]``."""
        return event_sum(normals[self.slots].transpose(-1, -2) * weights.unsqueeze(-2), 1)


def _nearest(x: Tensor, normals: Tensor, offsets: Tensor, gram: Tensor, tolerance: Tensor) -> Tensor:
    """The points y nearest to x ``[n, d]`` with n_j·y + c_j ≥ −tolerance_j (Goldfarb & Idnani 1983, with the identity as Hessian).

    y = x + Σ force·normal over the walls held. A wall that is violated is pushed in; walls whose force that would turn
    negative are let go. Before each round y is set anew onto the walls held, which is what makes the result exact."""
    (n, dim), m = x.shape, len(offsets)
    y = x
    held = _Held(*(torch.zeros(n, dim, dtype=t, device=x.device) for t in (torch.long, torch.bool, x.dtype)))
    entering, push = torch.zeros(n, dtype=torch.long, device=x.device), torch.zeros(n, dtype=x.dtype, device=x.device)
    pending, busy = torch.zeros_like(entering, dtype=torch.bool), torch.ones_like(entering, dtype=torch.bool)
    for _ in range(4 * (m + dim)):
        own = held.gram(gram)
        met = y - held.combine(normals, held.coefficients(own, facet_distances(y, normals, offsets)))
        # a sample that is done stays as it is, whatever the others need
        y = torch.where(busy.unsqueeze(-1), met, y)
        distance = facet_distances(y, normals, offsets)
        leaned = torch.zeros_like(distance).scatter_add(-1, held.slots, held.use.to(x.dtype)) > 0
        excess = torch.where(leaned, math.inf, distance + tolerance)
        worst, facet = excess.min(-1)
        busy = busy & (pending | (worst < 0))
        if values_are_readable(x) and not bool(busy.any()):
            break
        entering = torch.where(pending, entering, facet)
        step = _push(
            held, own, normals, gram[entering], distance.gather(-1, entering.unsqueeze(-1)).squeeze(-1), entering
        )
        y = torch.where(busy.unsqueeze(-1), y + step.shift, y)
        push = torch.where(pending, push, 0.0) + step.length
        force = held.force - step.length.unsqueeze(-1) * step.relief
        held, pending = _exchange(held._replace(force=force), entering, push, step, busy)
    return y


class _Step(NamedTuple):
    """How far to push along the entering wall, what that does to y and to the forces, and whether a wall must be let go first."""

    length: Tensor
    shift: Tensor
    relief: Tensor
    blocked: Tensor
    blocker: Tensor


def _push(held: _Held, own: Tensor, normals: Tensor, products: Tensor, distance: Tensor, entering: Tensor) -> _Step:
    relief = held.coefficients(own, products)
    free = normals[entering] - held.combine(normals, relief)
    room = event_sum(free * free, 1)
    yields = held.use & (relief > 0)
    limits = torch.where(yields, held.force.clamp(min=0) / torch.where(yields, relief, 1.0), math.inf)
    limit, blocker = limits.min(-1)
    # a normal that depends on those held cannot move y: one of them has to go
    movable = room > 64 * torch.finfo(room.dtype).eps
    full = torch.where(movable, -distance / torch.where(movable, room, 1.0), math.inf)
    length = torch.minimum(limit, full)
    length = torch.where(length.isinf(), 0.0, length)
    shift = torch.where(movable.unsqueeze(-1), length.unsqueeze(-1) * free, 0.0)
    return _Step(length, shift, relief, limit < full, blocker)


def _exchange(held: _Held, entering: Tensor, push: Tensor, step: _Step, busy: Tensor) -> tuple[_Held, Tensor]:
    """Let the blocking wall go, or take the entering one in; (walls held, whether the entering one still waits)."""
    places = torch.arange(held.slots.shape[-1], device=push.device)
    drop = (busy & step.blocked).unsqueeze(-1) & (places == step.blocker.unsqueeze(-1))
    first_free = held.use.to(torch.int8).argmin(-1, keepdim=True)
    take = (busy & ~step.blocked).unsqueeze(-1) & (places == first_free) & ~held.use
    return (
        _Held(
            torch.where(take, entering.unsqueeze(-1), held.slots),
            (held.use & ~drop) | take,
            torch.where(take, push.unsqueeze(-1), held.force),
        ),
        busy & step.blocked,
    )


def _half_spaces(A: Numbers, b: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """A and b as float64 arrays that fit and are finite."""
    matrix, right = (
        v.detach().cpu().double().numpy().copy() if isinstance(v, Tensor) else np.array(v, dtype=np.float64)
        for v in (A, b)
    )
    if matrix.ndim != 2 or matrix.shape[1] < 1:
        raise ValueError(
            f"A: got shape {matrix.shape}, expected [m, d], one row per inequality and one column per axis"
        )
    if right.shape != matrix.shape[:1]:
        raise ValueError(f"b: got shape {right.shape}, expected {matrix.shape[:1]}, one number per row of A")
    for name, value in (("A", matrix), ("b", right)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: got entries that are not finite; leave out the rows of walls that do not exist")
    return matrix, right


def _normalised(matrix: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _programme(cost: np.ndarray, matrix: np.ndarray, right: np.ndarray) -> Any:
    """Minimise cost·x subject to matrix·x ≤ right, by HiGHS at its tightest tolerances."""
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    return linprog(cost, matrix, right, bounds=(None, None), method="highs", options=tight)


def _largest_ball(outward: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float]:
    """(centre, radius) of the largest ball inside (the Chebyshev centre), or an error that says what is wrong."""
    dim = outward.shape[1]
    scale = float(np.abs(right).max(initial=0.0)) or 1.0
    lifted = np.concatenate([outward, np.ones((len(outward), 1))], 1)
    result = _programme(np.eye(dim + 1)[-1] * -1.0, lifted, right / scale)
    # the programme has feasible points whatever A and b, so without an optimum it is unbounded
    if result.x is None:
        raise _unbounded(outward, right, np.zeros(dim))
    radius = float(result.x[-1])
    if radius < -_FLAT:
        raise ValueError(
            f"Polytope: the inequalities contradict each other: every point violates one by at least {-radius * scale:.3g}; "
            f"check the signs, inside is A x ≤ b"
        )
    if radius <= _FLAT:
        raise ValueError(
            f"Polytope: got an inradius of {radius * scale:.3g}, expected a positive one; the set is flat and has no inside: "
            f"drop a dimension by coordinates in its plane"
        )
    return result.x[:-1] * scale, radius * scale


def _bounding_box(outward: np.ndarray, right: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest value of each coordinate, seen from the centre so that nothing cancels."""
    reach = right - outward @ centre
    scale = float(reach.max())
    ends = np.empty((2, len(centre)))
    for axis, side in np.ndindex(len(centre), 2):
        cost = np.zeros(len(centre))
        cost[axis] = 1.0 if side == 0 else -1.0
        result = _programme(cost, outward, reach / scale)
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
            if axis is None and _programme(sign * np.eye(len(centre))[i], outward, np.maximum(right, 0.0)).x is None:
                axis, side = i, name
    return ValueError(
        f"Polytope: got a set that is unbounded towards {side}x[{axis}], expected a bounded one; add an inequality that "
        f"bounds it, or use Orthant or Euclidean for axes that are open"
    )
