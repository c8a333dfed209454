"""References for what stands beside diffusion in the open: kernels, walls, guidance, bounds, particles, velocities, bridges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import j0
from torch import Tensor

from ..domains import Ball, Domain, Hypercube, KernelDomain, Simplex, Torus
from ..processes import EDM, SDE, CriticallyDamped, Diffusion, Discrete, Kinetic
from ..scores import ClassifierFree, CovarianceGuidance, Dense, GaussianMixtureScore
from ..scores.neural import MLP, EDMPreconditioning, MLPConfig, NeuralScore, VariationalBound
from ..scores.neural.high_order import residuals
from ..solvers import (
    BAOAB,
    GFSD,
    GFSF,
    OBABO,
    RBF,
    SSCS,
    SVGD,
    AnalyticDPM,
    Blob,
    DPMSolverPP,
    EDMStochastic,
    EulerMaruyama,
    ExponentialAdams,
    FixedBandwidth,
    Project,
    Reflect,
    ScoreStatistics,
    Solver,
    UniPC,
    VanishingKernel,
    Wall,
    Weighted,
    bridge,
    iddpm_levels,
    karras,
    sinkhorn,
    solve,
    uniform_lambda,
)
from ..solvers.divergence import slope
from . import problems
from .convergence import OrnsteinUhlenbeck
from .orders import expectation, propagate_moments
from .reference import LINE, Reference, f64
from .residuals import asymmetry

START, END = (0.5, 0.25), (-1.0, 2.0)


def _legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    node, weight = np.polynomial.legendre.leggauss(n)
    return torch.tensor(0.5 * (node + 1)), torch.tensor(0.5 * weight)


def _hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the standard normal."""
    node, weight = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(node), torch.tensor(weight / weight.sum())


# ------------------------------------------------------------------------------------------- kernels and walls


def _mean(
    domain: Domain, start: Tensor, points: Tensor, weights: Tensor, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """E f(X) for X from the heat kernel at σ = .3, by quadrature."""
    assert isinstance(domain, KernelDomain)
    return (weights * domain.heat_kernel(start, 0.3).log_prob(points).exp() * function(points)).sum()


def _interval() -> Tensor:
    """An eigenfunction of the interval decays by e^{−π²σ²/2}."""
    x, w = _legendre(60)
    return _mean(Hypercube((1,)), f64(0.2), x[:, None], w, lambda x: (math.pi * x[:, 0]).cos())


def _torus() -> Tensor:
    x, w = torch.arange(200, dtype=torch.float64)[:, None] / 200, torch.full((200,), 1 / 200, dtype=torch.float64)
    return _mean(Torus((1,)), f64(0.2), x, w, lambda x: (2 * math.pi * x[:, 0]).cos())


#: the first zero of J₁: J₀(K r) has no slope at r = 1
K = 3.8317059702075125


def _disk() -> Tensor:
    (r, w), angle = _legendre(40), torch.arange(80, dtype=torch.float64) * math.pi / 40
    x = r[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)
    weights = (w * r)[:, None].expand(40, 80) * math.pi / 40
    eigenfunction = lambda x: torch.from_numpy(j0(K * x.norm(dim=-1).numpy()))  # noqa: E731
    return _mean(Ball(2), f64(0.5, 0.0), x.reshape(-1, 2), weights.flatten(), eigenfunction)


def _simplex() -> Tensor:
    """On sorted pairs, the coordinates of three categories, cos πx₁ + cos πx₂ is an eigenfunction."""
    (u, wu), (v, wv) = _legendre(40), _legendre(40)
    x = torch.stack([u[:, None] * v, v.expand(40, 40)], -1).reshape(-1, 2)
    weights = (wu[:, None] * wv * v).flatten()
    return _mean(Simplex(3), f64(0.2, 0.7), x, weights, lambda x: (math.pi * x).cos().sum(-1))


def _brownian(wall: Wall) -> Tensor:
    """E cos πX of Brownian motion in [0, 1] from .2 at time ¼, in 64 steps of Euler–Maruyama."""
    motion = SDE(lambda x, t: 0 * x, 1.0, Hypercube((1,)))
    times = torch.linspace(0, 0.25, 65, dtype=torch.float64)
    return expectation(motion, EulerMaruyama(), times, lambda x: (math.pi * x).cos(), wall=wall)(f64(0.2)[:, None])


# --------------------------------------------------------------------------------------------------- diffusions


def _flow(solver: Solver) -> Tensor:
    """Where the flow of the mixture leads from 8 at σ = 80, at σ = .002."""
    problem = problems.mixture(EDM())
    times = uniform_lambda(problem.process, 601)
    return solve(problem.process.flow(problem.score), f64(8.0)[:, None], times, solver).x


def _churned() -> Tensor:
    """The variance of EDM's stochastic sampler on N(0, ¼), 18 levels, churn at all of them."""
    process = problems.gaussian(EDM()).process
    score = GaussianMixtureScore(process, [1.0], [0.0], [0.25])
    times = torch.cat([karras(process, 18), f64(0.0)])
    solver = EDMStochastic(40.0 * 19 / 18, s_min=0.0, s_max=math.inf, s_noise=1.0)
    return propagate_moments(process.reverse(score), solver, times, f64(0.0), f64(80.0**2)[:, None])[1]


def _optimal_variance() -> Tensor:
    """AnalyticDPM in three steps on Gaussian data, where it is the true reverse step."""
    problem = problems.gaussian(Discrete.ddpm(50))
    levels = torch.arange(50, 0, -1, dtype=torch.float64) / 50
    level = problem.process.level(levels)
    statistics = ScoreStatistics(levels, 1 / (level.scale**2 * (0.25 + level.sigma**2)), torch.zeros_like(levels))
    mean, covariance = problem.moments(1.0)
    reverse = problem.process.reverse(problem.score)
    got = propagate_moments(reverse, AnalyticDPM(statistics), f64(1.0, 0.4, 0.2, 0.02), mean, covariance)[1]
    return got - problem.moments(0.02)[1]


def _elbo() -> Tensor:
    """The bound of N(½, ¼) over 50 levels with variances β, in nats: quadratic in data and noise, so that three nodes are exact."""
    process = Diffusion(LINE, Discrete.ddpm(50))
    score = NeuralScore(MLP(MLPConfig((1,), 8, 1)), process, EDMPreconditioning(0.5, 0.5)).double()
    (z, w), index = _hermite(3), torch.arange(1, 51)[:, None, None].expand(50, 3, 3)
    x0 = (0.5 + 0.5 * z[:, None, None]).expand(50, 3, 3, 1)
    with torch.no_grad():
        parts = VariationalBound("beta").at(score, x0, index, z[:, None].expand(50, 3, 3, 1))
    ab = float(process.schedule.alphas_cumprod[-1])  # type: ignore[attr-defined]
    return (parts.bound * w[:, None] * w).sum() + 0.5 * (-0.5 * ab - math.log1p(-ab))


def _third_order() -> Tensor:
    """The least loss of the third derivative on N(½, ¼) at t = .3: 6c³ with c the noise's variance given x."""
    sigma = float(problems.gaussian().process.level(0.3).sigma)
    z, w = _hermite(6)
    pairs, weights = torch.cartesian_prod(z, z), (w[:, None] * w).flatten()
    x = (0.5 + 0.5 * pairs[:, :1] + sigma * pairs[:, 1:]).requires_grad_()
    value = -(x - 0.5) / (0.25 + sigma**2)
    pull = lambda v: slope((v * value).sum(), x, True)  # noqa: E731
    level, axis = torch.full_like(x, sigma).detach(), [(1.0, torch.ones(1, dtype=torch.float64))]
    parts = residuals(value, pull, x, pairs[:, 1:], level, axis, 1, third=True, keep=True)
    return weights @ parts.third.detach()[:, 0]


def _classifier_free() -> Tensor:
    """p = 1 + ½cos πx against the uniform law, at x = .3, σ = .25, the paper's w = 1."""
    cosine = problems.cosine()
    score = lambda x, t, label=None: torch.zeros_like(x) if label is None else cosine.score(x, t)  # noqa: E731
    guided = ClassifierFree.from_paper(score, 1.0, {"label": 0}, process=cosine.process)
    return guided(f64(0.3)[:, None], float(cosine.process.level(sigma=0.25).t))


def _measured() -> Tensor:
    """The score of N(½, ¼) given a measurement of half of x, at t = .3, less that of its posterior."""
    problem, noise = problems.gaussian(), 0.2
    guided = CovarianceGuidance(problem.score, Dense([[0.5]]), f64(0.6), sigma_y=noise, process=problem.process)
    variance = 1 / (1 / 0.25 + 0.5**2 / noise**2)
    posterior = GaussianMixtureScore(
        problem.process, [1.0], [variance * (0.5 / 0.25 + 0.5 * 0.6 / noise**2)], [variance]
    )
    x = f64(0.4)[:, None]
    return guided(x, 0.3) - posterior(x, 0.3)


# ------------------------------------------------------------------------------------- particles and velocities


def _still(kind: Any, **settings: Any) -> Tensor:
    """The speed of two particles on N(0, 1) where the closed form says that they rest, h = ½."""
    h = 0.5
    k = {GFSD: h / (2 - h), Blob: h / (4 - h)}.get(kind, h / (h + 2))
    a = math.sqrt(-0.5 * h * math.log(k))
    flow = kind(lambda x: -x, LINE, 2, RBF(FixedBandwidth(h)), **settings)
    return flow.field(f64(-a, a)[None, :, None], torch.tensor(0.0)).abs().max()


def _stein() -> Tensor:
    """E_p[k(y, x) g(x) + ∂k/∂x] of a kernel that vanishes at the walls of [0, 1], p ∝ eˣ; panels end where its layers do."""
    kernel, y = VanishingKernel(RBF(FixedBandwidth(0.05)), Hypercube((1,)), 0.2), f64(0.3)[:, None]
    total = torch.zeros(1, 1, dtype=torch.float64)
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        node, weight = _legendre(40)
        x = (low + (high - low) * node)[:, None]
        slope_x = torch.func.jvp(lambda u: kernel.values(y, u), (x,), (torch.ones_like(x),))[1]
        total = total + (kernel.values(y, x) + slope_x) @ ((high - low) * weight[:, None] * x.exp())
    return total


def _kept(solver: Solver) -> Tensor:
    """The variances of position and velocity after one step from the rule's stationary law on g = −x/.7, h = ½."""
    w, h = 0.7, 0.5
    room = 1 - h * h / (4 * w)
    law = torch.diag(f64(w, room) if type(solver) is BAOAB else f64(w / room, 1.0))
    equation = Kinetic(lambda x: -x / w, LINE)
    return propagate_moments(equation, solver, f64(0.0, h), torch.zeros(2, dtype=torch.float64), law)[1].diagonal()


def _sscs() -> Tensor:
    """The variance of positions after 50 steps from the stationary law, whose score leaves the splitting exact."""
    process = CriticallyDamped(LINE)
    reverse = process.reverse(lambda u, t: -process.split(u)[1] / process.mass)
    times = torch.linspace(1, 1e-3, 51, dtype=torch.float64)
    law = torch.diag(f64(1.0, process.mass))
    return propagate_moments(reverse, SSCS(), times, torch.zeros(2, dtype=torch.float64), law)[1][0, 0]


def _rotation() -> Tensor:
    turn = f64(0.0, 0.5, -0.5, 0.0).reshape(2, 2)
    return asymmetry(lambda x, t: -x + x @ turn, f64(0.3, -0.4)[None], 0.0).value


# ------------------------------------------------------------------------------------------------------ bridges


def _grid_bridge() -> Tensor:
    """The covariance of the ends by Sinkhorn's iteration on two grids."""
    normal = lambda m, v: lambda x: torch.exp(-((x[:, 0] - m) ** 2) / (2 * v))  # noqa: E731
    start = Weighted.cells([-4.0], [5.0], [120], normal(*START))
    found = sinkhorn(LINE, start, Weighted.cells([-10.0], [8.0], [120], normal(*END)), 1.0, tolerance=1e-11)
    x, y = (side.points[:, 0] - mean for side, mean in ((found.start, 0.5), (found.end, -1.0)))
    return x @ found.log_coupling().exp() @ y


def _matched(steps: int) -> Tensor:
    return bridge.mean_matching(bridge.gaussian(START, END, 1.0), steps, 9)[8].marginals()[0].mean


_DECAY = math.exp(-0.5 * (math.pi * 0.3) ** 2)

BEYOND: list[Reference] = [
    Reference(
        "heat kernel of the interval",
        "E cos πX, σ = .3",
        _DECAY * math.cos(0.2 * math.pi),
        _interval,
        1e-12,
        "Reflected diffusion, §3",
    ),
    Reference(
        "heat kernel of the torus",
        "E cos 2πX, σ = .3",
        math.exp(-0.5 * (2 * math.pi * 0.3) ** 2) * math.cos(0.4 * math.pi),
        _torus,
        1e-12,
        "beyond the notes",
    ),
    Reference(
        "heat kernel of the disk",
        "E J₀(3.83 |X|), σ = .3",
        math.exp(-0.5 * (K * 0.3) ** 2) * float(j0(0.5 * K)),
        _disk,
        1e-10,
        "beyond the notes",
    ),
    Reference(
        "heat kernel of the simplex",
        "E Σ cos πXᵢ, σ = .3",
        _DECAY * (math.cos(0.2 * math.pi) + math.cos(0.7 * math.pi)),
        _simplex,
        1e-10,
        "Reflected diffusion, §3",
    ),
    Reference(
        "reflected Euler–Maruyama",
        "E cos πX, 64 steps",
        math.exp(-(math.pi**2) / 8) * math.cos(0.2 * math.pi),
        lambda: _brownian(Reflect()),
        1e-12,
        "Reflected diffusion, §4",
    ),
    Reference(
        "thresholding (projection)",
        "E cos πX, 64 steps",
        0.272312051694,
        lambda: _brownian(Project()),
        1e-11,
        "Reflected diffusion, §4",
    ),
    Reference(
        "classifier-free guidance",
        "score, x = .3, w = 1",
        -1.53555129227,
        _classifier_free,
        1e-10,
        "Reflected diffusion, §6",
    ),
    Reference("guidance by covariance", "off the posterior's score", 0.0, _measured, 1e-9, "beyond the notes"),
    Reference(
        "ExponentialAdams(4)",
        "x from 8, 600 steps",
        0.676884066123,
        lambda: _flow(ExponentialAdams(4)),
        1e-8,
        "DPM-Solver",
    ),
    Reference("UniPC(3)", "x from 8, 600 steps", 0.676884066123, lambda: _flow(UniPC(3)), 1e-8, "DPM-Solver"),
    Reference(
        "DPM-Solver++(3)", "x from 8, 600 steps", 0.676884066123, lambda: _flow(DPMSolverPP(3)), 1e-6, "DPM-Solver"
    ),
    Reference(
        "EDM, stochastic sampler", "variance, 18 levels", 0.316095311058, _churned, 1e-10, "Elucidating the Design"
    ),
    Reference("grid of iDDPM", "level 8", 80.2037018455, lambda: iddpm_levels()[8], 1e-9, "Elucidating the Design"),
    Reference("Analytic-DPM", "off the variance, 3 steps", 0.0, _optimal_variance, 1e-9, "Optimal Reverse Process"),
    Reference(
        "DDPM", "bound, 50 levels, nats", 0.747831637401, _elbo, 1e-10, "Denoising Diffusion Probabilistic Model"
    ),
    Reference(
        "high-order score matching",
        "least third loss",
        0.0168170534002,
        _third_order,
        1e-12,
        "Reverse ODE and Data Likelihood",
    ),
    Reference(
        "time reversal",
        "total variation, 200 steps",
        0.0369237204157,
        lambda: OrnsteinUhlenbeck(rate=1.0).gap(8.0, 200).total_variation,
        1e-11,
        "Convergence [DTHD21]",
    ),
    Reference(
        "Jacobian asymmetry", "of −x + ½Jx", 1 / math.sqrt(1.25), _rotation, 1e-14, "Reverse ODE and Data Likelihood"
    ),
    Reference("SVGD", "speed of a pair at rest", 0.0, lambda: _still(SVGD), 1e-12, "Particle-based inference"),
    Reference("Blob", "speed of a pair at rest", 0.0, lambda: _still(Blob), 1e-12, "Particle-based inference"),
    Reference("GFSD", "speed of a pair at rest", 0.0, lambda: _still(GFSD), 1e-12, "Particle-based inference"),
    Reference(
        "GFSF", "speed of a pair at rest", 0.0, lambda: _still(GFSF, ridge=0.0), 1e-12, "Particle-based inference"
    ),
    Reference("SVGD between walls", "identity of Stein", 0.0, _stein, 1e-13, "Particle-based inference"),
    Reference(
        "kinetic Langevin (BAOAB)", "variance of positions", 0.7, lambda: _kept(BAOAB())[0], 1e-12, "beyond the notes"
    ),
    Reference(
        "kinetic Langevin (OBABO)", "variance of velocities", 1.0, lambda: _kept(OBABO())[1], 1e-12, "beyond the notes"
    ),
    Reference("critically damped, SSCS", "stationary variance", 1.0, _sscs, 1e-12, "beyond the notes"),
    Reference(
        "Schrödinger bridge, Sinkhorn",
        "covariance of the ends",
        0.366025403784,
        _grid_bridge,
        1e-8,
        "Schrödinger Bridge: background",
    ),
    Reference(
        "Schrödinger bridge, IPF",
        "mean of the start, third iterate",
        0.478873239437,
        lambda: bridge.ipf(bridge.gaussian(START, END, 1.0), 5)[4].start.mean,
        1e-11,
        "Schrödinger Bridge: background",
    ),
    Reference(
        "Schrödinger bridge, mean matching",
        "mean of the start, N = 20",
        0.472380434865,
        lambda: _matched(20),
        1e-11,
        "Schrödinger Bridge: iterations",
    ),
]
