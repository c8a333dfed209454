"""What matching derivatives does for the density of the probability flow: a small network on a mixture in the plane, three orders.

Printed for each order: the score's error D_Fisher = ½∫g² E|s − ∇log q_t|² dt, that of its Jacobian, in the same units, and what they are
about: KL(q₀ ‖ p₀) = D_ODE + KL(q_T ‖ N(0, I)) for the density p₀ of the flow (Lu et al. 2022), and −E log p₀, which is more by the
entropy. "0" is σ_min here, "T" is σ_max. All in nats; means and standard errors of three seeds. The last row has the first order in
about the time of the third.

No sampling noise: see ``carom.validation.bounds.flow_study``.
"""

from __future__ import annotations

import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from timing import machine

from carom.scores.neural import MLP, EDMPreconditioning, HighOrderScoreMatching, MLPConfig, NeuralScore, train
from carom.validation import problems
from carom.validation.bounds import FlowStudy, flow_study

STEPS, BATCH, SAMPLES, SEEDS = 1000, 128, 50_000, (0, 1, 2)
ORDERS = {
    "first": (HighOrderScoreMatching(second=0.0, trace=0.0, third=0.0), 1),
    "second": (HighOrderScoreMatching(third=0.0), 1),
    "third": (HighOrderScoreMatching(), 1),
    "first, longer": (HighOrderScoreMatching(second=0.0, trace=0.0, third=0.0), 4),
}


def study(name: str, seed: int) -> tuple[FlowStudy, float]:
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
    return flow_study(problem, score), seconds


def mean_and_error(values: list[float]) -> str:
    return f"{statistics.mean(values):8.4f} ± {statistics.stdev(values) / math.sqrt(len(values)):.4f}"


def main() -> None:
    torch.set_num_threads(1)
    print(machine())
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        runs = {name: [pool.submit(study, name, seed) for seed in SEEDS] for name in reversed(ORDERS)}
        print(
            f"\n{'order':14} {'steps':>6} {'cpu s':>8}  {'D_Fisher':>17}  {'of the Jacobian':>17}  {'D_ODE':>17}  {'nll':>17}"
        )
        for name, (_, factor) in ORDERS.items():
            found = [run.result() for run in runs[name]]
            columns = [
                mean_and_error([getattr(m, k) for m, _ in found]) for k in ("fisher", "jacobian", "d_ode", "nll")
            ]
            seconds = statistics.mean(t for _, t in found)
            print(f"{name:14} {STEPS * factor:6} {seconds:8.0f}  " + "  ".join(f"{c:>17}" for c in columns))


if __name__ == "__main__":
    main()
