"""Finite T and self-consistent scores: what is lost when generation starts from N(0, I) and not from the law that the data end in.

A score is *self-consistent* if it is that of the very densities its reverse SDE has; then the variational bound on the SDE's density has
no gap. With the prior N(0, 1) at a finite T the densities of a self-consistent model end in N(0, 1) exactly, so that p₀ convolved with
the kernel is a Gaussian, and then p₀ is one (Cramér): every score of other data has a gap.

1. The Gaussian study: every term for a wrong and for the exact score, and the identity KL(q₀|p₀) = D_Fisher + KL_T − gap.
2. The exact score of a mixture of two from N(0, 1) at smaller and smaller noise at the end: with it p_t is known in closed form up to one
   integral, p_t(x) = q_t(x) E[π(x_T)/q_T(x_T) | x_t = x]; gap by quadrature, and by the identity.
3. Trained again and again on its own samples, a model moves to the self-consistent one: q ← p₀, the exact score of q, p₀ from N(0, 1), …
   KL_T, and with it the gap, falls fast; the distance of q₀ to a Gaussian falls as well, but the slower the more noise there is at T,
   for what noise has wiped out of q_T no longer pulls: inverting the heat flow is ill-posed.
"""

from __future__ import annotations

import math

import numpy as np
from timing import verdict

from carom.domains import Euclidean
from carom.processes import VP, Diffusion
from carom.validation.bounds import GaussianStudy

GRID = np.linspace(-7, 7, 1401)
STEP = GRID[1] - GRID[0]


def normal(x: np.ndarray, variance: float) -> np.ndarray:
    return np.exp(-(x**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def two_bumps() -> np.ndarray:
    q = 0.3 * normal(GRID + 1, 0.09) + 0.7 * normal(GRID - 0.8, 0.16)
    return q / (q.sum() * STEP)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p | q) of densities on the grid."""
    inside = p > 1e-300
    return float(STEP * np.sum(p[inside] * (np.log(p[inside]) - np.log(np.maximum(q[inside], 1e-300)))))


def kernel(a: float, b: float) -> np.ndarray:
    """The transition of VP from ᾱ = a to ᾱ = b as a matrix: density of the row given the column."""
    ratio = b / a
    return normal(GRID[:, None] - math.sqrt(ratio) * GRID[None, :], 1 - ratio)


def generated(q0: np.ndarray, last: float, at: float) -> tuple[np.ndarray, np.ndarray]:
    """(q_t, p_t) at ᾱ = ``at``: data q0, its exact score, generation from N(0, 1) at ᾱ = ``last``."""
    q_t = STEP * kernel(1.0, at) @ q0 if at < 1 else q0
    q_last = STEP * kernel(1.0, last) @ q0
    ratio = normal(GRID, 1.0) / np.maximum(q_last, 1e-300)
    # where q_T has no mass neither has the ratio a meaning
    ratio[q_last < 1e-14] = 0.0
    return q_t, q_t * (STEP * ratio @ kernel(at, last) if at > last else ratio)


def gap(q0: np.ndarray, last: float, nodes: int = 60) -> float:
    r"""½∫g² E_q|∇log q_t − ∇log p_t|² dt = ½∫ E_q|∇log (p_t/q_t)|² (−dᾱ/ᾱ)."""
    u, w = np.polynomial.legendre.leggauss(nodes)
    span = -math.log(last)
    total = 0.0
    # ln ᾱ = −span·v², finer near the data; the last bit before T is smooth
    for node, weight in zip((u + 1) / 2, w / 2, strict=True):
        at = math.exp(-span * node**2)
        if 1 - at < 3 * STEP**2 or at / last - 1 < 3 * STEP**2:
            continue  # kernels narrower than the grid; there the integrand is bounded
        q, p = generated(q0, last, at)
        slope = np.gradient(np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300)), STEP)
        slope[(q < 1e-12) | (p < 1e-300)] = 0.0
        total += weight * 2 * node * span * 0.5 * STEP * float(np.sum(q * slope**2))
    return total


def main() -> None:
    process = Diffusion(Euclidean((1,)), VP())
    print("1. G1 = N(.5, .25) by VP, in nats")
    for name, study in (
        ("score of N(.3, .5)", GaussianStudy(process)),
        ("the same from its own law", GaussianStudy(process, prior_law="model")),
        ("exact score", GaussianStudy(process, model=(0.5, 0.25))),
    ):
        left = abs(study.kl_sde - study.fisher - study.prior + study.gap)
        print(
            f"{name:27} D_Fisher {study.fisher:.6e}  KL_T {study.prior:.3e}  gap {study.gap:.3e}  KL of the SDE {study.kl_sde:.6e}, of the "
            f"flow {study.kl_ode:.6e}  identity to {left:.0e} ({verdict(left, 1e-12)})"
        )
    print("\n2. two bumps, exact score, from N(0, 1) at ᾱ_T: the gap twice")
    for last in (0.6, 0.3, 0.1, 0.02):
        q0 = two_bumps()
        q_last, _ = generated(q0, last, last)
        _, p0 = generated(q0, last, 1.0)
        prior, kl, found = divergence(q_last, normal(GRID, 1.0)), divergence(q0, p0), gap(q0, last)
        error = abs(prior - kl - found)
        print(
            f"ᾱ_T {last:4.2f}  KL_T {prior:.5f}  KL(q₀|p₀) {kl:.5f}  gap = KL_T − KL {prior - kl:.5f}, by quadrature {found:.5f} "
            f"({verdict(error, 1e-2 * prior)})"
        )
    print("\n3. trained again on its own samples, from N(0, 1)")
    for last in (0.3, 0.8, 0.95):
        q = two_bumps()
        for turn in range(129):
            q_last, _ = generated(q, last, last)
            _, p0 = generated(q, last, 1.0)
            if turn in (0, 1, 8, 128):
                print(
                    f"ᾱ_T {last:4.2f}  turn {turn:3}  KL_T {divergence(q_last, normal(GRID, 1.0)):.2e}  KL(q₀|p₀) {divergence(q, p0):.2e}  "
                    f"KL(q₀|N(0, 1)) {divergence(q, normal(GRID, 1.0)):.5f}"
                )
            q = p0 / (STEP * p0.sum())


if __name__ == "__main__":
    main()
