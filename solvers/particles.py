r"""Particle flows: N particles that move towards a density p and keep one another apart.

Each is an :class:`~carom.processes.ODE` of a whole *ensemble*, dx_i = v_i dt with x ``[*batch, N, *event]``, which any solver of ODEs runs:
an ensemble is one sample, so that step control, status and batches work per ensemble, and ensembles of a batch never meet. v is the
Wasserstein gradient of KL(q‖p), with q's score estimated through a kernel K_ij = k(x_i, x_j), g_i = ∇log p(x_i), c_i = Σ_j K_ij:

====  =============================================================================  ==================================================
flow  v_i                                                                            at rest
====  =============================================================================  ==================================================
SVGD  (1/N) Σ_j [K_ij g_j + ∂K_ij/∂x_j]                                              the same states as GFSF's: N v_SVGD = K v_GFSF
GFSF  g_i + (K⁻¹ S)_i, S_i = Σ_j ∂K_ij/∂x_j                                          those
GFSD  g_i − Σ_j ∂K_ij/∂x_i / c_i                                                     on a Gaussian of variance v: about v − h
Blob  g_i − Σ_j ∂K_ij/∂x_i · (1/c_i + 1/c_j)                                         between the two
====  =============================================================================  ==================================================

With the Gaussian kernel ∂K_ij/∂x_j = K_ij (x_i − x_j)/h. The 1/N of SVGD, which the lecture notes leave to the step size, is written out.
Sums over pairs run in blocks, so that memory grows with N and not with N².

At walls particles are reflected (a projection would put several on the same point of the wall, and particles that have met move as one
ever after). The kernel does not know the walls: within √h of them the density at rest differs from p, with SVGD because the Stein identity
lacks its boundary term, with the others because their estimate of q lacks what lies beyond. From SVGD a
:class:`~carom.solvers.kernels.VanishingKernel` removes it.

Sources: Liu & Wang 2016 (SVGD), Chen et al. 2018 (Blob), Liu et al. 2019 (GFSD, GFSF), Li & Turner 2018 (GFSF's estimate).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from ..domains import Domain, Ensemble, Euclidean
from ..domains.tensors import is_int, number
from ..processes import ODE
from ..processes.equations import check_field, check_timeless
from ..processes.langevin import score_of
from .kernels import RBF, Kernel
from .systems import conjugate_gradients, pivoted_cholesky, shifted_inverse
from .walls import Reflect

Target = Callable[..., Tensor]


class ParticleFlow(ODE):
    """The equation of an ensemble of ``count`` particles in ``domain``; a subclass gives ``velocity``.

    Args:
        score: the target's score, a callable x ``[N, *event]`` → ∇log p(x) of the same shape, for one ensemble at a time. Of a score(x, t)
            take one level: ``lambda x: score(x, 0.01)``.
        domain: where each particle lives; states are ``[*batch, count, *event]``.
        count: N ≥ 1.
        kernel: how particles feel one another; ``RBF()`` with the median rule by default.
        block: at most so many pairs (or one particle's) are held at a time; no effect on the result beyond
            rounding.

    Raises ``TypeError``/``ValueError`` for input that does not fit, and for kernels that measure straight distances on a torus.
    """

    direction = 1
    usual_wall = Reflect()
    #: whether sums over pairs run in float64 whatever the state's dtype
    in_double = False

    def __init__(self, score: Target, domain: Domain, count: int, kernel: Kernel | None = None, *, block: int = 2**18):
        check_timeless(score)
        kernel = RBF() if kernel is None else kernel
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel: got {kernel!r}, expected a Kernel, e.g. RBF(MedianBandwidth())")
        if not is_int(block, 1):
            raise ValueError(f"block: got {block!r}, expected how many pairs are held at a time, an int of at least 1")
        points = Ensemble(domain, count)
        kernel.check(domain)
        super().__init__(score, Euclidean(points.event_shape) if isinstance(domain, Euclidean) else points)
        self.score, self.count, self.kernel, self.block = score, count, kernel, block

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.count} particles, {self.kernel!r})"

    @classmethod
    def of_log_prob(
        cls, log_prob: Callable[..., Tensor], domain: Domain, count: int, *kernel: Kernel, **settings: Any
    ) -> Self:
        """The flow to log p + const alone, a callable x ``[N, *event]`` → ``[N]``; its score by automatic differentiation."""
        return cls(score_of(log_prob), domain, count, *kernel, **settings)

    @abstractmethod
    def velocity(self, x: Tensor, g: Tensor, kernel: Kernel) -> Tensor:
        """v of one ensemble ``[N, d]`` with the target's scores g ``[N, d]`` and a kernel fitted to it."""

    def _field(self, x: Tensor, t: Tensor) -> Tensor:
        # one ensemble at a time: then it is the same to the bit alone and in any batch
        ensembles = x.reshape(-1, *self.domain.event_shape)
        return torch.stack([self._of_one(u) for u in ensembles]).reshape(x.shape) if len(ensembles) else x.clone()

    def _of_one(self, x: Tensor) -> Tensor:
        g = check_field(self.score(x, **self.condition), x)
        dtype = torch.float64 if self.in_double else x.dtype
        flat, g = (v.reshape(self.count, -1).to(dtype) for v in (x, g))
        return self.velocity(flat, g, self.kernel.fitted(flat)).reshape(x.shape).to(x.dtype)

    def rows(self, index: Tensor) -> ParticleFlow:
        return self

    def _by_block(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor, kernel: Kernel) -> Tensor:
        """function(some rows of x, their kernel values with all) for all rows, joined."""
        size = max(1, self.block // len(x))
        out: Tensor | None = None
        for start in range(0, len(x), size):
            some = x[start : start + size]
            part = function(some, check_values(kernel.values(some, x), some, x))
            # into one tensor: small results left between large blocks would keep the allocator from using their memory again
            out = part.new_empty((len(x), *part.shape[1:])) if out is None else out
            out[start : start + size] = part
        return out  # type: ignore[return-value]


def check_values(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A kernel's values, or an error that says what they should be."""
    if values.shape != (len(x), len(y)) or values.dtype != x.dtype:
        raise ValueError(
            f"kernel: got values of shape {tuple(values.shape)} and {values.dtype} for {len(x)} and {len(y)} particles, expected "
            f"{(len(x), len(y))} and {x.dtype}: k(x_i, y_j) for all pairs"
        )
    return values


class SVGD(ParticleFlow):
    """Stein variational gradient descent: v_i = (1/N) Σ_j [K_ij g_j + ∂K_ij/∂x_j]; one pass over the pairs.

    The one flow that estimates no density, and takes any kernel: with ``LinearKernel()`` it meets the mean and the covariance of a
    Gaussian target exactly. Particles far from all others hardly move. Arguments: see :class:`ParticleFlow`. Liu & Wang 2016, eq. 8.
    """

    def velocity(self, x: Tensor, g: Tensor, kernel: Kernel) -> Tensor:
        return self._by_block(lambda u, k: k @ g + kernel.slope_y(u, x, k), x, kernel) / len(x)


class _Smoothing(ParticleFlow):
    """A flow that estimates the density of its particles."""

    def __init__(self, score: Target, domain: Domain, count: int, kernel: Kernel | None = None, *, block: int = 2**18):
        super().__init__(score, domain, count, kernel, block=block)
        if not self.kernel.smooths:
            raise TypeError(
                f"kernel: got {self.kernel!r} for {type(self).__name__}, expected one that is positive and falls off, e.g. RBF(); "
                "SVGD takes any"
            )


class GFSD(_Smoothing):
    """Gradient flow with a smoothed density: v_i = g_i − ∇log q̂(x_i), q̂ = Σ_j k(·, x_j); one pass over the pairs.

    q̂ is wider than the particles by h, so they come to rest too narrow by it. Arguments: see :class:`ParticleFlow`. Liu et al. 2019.
    """

    def velocity(self, x: Tensor, g: Tensor, kernel: Kernel) -> Tensor:
        ones = x.new_ones(len(x))
        return g - self._by_block(lambda u, k: kernel.slope_x(u, x, k, ones) / k.sum(1, keepdim=True), x, kernel)


class Blob(_Smoothing):
    """The gradient flow of the smoothed free energy Σ_i log q̂(x_i): GFSD's velocity less Σ_j ∂K_ij/∂x_i / c_j; two passes.

    Arguments: see :class:`ParticleFlow`. Carrillo, Craig & Patacchini 2019; Chen et al. 2018, eq. 17.
    """

    def velocity(self, x: Tensor, g: Tensor, kernel: Kernel) -> Tensor:
        mass = self._by_block(lambda u, k: k.sum(1), x, kernel)
        ones = torch.ones_like(mass)

        def repulsion(u: Tensor, k: Tensor) -> Tensor:
            return kernel.slope_x(u, x, k, ones) / k.sum(1, keepdim=True) + kernel.slope_x(u, x, k, 1 / mass)

        return g - self._by_block(repulsion, x, kernel)


class GFSF(_Smoothing):
    """Gradient flow with smoothed test functions: v_i = g_i + ((K + ρI)⁻¹ S)_i, S_i = Σ_j ∂K_ij/∂x_j, ρ = ridge · max K.

    Up to ``dense`` particles by Cholesky, beyond by conjugate gradients on blocks of K, preconditioned by ``rank`` of its columns; in
    float64, for K's eigenvalues fall off fast. In the plane the columns say nearly all, and a few passes over the pairs are enough; in
    more dimensions there may be hundreds, which is refused for more than ``max_particles``. An ensemble for which it fails (K not positive
    at ridge 0 as where particles have met, or no convergence) becomes NaN, so that its status tells.

    The equation is stiff, whatever the score: 500 particles on N(0, I) in the plane need steps of .02 where the other flows take .2, and
    steps that are too long scatter particles that were at rest. ``AdaptiveODE()`` finds the step.

    Args:
        ridge: ρ/max K ≥ 0; at 0 N v_SVGD = K v_GFSF. Some is needed where particles are closer than √h.
        dense: N up to which K is held whole, 8 N² bytes a few times over.
        tolerance, iterations: of conjugate gradients: |residual| / |S| asked for, and how many passes over the pairs it may take.
        rank: at most so many columns of K, 8 N rank bytes, for work in N rank². As many as K/max K has eigenvalues above a tenth of ρ
            are enough for convergence within about three passes.
        max_particles: the largest N where ``rank`` columns are not enough; at the default a velocity takes minutes on a CPU, and time
            grows with N². ``ValueError`` for more, when the velocity is asked for, since it depends on where the particles are.
        legacy: (K + ρI)⁻¹ acts on S + Kx/h, and x/h is taken off again, as in published code: the same at ridge 0, but with any ridge it
            depends on where the origin is. For ``RBF`` kernels.
        others: see :class:`ParticleFlow`.

    Liu et al. 2019; Li & Turner 2018, eq. 11 (the ridge).
    """

    in_double = True

    def __init__(
        self,
        score: Target,
        domain: Domain,
        count: int,
        kernel: Kernel | None = None,
        *,
        ridge: float = 1e-3,
        dense: int = 4096,
        tolerance: float = 1e-5,
        iterations: int = 500,
        rank: int = 1000,
        max_particles: int = 8192,
        legacy: bool = False,
        block: int = 2**18,
    ):
        super().__init__(score, domain, count, kernel, block=block)
        self.ridge = number(ridge, "ridge", low=0.0)
        self.tolerance = number(tolerance, "tolerance", low=0.0, high=1.0, open_low=True)
        if not is_int(dense, 0) or not is_int(iterations, 1):
            raise ValueError(f"dense, iterations: got {dense!r}, {iterations!r}, expected ints of at least 0 and 1")
        if not is_int(rank, 1) or not is_int(max_particles, 1):
            raise ValueError(f"rank, max_particles: got {rank!r}, {max_particles!r}, expected ints of at least 1")
        if count > dense and not self.ridge:
            raise ValueError(
                f"ridge: got 0 for {count} particles, expected one above 0 for more than dense = {dense}: conjugate gradients do not "
                "converge without"
            )
        if legacy and not isinstance(self.kernel, RBF):
            raise TypeError(f"legacy: got the kernel {self.kernel!r}, expected an RBF, whose h the formula holds")
        self.dense, self.iterations, self.legacy = dense, iterations, legacy
        self.rank, self.max_particles = rank, max_particles

    def velocity(self, x: Tensor, g: Tensor, kernel: Kernel) -> Tensor:
        if self.legacy:
            shift = x / kernel.h  # type: ignore[attr-defined]
            right = self._by_block(lambda u, k: kernel.slope_y(u, x, k) + k @ shift, x, kernel)
            return g + self._solved(x, right, kernel) - shift
        right = self._by_block(lambda u, k: kernel.slope_y(u, x, k), x, kernel)
        return g + self._solved(x, right, kernel)

    def _solved(self, x: Tensor, right: Tensor, kernel: Kernel) -> Tensor:
        """(K + ρI)⁻¹ right."""
        if len(x) <= self.dense:
            whole = kernel.values(x, x)
            shift = self.ridge * whole.detach().amax() * torch.eye(len(x), dtype=x.dtype, device=x.device)
            factor, info = torch.linalg.cholesky_ex(whole + shift)
            return torch.where(info > 0, torch.nan, torch.cholesky_solve(right, factor))
        # little blocks, of which the diagonal alone is wanted; K's largest value is among it
        diagonal = torch.cat(
            [kernel.values(some, some).diagonal() for some in x.detach().split(max(1, min(64, math.isqrt(self.block))))]
        )
        shift = self.ridge * diagonal.amax()
        threshold = 0.1 * float(shift)
        factor, left = pivoted_cholesky(lambda i: kernel.values(x[i : i + 1], x)[0], diagonal, self.rank, threshold)
        if left > threshold and len(x) > self.max_particles:
            raise ValueError(
                f"GFSF: got {len(x)} particles in {x.shape[1]} dimensions, whose kernel {len(factor)} columns do not describe up to the "
                f"ridge, expected at most max_particles = {self.max_particles} of such: each velocity would take up to {self.iterations} "
                f"passes over all pairs. Take Blob or GFSD, which need one or two; shorter steps, if these have scattered the particles; "
                f"a wider kernel, a larger ridge or rank; or, with time to wait, max_particles={len(x)}"
            )
        found, solved = conjugate_gradients(
            lambda v: self._by_block(lambda u, k: k @ v.mT, x, kernel).mT + shift * v,
            right.mT,
            1,
            self.iterations,
            self.tolerance,
            precondition=shifted_inverse(factor, shift),
            ask=True,
        )
        return torch.where(solved.all(), found, torch.nan).mT
