"""Domains: the laws over everything hypothesis can build, closed forms of folding, and what is refused."""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carom.domains import (
    Ball,
    Domain,
    Euclidean,
    FoldedDomain,
    Hypercube,
    KernelDomain,
    Orthant,
    Polytope,
    Product,
    RegularSimplex,
    Simplex,
    Torus,
    domain_from_config,
)
from carom.domains.domain import Uniform
from carom.validation import LawError, check_domain
from carom.validation import strategies as some


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "domain",
    [
        Euclidean((2,)),
        Orthant((1,)),
        Hypercube((1,)),
        Hypercube((2,)),
        Hypercube((1, 2, 2)),
        Hypercube((3,), [-1.0, 0.0, 2.0], [1.0, 0.5, 7.0]),
        Hypercube((2,), 0.0, [1.0, 3.0]),  # one bound for all axes, the other per axis
        Hypercube((2,), [-3.0, -1.0], 2.0),
        Hypercube((2,), [0.0, -math.inf], [1.0, 2.0]),  # an interval and a half-line open below
        Hypercube((2, 2), [[0.0, -1.0], [-math.inf, -math.inf]], [[math.inf, 2.0], [3.0, math.inf]]),
        Torus((1,)),
        Torus((2,), [1.0, 2 * math.pi]),
        Simplex(2),
        Simplex(3),
        Simplex(5),
        Simplex(3, (2,)),
        Product(Hypercube((1, 2)), Simplex(3)),
        Product(Orthant((1,)), Euclidean((1,))),
        Product(Torus((1,)), Hypercube((1,), 0.0, math.inf)),
    ],
    ids=repr,
)
def test_laws_of_the_domains_people_use(domain: Domain) -> None:
    check_domain(domain)


@settings(max_examples=12)  # each runs some twenty laws
@given(some.domains(), st.integers(0, 2**20))
def test_laws_of_any_domain(domain: Domain, seed: int) -> None:
    check_domain(domain, seed=seed)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6), st.floats(-5, 5), st.floats(0.1, 9))
def test_folding_a_box_is_a_triangle_wave(values: list[float], low: float, width: float) -> None:
    """Written the other way, by hand: walk the wave piece by piece."""
    domain = Hypercube((1,), low, low + width)
    for u in values:
        piece = math.floor((u - low) / width)
        rest = (u - low) - piece * width
        want = low + (rest if piece % 2 == 0 else width - rest)
        got = float(domain.fold(f64(u))[0])
        # u − low and the remainder round by an ulp of the largest number at hand
        assert got == pytest.approx(want, abs=1e-14 * (abs(u) + abs(low) + width))


def test_reference_values_of_the_fold() -> None:
    """formulas.md §20."""
    x, _ = Hypercube((4,)).fold(f64(-0.3, 1.2, 2.7, -1.6))
    torch.testing.assert_close(x, f64(0.3, 0.8, 0.7, 0.4), rtol=0, atol=1e-15)
    # a bounce off the upper wall, then off the lower one
    assert float(Hypercube((1,)).reflect(f64(0.9), f64(1.4))) == pytest.approx(0.3, abs=1e-15)
    assert float(Orthant((1,)).reflect(f64(0.2), f64(-0.5))) == pytest.approx(0.3, abs=1e-15)


def test_back_flips_exactly_the_folded_axes() -> None:
    domain = Hypercube((2,), [0.0, -1.0], [1.0, 1.0])
    _, back = domain.fold(f64(-0.3, 0.5))
    assert back(f64(2.0, 3.0)).tolist() == [-2.0, 3.0]
    _, back = domain.fold(f64(2.4, 1.5))  # twice folded, once folded
    assert back(f64(2.0, 3.0)).tolist() == [2.0, -3.0]


def test_open_axes_are_half_lines_and_lines() -> None:
    """A box with infinite bounds is the product of an interval, a half-line, a mirrored half-line and a line."""
    inf = math.inf
    box = Hypercube((4,), [0.0, 1.0, -inf, -inf], [1.0, inf, 2.0, inf])
    assert not box.bounded and box.width == inf and not box.is_cone
    assert Hypercube((2,), [0.0, -inf], inf).is_cone and Hypercube((2,), -inf, 0.0).is_cone
    x0, x = f64(0.2, 1.5, 0.7, -3.0), f64(0.6, 1.1, 1.9, 2.0)
    parts = [
        (Hypercube((1,)), x0[:1], x[:1], 1),
        (Orthant((1,)), x0[1:2] - 1, x[1:2] - 1, 1),
        (Orthant((1,)), 2 - x0[2:3], 2 - x[2:3], -1),
        (Euclidean((1,)), x0[3:], x[3:], 1),
    ]
    kernel = box.heat_kernel(x0, 0.7)
    one = [(domain.heat_kernel(a0, 0.7), a, sign) for domain, a0, a, sign in parts]
    assert float(kernel.log_prob(x)) == pytest.approx(sum(float(k.log_prob(a)) for k, a, _ in one), abs=1e-14)
    torch.testing.assert_close(kernel.score(x), torch.cat([s * k.score(a) for k, a, s in one]), rtol=0, atol=1e-14)
    folded, back = box.fold(f64(-0.3, 0.4, 2.5, -7.0))
    torch.testing.assert_close(folded, f64(0.3, 1.6, 1.5, -7.0), rtol=0, atol=1e-15)
    assert back(torch.ones(4, dtype=torch.float64)).tolist() == [-1, -1, -1, 1]
    with pytest.raises(TypeError, match="unbounded"):
        box.uniform()


def test_a_torus_wraps_and_takes_the_short_way() -> None:
    torus = Torus((2,), [1.0, 4.0])
    torch.testing.assert_close(torus.reflect(f64(0.9, 0.5), f64(0.3, -1.0)), f64(0.2, 3.5), rtol=0, atol=1e-15)
    torch.testing.assert_close(torus.difference(f64(0.9, 0.5), f64(0.1, 3.5)), f64(-0.2, 1.0), rtol=0, atol=1e-15)
    kernel = torus.heat_kernel(f64(0.05, 3.9), 0.05)
    # the score points the short way round
    assert (kernel.score(f64(0.95, 0.1)) * f64(1.0, -1.0) > 0).all()


def test_products_split_join_and_act_part_by_part() -> None:
    image, label = Hypercube((1, 2, 2)), Simplex(3)
    both = Product(image, label)
    assert both.event_shape == (6,) and both.bounded and both.width == 1
    a = image.uniform().sample((5,), generator=torch.Generator().manual_seed(0))
    b = label.uniform().sample((5,), generator=torch.Generator().manual_seed(1))
    x = both.join(a, b)
    assert [v.shape for v in both.split(x)] == [(5, 1, 2, 2), (5, 2)]
    assert all(torch.equal(u, v) for u, v in zip(both.split(x), (a, b), strict=True))
    assert torch.equal(both.join(a[0], b), both.join(a[:1].expand_as(a), b))  # batches broadcast
    sigmas = torch.full((5,), 0.2), torch.full((5,), 0.6)
    kernel = both.heat_kernel(x, sigmas)
    want = image.heat_kernel(a, 0.2).log_prob(a.flip(0)) + label.heat_kernel(b, 0.6).log_prob(b.flip(0))
    torch.testing.assert_close(kernel.log_prob(x.flip(0)), want)
    again = copy.deepcopy(both)
    assert type(again) is type(both) and again.config() == both.config()
    assert type(pickle.loads(pickle.dumps(both))) is type(both)


def test_a_product_is_exact_from_where_all_its_parts_are() -> None:
    assert Product(Ball(2), Hypercube((1,))).sigma_min == Ball(2).sigma_min > 0


def test_a_product_is_what_all_its_parts_are() -> None:
    plain = Product(Hypercube((1,)), RegularSimplex(4))
    assert not isinstance(plain, FoldedDomain) and not isinstance(plain, KernelDomain)
    check_domain(plain)
    assert isinstance(Product(Torus((1,)), Simplex(3)), FoldedDomain)
    with pytest.raises(TypeError, match=r"Product: got nothing, expected one or more domains"):
        Product()
    with pytest.raises(TypeError, match=r"Product: got Hypercube, int"):
        Product(Hypercube((1,)), 3)
    both = Product(Hypercube((2,)), Simplex(3))
    with pytest.raises(ValueError, match=r"join: got 1 parts, expected 2"):
        both.join(torch.zeros(2))
    with pytest.raises(ValueError, match=r"part 1: got shape \(3,\)"):
        both.join(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"sigma: got 3 values, expected one or 2"):
        both.heat_kernel(torch.full((4,), 0.5), [0.1, 0.2, 0.3])


class Square(Domain):
    """[−1, 1]² with nothing but what the contract asks for, and one fault, chosen by name."""

    event_shape = (2,)

    def __init__(self, fault: str = ""):
        self.fault = fault

    def contains(self, x, atol=0.0):
        return (x.abs() <= 1 + atol).all(-1)

    def project(self, x):
        return x.clamp(-0.9, 0.9) if self.fault == "project" else x.clamp(-1, 1)

    def reflect(self, x, displacement):
        if self.fault == "sticks":
            return (x + displacement).clamp(-1, 1)
        return Hypercube((2,), -1.0, 1.0).reflect(x, displacement)

    def boundary_distance(self, x):
        return 1 - x.abs().amax(-1)

    def uniform(self, dtype=None):
        def draw(shape, dtype, device, generator):
            u = torch.rand((*shape, 2), dtype=dtype, generator=generator, device=device)
            u = u**2 if self.fault == "uneven" else u
            return u - 0.5 if self.fault == "quarter" else 2 * u - 1

        return Uniform(self, draw, 1.0 if self.fault == "volume" else math.log(4), dtype)


@pytest.mark.parametrize(
    ("fault", "laws"),
    [
        ("", set()),
        ("sticks", {"a straight hit bounces straight back", "reflect keeps the uniform law"}),
        ("project", {"project lands inside and fixes inside points"}),
        ("uneven", {"uniform law"}),
        ("quarter", {"uniform law"}),
        ("volume", {"uniform law"}),
    ],
)
def test_the_laws_notice_what_a_first_attempt_gets_wrong(fault: str, laws: set[str]) -> None:
    report = check_domain(Square(fault), raises=False)
    assert laws <= {failure.name for failure in report.failures}
    assert bool(report) == (not fault)


def test_every_function_of_a_state_refuses_what_is_no_state() -> None:
    """Integers, arrays and other event shapes, also on a domain of one's own."""
    for domain in (
        Square(),
        Simplex(3),
        Ball(2),
        Torus((2,)),
        Polytope([[1, 0], [0, 1], [-1, -1]], [1, 1, 1]),
        Hypercube((2,), 0, math.inf),
    ):
        for function in (domain.contains, domain.project, domain.boundary_distance, domain.inward_normal):
            with pytest.raises(TypeError, match=r"x: got dtype torch.int64, expected a floating dtype"):
                function(torch.zeros(3, 2, dtype=torch.long))
            with pytest.raises(TypeError, match=r"x: got ndarray, expected a torch.Tensor"):
                function(np.zeros((3, 2)))
            with pytest.raises(ValueError, match=r"x: got shape \(3, 4\), expected \[\*batch, 2\]"):
                function(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"x: 1 of 1 samples lie outside"):
        Simplex(3).to_probabilities(torch.tensor([[0.7, 0.2]]))
    with pytest.raises(TypeError, match=r"check_domain: got <class .*expected an instance"):
        check_domain(Square)


@pytest.mark.filterwarnings(
    "ignore:There is a performance drop"
)  # torch has no batching rule for the gradient of cummin
def test_functions_work_beneath_nested_transforms() -> None:
    """vmap(jacrev(f)): values cannot be read there either."""
    x = torch.tensor([[0.2, 0.5], [0.1, 0.9], [0.4, 0.3]], dtype=torch.float64)
    step = torch.tensor([0.3, -0.7], dtype=torch.float64)
    triangle = Polytope([[-1, 0], [0, 1], [1, -1]], [0, 1, 0], max_bounces=4)
    for domain in (Simplex(3), triangle, Hypercube((2,)), Torus((2,))):
        start = domain.project(x)
        for function in (domain.project, lambda v, domain=domain: domain.reflect(v, step)):
            jacobian = torch.func.vmap(torch.func.jacrev(function))(start)
            assert jacobian.shape == (3, 2, 2) and jacobian.isfinite().all()
    for domain in (Simplex(3), Hypercube((2,)), Torus((2,)), RegularSimplex(3)):
        score = domain.unchecked_kernel(domain.project(x[0]), 0.3).score
        start = domain.project(x)
        forward, reverse = (torch.func.vmap(f(score))(start) for f in (torch.func.jacfwd, torch.func.jacrev))
        torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-9)


def test_a_centre_has_no_normal_and_no_nan() -> None:
    """At the centre of a disk of one's own the distance has no gradient; damping there does nothing, differentiably."""

    class Disk(Square):
        def boundary_distance(self, x):
            return 1 - x.square().sum(-1)  # to first order at the wall; its gradient vanishes at the centre

    x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    damped = Disk().damp(x, torch.ones(1, 2, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64))
    assert torch.equal(damped, torch.ones_like(damped))
    (slope,) = torch.autograd.grad(damped.sum(), x)
    assert slope.isfinite().all()


def test_damping_scales_the_normal_component_only_and_to_zero_at_walls() -> None:
    domain, width = Hypercube((2,), 0.0, 2.0), torch.tensor(0.1, dtype=torch.float64)
    v = torch.ones(4, 2, dtype=torch.float64)
    x = f64(0.0, 1.0, 0.05, 1.0, 1.0, 2.0, 1.0, 1.0).reshape(4, 2)
    got = domain.damp(x, v, width)
    torch.testing.assert_close(got, f64(0, 1, 0.5, 1, 1, 0, 1, 1).reshape(4, 2), rtol=0, atol=1e-15)
    assert Orthant((2,)).damp(x[:2], v[:2], width).flatten().tolist() == pytest.approx([0, 1, 0.5, 1])
    assert torch.equal(Euclidean((2,)).damp(x, v, width), v)
    # a layer wider than the box ends in its middle
    middle, wide = f64(1.0, 1.0), torch.tensor(50.0, dtype=torch.float64)
    assert torch.equal(domain.damp(middle, v[0], wide), v[0])


def test_uniform_entropy_is_log_volume() -> None:
    law = Hypercube((3,), [-1.0, 0.0, 2.0], [1.0, 0.5, 7.0]).uniform()
    assert float(law.entropy()) == pytest.approx(math.log(2 * 0.5 * 5), abs=1e-14)
    assert float(law.log_prob(torch.tensor([5.0, 0.1, 3.0]))) == -math.inf


@pytest.mark.montecarlo
def test_uniform_samples_have_the_uniform_moments() -> None:
    """20,000 draws: the mean of a uniform law has standard error width/√(12 n); the bound is five of them."""
    domain, n = Hypercube((2,), [-1.0, 0.0], [1.0, 5.0]), 20_000
    x = domain.uniform(torch.float64).sample((n,), generator=torch.Generator().manual_seed(0))
    width = domain.high - domain.low
    assert ((x.mean(0) - f64(0.0, 2.5)).abs() <= 5 * width / math.sqrt(12 * n)).all()
    # the variance of (x − mean)² of a uniform law of width w is w⁴/180
    assert ((x.var(0) - width**2 / 12).abs() <= 5 * width**2 / math.sqrt(180 * n)).all()


@given(some.domains())
def test_config_round_trip_through_the_registry(domain: Domain) -> None:
    again = domain_from_config(domain.config())
    assert type(again) is type(domain) and again.config() == domain.config()


@given(some.boxes(), some.sigmas(1e-3, 10.0))
def test_kernels_act_coordinate_by_coordinate(box: Hypercube, ratio: float) -> None:
    """log p of a box is the sum over its axes, and each axis's score ignores the others."""
    generator = torch.Generator().manual_seed(0)
    law = box.uniform(torch.float64)
    x0, x = (law.sample((3,), generator=generator) for _ in range(2))  # type: ignore[call-arg]
    sigma = ratio * box.width
    kernel = box.heat_kernel(x0, sigma)
    total = torch.zeros(3, dtype=torch.float64)
    for i, (low, high) in enumerate(zip(box.low.flatten().tolist(), box.high.flatten().tolist(), strict=True)):
        axis = Hypercube((1,), low, high).heat_kernel(x0.reshape(3, -1)[:, i : i + 1], sigma)
        at = x.reshape(3, -1)[:, i : i + 1]
        total += axis.log_prob(at)
        # the same formula on the same numbers, but vectorised libraries round differently in other positions
        torch.testing.assert_close(
            kernel.score(x).reshape(3, -1)[:, i : i + 1], axis.score(at), rtol=1e-11, atol=1e-11 / sigma
        )
    torch.testing.assert_close(kernel.log_prob(x), total, rtol=1e-11, atol=1e-11)


REFUSALS = [
    (lambda: Hypercube((2,), 1.0, 1.0), ValueError, "got low = 1 and high = 1 .* expected low < high"),
    (lambda: Hypercube((2,), [0.0, 2.0], 1.0), ValueError, r"axis \(1,\)"),
    (lambda: Hypercube((2,), math.nan, 1.0), ValueError, "got NaN"),
    (lambda: Hypercube((2,), [0.0, 0.0, 0.0], 1.0), ValueError, r"low: got shape \(3,\)"),
    (lambda: Hypercube(2), TypeError, r"write \(2,\)"),
    (lambda: Hypercube((0,)), ValueError, "sizes of at least 1"),
    (lambda: Torus((2,), 0.0), ValueError, "period: got 0, expected finite numbers above 0"),
    (lambda: Torus((2,), [1.0, 2.0, 3.0]), ValueError, r"period: got shape \(3,\)"),
    (lambda: Orthant((2,)).uniform(), TypeError, "unbounded and has no uniform law"),
    (lambda: Euclidean((2,)).uniform(), TypeError, "unbounded"),
    (lambda: Hypercube((2,)).check(torch.zeros(3)), ValueError, r"got shape \(3,\), expected \[\*batch, 2\]"),
    (lambda: Hypercube((2,)).check(torch.zeros(4, 2, dtype=torch.int64)), TypeError, "got dtype torch.int64"),
    (lambda: Hypercube((2,)).check([[0.5, 0.5]]), TypeError, "got list, expected a torch.Tensor"),
    (
        lambda: Hypercube((2,)).check(torch.tensor([[0.5, 0.5], [0.5, 1.5]])),
        ValueError,
        r"1 of 2 samples .* index \[1\] .*0.5, 1.5",
    ),
    (lambda: Hypercube((1,)).check(torch.tensor([[math.nan]])), ValueError, "lie outside .* they are not finite"),
    (
        lambda: Hypercube((1,)).heat_kernel(torch.tensor([0.5]), 0.0),
        ValueError,
        "sigma: got 0, expected finite values above 0",
    ),
    (lambda: Hypercube((1,)).heat_kernel(torch.tensor([0.5]), -1.0), ValueError, "sigma: got -1"),
    (lambda: Hypercube((1,)).heat_kernel(torch.tensor([0.5]), math.nan), ValueError, "sigma: got nan"),
    (lambda: Hypercube((1,)).heat_kernel(torch.tensor([1.5]), 0.1), ValueError, "x0: 1 of 1 samples lie outside"),
    (
        lambda: Hypercube((1,)).heat_kernel(torch.tensor([0.5]), 0.1).log_prob(torch.tensor([2.0])),
        ValueError,
        "x: 1 of 1",
    ),
    (lambda: Hypercube((1,)).heat_kernel(torch.zeros(3, 1), torch.ones(2)), ValueError, r"sigma: got shape \(2,\)"),
    (
        lambda: domain_from_config({"type": "Hypercub", "event_shape": [1]}),
        ValueError,
        "got type 'Hypercub', expected one of",
    ),
    (
        lambda: domain_from_config({"type": "Orthant", "event_shape": [1], "wide": 1}),
        ValueError,
        "unknown arguments wide",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS, ids=[m for *_, m in REFUSALS])
def test_bad_input_is_refused_with_what_was_got_and_the_fix(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)


class Stretched(Hypercube):
    """A unit cube whose functions are wrong in one place, chosen by name."""

    def __init__(self, fault: str):
        super().__init__((1,))
        self.fault = fault

    def project(self, x: torch.Tensor) -> torch.Tensor:
        y = super().project(x)
        if self.fault == "project":
            return torch.where(x > 1, 0.5, y)  # inside, but not nearest
        return torch.where(x == y, y, y + 1e-9) if self.fault == "lands outside" else y

    def fold(self, u):
        x, back = super().fold(u)
        if self.fault == "sign":
            return x, lambda v: v
        return (torch.where((u >= 0) & (u <= 1), x, 0.9 * x), back) if self.fault == "fold" else (x, back)

    def reflect(self, x, displacement):
        y = super().reflect(x, displacement)
        return y + 0 * y.mean() if self.fault != "batch" else y * (1 + 1e-7 * (len(y) if y.dim() > 1 else 0))

    def heat_kernel(self, x0, sigma):
        wrong = {"sigma": 1.01, "score": 1.0}.get(self.fault, 1.0)
        kernel = super().heat_kernel(x0, wrong * sigma if self.fault == "sigma" else sigma)
        if self.fault == "score":
            score = kernel._score
            kernel._score = lambda x: 1.001 * score(x)
        return kernel


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("project", "project is nearest"),
        ("lands outside", "project lands inside and fixes inside points"),
        ("sign", "back carries gradients"),
        ("fold", "back carries gradients"),
        ("batch", "reflect lands inside and fixes inside points"),
        ("sigma", "small sigma is Gaussian"),
        ("score", "score is the gradient of log_prob"),
    ],
)
def test_the_laws_notice_a_wrong_domain(fault: str, law: str) -> None:
    """A report names the law; the raising form raises at the first that fails."""
    report = check_domain(Stretched(fault), raises=False)
    assert law in [failure.name for failure in report.failures]
    with pytest.raises(LawError, match="law '"):
        check_domain(Stretched(fault))


def test_kernel_domains_are_checked_without_sampling_where_that_is_possible() -> None:
    """The semigroup and the mass come from quadrature: a kernel with the wrong total mass by 1e-7 is found."""

    class Leaky(Hypercube):
        def heat_kernel(self, x0, sigma):
            kernel = super().heat_kernel(x0, sigma)
            log_prob = kernel._log_prob
            kernel._log_prob = lambda x: log_prob(x) - 1e-7
            return kernel

    report = check_domain(Leaky((1,)), raises=False)
    assert {"kernel mass is 1", "kernel is a semigroup"} <= {failure.name for failure in report.failures}
    assert issubclass(Hypercube, KernelDomain)
