"""The exact score of a Gaussian mixture under any schedule: the closed form that everything Euclidean is checked against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..domains import Euclidean
from ..domains.constants import OnDevice
from ..domains.tensors import check_event, event_sum, per_batch
from ..processes import Diffusion

Array = float | Sequence[Any] | np.ndarray | Tensor


class _Parts(NamedTuple):
    """Posterior quantities at one x: weights r ``[*batch, K]``, residuals and variances in each component's eigenbasis."""

    log_prob: Tensor
    weights: Tensor
    residual: Tensor
    variance: Tensor
    scale: Tensor
    std: Tensor


class GaussianMixtureScore:
    r"""∇ log p_t for x_0 ~ Σ_k w_k N(m_k, C_k) on a Euclidean domain: p_t = Σ_k w_k N(s m_k, s² C_k + std² I).

    Args:
        process: a Diffusion on a Euclidean domain; d is the number of its coordinates.
        weights: ``[K]``, positive; normalised here.
        means: ``[K, *event]``, or ``[K]`` for d = 1.
        covariances: a number or ``[K]`` (isotropic variances), ``[K, d]`` (diagonals) or ``[K, d, d]`` (full, positive semidefinite).

    Batch-invariant to the bit (no matrix products). Offers ``log_prob(x, t)``, ``prediction(x, t)`` = (E[x0|x], E[ε|x]),
    exact where s or σ vanish, ``sample(n)`` from the data law, and ``rows``.
    """

    def __init__(self, process: Diffusion, weights: Array, means: Array, covariances: Array):
        if not isinstance(process.domain, Euclidean):
            raise TypeError(
                f"GaussianMixtureScore: got {process.domain!r}, expected a Euclidean domain; use EmpiricalScore"
            )
        self.process = process
        event = process.domain.event_shape
        dim = math.prod(event)
        weights, means, covariances = (_array(v) for v in (weights, means, covariances))
        count = weights.numel()
        if weights.dim() != 1 or not bool((weights > 0).all()):
            raise ValueError(f"weights: got shape {tuple(weights.shape)}, expected [K] of positive numbers")
        if means.numel() != count * dim:
            raise ValueError(f"means: got shape {tuple(means.shape)}, expected [{count}, {', '.join(map(str, event))}]")
        self.weights, self.means = weights / weights.sum(), means.reshape(count, dim)
        #: eigenvalues [K, d] and eigenvectors [K, d, d] (None where the axes are the eigenvectors)
        self.variances, self.basis = _eigen(covariances, count, dim)
        self._constants = OnDevice((self.weights, self.means, self.variances, self.basis))

    def __repr__(self) -> str:
        return f"GaussianMixtureScore({self.process!r}, <{len(self.weights)} components>)"

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        parts = self._parts(x, t)
        return self._mean(parts, -parts.residual / parts.variance).reshape(x.shape)

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x): ``[*batch]``."""
        return self._parts(x, t).log_prob

    def divergence(self, x: Tensor, t: float | Tensor) -> Tensor:
        """∇·score = Σ_k r_k (|v_k|² − tr V_k⁻¹) − |score|² with v_k the score of component k and V_k its covariance: ``[*batch]``."""
        parts = self._parts(x, t)
        own = event_sum((parts.residual / parts.variance) ** 2 - 1 / parts.variance, 1)
        score = self._mean(parts, -parts.residual / parts.variance)
        return event_sum(parts.weights * own, 1) - event_sum(score**2, 1)

    def prediction(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(E[x0 | x], E[ε | x]), exact for every level including s = 0 and σ = 0."""
        parts = self._parts(x, t)
        _, means, variances, _ = self._on(x)
        gain = parts.scale[..., None, None] * variances / parts.variance
        data = self._mean(parts, gain * parts.residual) + event_sum(parts.weights[..., None, :] * means.T, 1)
        noise = self._mean(parts, parts.std[..., None, None] * parts.residual / parts.variance)
        return data.reshape(x.shape), noise.reshape(x.shape)

    def rows(self, index: Tensor) -> GaussianMixtureScore:
        return self

    def sample(self, n: int, *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Draws from the data law: ``[n, *event]``."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator)
        z = z * self.variances[component].sqrt()
        if self.basis is not None:
            z = torch.einsum("nij,nj->ni", self.basis[component], z)
        dtype = dtype or torch.get_default_dtype()
        return (self.means[component] + z).reshape(n, *self.process.domain.event_shape).to(dtype)

    def _parts(self, x: Tensor, t: float | Tensor) -> _Parts:
        event_ndim = len(self.process.domain.event_shape)
        check_event(x, self.process.domain.event_shape)
        level = per_batch(t, x, event_ndim, "t")
        scale, std = self.process.schedule.scale(level), self.process.schedule.std(level)
        flat = x.reshape(*x.shape[: x.dim() - event_ndim], 1, self.means.shape[1])
        weights, means, variances, basis = self._on(x)
        residual = _rotate(flat - scale[..., None, None] * means, basis, transpose=True)
        variance = scale[..., None, None] ** 2 * variances + std[..., None, None] ** 2
        log_parts = weights.log() - 0.5 * event_sum(residual**2 / variance + variance.log() + math.log(2 * math.pi), 1)
        log_prob = log_parts.logsumexp(-1)
        return _Parts(log_prob, (log_parts - log_prob[..., None]).exp(), residual, variance, scale, std)

    def _mean(self, parts: _Parts, vectors: Tensor) -> Tensor:
        """Σ_k r_k V_k vectors_k: ``[*batch, d]``."""
        return event_sum(
            (parts.weights[..., None] * _rotate(vectors, self._on(vectors)[3], transpose=False)).transpose(-1, -2), 1
        )

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Weights, means, variances and basis in x's dtype and on its device."""
        weights, means, variances, basis = self._constants(x.device)
        return (
            weights.to(x.dtype),
            means.to(x.dtype),
            variances.to(x.dtype),
            None if basis is None else basis.to(x.dtype),
        )


def _array(value: Array) -> Tensor:
    """Numbers, arrays, tensors or lists of them, as a float64 CPU tensor."""
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Tensor, np.ndarray)) for v in value):
        return torch.stack([torch.as_tensor(v, dtype=torch.float64).detach().cpu() for v in value])
    return torch.as_tensor(value, dtype=torch.float64).detach().cpu()


def _rotate(vectors: Tensor, basis: Tensor | None, *, transpose: bool) -> Tensor:
    """V_kᵀ v or V_k v for each component, column by column: batch-invariant where a matrix product is not."""
    if basis is None:
        return vectors
    columns = basis.transpose(-1, -2) if transpose else basis
    total = vectors[..., :1] * columns[..., 0]
    for j in range(1, basis.shape[-1]):
        total = torch.addcmul(total, vectors[..., j : j + 1], columns[..., j])
    return total


def _eigen(covariances: Tensor, count: int, dim: int) -> tuple[Tensor, Tensor | None]:
    shape = tuple(covariances.shape)
    if shape == (count, dim, dim):
        if not torch.allclose(covariances, covariances.transpose(-1, -2), rtol=1e-9, atol=1e-12):
            raise ValueError("covariances: got a matrix that is not symmetric, expected covariance matrices")
        values, vectors = torch.linalg.eigh(covariances)
        basis = None if dim == 1 else vectors
    elif covariances.numel() == 1 or shape == (count,) or shape == (count, dim):
        values, basis = covariances.reshape(-1, *shape[1:]) if shape else covariances.reshape(1, 1), None
        values = (values if values.dim() == 2 else values[:, None]).expand(count, dim).clone()
    else:
        raise ValueError(
            f"covariances: got shape {shape}, expected a number, [{count}], [{count}, {dim}] or [{count}, {dim}, {dim}]"
        )
    if bool((values < -1e-12 * values.abs().max()).any()):
        raise ValueError(f"covariances: got an eigenvalue {float(values.min()):g}, expected positive semidefinite")
    return values.clamp(min=0), basis
