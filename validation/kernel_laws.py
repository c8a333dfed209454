"""The laws of Neumann heat kernels; see ``laws``.

Integrals are Gauss sums where ``quadrature`` knows a rule (boxes and triangles of one or two dimensions, disks), and Monte Carlo with
a bound of five standard errors elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..domains import Domain, KernelDomain
from ..domains.domain import uniform_law
from ..domains.tensors import event_sum
from .laws import require, require_close, require_equal, require_refused
from .quadrature import quadrature

_RATIOS = (0.03, 0.15, 0.35, 0.45, 0.9, 2.0)  # σ in units of the width: every regime of the interval kernel


def kernel_laws(domain: KernelDomain, inside: Tensor, seed: int) -> list[tuple[str, Callable[[], str | None]]]:
    """The laws with their names, ready to run. ``inside`` is float64 ``[n, *event]``."""
    bench = KernelBench(domain, inside, seed)
    laws: list[tuple[str, Callable[[KernelBench], str | None]]] = [
        ("kernel shapes and dtypes", shapes),
        ("kernel mass is 1", mass),
        ("kernel is a semigroup", semigroup),
        ("kernel is symmetric", symmetric),
        ("score is the gradient of log_prob", score_is_gradient),
        ("no normal derivative at walls", no_flux),
        ("samples follow the kernel", samples),
        ("targets average to the score", targets),
        ("a kernel sample does not depend on its batch", independent),
        ("small sigma is Gaussian", gaussian_limit),
        ("large sigma is uniform", uniform_limit),
        ("bad kernel arguments are refused", refusals),
    ]
    return [(name, partial(law, bench)) for name, law in laws]


@dataclass
class KernelBench:
    """Starts x0, ends x and noise levels for the laws."""

    domain: KernelDomain
    inside: Tensor
    seed: int

    def __post_init__(self) -> None:
        self.ndim = len(self.domain.event_shape)
        self.dim = math.prod(self.domain.event_shape)
        size = self.domain.width if self.domain.bounded else 1.0
        self.sigmas = [r * size for r in _RATIOS]
        n = len(self.inside)
        walls = self.domain.project(3 * self.inside - 2 * self.inside.roll(1, 0))
        self.x0 = torch.cat([self.inside[: n // 2], walls[: n // 4]])
        self.x = torch.cat([self.inside[n // 2 :], walls[n // 4 :]])[: len(self.x0)]

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def expand(self, sigma: Tensor) -> Tensor:
        return sigma.reshape(sigma.shape + (1,) * self.ndim)

    def quadrature(self, x0: Tensor, sigma: float) -> tuple[Tensor, Tensor] | None:
        """Nodes ``[q, *event]`` and weights ``[q]`` that integrate kernels of width σ about x0 over the domain."""
        return quadrature(self.domain, x0, sigma)

    def integrable(self) -> list[float]:
        """The noise levels at which :meth:`integral` is sharp: all by quadrature, wide kernels in few dimensions without."""
        if self.domain.sigma_min == 0 and self.quadrature(self.x0[0], self.sigmas[-1]) is not None:
            return self.sigmas
        return self.sigmas[2:] if self.domain.bounded and self.dim <= 5 else []

    def integral(self, f: Callable[[Tensor], Tensor], x0: Tensor, sigma: float) -> tuple[float, float]:
        """(∫ f, tolerance): f ``[q, *event] -> [q]``, a multiple of a kernel of width ≤ σ about x0."""
        rule = self.quadrature(x0, sigma)
        if rule is not None:
            return float((f(rule[0]) * rule[1]).sum()), 1e-9
        # importance sampling from the kernel itself would presume what is asked; the uniform law does not
        law = uniform_law(self.domain, torch.float64)
        values = f(law.sample((20_000,), generator=self.generator())) * law.entropy().exp()  # type: ignore[call-arg]
        return float(values.mean()), 5 * float(values.std()) / math.sqrt(len(values)) + 1e-9


def has_no_walls(domain: Domain, inside: Tensor) -> bool:
    """Whether no point has a wall at a finite distance; domains that do not tell distances are taken to have walls."""
    try:
        return bool(domain.boundary_distance(inside).isinf().all())
    except NotImplementedError:
        return False


def shapes(bench: KernelBench) -> None:
    """log_prob: [*batch]; score and sample: [*batch, *event]; sigma a number, [*batch] or an outer batch; both dtypes."""
    event = bench.domain.event_shape
    for dtype in (torch.float32, torch.float64):
        for batch in ((), (3,), (2, 3), (0,)):
            x0 = bench.domain.project(bench.inside[: math.prod(batch)].to(dtype)).reshape(*batch, *event)
            for sigma in (0.3, torch.full(batch, 0.3, dtype=dtype)):
                kernel = bench.domain.heat_kernel(x0, sigma)
                x = kernel.sample(generator=bench.generator())
                require(
                    x.shape == x0.shape and x.dtype == dtype, f"sample: {x.dtype} {tuple(x.shape)}", tuple(x0.shape)
                )
                require(kernel.score(x).shape == x0.shape, tuple(kernel.score(x).shape), tuple(x0.shape))
                require(kernel.log_prob(x).shape == batch, tuple(kernel.log_prob(x).shape), batch)
    many = bench.domain.heat_kernel(bench.inside[:1], torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    require(many.sample((5,)).shape == (5, 3, *event), tuple(many.sample((5,)).shape), (5, 3, *event))


def mass(bench: KernelBench) -> str | None:
    """∫ p_σ(x | x0) dx = 1."""
    if not (sigmas := bench.integrable()):
        return "no rule to integrate by"
    for sigma in sigmas:
        for x0 in bench.x0[:: max(1, len(bench.x0) // 4)]:
            kernel = bench.domain.heat_kernel(x0, sigma)
            total, tolerance = bench.integral(lambda x, kernel=kernel: kernel.log_prob(x).exp(), x0, sigma)  # type: ignore[misc]
            require(
                abs(total - 1) <= tolerance, f"mass {total:.12g} at sigma = {sigma:.4g}", f"1 within {tolerance:.1e}"
            )
    return None


def semigroup(bench: KernelBench) -> str | None:
    """∫ p_σ(z | x0) p_τ(x | z) dz = p_ρ(x | x0) with ρ² = σ² + τ²."""
    if not (sigmas := bench.integrable()):
        return "no rule to integrate by"
    for first, second in zip(sigmas, [*sigmas[1:], sigmas[0]], strict=True):
        both = math.hypot(first, second)
        for x0, x in zip(bench.x0[:3], bench.x[:3], strict=True):
            narrow, centre = min((first, x0), (second, x), key=lambda pair: pair[0])

            def product(
                z: Tensor, x0: Tensor = x0, x: Tensor = x, first: float = first, second: float = second
            ) -> Tensor:
                return (
                    bench.domain.heat_kernel(x0, first).log_prob(z) + bench.domain.heat_kernel(z, second).log_prob(x)
                ).exp()

            got, tolerance = bench.integral(product, centre, narrow)
            want = float(bench.domain.heat_kernel(x0, both).log_prob(x).exp())
            require(
                abs(got - want) <= tolerance * (1 + want),
                f"{got:.10g} for sigma = {first:.4g} * {second:.4g}",
                f"{want:.10g}",
            )
    return None


def symmetric(bench: KernelBench) -> None:
    """log p_σ(x | y) = log p_σ(y | x)."""
    for sigma in bench.sigmas:
        there = bench.domain.heat_kernel(bench.x0, sigma).log_prob(bench.x)
        back = bench.domain.heat_kernel(bench.x, sigma).log_prob(bench.x0)
        require_close(there, back, 1e-12 * (1 + back.abs()), f"log p(x|y) at sigma = {sigma:.4g}")


def score_is_gradient(bench: KernelBench) -> None:
    """score(x) is the gradient of log_prob by automatic differentiation, in both precisions."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        for sigma in bench.sigmas:
            x0, x = (bench.domain.project(v.to(dtype)) for v in (bench.x0, bench.x))
            kernel = bench.domain.heat_kernel(x0, sigma)
            x.requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(kernel.log_prob(x).sum(), x)
            score = kernel.score(x.detach())
            scale = tolerance * (1 / sigma + score.abs())
            require_close(score, slope, scale, f"score at sigma = {sigma:.4g} in {dtype}")


def no_flux(bench: KernelBench) -> None:
    """The score at a wall has no component along the normal: project(u) is the wall point, u − project(u) the normal."""
    if has_no_walls(bench.domain, bench.inside):
        return
    u = 4 * bench.inside - 3 * bench.inside.roll(1, 0) - (0.0 if bench.domain.bounded else 3.0)
    wall = bench.domain.project(u)
    normal = bench.domain.difference(u, wall)
    length = event_sum(normal**2, bench.ndim).sqrt()
    # projection can land on an edge, where every normal in the cone qualifies; a score without flux is orthogonal to all
    for sigma in bench.sigmas:
        score = bench.domain.heat_kernel(bench.inside, sigma).score(wall)
        flux = event_sum(score * normal, bench.ndim) / length.clamp(min=1e-300)
        size = event_sum(score**2, bench.ndim).sqrt()
        require_close(
            flux[length > 0], 0.0, 1e-12 * (1 / sigma + size[length > 0]), f"normal score at sigma = {sigma:.4g}"
        )


def samples(bench: KernelBench) -> None:
    """Draws lie inside, come from the generator alone, and have the kernel's mean and second moment (5 standard errors)."""
    for sigma in (bench.sigmas[1], bench.sigmas[3]):
        x0 = bench.x0[:3]
        kernel = bench.domain.heat_kernel(x0, sigma)
        draws = kernel.sample((4096,), generator=bench.generator())
        require_equal(draws, kernel.sample((4096,), generator=bench.generator()), "sample of the same generator state")
        require(bench.domain.contains(draws), "a sample outside", "all inside")
        for i in range(len(x0)):
            if (rule := bench.quadrature(x0[i], sigma)) is None:
                continue
            density = bench.domain.heat_kernel(x0[i], sigma).log_prob(rule[0]).exp() * rule[1]
            for power in (1, 2):
                values = bench.domain.difference(draws[:, i], x0[i]) ** power
                want = (bench.expand(density) * bench.domain.difference(rule[0], x0[i]) ** power).sum(0)
                error = 5 * values.std(0) / math.sqrt(len(values))
                require_close(values.mean(0), want, error, f"moment {power} of samples at sigma = {sigma:.4g}")


def targets(bench: KernelBench) -> str | None:
    """E[target | x, x0] = score(x): equal to rounding, or in the mean against 1 and the score (5 standard errors)."""
    exact = True
    for sigma in (bench.sigmas[0], bench.sigmas[2], bench.sigmas[4]):
        x0 = bench.x0[:1].expand(4096, *bench.domain.event_shape)
        kernel = bench.domain.heat_kernel(x0, sigma)
        x, target = kernel.sample_with_target(generator=bench.generator())
        require(bench.domain.contains(x), "a sample outside", "all inside")
        score = kernel.score(x)
        gap = (target - score) * sigma
        if bool((gap.abs() <= 1e-9 * (1 + (score * sigma).abs())).all()):
            continue
        exact = False
        for name, factor in (("1", torch.ones_like(score)), ("the score", score * sigma)):
            product = gap * factor
            error = 5 * product.std(0) / math.sqrt(len(product)) + 1e-12
            require_close(
                product.mean(0), 0.0, error, f"mean of (target − score) against {name} at sigma = {sigma:.4g}"
            )
    return "the score itself" if exact else "in the mean"


def independent(bench: KernelBench) -> None:
    """log_prob and score of a sample are the same alone and in a batch of mixed σ, to the bit."""
    for dtype in (torch.float32, torch.float64):
        x0, x = (bench.domain.project(v.to(dtype)) for v in (bench.x0, bench.x))
        sigma = torch.tensor([bench.sigmas[i % len(bench.sigmas)] for i in range(len(x0))], dtype=dtype)
        whole = bench.domain.heat_kernel(x0, sigma)
        log_prob, score = whole.log_prob(x), whole.score(x)
        for i in range(len(x0)):
            alone = bench.domain.heat_kernel(x0[i], sigma[i])
            require_equal(alone.log_prob(x[i]), log_prob[i], "log_prob")
            require_equal(alone.score(x[i]), score[i], "score")


def gaussian_limit(bench: KernelBench) -> str | None:
    """Farther than 10σ from all walls the kernel is N(x0, σ²): this fixes the clock, which the other laws leave open."""
    sigma = max(bench.sigmas[0] / 10, bench.domain.sigma_min)
    axes = 10 * math.sqrt(bench.dim) * sigma * torch.eye(bench.dim, dtype=torch.float64)
    around = torch.cat([axes, -axes]).reshape(-1, *bench.domain.event_shape)
    # a convex set that holds these points holds the ball of radius 10σ
    free = torch.stack([bench.domain.contains(x + around).all() for x in bench.inside])
    if not bool(free.any()):
        return "no point far from the walls"
    x0 = bench.inside[free]
    x = x0 + 0.1 * around[:1]
    kernel = bench.domain.heat_kernel(x0, sigma)
    squared = event_sum(((x - x0) / sigma) ** 2, bench.ndim)
    want = -0.5 * squared - bench.dim * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    # x − x0 carries the rounding of x
    room = 1e-14 * float(x.abs().max()) / sigma * 10 + 1e-11
    require_close(kernel.log_prob(x), want, room * (1 + want.abs()), "log_prob at small sigma")
    require_close(kernel.score(x) * sigma, (x0 - x) / sigma, room * 10, "score · sigma at small sigma")
    return None


def uniform_limit(bench: KernelBench) -> str | None:
    """On a bounded domain the kernel tends to the uniform law; |p·volume − 1| decays at least like e^{−π²σ²/2w²}."""
    if not bench.domain.bounded:
        return "unbounded"
    sigma = 8 * bench.domain.width
    kernel = bench.domain.heat_kernel(bench.x0, sigma)
    volume = uniform_law(bench.domain, torch.float64).entropy().double()
    require_close(kernel.log_prob(bench.x), -volume, 1e-12 * (1 + volume.abs()), "log_prob at large sigma")
    require_close(kernel.score(bench.x) * sigma, 0.0, 1e-12, "score at large sigma")
    return None


def refusals(bench: KernelBench) -> None:
    """σ ≤ 0, NaN or infinite, shapes that do not fit, and (where there is an outside) points outside are refused."""
    x0 = bench.inside[:3]
    for sigma in (0.0, -1.0, math.nan, math.inf):
        require_refused(lambda s=sigma: bench.domain.heat_kernel(x0, s), f"sigma = {sigma}")  # type: ignore[misc]
    require_refused(lambda: bench.domain.heat_kernel(x0, torch.ones(7, dtype=torch.float64)), "7 sigmas for 3 samples")
    require_refused(lambda: bench.domain.heat_kernel(x0.long(), 0.3), "integer x0")
    outside = x0 - 10 * (bench.domain.width if bench.domain.bounded else 1.0)
    if not bool(bench.domain.contains(outside).any()):
        require_refused(lambda: bench.domain.heat_kernel(outside, 0.3), "x0 outside")
        require_refused(lambda: bench.domain.heat_kernel(x0, 0.3).log_prob(outside), "x outside")
