"""What matching derivatives does for the density of the probability flow: a small network on a mixture in the plane, three orders.

Printed for each order: the score's error D_Fisher = ½∫g² E|s − ∇log q_t|² dt, that of its Jacobian, in the same units, and what they are
about: KL(q₀ ‖ p₀) = D_ODE + KL(q_T ‖ N(0, I)) for the density p₀ of the flow (Lu et al. 2022), and −E log p₀, which is more by the
entropy. "0" is σ_min here, "T" is σ_max. All in nats; means and standard errors of three seeds. The last row has the first order in
about the time of the third.

No sampling noise: means over q_σ are Gauss–Hermite sums over each component, and log p₀ at their nodes comes from the flow's ODE with
exact divergence, integrated by scipy. This is checked first: on the exact score, and on a Gaussian whose every answer is known.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from timing import machine, verdict
from torch import Tensor

from carom.scores.neural import MLP, EDMPreconditioning, HighOrderScoreMatching, MLPConfig, NeuralScore, train
from carom.solvers.divergence import slope
from carom.validation import problems

STEPS, BATCH, SAMPLES, SEEDS = 1000, 128, 50_000, (0, 1, 2)
ORDERS = {
    "first": (HighOrderScoreMatching(second=0.0, trace=0.0, third=0.0), 1),
    "second": (HighOrderScoreMatching(third=0.0), 1),
    "third": (HighOrderScoreMatching(), 1),
    "first, longer": (HighOrderScoreMatching(second=0.0, trace=0.0, third=0.0), 4),
}
Field = Callable[[Tensor, Tensor], Tensor]  # (X, σ) → the score of the heat flow


class Measured(NamedTuple):
    """``nll`` = ``entropy`` + ``ode`` + ``prior``, the last KL(q_T ‖ N(0, I))."""

    fisher: float
    jacobian: float
    ode: float
    nll: float
    entropy: float
    prior: float


def nodes(problem: problems.MixtureProblem, sigma: float, n: int) -> tuple[Tensor, Tensor]:
    """X ``[q, d]`` and weights ``[q]``, float64, that integrate over q_σ: n^d Gauss–Hermite nodes for each component."""
    w, m, c = (torch.tensor(v, dtype=torch.float64) for v in (problem.weights, problem.means, problem.covariances))
    z, weight = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(n))
    dim = m.shape[1]
    z = torch.cartesian_prod(*[z] * dim).reshape(-1, dim)
    weight = torch.cartesian_prod(*[weight / math.sqrt(2 * math.pi)] * dim).reshape(-1, dim).prod(-1)
    root = torch.linalg.cholesky(c + sigma**2 * torch.eye(dim, dtype=torch.float64))
    return (m[:, None] + z @ root.mT).reshape(-1, dim), (w[:, None] * weight).flatten()


def exact(problem: problems.MixtureProblem) -> Field:
    def score(x: Tensor, sigma: Tensor) -> Tensor:
        level = problem.process.level(sigma=sigma)
        return level.scale * problem.score(level.scale * x, level.t)

    return score


def log_density(problem: problems.MixtureProblem, x: Tensor, sigma: float) -> Tensor:
    level = problem.process.level(sigma=sigma)
    return problem.log_prob(level.scale * x, level.t) + x.shape[-1] * math.log(level.scale)


def with_jacobian(score: Field, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """(score ``[q, d]``, its Jacobian ``[q, d, d]``)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = score(x, torch.tensor(sigma, dtype=x.dtype))
        rows = [slope(value[:, i].sum(), x) for i in range(x.shape[-1])]
    return value.detach(), torch.stack(rows, 1)


def log_likelihood(score: Field, x: Tensor, low: float, high: float, problem: problems.MixtureProblem) -> Tensor:
    """log p at σ = ``low`` of the flow that starts from VP's N(0, I) at ``high``, which is N(0, (1 + σ²) I) in X.

    With τ = ln σ: dX = −σ² s dτ and d log p = σ² ∇·s dτ along it."""
    shape = x.shape

    def right(tau: float, state: np.ndarray) -> np.ndarray:
        sigma = math.exp(tau)
        value, jacobian = with_jacobian(score, torch.tensor(state[: x.numel()]).reshape(shape), sigma)
        grown = jacobian.diagonal(dim1=1, dim2=2).sum(-1)
        return sigma**2 * torch.cat([-value.flatten(), grown]).numpy()

    start = torch.cat([x.flatten(), torch.zeros(len(x), dtype=x.dtype)]).numpy()
    run = solve_ivp(right, (math.log(low), math.log(high)), start, method="DOP853", rtol=1e-6, atol=1e-7)
    end, grown = (torch.tensor(v) for v in np.split(run.y[:, -1], [x.numel()]))
    return log_prior(end.reshape(shape), high) - grown


def log_prior(x: Tensor, sigma: float) -> Tensor:
    variance = 1 + sigma**2
    return -0.5 * (x.square() / variance + math.log(2 * math.pi * variance)).sum(-1)


def evaluate(score: Field, problem: problems.MixtureProblem, low: float, n: int = 20) -> Measured:
    """From σ = ``low`` to the schedule's σ_max, with n^d nodes for each component."""
    high = problem.process.schedule.sigma_max
    x, weight = nodes(problem, low, n)
    entropy = -float(weight @ log_density(problem, x, low))
    nll = -float(weight @ log_likelihood(score, x, low, high, problem))
    x, weight = nodes(problem, high, n)
    prior = float(weight @ (log_density(problem, x, high) - log_prior(x, high)))
    tau, tau_weight = np.polynomial.legendre.leggauss(40)
    half = 0.5 * math.log(high / low)
    fisher = jacobian = 0.0
    for t, w in zip(math.log(low) + half * (1 + tau), half * tau_weight, strict=True):
        sigma = math.exp(t)
        x, weight = nodes(problem, sigma, n)
        (s, js), (q, jq) = with_jacobian(score, x, sigma), with_jacobian(exact(problem), x, sigma)
        fisher += w * sigma**2 * float(weight @ (s - q).square().sum(-1))
        jacobian += w * sigma**4 * float(weight @ (js - jq).square().sum((1, 2)))
    return Measured(fisher, jacobian, nll - entropy - prior, nll, entropy, prior)


def study(name: str, seed: int) -> tuple[Measured, float]:
    """One network trained: what it is worth, and the seconds of processor time it took."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    problem = problems.mixture_2d()
    objective, factor = ORDERS[name]
    steps = factor * STEPS
    score = NeuralScore(MLP(MLPConfig((2,), width=64, depth=2)), problem.process, EDMPreconditioning(0.8))
    data = problem.score.sample(SAMPLES, generator=torch.Generator().manual_seed(seed))  # type: ignore[attr-defined]
    rate = lambda step: 4e-3 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    start = time.process_time()
    train(
        score, data, objective=objective, steps=steps, batch_size=BATCH, lr=rate, ema=0.995, seed=seed, progress=False
    )
    seconds = time.process_time() - start
    score.double()
    return evaluate(score.at_level, problem, problem.process.schedule.sigma_min), seconds


def check() -> None:
    """The evaluation itself, where the answers are known."""
    problem = problems.mixture_2d()
    m = evaluate(exact(problem), problem, problem.process.schedule.sigma_min)
    gap = abs(m.ode)
    print(f"exact score: entropy {m.entropy:.5f}, KL_T {m.prior:.1e}, |nll − both| {gap:.1e} ({verdict(gap, 1e-4)})")
    wrong = problems.MixtureProblem(problems.gaussian().process, (1.0,), ((0.3,),), (((0.5,),),))
    m = evaluate(exact(wrong), problems.gaussian(), 1e-3)
    for what, value, want in (("D_Fisher", m.fisher, 0.136572726517), ("D_ODE", m.ode, 0.137132281363)):
        error = abs(value - want)
        print(f"N(.3, .5) for N(.5, .25): {what} {value:.6f}, known {want:.6f} ({verdict(error, 1e-4)})")


def mean_and_error(values: list[float]) -> str:
    return f"{statistics.mean(values):8.4f} ± {statistics.stdev(values) / math.sqrt(len(values)):.4f}"


def main() -> None:
    torch.set_num_threads(1)
    print(machine())
    check()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        runs = {name: [pool.submit(study, name, seed) for seed in SEEDS] for name in reversed(ORDERS)}
        print(
            f"\n{'order':14} {'steps':>6} {'cpu s':>8}  {'D_Fisher':>17}  {'of the Jacobian':>17}  {'D_ODE':>17}  {'nll':>17}"
        )
        for name, (_, factor) in ORDERS.items():
            found = [run.result() for run in runs[name]]
            columns = [mean_and_error([getattr(m, k) for m, _ in found]) for k in ("fisher", "jacobian", "ode", "nll")]
            seconds = statistics.mean(t for _, t in found)
            print(f"{name:14} {STEPS * factor:6} {seconds:8.0f}  " + "  ".join(f"{c:>17}" for c in columns))


if __name__ == "__main__":
    main()
