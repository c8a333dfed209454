"""Particle flows: the reference values of two and of five particles, identities between flows, blocks, kernels, walls, refusals."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import root
from torch import Tensor

from carom.domains import (
    Domain,
    Ensemble,
    Euclidean,
    FoldedDomain,
    Hypercube,
    Orthant,
    Polytope,
    Product,
    Simplex,
    Torus,
    domain_from_config,
)
from carom.solvers import (
    GFSD,
    GFSF,
    RBF,
    SVGD,
    AdaptiveODE,
    Blob,
    Euler,
    FixedBandwidth,
    Heun,
    Kernel,
    LinearKernel,
    MedianBandwidth,
    PercentileBandwidth,
    Project,
    VanishingKernel,
    solve,
)
from carom.solvers.kernels import squared_distances
from carom.solvers.systems import conjugate_gradients, pivoted_cholesky, shifted_inverse
from carom.validation import check_domain
from carom.validation.pictures import particle_paths

F64 = torch.float64
LINE, PLANE = Euclidean((1,)), Euclidean((2,))
FLOWS = (SVGD, GFSF, GFSD, Blob)


def standard(x: Tensor) -> Tensor:
    return -x


def shifted(x: Tensor) -> Tensor:
    """N(.5, .25)."""
    return (0.5 - x) / 0.25


def flow(kind: Any, score: Any, domain: Domain, count: int, kernel: Any = None, **options: Any) -> Any:
    """GFSF without its ridge, unless told."""
    return kind(score, domain, count, kernel, **({"ridge": 0.0} | options if kind is GFSF else options))


def cloud(count: int, dim: int = 2, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(count, dim, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def velocity(equation: Any, x: Tensor) -> Tensor:
    return equation.field(x[None], torch.zeros((), dtype=x.dtype))[0]


# ------------------------------------------------------------------------------------------------- reference values


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("kind", "h", "squared"),
    [
        (SVGD, 1.0, 0.549306144334),
        (GFSF, 1.0, 0.549306144334),
        (Blob, 1.0, 0.549306144334),
        (SVGD, 0.5, 0.402359478109),
        (GFSF, 0.5, 0.402359478109),
        (Blob, 0.5, 0.486477537264),
        (GFSD, 0.5, 0.274653072167),
    ],
)
def test_two_particles_come_to_rest_where_the_closed_form_says(
    kind: Any, h: float, squared: float, dtype: torch.dtype
) -> None:
    """±a on N(0, 1), with a² = ½h·log(1/k) and k the kernel between them: h/(h + 2), h/(4 − h) (Blob), h/(2 − h) (GFSD).

    There the velocity vanishes to rounding, its terms being of size one, and starts from elsewhere lead there."""
    a = math.sqrt(squared)
    equation = flow(kind, standard, LINE, 2, RBF(h))
    at_rest = torch.tensor([[-a], [a]], dtype=dtype)
    # the reference has twelve digits, GFSF divides by 1 − k² ≥ .89
    assert velocity(equation, at_rest).abs().max() < max(1e-11, 16 * torch.finfo(dtype).eps)
    start = torch.tensor([[[-1.0], [1.0]], [[-0.4], [0.4]]], dtype=dtype)
    # the slowest rate is 1: after 40 units e^-40 is left
    end = solve(equation, start, torch.linspace(0, 40, 201), Heun()).x
    torch.testing.assert_close(
        end[..., 1, 0] ** 2, torch.full((2,), squared, dtype=dtype), rtol=0, atol=1e-11 if dtype == F64 else 2e-6
    )


def test_two_particles_of_gfsd_meet_at_bandwidth_one() -> None:
    """k = h/(2 − h) = 1: the only rest is a = 0, reached algebraically: da/dt = −a(1 − 2k/(1 + k)) = −a³ + …, a² ≈ 1/2t."""
    end = solve(
        flow(GFSD, standard, LINE, 2, RBF(1.0)),
        torch.tensor([[[-1.0], [1.0]]], dtype=F64),
        torch.linspace(0, 400, 4001),
        Heun(),
    )
    # corrections to a² are log(t)/t relative: a few per cent
    assert float(end.x[0, 1, 0]) ** 2 == pytest.approx(1 / 800, rel=0.05)


FIVE = {
    SVGD: (0.178914999043, -0.126167929623),
    GFSF: (0.178914999043, -0.126167929623),
    Blob: (0.20358434105, -0.171850150281),
    GFSD: (0.118457815566, -0.0155716139396),
}


@pytest.mark.parametrize("kind", FLOWS)
def test_five_particles_come_to_rest_at_the_reference(kind: Any) -> None:
    variance, lowest = FIVE[kind]
    equation = flow(kind, shifted, LINE, 5, RBF(0.1))
    found = root(
        lambda v: velocity(equation, torch.from_numpy(v)[:, None])[:, 0].numpy(), np.linspace(-0.2, 1.2, 5), tol=1e-13
    )
    assert found.success
    got = [found.x.mean(), found.x.var(), found.x.min()]
    # the reference's own digits
    np.testing.assert_allclose(got, [0.5, variance, lowest], rtol=0, atol=1e-11)
    # and the flow leads there: after two units every particle is nearer
    start = torch.linspace(-1, 2, 5, dtype=F64)[None, :, None]
    end = solve(equation, start, torch.linspace(0, 2, 101), Euler(), raise_on_failure=True).x
    rest = torch.from_numpy(found.x)[:, None]
    assert (end[0] - rest).norm() < 0.5 * (start[0] - rest).norm()


@pytest.mark.parametrize(("count", "variance"), [(50, 0.147758), (200, 0.149482)])
def test_gfsd_comes_to_rest_narrower_by_the_bandwidth(count: int, variance: float) -> None:
    """Its mean-field law has variance v − h = .15. How particles lie within √h is hardly felt, so that it settles slowly: the
    reference's six digits are those after 120 units from the quantiles of N(.5, .16); N = 50 has 1.6e-4 more to go, in thousands."""
    normal = torch.distributions.Normal(0.5, 0.4)
    start = normal.icdf((torch.arange(count, dtype=F64) + 0.5) / count)[None, :, None]
    x = solve(GFSD(shifted, LINE, count, RBF(0.1)), start, torch.linspace(0, 120, 1201), Euler()).x
    assert float(x.var(correction=0)) == pytest.approx(variance, abs=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_svgd_with_a_linear_kernel_meets_mean_and_covariance(dtype: torch.dtype) -> None:
    mean, cov = torch.tensor([0.5, -0.3], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
    precision = torch.linalg.inv(cov).to(dtype)
    equation = SVGD(lambda x: -(x - mean.to(dtype)) @ precision, PLANE, 20, LinearKernel())
    x = solve(equation, cloud(20, dtype=dtype)[None], torch.linspace(0, 40, 801), Euler()).x[0].double()
    # rounding of the fixed point, whose rates are of order one
    atol = 1e-12 if dtype == F64 else 2e-6
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=atol)
    torch.testing.assert_close(x.T.cov(correction=0), cov, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------------------- identities


def test_svgd_is_the_kernel_times_gfsf() -> None:
    """N v_SVGD = K v_GFSF at ridge 0."""
    x, kernel = cloud(12), RBF(0.3)
    k = torch.exp(-(torch.cdist(x, x) ** 2) / 0.6)
    left = 12 * velocity(SVGD(shifted, PLANE, 12, kernel), x)
    right = k @ velocity(flow(GFSF, shifted, PLANE, 12, kernel), x)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * float(torch.linalg.cond(k)))


@pytest.mark.parametrize("kind", FLOWS)
def test_fields_are_their_sums_written_out(kind: Any) -> None:
    """By loops over pairs, with a ridge for GFSF."""
    n, h, rho = 7, 0.4, 0.01
    x = cloud(n, 3)
    g = shifted(x)
    k = torch.tensor([[math.exp(-float(((a - b) ** 2).sum()) / (2 * h)) for b in x] for a in x], dtype=F64)
    c = k.sum(1)
    apart = x[:, None] - x[None, :]
    pushes = k[..., None] * apart / h
    expected = {
        SVGD: (k @ g + pushes.sum(1)) / n,
        GFSD: g + pushes.sum(1) / c[:, None],
        Blob: g + (pushes * (1 / c[:, None] + 1 / c[None, :])[..., None]).sum(1),
        GFSF: g + torch.linalg.solve(k + rho * torch.eye(n, dtype=F64), pushes.sum(1)),
    }[kind]
    equation = flow(kind, shifted, Euclidean((3,)), n, RBF(h), **({"ridge": rho} if kind is GFSF else {}))
    torch.testing.assert_close(velocity(equation, x), expected, rtol=1e-12, atol=1e-12)


def test_the_legacy_ridge_is_the_published_one_and_depends_on_the_origin() -> None:
    n, h, rho = 7, 0.4, 0.01
    x = cloud(n)
    k = torch.exp(-(torch.cdist(x, x) ** 2) / (2 * h))
    ridged = k + rho * torch.eye(n, dtype=F64)
    legacy = flow(GFSF, torch.zeros_like, PLANE, n, RBF(h), ridge=rho, legacy=True)
    expected = (torch.linalg.solve(ridged, k.sum(1, keepdim=True) * x) - x) / h
    torch.testing.assert_close(velocity(legacy, x), expected, rtol=1e-11, atol=1e-11)
    ours = flow(GFSF, torch.zeros_like, PLANE, n, RBF(h), ridge=rho)
    torch.testing.assert_close(velocity(ours, x + 3), velocity(ours, x), rtol=1e-10, atol=1e-10)
    assert (velocity(legacy, x + 3) - velocity(legacy, x)).abs().max() > 0.05
    same = flow(GFSF, torch.zeros_like, PLANE, n, RBF(h), legacy=True)
    torch.testing.assert_close(
        velocity(same, x), velocity(flow(GFSF, torch.zeros_like, PLANE, n, RBF(h)), x), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("kind", FLOWS)
def test_blocks_change_nothing_but_rounding(kind: Any) -> None:
    x, options = cloud(40), {"ridge": 0.01} if kind is GFSF else {}
    whole = velocity(flow(kind, shifted, PLANE, 40, **options), x)
    for block in (1, 130, 1600):
        torch.testing.assert_close(
            velocity(flow(kind, shifted, PLANE, 40, block=block, **options), x), whole, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("legacy", [False, True])
def test_conjugate_gradients_solve_what_cholesky_solves(legacy: bool) -> None:
    x = cloud(60)
    options: dict[str, Any] = {"ridge": 1e-2, "legacy": legacy}
    direct = velocity(GFSF(shifted, PLANE, 60, RBF(0.2), **options), x)
    iterated = velocity(GFSF(shifted, PLANE, 60, RBF(0.2), dense=0, tolerance=1e-12, **options), x)
    # the residual over the smallest eigenvalue, which is at least the ridge
    torch.testing.assert_close(iterated, direct, rtol=0, atol=1e-12 / 1e-2 * 1e3)


def test_conjugate_gradients_that_do_not_converge_say_so() -> None:
    x = cloud(60)
    short = GFSF(shifted, PLANE, 60, RBF(0.2), dense=0, rank=5, iterations=2)
    assert solve(short, x[None], [0.0, 0.1], Euler()).status.tolist() == [1]
    zero, solved = conjugate_gradients(lambda v: 2 * v, torch.zeros(3, 2), 1, 5)
    assert zero.eq(0).all() and solved.all()


def test_columns_of_the_kernel_make_conjugate_gradients_short() -> None:
    """In the plane enough columns for the ridge leave two or three passes where without there are a hundred, and the result is the same."""
    x, passes = cloud(400), 0

    class Counted(GFSF):
        def _by_block(self, *arguments: Any) -> Tensor:
            nonlocal passes
            passes += 1
            return super()._by_block(*arguments)

    found = []
    for rank, fewest, most in ((400, 2, 4), (1, 50, 500)):
        passes = 0
        found.append(velocity(Counted(shifted, PLANE, 400, RBF(0.2), dense=0, rank=rank, tolerance=1e-7), x))
        assert fewest <= passes <= most
    # the residuals of both, over the smallest eigenvalue, which is at least the ridge
    kernel = RBF(0.2).fitted(x)
    push = kernel.slope_y(x, x, kernel.values(x, x)).norm(dim=0).max()
    torch.testing.assert_close(*found, rtol=0, atol=2 * 1e-7 / 1e-3 * float(push))


def test_many_particles_that_the_columns_do_not_describe_are_refused() -> None:
    settings: dict[str, Any] = {"dense": 0, "max_particles": 50}
    x = cloud(60)
    assert velocity(GFSF(shifted, PLANE, 60, RBF(0.2), **settings), x).isfinite().all()
    with pytest.raises(
        ValueError, match=r"60 particles in 2 dimensions, whose kernel 5 columns .* max_particles = 50 of such"
    ):
        velocity(GFSF(shifted, PLANE, 60, RBF(0.2), rank=5, **settings), x)
    assert velocity(GFSF(shifted, PLANE, 60, RBF(0.2), rank=5, **settings | {"max_particles": 60}), x).isfinite().all()
    # what is no number is no matter of size
    assert velocity(GFSF(shifted, PLANE, 60, RBF(0.2), rank=5, **settings), x * torch.nan).isnan().all()
    with pytest.raises(ValueError, match="rank, max_particles: got 0, 8192"):
        GFSF(shifted, PLANE, 60, rank=0)


def test_a_cholesky_factor_from_columns_and_its_shifted_inverse() -> None:
    """A kernel of a few dimensions is exact at their number; else what is left of the diagonal is what it says, and nowhere negative.
    Tolerances are roundings times the condition number of what is inverted, 1e3 here."""
    x = cloud(50)
    low = torch.cat([x, x**2], 1)
    for matrix, rank, threshold in ((low @ low.T, 50, 1e-9), (RBF(0.2).fitted(x).values(x, x), 20, 0.1)):
        factor, left = pivoted_cholesky(lambda i, k=matrix: k[i], matrix.diagonal(), rank, threshold)
        rest = matrix - factor.T @ factor
        assert float(rest.diagonal().max()) == pytest.approx(left, abs=1e-12)
        assert float(torch.linalg.eigvalsh(rest)[0]) > -1e-12
        assert (left <= threshold) or len(factor) == rank
        whole = factor.T @ factor + 0.1 * torch.eye(50, dtype=F64)
        torch.testing.assert_close(
            shifted_inverse(factor, 0.1)(x.T), torch.linalg.solve(whole, x).T, rtol=1e-9, atol=1e-10
        )
    assert len(pivoted_cholesky(lambda i: (low @ low.T)[i], (low**2).sum(1), 50, 1e-9)[0]) == 4


@pytest.mark.parametrize("dense", [0, 20])
def test_the_ridge_is_relative_to_the_kernel(dense: int) -> None:
    """(cK + ρcI)⁻¹ cS: a kernel three times as large gives the same field, by Cholesky and by conjugate gradients; the default is 1e-3."""

    class Tripled(Cauchy):
        def values(self, x: Tensor, y: Tensor) -> Tensor:
            return 3 * super().values(x, y)

    x, options = cloud(20), {"dense": dense, "tolerance": 1e-10}
    one, three = (velocity(GFSF(shifted, PLANE, 20, kernel, **options), x) for kernel in (Cauchy(), Tripled()))
    # the tolerance over the ridge
    torch.testing.assert_close(three, one, rtol=0, atol=1e-10 / 1e-3 * 1e2)
    told = velocity(GFSF(shifted, PLANE, 20, Cauchy(), ridge=1e-3, **options), x)
    torch.testing.assert_close(told, one, rtol=0, atol=0)


def test_up_to_dense_particles_the_solve_is_direct() -> None:
    """At ridge 0 conjugate gradients would not converge."""
    x = cloud(60)
    whole = velocity(GFSF(shifted, PLANE, 60, RBF(0.05), ridge=0.0), x)
    torch.testing.assert_close(velocity(GFSF(shifted, PLANE, 60, RBF(0.05), ridge=0.0, dense=60), x), whole)
    usual = GFSF(shifted, PLANE, 4096, ridge=0.0)
    assert (usual.dense, usual.tolerance, usual.iterations) == (4096, 1e-5, 500)
    with pytest.raises(ValueError, match="more than dense = 4096"):
        GFSF(shifted, PLANE, 4097, ridge=0.0)


def test_conjugate_gradients_reach_the_tolerance_in_every_row_and_not_much_more() -> None:
    """Eigenvalues 1 … 1000; a row that is an eigenvector is solved by one step, the others wait for the slowest."""
    values = torch.logspace(0, 3, 40, dtype=F64)
    right = torch.cat([torch.eye(40, dtype=F64)[:1], torch.ones(2, 40, dtype=F64), torch.zeros(1, 40, dtype=F64)])
    taken = []
    for tolerance in (1e-2, 1e-6):
        calls: list[int] = []
        x, solved = conjugate_gradients(lambda v, calls=calls: calls.append(1) or values * v, right, 1, 100, tolerance)
        residual = (values * x - right).norm(dim=1)
        assert solved.all() and (residual <= 1.01 * tolerance * right.norm(dim=1)).all()
        taken.append(len(calls))
        # with that many, and not with one less
        assert conjugate_gradients(lambda v: values * v, right, 1, len(calls), tolerance)[1].all()
        assert conjugate_gradients(lambda v: values * v, right, 1, len(calls) - 1, tolerance)[1].tolist() != [True] * 4
    assert 2 < taken[0] < taken[1] < 100


@pytest.mark.parametrize("kind", FLOWS)
def test_pairs_are_held_in_blocks_and_in_the_state_s_precision(kind: Any) -> None:
    """Of 10 particles with a block of 39 pairs at most three at a time; in float64 for GFSF alone. All of them where N is the block."""
    seen: list[tuple[int, torch.dtype]] = []

    class Seen(Cauchy):
        def values(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append((len(x) * len(y), x.dtype))
            return super().values(x, y)

    for block, rows in ((39, 3), (5, 1), (1000, 10)):
        seen.clear()
        options = {"dense": 0} if kind is GFSF else {}
        v = velocity(kind(shifted, PLANE, 10, Seen(), block=block, **options), cloud(10, dtype=torch.float32))
        assert v.dtype == torch.float32
        assert 10 * rows <= max(n for n, _ in seen) <= max(block, 10)
        assert {dtype for _, dtype in seen} == {F64 if kind is GFSF else torch.float32}


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("dim", [1, 2, 20])
def test_particles_at_one_point_climb_the_density_together(kind: Any, dim: int) -> None:
    """K = 1 everywhere and nothing repels; also with gradients, by the median rule, and for infinite states their status tells."""
    x = torch.full((4, dim), 0.3, requires_grad=True)
    v = velocity(kind(shifted, Euclidean((dim,)), 4), x)
    torch.testing.assert_close(v, shifted(x), rtol=0, atol=1e-5)
    assert torch.autograd.grad(v.sum(), x)[0].isfinite().all()
    states = torch.stack([cloud(4, dim), torch.full((4, dim), math.inf, dtype=F64)])
    run = solve(kind(shifted, Euclidean((dim,)), 4), states, [0.0, 0.01, 0.02], Euler())
    assert run.ok.tolist() == [True, False] and run.x[0].isfinite().all()
    with pytest.raises(ValueError, match="x: 1 of 1 samples lie outside"):
        solve(kind(shifted, Euclidean((dim,)), 4), states[1:] * math.nan, [0.0, 0.01], Euler())


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_ensembles_come_in_any_batch_shape(batch: tuple[int, ...]) -> None:
    x = torch.randn(*batch, 4, 2)
    equation = SVGD(shifted, PLANE, 4)
    field = equation.field(x, torch.zeros(()))
    one_by_one = [velocity(equation, u) for u in x.reshape(-1, 4, 2)]
    assert torch.equal(field, torch.stack(one_by_one).reshape(x.shape))
    assert solve(equation, x, [0.0, 0.1], Euler()).x.shape == x.shape


@pytest.mark.parametrize("kind", FLOWS)
def test_permuted_particles_move_permuted(kind: Any) -> None:
    x, order = cloud(30), torch.randperm(30, generator=torch.Generator().manual_seed(1))
    equation = flow(kind, shifted, PLANE, 30, **({"ridge": 0.01} if kind is GFSF else {}))
    torch.testing.assert_close(velocity(equation, x[order]), velocity(equation, x)[order], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("solver", [Heun(), AdaptiveODE(1e-5, 1e-5)])
def test_ensembles_of_a_batch_never_meet(solver: Any) -> None:
    """Equal to the bit alone and in a batch; evaluations and status are those of the ensemble."""
    x = torch.stack([cloud(8, seed=s) * (1 + s) for s in range(3)])
    equation = SVGD(shifted, PLANE, 8)
    times = torch.linspace(0, 1, 6)
    together = solve(equation, x, times, solver)
    for i in range(3):
        alone = solve(equation, x[i : i + 1], times, solver)
        assert torch.equal(alone.x[0], together.x[i])
    assert together.status.shape == (3,)
    if isinstance(solver, AdaptiveODE):
        assert len(set(together.nfe.tolist())) > 1
    assert solve(equation, x[:0], times, Heun()).x.shape == (0, 8, 2)


def test_one_particle_climbs_the_density() -> None:
    x = torch.tensor([[0.3, -0.2]])
    for kind in FLOWS:
        torch.testing.assert_close(velocity(flow(kind, shifted, PLANE, 1), x), shifted(x))


def test_particles_that_have_met_stop_gfsf_without_a_ridge_only() -> None:
    x = torch.tensor([[[0.2], [0.2], [0.7]]])
    assert not solve(flow(GFSF, shifted, LINE, 3, RBF(0.1)), x, [0.0, 0.1], Euler()).ok.any()
    assert solve(GFSF(shifted, LINE, 3, RBF(0.1)), x, [0.0, 0.1], Euler()).ok.all()
    # so wide a kernel that rounding makes K indefinite: a factorisation breaks off half way, with finite numbers in it
    near = cloud(60)
    values = RBF(20.0).values(near, near)
    factor, info = torch.linalg.cholesky_ex(values)
    assert info > 0 and factor.isfinite().all()
    assert velocity(flow(GFSF, shifted, PLANE, 60, RBF(20.0)), near).isnan().all()


def test_gradients_flow_through_a_run() -> None:
    """Through states, kernel and median, against central differences."""
    x = cloud(6)[None]
    equation = SVGD(shifted, PLANE, 6, block=12)

    def cost(start: Tensor) -> Tensor:
        return (solve(equation, start, torch.linspace(0, 0.5, 4), Euler()).x ** 3).sum()

    assert torch.autograd.gradcheck(cost, (x.clone().requires_grad_(),), atol=1e-6)


def test_a_flow_is_made_of_a_log_density_alone() -> None:
    x = cloud(5)
    made = Blob.of_log_prob(lambda x: -0.5 * x.square().sum(-1), PLANE, 5, RBF(0.4), block=7)
    torch.testing.assert_close(
        velocity(made, x), velocity(Blob(standard, PLANE, 5, RBF(0.4)), x), rtol=1e-14, atol=1e-15
    )
    assert made.block == 7


def test_particles_move_as_time_rises_only() -> None:
    """Run backwards the flow would drive them away from the target."""
    with pytest.raises(ValueError, match="SVGD runs the other way"):
        solve(SVGD(standard, LINE, 2), torch.zeros(1, 2, 1), [1.0, 0.0], Euler())


def test_the_condition_reaches_the_score() -> None:
    equation = SVGD(lambda x, centre=0.0: centre - x, LINE, 1)
    x = solve(equation, torch.zeros(1, 1, 1), torch.linspace(0, 20, 101), Euler(), condition={"centre": 2.0}).x
    assert float(x) == pytest.approx(2.0, abs=1e-5)


# ----------------------------------------------------------------------------------------------- kernels, bandwidths


@pytest.mark.parametrize("dim", [1, 8, 9, 20])
def test_squared_distances_are_those_of_differences(dim: int) -> None:
    """Below and above the dimension at which another route is taken; 1e6 from the origin |x|² − 2x·y + |y|² would have no digit left of
    distances of 1e-3."""
    x, y = cloud(5, dim), cloud(7, dim, seed=1)
    expected = (x[:, None] - y).square().sum(-1)
    torch.testing.assert_close(squared_distances(x, y), expected, rtol=1e-13, atol=0)
    near = 1e6 + 1e-3 * x
    expected = (near[:, None] - near).square().sum(-1)
    torch.testing.assert_close(squared_distances(near, near), expected, rtol=1e-13, atol=0)
    assert squared_distances(x, y.flip(0)).shape == (5, 7)


def test_bandwidth_rules_are_numpy_s() -> None:
    for n in (4, 6, 7, 40):
        x = cloud(n)
        squared = np.square(np.asarray(x)[:, None] - np.asarray(x)[None, :]).sum(-1)
        scale = 0.5 / math.log(n + 1)
        assert float(MedianBandwidth().of(x)) == pytest.approx(scale * np.median(squared), rel=1e-12)
        for q in (33.0, 50.0, 75.0, 100.0):
            expected = scale * np.percentile(squared, q, method="higher")
            assert float(PercentileBandwidth(q).of(x)) == pytest.approx(expected, rel=1e-12)
    assert float(PercentileBandwidth().of(x)) == float(PercentileBandwidth(50.0).of(x))
    assert float(FixedBandwidth(0.3).of(x)) == 0.3
    assert RBF(1).bandwidth == FixedBandwidth(1)


def test_a_subsample_has_about_the_median_and_is_the_same_each_time() -> None:
    x = cloud(2000)
    rule = MedianBandwidth(subsample=500, seed=1)
    whole = float(MedianBandwidth(subsample=2000).of(x))
    # as many as asked for are all of them; by default they are 1000
    assert float(MedianBandwidth(subsample=500).of(x[:500])) == float(MedianBandwidth().of(x[:500]))
    assert float(MedianBandwidth().of(x)) == float(MedianBandwidth(subsample=1000).of(x))
    # of 500 particles the relative standard error of a median distance is about 1/√500 = 4%
    assert float(rule.of(x)) == pytest.approx(whole, rel=0.15)
    assert float(rule.of(x)) == float(rule.of(x)) != float(MedianBandwidth(subsample=500, seed=2).of(x))


def test_bandwidths_stay_positive_where_particles_coincide() -> None:
    x = torch.zeros(5, 2)
    assert float(MedianBandwidth().of(x)) == 1.0
    x[4] = 3.0
    # 8 of 25 squared distances are 18
    assert float(MedianBandwidth().of(x)) == pytest.approx(0.5 * 8 * 18 / 25 / math.log(6))


class Cauchy(Kernel):
    """1/(1 + |x − y|²), by its values alone."""

    def values(self, x: Tensor, y: Tensor) -> Tensor:
        return 1 / (1 + ((x[:, None] - y[None, :]) ** 2).sum(-1))


@pytest.mark.parametrize(
    "kernel",
    [RBF(0.4), RBF(), LinearKernel(), Cauchy(), VanishingKernel(RBF(0.4), Hypercube((2,), low=-5, high=5), 4.0)],
    ids=["RBF", "median", "linear", "Cauchy", "vanishing"],
)
def test_slopes_are_the_derivatives_of_the_values(kernel: Kernel) -> None:
    """Against autograd over all pairs."""
    x, y, w = cloud(4), cloud(5, seed=1), torch.rand(5, dtype=F64)
    fitted = kernel.fitted(y)
    values = fitted.values(x, y)
    torch.testing.assert_close(kernel.values(x, y), values)
    at_x, at_y = torch.autograd.functional.jacobian(lambda a, b: fitted.values(a, b), (x, y))
    expected_x = torch.stack([torch.einsum("j,jd->d", w, at_x[i, :, i]) for i in range(4)])
    expected_y = torch.stack([sum(at_y[i, j, j] for j in range(5)) for i in range(4)])
    torch.testing.assert_close(fitted.slope_x(x, y, values, w), expected_x)
    torch.testing.assert_close(fitted.slope_y(x, y, values), expected_y)


@pytest.mark.parametrize("kind", FLOWS)
def test_far_from_the_origin_the_field_keeps_its_digits(kind: Any) -> None:
    """In float32 1e3 away, where sums of x would have errors of 1e3·6e-8·N/h; GFSF computes in float64 anyhow."""
    x = cloud(20, dtype=torch.float32)
    far = x + 1000
    equation = kind(torch.zeros_like, PLANE, 20, RBF(0.1))
    exact = velocity(equation, far.double() - 1000)
    # float32's rounding of terms of size max|v|
    assert (velocity(equation, far) - exact).abs().max() < 2e-6 * exact.abs().max().clamp(min=1)


# -------------------------------------------------------------------------------------------------------------- walls


def test_a_kernel_that_vanishes_at_the_walls_keeps_the_identity_of_stein() -> None:
    """E_p[k(y, x) g(x) + ∂k/∂x] for p ∝ eˣ on [0, 1], g = 1: 0 by a sum whose panels end at the layers; else p(1)k(y, 1) − p(0)k(y, 0)."""
    node, weight = np.polynomial.legendre.leggauss(40)
    edges = np.array([0, 0.2, 0.8, 1])
    x = torch.tensor((0.5 * np.diff(edges)[:, None] * (node + 1) + edges[:-1, None]).ravel())[:, None]
    p = torch.tensor((0.5 * np.diff(edges)[:, None] * weight).ravel())[:, None] * x.exp()
    y = torch.tensor([[0.05], [0.3], [0.97]], dtype=F64)
    stein = lambda kernel: (
        (kernel.values(y, x) + torch.func.jvp(lambda u: kernel.values(y, u), (x,), (0 * x + 1,))[1]) @ p
    )
    plain = RBF(0.05)
    assert float(stein(VanishingKernel(plain, Hypercube((1,)), 0.2)).abs().max()) < 1e-14
    ends = plain.values(y, torch.tensor([[0.0], [1.0]], dtype=F64))
    torch.testing.assert_close(stein(plain)[:, 0], math.e * ends[:, 1] - ends[:, 0], rtol=1e-12, atol=0)


def test_with_it_svgd_finds_the_uniform_law_between_walls() -> None:
    """A hundred particles in [0, 1]: quantiles off by .006 on average in place of .044, one at the walls in place of twenty."""
    box, count = Hypercube((1,)), 100
    start = torch.rand(1, count, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    middle = (torch.arange(count, dtype=F64) + 0.5) / count
    off = []
    for kernel in (RBF(0.01), VanishingKernel(RBF(0.01), box, 0.1)):
        flow = SVGD(torch.zeros_like, box, count, kernel)
        x = solve(flow, start, torch.linspace(0, 40, 401, dtype=F64), Heun()).x[0, :, 0]
        off.append(float((x.sort().values - middle).abs().mean()))
    assert off[0] > 0.03 and off[1] < 0.01
    with pytest.raises(TypeError, match="SVGD takes any"):
        Blob(torch.zeros_like, box, count, kernel)
    with pytest.raises(ValueError, match=r"vanishes at the walls of Hypercube\(\(1,\), low=0, high=3\), expected"):
        SVGD(torch.zeros_like, box, count, VanishingKernel(RBF(), Hypercube((1,), low=0, high=3), 0.1))
    with pytest.raises(ValueError, match="width: got 0"):
        VanishingKernel(RBF(), box, 0.0)


@pytest.mark.parametrize(
    "domain", [Hypercube((2,)), Orthant((2,)), Simplex(3), Polytope([[1, 1], [-1, 0], [0, -1]], [1, 0, 0])]
)
@pytest.mark.parametrize("kind", FLOWS)
def test_no_particle_leaves_the_domain(kind: Any, domain: Domain) -> None:
    """With a score that drives them against a corner, in steps much too long."""
    start = domain.project(torch.rand(1, 12, 2, generator=torch.Generator().manual_seed(0)))
    equation = kind(lambda x: -5 * torch.ones_like(x), domain, 12, RBF(0.05))
    end = solve(equation, start, torch.linspace(0, 2, 21), Euler(), save="all", raise_on_failure=True)
    assert domain.contains(end.trajectory, 1e-6).all()
    # reflected, not put on the wall: no two have met
    assert torch.pdist(end.x[0]).min() > 0
    assert end.local_time.shape == (1,)
    on_wall = solve(equation, start, torch.linspace(0, 2, 21), Euler(), wall=Project())
    assert (domain.boundary_distance(on_wall.x[0]) < 1e-6).any()


class Vanishing(Kernel):
    """x·y times a Gaussian: it vanishes at the wall of the half-line."""

    def __init__(self, h: float):
        self.inner = RBF(h)

    def values(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y.T * self.inner.values(x, y)


def test_a_kernel_that_vanishes_at_the_wall_meets_a_truncated_density() -> None:
    """N(.5, .25) cut off at 0: mean m + √v φ(α)/Q(α) with α = −m/√v. A plain kernel misses the boundary term of Stein's identity."""
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=F64), 1.0)
    ratio = float(normal.log_prob(torch.tensor(-1.0, dtype=F64)).exp() / normal.cdf(torch.tensor(1.0, dtype=F64)))
    mean = 0.5 + 0.5 * ratio
    variance = 0.25 * (1 - ratio - ratio**2)
    start = torch.linspace(0.1, 1.6, 40, dtype=F64)[None, :, None]
    x = solve(SVGD(shifted, Orthant((1,)), 40, Vanishing(0.3)), start, torch.linspace(0, 300, 601), Euler()).x
    # 40 particles stand for the law to about 1/N
    assert float(x.min()) > 0
    assert float(x.mean()) == pytest.approx(mean, abs=0.02)
    assert float(x.var(correction=0)) == pytest.approx(variance, abs=0.02)


# ---------------------------------------------------------------------------------------------------------- ensembles


@pytest.mark.parametrize(
    "domain", [Hypercube((2,)), Simplex(3), Polytope([[1, 1], [-1, 0], [0, -1]], [1, 0, 0]), Euclidean((2,))]
)
def test_ensembles_are_domains(domain: Domain) -> None:
    ensemble = Ensemble(domain, 3)
    check_domain(ensemble)
    assert isinstance(ensemble, FoldedDomain) == isinstance(domain, FoldedDomain)
    assert repr(domain_from_config(ensemble.config())) == repr(ensemble)


def test_an_ensemble_is_the_product_of_its_points() -> None:
    cube = Hypercube((2,), 0.0, [1.0, 3.0])
    ensemble, product = Ensemble(cube, 4), Product(*[cube] * 4)
    x = ensemble.uniform(F64).sample((9,), generator=torch.Generator().manual_seed(0))
    flat = x.flatten(1)
    move = 4 * cloud(9, 8)
    torch.testing.assert_close(ensemble.reflect(x, move.reshape(x.shape)).flatten(1), product.reflect(flat, move))
    torch.testing.assert_close(ensemble.boundary_distance(x), product.boundary_distance(flat))
    torch.testing.assert_close(ensemble.inward_normal(x).flatten(1), product.inward_normal(flat))
    width = torch.tensor(0.2, dtype=F64)
    torch.testing.assert_close(ensemble.damp(x, x, width).flatten(1), product.damp(flat, flat, width))
    assert float(ensemble.uniform().entropy()) == pytest.approx(4 * math.log(3))
    assert ensemble.width == 3.0
    torch.testing.assert_close(ensemble.damp(x, x, 0.2), ensemble.damp(x, x, width))  # type: ignore[arg-type]
    outside = x + torch.tensor([0.0, 0.5, 0.0, 0.0], dtype=F64)[:, None] * torch.tensor([2.0, 0.0], dtype=F64)
    assert not ensemble.contains(outside).any() and ensemble.contains(outside, 1.0).all()
    seeds = [torch.Generator().manual_seed(s) for s in (5, 5)]
    assert torch.equal(*(ensemble.uniform().sample((2,), generator=g) for g in seeds))
    assert ensemble.uniform(F64).sample().dtype == F64 and ensemble.uniform().sample().dtype == torch.float32


def test_flows_in_the_open_live_in_euclidean_space_as_such() -> None:
    """Which the solvers of other libraries ask for; between walls they live in an ensemble."""
    assert repr(SVGD(shifted, PLANE, 3).domain) == "Euclidean((3, 2))"
    assert isinstance(SVGD(shifted, Hypercube((2,)), 3).domain, Ensemble)


def test_an_ensemble_has_the_facts_of_its_domain() -> None:
    circle = Ensemble(Torus((1,)), 3)
    near, far = torch.full((3, 1), 0.1), torch.full((3, 1), 0.9)
    torch.testing.assert_close(circle.difference(near, far), torch.full((3, 1), 0.2))
    for domain in (LINE, Hypercube((1,)), Orthant((1,)), Torus((1,))):
        ensemble = Ensemble(domain, 3)
        assert (ensemble.is_cone, ensemble.bounded, ensemble.width) == (domain.is_cone, domain.bounded, domain.width)
        copy = pickle.loads(pickle.dumps(ensemble))
        assert type(copy) is type(ensemble) and copy.event_shape == (3, 1)
    with pytest.raises(TypeError, match="unbounded and has no uniform law"):
        Ensemble(LINE, 3).uniform()
    with pytest.raises(ValueError, match="count: got 0, expected how many points"):
        Ensemble(LINE, 0)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SVGD(3, LINE, 2), TypeError, "score: got int"),
        (lambda: SVGD(standard, LINE, 0), ValueError, "count: got 0"),
        (lambda: SVGD(standard, LINE, 2.0), ValueError, "count: got 2.0"),
        (lambda: SVGD(standard, (1,), 2), TypeError, "domain: got tuple"),
        (lambda: SVGD(standard, LINE, 2, 0.1), TypeError, "kernel: got 0.1"),
        (lambda: SVGD(standard, LINE, 2, block=0), ValueError, "block: got 0"),
        (lambda: SVGD(standard, Torus((1,)), 2), TypeError, "opposite ends"),
        (lambda: SVGD(standard, Torus((1,)), 2, LinearKernel()), TypeError, "opposite ends"),
        (lambda: SVGD(standard, Product(LINE, Torus((1,))), 2), TypeError, "periodic kernel"),
        (lambda: Blob(standard, LINE, 2, LinearKernel()), TypeError, "SVGD takes any"),
        (lambda: GFSF(standard, LINE, 2, ridge=-1.0), ValueError, "ridge: got -1"),
        (lambda: GFSF(standard, LINE, 9000, ridge=0.0), ValueError, "ridge: got 0 for 9000"),
        (lambda: GFSF(standard, LINE, 2, tolerance=0.0), ValueError, "tolerance: got 0"),
        (lambda: GFSF(standard, LINE, 2, tolerance=2.0), ValueError, "tolerance: got 2"),
        (lambda: GFSF(standard, LINE, 2, dense=-1), ValueError, "dense, iterations: got -1"),
        (lambda: GFSF(standard, LINE, 2, iterations=0), ValueError, "iterations: got"),
        (lambda: GFSF(standard, LINE, 2, Cauchy(), legacy=True), TypeError, "legacy: got the kernel"),
        (lambda: RBF("median"), TypeError, "bandwidth: got 'median'"),
        (lambda: RBF(0.0), ValueError, "h: got 0"),
        (lambda: PercentileBandwidth(101), ValueError, "q: got 101"),
        (lambda: PercentileBandwidth(0), ValueError, "q: got 0"),
        (lambda: PercentileBandwidth(50.0, subsample=1), ValueError, "subsample: got 1"),
        (lambda: MedianBandwidth(subsample=1), ValueError, "subsample: got 1"),
        (lambda: MedianBandwidth(seed=-1), ValueError, "seed: got -1"),
        (lambda: velocity(SVGD(lambda x: x[:1], LINE, 2), torch.zeros(2, 1)), ValueError, "expected the same shape"),
        (
            lambda: solve(SVGD(standard, LINE, 3), torch.zeros(2, 1), [0, 1], Euler()),
            ValueError,
            r"expected \[\*batch, 3, 1\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_kernel_values_of_the_wrong_shape_are_refused() -> None:
    class Double(Kernel):
        def values(self, x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.T).double()

    with pytest.raises(ValueError, match=r"got values of shape \(2, 2\) and torch\.float64 .* and torch\.float32"):
        velocity(SVGD(standard, LINE, 2, Double()), torch.zeros(2, 1))

    class Short(Kernel):
        def values(self, x: Tensor, y: Tensor) -> Tensor:
            return x.new_ones(len(x))

    with pytest.raises(ValueError, match="for all pairs"):
        velocity(SVGD(standard, LINE, 2, Short()), torch.zeros(2, 1))


def test_the_picture_of_particles_is_written(tmp_path: Path) -> None:
    plain = particle_paths(torch.randn(3, 5, 2), tmp_path / "p.png", title="SVGD").stat().st_size
    behind = particle_paths(
        torch.randn(3, 5, 2), tmp_path / "q.png", title="SVGD", log_prob=lambda x: -x.square().sum(-1)
    )
    assert 1000 < plain < behind.stat().st_size
    with pytest.raises(ValueError, match="particles of a plane"):
        particle_paths(torch.randn(3, 5, 3), tmp_path / "p.png")


def test_representations_name_what_counts() -> None:
    assert repr(SVGD(standard, LINE, 2, RBF(0.5))) == "SVGD(2 particles, RBF(FixedBandwidth(h=0.5)))"
    assert repr(Ensemble(LINE, 2)) == "Ensemble(Euclidean((1,)), 2)"
