"""Every system against a closed form: what ``carom validate`` prints. Each check is one number and how far this installation is from it.

References are exact where a formula gives them, else the twelve digits of an independent computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..processes import EDM, VP, CriticallyDamped, Discrete, Langevin, RiemannianLangevin, SubVP
from ..scores import Classifier, GaussianMixtureScore
from ..solvers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    EulerMaruyama,
    Heun,
    LangevinCorrector,
    PredictorCorrector,
    ReverseDiffusion,
    Solver,
    bridge,
    karras,
    log_likelihood,
    sample,
    solve,
    uniform_lambda,
)
from . import problems
from .bounds import GaussianStudy
from .convergence import OrnsteinUhlenbeck
from .orders import propagate_moments
from .reference import LINE, Outcome, Reference, f64
from .references_beyond import BEYOND
from .residuals import fokker_planck_residual


def validate(references: Sequence[Reference] | None = None) -> Iterator[Outcome]:
    """The outcome of each reference, one after the other; one that raises does not stop the others."""
    for reference in REFERENCES if references is None else references:
        try:
            yield Outcome(reference, float(reference.measure()))
        except Exception as error:
            yield Outcome(reference, math.nan, f"{type(error).__name__}: {error}")


ONE = torch.eye(1, dtype=torch.float64)


def _variance(problem: problems.Problem, solver: Solver, times: Tensor) -> Tensor:
    """That a rule ends with from N(0, 1), without sampling noise."""
    process, stochastic = problem.process, solver.stochastic
    equation = process.reverse(problem.score) if stochastic else process.flow(problem.score)
    return propagate_moments(equation, solver, times, f64(0.0), ONE)[1]


def _dpm_solver() -> Tensor:
    problem = problems.mixture(VP())
    ends = problem.process.schedule.sigma(f64(1.0, 1e-3)).tolist()
    times = uniform_lambda(problem.process, 11, sigma_max=ends[0], sigma_min=ends[1])
    return solve(problem.process.flow(problem.score), f64(0.1)[:, None], times, DPMSolver(3)).x


def _edm() -> Tensor:
    problem = problems.mixture(EDM())
    times = karras(problem.process, 18)
    return sample(problem.process, problem.score, Heun(), times, shape=1, initial=f64(8.0)[:, None]).x


def _annealed() -> Tensor:
    problem = problems.gaussian(EDM(sigma_min=0.01, sigma_max=1.0))
    return _variance(problem, AnnealedLangevin(100, 2e-5), uniform_lambda(problem.process, 10))


def _classifier() -> Tensor:
    process = problems.mixture().process
    parts = [GaussianMixtureScore(process, [1.0], [m], [v]) for m, v in ((-1.0, 0.04), (0.8, 0.09))]

    def log_class(x: Tensor, t: Any) -> Tensor:
        joint = torch.stack([math.log(w) + p.log_prob(x, t) for w, p in zip((0.3, 0.7), parts, strict=True)], -1)
        return joint[..., 1] - joint.logsumexp(-1)

    return Classifier(problems.mixture().score, log_class)(f64(0.4)[:, None], 0.3)


def _density(problem: problems.Problem, x: float, t: float) -> Tensor:
    """log p of the flow with the exact terminal law, less the law's own log-density at t."""
    at = f64(x)[:, None]
    found = log_likelihood(
        problem.process,
        problem.score,
        at,
        solver=AdaptiveODE(1e-10, 1e-10),
        times=[1.0, t],
        prior=problem.marginal(1.0),
    )
    return found.log_prob - problem.log_prob(at, t)


def _interval_flow() -> Tensor:
    problem = problems.cosine()
    times = [1.0, 1e-3]
    x = f64(0.3)[:, None]
    up = solve(problem.process.flow(problem.score), x, times[::-1], AdaptiveODE(1e-10, 1e-10)).x
    return up - problem.flow(x, 1e-3, 1.0)


def _ula() -> Tensor:
    times = torch.linspace(0, 8, 161, dtype=torch.float64)
    return propagate_moments(Langevin(lambda x: -x / 0.25, LINE), EulerMaruyama(), times, f64(0.0), ONE)[1]


def _riemannian() -> Tensor:
    """The residual of p = N(0, 1) under the metric D = 1 + x²."""
    equation = RiemannianLangevin(lambda x: -x, lambda x: (1 + x**2)[..., None], LINE)
    return fokker_planck_residual(equation, lambda x, t: -0.5 * (x**2).sum(-1), f64(0.7)[:, None], 0.0).abs().max()


def _g1(N: int) -> problems.MixtureProblem:
    return problems.gaussian(Discrete.ddpm(N))


def _down(N: int) -> Tensor:
    return torch.arange(N, -1, -1, dtype=torch.float64) / N


VP_G1 = problems.gaussian(VP()).process

REFERENCES: list[Reference] = [
    Reference(
        "flow between walls", "off the map of distributions", 0.0, _interval_flow, 1e-7, "Reflected diffusion, §4"
    ),
    Reference(
        "DDPM",
        "variance, β, 1000 levels",
        0.250852075008,
        lambda: _variance(_g1(1000), Ancestral("forward"), _down(1000)),
        1e-11,
        "Denoising Diffusion Probabilistic Model",
    ),
    Reference(
        "DDIM",
        "variance, ten steps of 50 levels",
        0.139955964777,
        lambda: _variance(_g1(50), DDIM(), _down(50)[::5]),
        1e-11,
        "Denoising Diffusion Implicit Models",
    ),
    Reference(
        "reverse diffusion",
        "variance, 1000 levels",
        0.25148144175,
        lambda: _variance(_g1(1000), ReverseDiffusion(), _down(1000)),
        1e-11,
        "Reverse Process Simulation",
    ),
    Reference(
        "predictor–corrector",
        "variance, 100 levels",
        0.260461116984,
        lambda: _variance(_g1(100), PredictorCorrector(ReverseDiffusion(), LangevinCorrector(0.16, 1)), _down(100)),
        1e-11,
        "Reverse Process Simulation",
    ),
    Reference(
        "annealed Langevin", "variance, 10 × 100 steps", 0.257908827434, _annealed, 1e-11, "Score Matching: NCSN"
    ),
    Reference(
        "VP SDE",
        "variance at t = ½",
        0.94070214066,
        lambda: VP().scale(f64(0.5)) ** 2 * 0.25 + VP().std(f64(0.5)) ** 2,
        1e-11,
        "VP SDE",
    ),
    Reference(
        "sub-VP SDE",
        "variance at t = ½",
        0.867889414647,
        lambda: SubVP().scale(f64(0.5)) ** 2 * 0.25 + SubVP().std(f64(0.5)) ** 2,
        1e-11,
        "New Diffusion Process",
    ),
    Reference("DPM-Solver-3", "x from .1, 10 steps", 0.681589962524, _dpm_solver, 1e-10, "DPM-Solver"),
    Reference("EDM, Heun's rule", "x from 8, 18 levels", 0.690730247552, _edm, 1e-9, "Elucidating the Design"),
    Reference(
        "likelihood of a flow",
        "off log q, VP",
        0.0,
        lambda: _density(problems.mixture(), 0.8, 1e-3),
        1e-8,
        "Probability Flow",
    ),
    Reference(
        "likelihood between walls",
        "off log q, cube",
        0.0,
        lambda: _density(problems.cosine(), 0.3, 1e-2),
        1e-8,
        "Reflected diffusion, §5",
    ),
    Reference(
        "classifier guidance", "score of the class", 0.162105485958, _classifier, 1e-9, "Classifier-Guided Generation"
    ),
    Reference(
        "bound of the SDE",
        "KL",
        0.136576181621,
        lambda: GaussianStudy(VP_G1).kl_sde,
        1e-12,
        "Reverse SDE and Data Likelihood",
    ),
    Reference("bound of the SDE", "gap", 1.943377e-6, lambda: GaussianStudy(VP_G1).gap, 1e-12, "Reverse ODE: the gap"),
    Reference(
        "bound of the flow",
        "D_ODE",
        0.137132281363,
        lambda: GaussianStudy(VP_G1).d_ode,
        1e-12,
        "Reverse ODE and Data Likelihood",
    ),
    Reference(
        "Ornstein–Uhlenbeck convergence",
        "total variation, T = 4",
        0.00850324473467,
        lambda: OrnsteinUhlenbeck(rate=0.1).gap(4.0).total_variation,
        1e-13,
        "Convergence [DTHD21]",
    ),
    Reference("Langevin (ULA)", "variance, h = .05", 0.25 / (1 - 0.05 / 0.5), _ula, 1e-12, "Langevin dynamics"),
    Reference("Riemannian Langevin", "Fokker–Planck residual", 0.0, _riemannian, 1e-12, "Langevin dynamics"),
    Reference(
        "critically damped Langevin",
        "S_xx at t = .3",
        0.859356914831,
        lambda: CriticallyDamped(LINE).kernel(0.3).covariance(0.0, 0.01)[0].xx,
        5e-12,
        "beyond the notes",
    ),
    Reference(
        "Schrödinger bridge",
        "covariance of the ends",
        0.366025403784,
        lambda: bridge.gaussian((0.5, 0.25), (-1.0, 2.0), 1.0).coupling.cross,
        1e-12,
        "Schrödinger Bridge",
    ),
    Reference(
        "Schrödinger bridge",
        "variance at t = ½",
        0.995512701892,
        lambda: bridge.gaussian((0.5, 0.25), (-1.0, 2.0), 1.0).marginal(f64(0.5))[1],
        1e-11,
        "Schrödinger Bridge",
    ),
]

REFERENCES += BEYOND
