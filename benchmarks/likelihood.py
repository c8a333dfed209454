"""Bits per dimension by the flow and by the variational bound, side by side: digits under a reflected and a VP model.

Two models with one U-Net, the same data and budget. For each: the flow's bits of whole numbers, dequantised uniformly (1 draw, and 8 in one
logarithm), and the bound on the SDE's, read by Bayes' rule; each with its standard error over held-out digits, and their difference row by
row. The three bound different things: neither of the last two is always the larger. Some 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from carom.domains import Euclidean, Hypercube
from carom.processes import VE, VP, Diffusion
from carom.scores.neural import DenoisingScoreMatching, NeuralScore, UNet, UNetConfig, digits, split, train
from carom.solvers import Heun, Hutchinson, bits_per_dim, elbo, karras

PROCESSES = {"reflected": Diffusion(Hypercube((1, 8, 8), -1, 1), VE()), "VP": Diffusion(Euclidean((1, 8, 8)), VP())}


def shown(x: Tensor) -> str:
    return f"{float(x.mean()):.3f} ± {float(x.std()) / math.sqrt(len(x)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--levels", type=int, default=40)
    options = parser.parse_args()
    training, held_out = split(2 * digits() - 1)
    values = (8 * (held_out[: options.rows] + 1)).round()
    print(
        f"{len(values)} held-out digits of 17 grey levels, {options.steps} steps of 64; the flow by Heun's rule on {options.levels} levels"
    )
    print("| model | flow | flow, 8 draws | SDE (bound) | bound − flow | error of the probes | pushed by walls |")
    print("|---|---|---|---|---|---|---|")
    for name, process in PROCESSES.items():
        torch.manual_seed(0)
        score = NeuralScore(UNet(UNetConfig()), process)
        objective = DenoisingScoreMatching.likelihood(process)
        train(score, training, objective=objective, steps=options.steps, seed=0, progress=False)
        times = karras(process, options.levels)
        flow = [
            bits_per_dim(
                process,
                score,
                values,
                bins=17,
                draws=draws,
                solver=Heun(),
                times=times,
                divergence=Hutchinson(2),
                seed=0,
            )
            for draws in (1, 8)
        ]
        bound = elbo(process, score, values, bins=17, draws=64, times=times, seed=0)
        probes = flow[0].likelihood.standard_error.square().mean().sqrt() / (64 * math.log(2) * math.sqrt(len(values)))
        pushed = flow[0].likelihood.pushed
        print(
            f"| {name} | {shown(flow[0].each)} | {shown(flow[1].each)} | {shown(bound.bits_per_dim)} "
            f"| {shown(bound.bits_per_dim - flow[0].each)} | {float(probes):.4f} "
            f"| {'—' if pushed is None else f'{float(pushed.max()):.1e}'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
