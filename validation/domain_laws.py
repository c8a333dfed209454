"""The laws of domains; see ``laws``. Those of heat kernels are in ``kernel_laws``."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..domains import Domain, FoldedDomain, KernelDomain
from ..domains.bounding import bounding_box
from ..domains.domain import uniform_law
from ..domains.registry import DOMAINS, domain_from_config
from ..domains.tensors import event_sum, expand_right
from .kernel_laws import kernel_laws
from .laws import Report, require, require_close, require_equal, require_refused, run_laws

_BATCHES = ((), (3,), (2, 3), (0,))


def check_domain(domain: Domain, *, points: Tensor | None = None, seed: int = 0, raises: bool = True) -> Report:
    """Run the laws of domains on ``domain``, and those of folds and heat kernels where it has them.

    Args:
        domain: any :class:`carom.domains.Domain`.
        points: float64 states inside, ``[n, *event]`` with n ≥ 8; found by sampling and projecting if not given.
        seed: of the random points.
        raises: raise :class:`LawError` at the first law that fails (an ``AssertionError``); otherwise report all.
    """
    if not isinstance(domain, Domain):
        raise TypeError(
            f"check_domain: got {domain!r}, expected an instance of a Domain, e.g. check_domain(MyDomain())"
        )
    bench = Bench(domain, points, seed)
    laws: list[tuple[str, Callable[[Bench], str | None]]] = [
        ("shapes and dtypes", shapes),
        ("project lands inside and fixes inside points", project_lands_and_fixes),
        ("project is nearest", project_is_nearest),
        ("reflect lands inside and fixes inside points", reflect_lands_and_fixes),
        ("reflect adds where no wall is hit", reflect_splits),
        ("reflect never lengthens a path", reflect_contracts),
        ("a straight hit bounces straight back", reflect_bounces),
        ("reflect keeps the uniform law", reflect_keeps_uniform),
        ("a sample that is not finite harms no other", isolated),
        ("outside and NaN are outside", outside_is_outside),
        ("uniform law", uniform_draws),
        ("a sample does not depend on its batch", independent),
        ("float32 agrees with float64", precisions_agree),
        ("distance from the walls", wall_distance),
        ("damping acts along the normals", damping),
        ("bad states are refused", refusals),
        ("config rebuilds it", config_rebuilds),
    ]
    if isinstance(domain, FoldedDomain):
        laws += [("fold lands inside and fixes inside points", fold_lands), ("back carries gradients", back_carries)]
    named: list[tuple[str, Callable[[], str | None]]] = [(name, partial(law, bench)) for name, law in laws]
    if isinstance(domain, KernelDomain):
        named += kernel_laws(domain, bench.inside, seed)
    return run_laws(repr(domain), named, raises)


class Bench:
    """What the laws work with: points inside, points on and near walls, and points anywhere, float64 ``[n, *event]``."""

    def __init__(self, domain: Domain, points: Tensor | None, seed: int):
        self.domain, self.ndim = domain, len(domain.event_shape)
        self.generator = torch.Generator().manual_seed(seed)
        self.size = domain.width if domain.bounded else 1.0
        normals = torch.randn(24, *domain.event_shape, dtype=torch.float64, generator=self.generator)
        if points is None:
            points = domain.project(2 * normals)
            if domain.bounded:
                points = uniform_law(domain, torch.float64).sample((24,), generator=self.generator).double()  # type: ignore[call-arg]
        self.inside = points
        self.anywhere = points[torch.arange(24) % len(points)] + 1.5 * self.size * normals
        #: points inside, of which many lie on walls where there are any
        self.all_inside = torch.cat([points, domain.project(self.anywhere)])

    def norm(self, x: Tensor) -> Tensor:
        return event_sum(x**2, self.ndim).sqrt()

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(self.domain.difference(x, y))

    def rounding(self, dtype: torch.dtype = torch.float64) -> float:
        """A few ulp of the largest numbers at hand."""
        largest = float(self.anywhere.abs().max()) if self.anywhere.numel() else 1.0
        return 16 * torch.finfo(dtype).eps * (largest + self.size)

    def normals(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=self.generator)


def shapes(bench: Bench) -> None:
    """contains: Bool [*batch]; project, reflect: the shape and dtype of x; for batches of 0, 1, 2 dimensions and empty ones."""
    for dtype in (torch.float32, torch.float64):
        for batch in _BATCHES:
            count = math.prod(batch)
            x = bench.domain.project(bench.inside[:count].to(dtype)).reshape(*batch, *bench.domain.event_shape)
            inside = bench.domain.contains(x)
            require(
                inside.shape == batch and inside.dtype == torch.bool,
                f"contains: {inside.dtype} {tuple(inside.shape)}",
                f"bool {batch}",
            )
            for name, y in (("project", bench.domain.project(x)), ("reflect", bench.domain.reflect(x, 0.3 * x))):
                require(
                    y.shape == x.shape and y.dtype == dtype,
                    f"{name}: {y.dtype} {tuple(y.shape)}",
                    f"{dtype} {tuple(x.shape)}",
                )


def project_lands_and_fixes(bench: Bench) -> None:
    """project(x) is in the domain, and project(x) = x to the bit for x inside."""
    for dtype in (torch.float32, torch.float64):
        y = bench.domain.project(bench.anywhere.to(dtype))
        require(bench.domain.contains(y), "a projected point outside", "all inside")
        require_equal(bench.domain.project(y), y, "project of an inside point")
    require_equal(bench.domain.project(bench.inside), bench.inside, "project of an inside point")
    # points that contains knows and project did not make
    spread = bench.inside + bench.size * torch.tensor([0.01, 0.1, 0.5]).repeat(8)[: len(bench.inside)].reshape(
        -1, *[1] * bench.ndim
    ) * bench.normals(bench.inside)
    found = spread[bench.domain.contains(spread)]
    require_equal(bench.domain.project(found), found, "project of an inside point")


def project_is_nearest(bench: Bench) -> None:
    """No point inside is nearer to u than project(u)."""
    nearest = bench.distance(bench.anywhere, bench.domain.project(bench.anywhere))
    for y in bench.all_inside:
        other = bench.distance(bench.anywhere, y)
        require(
            nearest <= other + bench.rounding(),
            f"a distance {float((nearest - other).max()):.3g} larger",
            "the nearest point",
        )


def reflect_lands_and_fixes(bench: Bench) -> None:
    """reflect(x, d) is in the domain for displacements small and many widths long; reflect(x, 0) = x to the bit."""
    for dtype in (torch.float32, torch.float64):
        x = bench.domain.project(bench.all_inside.to(dtype))
        for length in (0.05, 1.0, 30.0):
            y = bench.domain.reflect(x, length * bench.size * bench.normals(x))
            require(bench.domain.contains(y), f"a point outside after a move of {length:g} widths", "all inside")
        require_equal(bench.domain.reflect(x, torch.zeros_like(x)), x, "reflect with displacement 0")


def reflect_splits(bench: Bench) -> None:
    """While no wall is hit, reflect(x, d) = x + d and reflect(reflect(x, d), e) = reflect(x, d + e)."""
    x, domain = bench.inside, bench.domain
    y, z = (domain.project(bench.inside.roll(k, 0)) for k in (1, 2))
    d, e = (y - x) / 2, (z - x) / 4  # convexity keeps x, x + d and x + d + e inside
    once, twice = domain.reflect(x, d + e), domain.reflect(domain.reflect(x, d), e)
    require_close(domain.reflect(x, d), x + d, bench.rounding(), "reflect(x, d)")
    require_close(twice, once, bench.rounding(), "reflect in two parts")


def reflect_contracts(bench: Bench) -> None:
    """A bounced path ends no farther from its start than the straight one."""
    for length in (0.2, 2.0):
        d = length * bench.size * bench.normals(bench.all_inside)
        moved = bench.distance(bench.domain.reflect(bench.all_inside, d), bench.all_inside)
        require(moved <= bench.norm(d) + bench.rounding(), "a bounced path longer than its displacement", "at most |d|")


def reflect_bounces(bench: Bench) -> str | None:
    """Along the normal of the nearest wall and a little beyond it, a ball comes back by as much: nothing sticks to walls."""
    try:
        distance = bench.domain.boundary_distance(bench.inside)
        if bool(distance.isinf().all()):
            return "no walls"
        x = bench.inside[distance > 1e-3 * bench.size]
        distance, normal = expand_right(bench.domain.boundary_distance(x), bench.ndim), bench.domain.inward_normal(x)
    except NotImplementedError:
        return "no distances from walls given"
    beyond = 0.01 * distance
    want = x + (beyond - distance) * normal
    require_close(bench.domain.reflect(x, -(distance + beyond) * normal), want, bench.rounding(), "a straight bounce")
    return None


def reflect_keeps_uniform(bench: Bench) -> str | None:
    """x uniform and a displacement independent of it give a uniform end: first and second moments (5 standard errors)."""
    if not bench.domain.bounded:
        return "unbounded"
    law = uniform_law(bench.domain, torch.float64)
    x, fresh = (law.sample((4000,), generator=bench.generator).double() for _ in range(2))  # type: ignore[call-arg]
    moved = bench.domain.reflect(x, 0.4 * bench.size * bench.normals(x)).flatten(1)
    same_moments(moved, fresh.flatten(1), "after a reflected move")
    return None


def isolated(bench: Bench) -> None:
    """A displacement or a state that is NaN, infinite or huge raises nothing and leaves its batch mates as they are, to the bit."""
    domain, x = bench.domain, bench.inside[:4]
    d = 0.3 * bench.size * bench.normals(x)
    clean = domain.reflect(x, d)[1:], domain.project(x + d)[1:]
    for bad in (math.nan, math.inf, -math.inf, 1e30):
        spoilt = d.clone()
        spoilt.reshape(len(d), -1)[0, 0] = bad
        got = domain.reflect(x, spoilt)[1:], domain.project(x + spoilt)[1:]
        for name, a, b in zip(("reflect", "project"), got, clean, strict=True):
            require_equal(a, b, f"{name} beside a sample of {bad}")


def outside_is_outside(bench: Bench) -> None:
    """contains is False at NaN, and at points that project moves by more than rounding; atol widens it."""
    bad = bench.inside.clone()
    bad.reshape(len(bad), -1)[:, 0] = math.nan
    require(~bench.domain.contains(bad), "NaN inside", "NaN outside")
    u = bench.anywhere
    moved = bench.norm(bench.domain.project(u) - u)
    require(~bench.domain.contains(u)[moved > bench.rounding()], "a point inside that project moves", "outside")
    require(bench.domain.contains(u, atol=float(moved.max()) + bench.rounding()), "a point beyond atol", "within atol")


def uniform_draws(bench: Bench) -> str | None:
    """Bounded: samples lie inside, come from the generator, have density e^{−entropy}. Unbounded: refused."""
    domain = bench.domain
    if not domain.bounded:
        require_refused(domain.uniform, "uniform() on an unbounded domain")
        return "unbounded"
    for dtype in (torch.float32, torch.float64):
        law = uniform_law(domain, dtype)
        draws = [law.sample((50,), generator=torch.Generator().manual_seed(3)) for _ in range(2)]  # type: ignore[call-arg]
        require_equal(draws[0], draws[1], "uniform sample of the same generator state")
        chosen = dtype if "dtype" in inspect.signature(domain.uniform).parameters else draws[0].dtype
        require(draws[0].dtype == chosen and draws[0].shape == (50, *domain.event_shape), tuple(draws[0].shape), dtype)
        require(domain.contains(draws[0]), "a uniform sample outside", "all inside")
        require_close(law.log_prob(draws[0]).double(), -law.entropy().double(), 1e-4, "log density")
    return uniform_moments(bench)


def uniform_moments(bench: Bench) -> str | None:
    """Against points of the bounding box that contains lets through: share, mean and second moment (5 standard errors)."""
    box = bounding_box(bench.domain)
    x = box.uniform(torch.float64).sample((40_000,), generator=bench.generator)  # type: ignore[call-arg]
    inside = bench.domain.contains(x)
    x = x[inside].flatten(1)
    if len(x) < 200:
        return "too small a part of its bounding box to test the moments"
    law = uniform_law(bench.domain, torch.float64)
    draws = law.sample((4000,), generator=bench.generator).double().flatten(1)  # type: ignore[call-arg]
    share = float(inside.double().mean())
    volume = math.exp(float(law.entropy()) - float(box.uniform().entropy()))
    room = 5 * math.sqrt(max(share * (1 - share), 1e-4) / len(inside))
    require(abs(share - volume) <= room, f"e^entropy = {volume:.4g} bounding boxes", f"{share:.4g} within {room:.1g}")
    same_moments(draws, x, "of uniform samples")
    return None


def same_moments(draws: Tensor, others: Tensor, what: str) -> None:
    """First and second moments of two sets of samples ``[n, d]`` agree within 5 standard errors."""
    for power in (1, 2):
        a, b = draws**power, others**power
        error = 5 * (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        require_close(a.mean(0), b.mean(0), error, f"moment {power} {what}")


def independent(bench: Bench) -> None:
    """Each function gives a sample the same value alone and in a batch, to the bit."""
    domain = bench.domain
    for dtype in (torch.float32, torch.float64):
        x = bench.anywhere.to(dtype)
        inside, d = domain.project(x), bench.normals(x)
        whole = domain.contains(x), domain.project(x), domain.reflect(inside, d)
        for i in range(len(x)):
            alone = domain.contains(x[i]), domain.project(x[i]), domain.reflect(inside[i], d[i])
            for name, a, b in zip(("contains", "project", "reflect"), alone, whole, strict=True):
                require_equal(a, b[i], name)


def precisions_agree(bench: Bench) -> None:
    """project and reflect in float32 are those in float64, up to float32 rounding of the input."""
    domain, u = bench.domain, bench.anywhere.float()
    x = domain.project(bench.inside.float())
    d = 0.4 * bench.size * bench.normals(x)
    tolerance = bench.rounding(torch.float32)
    wide = domain.reflect(domain.project(x.double()), d.double())
    for name, narrow, exact in (
        ("project", domain.project(u), domain.project(u.double())),
        ("reflect", domain.reflect(x, d), wide),
    ):
        require_close(domain.difference(narrow.double(), exact), 0.0, tolerance, f"error of {name} in float32")


def wall_distance(bench: Bench) -> str | None:
    """A ball of radius boundary_distance fits in the domain; against the unit inward normal it reaches the wall."""
    domain, x = bench.domain, bench.inside
    try:
        distance = domain.boundary_distance(x)
    except NotImplementedError:
        return "none given"
    require(distance.shape == x.shape[:1], tuple(distance.shape), tuple(x.shape[:1]))
    if bool(distance.isinf().all()):
        return "no walls"
    x, distance = x[distance > 1e-3 * bench.size], distance[distance > 1e-3 * bench.size]
    normal, radius = domain.inward_normal(x), expand_right(distance, bench.ndim)
    require_close(bench.norm(normal), 1.0, 1e-12, "length of the normal")
    for _ in range(8):
        way = bench.normals(x)
        move = 0.999 * radius * way / expand_right(bench.norm(way), bench.ndim)
        gap = domain.difference(domain.reflect(x, move), x + move)
        require_close(gap, 0.0, bench.rounding(), "bounce within the distance of the nearest wall")
    require(~domain.contains(x - 1.001 * radius * normal), "no wall against the normal", "a wall at that distance")
    wall = domain.project(x - radius * normal)
    require_close(domain.boundary_distance(wall), 0.0, bench.rounding(), "distance of wall points")
    return None


def damping(bench: Bench) -> str | None:
    """damp leaves vectors beyond the layer as they are, lengthens none, kills the normal component at walls and scales it within."""
    domain, x = bench.domain, bench.inside
    try:
        distance = domain.boundary_distance(x)
        x, distance = x[distance > 1e-3 * bench.size], distance[distance > 1e-3 * bench.size]
        v, normal = bench.normals(x), domain.inward_normal(x)
        damped = domain.damp(x, v, torch.tensor(0.1 * bench.size, dtype=x.dtype))
    except NotImplementedError:
        return "none given"
    require(damped.shape == v.shape and damped.dtype == v.dtype, tuple(damped.shape), tuple(v.shape))
    require(bench.norm(damped) <= bench.norm(v) * (1 + 1e-12), "a longer vector", "at most |v|")
    beyond = distance > 0.1 * bench.size
    require_close(damped[beyond], v[beyond], 1e-12, "a vector beyond the layer")
    if bool(distance.isinf().all()):
        return "no walls"
    before = event_sum(v * normal, bench.ndim)
    for depth in (0.0, 0.3):
        # on the way to the nearest wall, in a layer so thin that no other wall is in reach
        thin = expand_right(1e-3 * distance, bench.ndim)
        at = x - expand_right(distance, bench.ndim) * normal + depth * thin * normal
        got = domain.damp(domain.project(at), v, thin)
        after = event_sum(got * normal, bench.ndim)
        where = f"at {depth:g} of the layer"
        # distances of 1e-6 carry the rounding of coordinates
        require_close(after, depth * before, 1e-8 * (1 + before.abs()), f"normal component {where}")
        along = got - v - expand_right(after - before, bench.ndim) * normal
        require_close(along, 0.0, 1e-8, f"change along the wall {where}")
    return None


def refusals(bench: Bench) -> None:
    """check() refuses integers, another event shape, NaN, and (where there is an outside) points outside; not the inside."""
    domain = bench.domain
    domain.check(bench.all_inside)
    require_refused(lambda: domain.check(bench.inside.long()), "integer dtype")
    require_refused(
        lambda: domain.check(bench.inside.new_zeros(4, *(n + 1 for n in domain.event_shape))), "a wrong event shape"
    )
    require_refused(lambda: domain.check(torch.full_like(bench.inside, math.nan)), "NaN")
    if not bool(domain.contains(bench.anywhere).all()):
        require_refused(lambda: domain.check(bench.anywhere), "points outside")


def config_rebuilds(bench: Bench) -> str | None:
    """config() is JSON-able and rebuilds a domain with the same config; it is optional for domains of one's own."""
    try:
        config = bench.domain.config()
    except NotImplementedError:
        return "none given"
    config = json.loads(json.dumps(config))
    if config["type"] in DOMAINS:
        require(isinstance(bench.domain, DOMAINS[config["type"]]), config["type"], type(bench.domain).__name__)
        again = domain_from_config(config)
    else:
        require(config["type"] == type(bench.domain).__name__, config["type"], type(bench.domain).__name__)
        again = type(bench.domain)(**{k: v for k, v in config.items() if k != "type"})
    require(type(again) is type(bench.domain) and again.config() == bench.domain.config(), again.config(), config)
    return None


def fold_lands(bench: Bench) -> None:
    """fold(u) is in the domain; inside points stay to the bit; back is the identity there, and linear with |back(v)| = |v|."""
    domain, u = bench.domain, bench.anywhere
    assert isinstance(domain, FoldedDomain)
    x, back = domain.fold(u)
    require(domain.contains(x), "a folded point outside", "all inside")
    v = bench.normals(u)
    require_close(bench.norm(back(v)), bench.norm(v), 1e-13 * bench.norm(v), "|back(v)|")
    require_close(back(2 * v - 3 * u), 2 * back(v) - 3 * back(u), bench.rounding() * 5, "back of a sum")
    for dtype in (torch.float32, torch.float64):
        # points on walls among them
        inside = domain.project(bench.all_inside.to(dtype))
        same, stay = domain.fold(inside)
        require_equal(same, inside, "fold of an inside point")
        w = bench.normals(inside)
        require_equal(stay(w), w, "back at an inside point")


def back_carries(bench: Bench) -> None:
    """back is the transposed derivative of the fold: ∇ᵤ f(fold(u)) = back(∇f at fold(u))."""
    domain = bench.domain
    assert isinstance(domain, FoldedDomain)
    u = bench.anywhere.clone().requires_grad_()
    weight = torch.arange(1, 1 + math.prod(domain.event_shape), dtype=torch.float64).reshape(domain.event_shape)
    with torch.enable_grad():
        x, back = domain.fold(u)
        through = torch.autograd.grad((weight * x / bench.size).sin().sum(), u)[0]
    slope = weight / bench.size * (weight * x.detach() / bench.size).cos()
    require_close(through, back(slope), 1e-9 * (1 + slope.abs()), "gradient through the fold")
