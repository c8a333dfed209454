"""Normal laws and affine kernels between them, in float64: what Gaussian bridges are computed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Normal(NamedTuple):
    """N(mean, covariance): float64 ``[…, d]`` and ``[…, d, d]``."""

    mean: Tensor
    covariance: Tensor


class Affine(NamedTuple):
    """The Gaussian kernel y | x ~ N(matrix·x + offset, noise)."""

    matrix: Tensor
    offset: Tensor
    noise: Tensor

    def push(self, law: Normal) -> Normal:
        """The law of y where x has this one."""
        spread = self.matrix @ law.covariance @ self.matrix.mT + self.noise
        return Normal(self.matrix @ law.mean + self.offset, spread)

    def given(self, law: Normal) -> Affine:
        """The kernel of x | y where x has this law; Joseph's form, whose covariance stays positive."""
        gain, offset = self.regression(law, self.push(law))
        rest = torch.eye(len(law.mean), dtype=torch.float64) - gain @ self.matrix
        noise = rest @ law.covariance @ rest.mT + gain @ self.noise @ gain.mT
        return Affine(gain, offset, noise)

    def regression(self, law: Normal, reached: Normal) -> tuple[Tensor, Tensor]:
        """(gain, offset) of E[x | y] = gain·y + offset, where x has this law and y the one ``reached``."""
        gain = torch.linalg.solve(reached.covariance, self.matrix @ law.covariance).mT
        return gain, law.mean - gain @ reached.mean


def root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def as_normal(law: Sequence[Any] | Normal, name: str) -> Normal:
    """(mean, covariance) in float64, or an error that says what is wrong with them."""
    try:
        mean, covariance = (torch.as_tensor(v, dtype=torch.float64).detach().cpu() for v in law)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: got {law!r}, expected (mean, covariance): [d] and [d, d], or two numbers in one dimension"
        ) from None
    if mean.dim() == covariance.dim() == 0:
        mean, covariance = mean.reshape(1), covariance.reshape(1, 1)
    if mean.dim() != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{name}: got a mean of shape {tuple(mean.shape)} and a covariance of shape {tuple(covariance.shape)}, expected [d] and "
            "[d, d]; write variances as a diagonal matrix"
        )
    scale = covariance.abs().max()
    finite = bool(mean.isfinite().all() & covariance.isfinite().all())
    symmetric = finite and bool(((covariance - covariance.T).abs() <= 1e-12 * scale).all())
    if not symmetric or not bool(torch.linalg.eigvalsh(covariance)[0] > 0):
        raise ValueError(
            f"{name}: got the covariance {covariance.tolist()}, expected a symmetric positive definite matrix of finite numbers"
        )
    return Normal(mean, 0.5 * (covariance + covariance.T))
