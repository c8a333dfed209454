r"""Domains: the closed sets a diffusion lives in, and the heat kernels that know their walls.

A domain is a closed set with piecewise smooth walls. Its functions are pure and batched: ``x`` is ``[*batch, *event]``,
any floating dtype, any device. To add a domain of your own, derive from

* :class:`Domain` and give ``event_shape``, ``width``, ``contains``, ``project``, ``reflect`` (``uniform`` if it is bounded, and
  ``boundary_distance`` if scores on it are to be damped at the walls);
* :class:`FoldedDomain` if reflection is the folding of a covering space: give ``fold`` instead of ``reflect``;
* :class:`KernelDomain` as well if the Neumann heat kernel is known: give ``heat_kernel``.

``carom.validation.check_domain`` then runs the laws on it.

The heat kernel :math:`p_\sigma(x | x_0)` is the law at *variance time* :math:`\sigma^2` of Brownian motion started at
:math:`x_0` and reflected at the walls: :math:`\partial p / \partial(\sigma^2) = \tfrac12 \Delta p`, :math:`\partial_n p = 0`.
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from .tensors import as_like, batch_shape, check_event, check_positive, event_sum, expand_right, values_are_readable

# Functions of a state, which refuse what is no state; see Domain.__init_subclass__.
_OF_STATES = (
    "contains",
    "project",
    "reflect",
    "fold",
    "boundary_distance",
    "inward_normal",
    "damp",
    "to_probabilities",
)

Draw = Callable[[torch.Size, torch.dtype, torch.device, torch.Generator | None], Tensor]


def _takes_states(function: Callable) -> Callable:
    @functools.wraps(function)
    def checked(self: Domain, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        check_event(x, self.event_shape)
        return function(self, x, *args, **kwargs)

    return checked


class Domain(ABC):
    """A closed set in which states live. Public facts: ``event_shape``, ``width``, ``is_cone``.

    Its functions refuse tensors of integers or of another event shape; that, a domain of your own need not do.
    """

    event_shape: tuple[int, ...]

    #: True where scaling by a positive number maps the domain onto itself; only there may a schedule have scale ≠ 1.
    is_cone: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _OF_STATES:
            if name in cls.__dict__:
                setattr(cls, name, _takes_states(cls.__dict__[name]))

    @property
    def width(self) -> float:
        """The longest extent of the domain along an axis; infinite where it is unbounded. Unless a domain states it, the
        extent of 4,096 uniform samples."""
        if not self.bounded:
            return math.inf
        return self._measured_width

    @functools.cached_property
    def _measured_width(self) -> float:
        x = self.uniform().sample((4096,), generator=torch.Generator().manual_seed(0))  # type: ignore[call-arg]
        return float((x.amax(0) - x.amin(0)).max())

    @property
    def bounded(self) -> bool:
        """Whether the domain has a uniform law."""
        return type(self).uniform is not Domain.uniform

    @abstractmethod
    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        """Whether each sample lies within ``atol`` of the domain: Bool ``[*batch]``; NaN is outside."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The nearest point of the domain; points inside come back unchanged, to the bit."""

    @abstractmethod
    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        """Where a ball at ``x`` ends that moves by ``displacement`` and bounces specularly off the walls."""

    def uniform(self, dtype: torch.dtype | None = None) -> Distribution:
        """The uniform law; ``sample(shape=(), *, generator=None)`` in ``dtype``, ``log_prob``, ``entropy()`` = log-volume."""
        raise TypeError(f"{self!r} is unbounded and has no uniform law; use a bounded domain, e.g. Hypercube")

    def config(self) -> dict[str, Any]:
        """``{"type": class name, **constructor arguments}``, JSON-able: how the domain travels in a checkpoint."""
        raise NotImplementedError(f"{type(self).__name__} does not define config(), which checkpoints need")

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest way from y to x: x − y, unless the domain identifies points (a torus)."""
        return x - y

    def boundary_distance(self, x: Tensor) -> Tensor:
        """The distance of points inside from the nearest wall: ``[*batch]``; infinite where there is none."""
        raise NotImplementedError(
            f"{type(self).__name__} does not define boundary_distance(x), which damping at walls needs"
        )

    @_takes_states
    def inward_normal(self, x: Tensor) -> Tensor:
        """The unit normal of the wall nearest to x, pointing inwards: the gradient of ``boundary_distance``."""
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            distance = self.boundary_distance(at)
            slope = torch.autograd.grad(distance.sum(), at, create_graph=x.requires_grad)[0]
        # where walls are equally near it is split between them; where it vanishes (a centre) there is none
        squared = event_sum(slope**2, len(self.event_shape)).clamp(min=torch.finfo(x.dtype).tiny)
        return slope / expand_right(squared.sqrt(), len(self.event_shape))

    @_takes_states
    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        """``vector`` with its component normal to the walls scaled to zero at them, over a layer of thickness ``width``.

        Here along the normal of the nearest wall alone; domains with edges damp along all walls that are near."""
        ndim = len(self.event_shape)
        normal, distance = self.inward_normal(x), expand_right(self.boundary_distance(x), ndim)
        along = expand_right(event_sum(vector * normal, ndim), ndim)
        return vector - (1 - (distance / as_like(width, x)).clamp(0, 1)) * along * normal

    def facets(self) -> tuple[Tensor, Tensor]:
        """The walls of a domain that has only flat ones: inward unit normals ``[m, n]`` and offsets ``[m]``, float64, n coordinates of the
        flattened event; inside is normals·x + offsets ≥ 0."""
        raise TypeError(
            f"{self!r} has no list of flat walls; use a Polytope, a Hypercube, an Orthant or a RegularSimplex"
        )

    def check(self, x: Tensor, name: str = "x") -> None:
        """Refuse states of the wrong dtype or shape, and states outside (beyond rounding)."""
        check_event(x, self.event_shape, name)
        if not values_are_readable(x):
            return
        scale = self.width if self.bounded else 1.0
        inside = self.contains(x, atol=8 * torch.finfo(x.dtype).eps * scale)
        if not bool(inside.all()):
            first = torch.nonzero(~inside)[0].tolist() if inside.dim() else []
            bad = x[tuple(first)].detach().flatten()
            advice = "map the data into the domain, or domain.project it first"
            if not bool(bad.isfinite().all()):
                advice = "they are not finite: find where they come from"
            shown = ", ".join(f"{v:.6g}" for v in bad[:6].tolist()) + (", …" if bad.numel() > 6 else "")
            raise ValueError(
                f"{name}: {int((~inside).sum())} of {inside.numel()} samples lie outside {self!r}, the first at index "
                f"{first} with values [{shown}]; {advice}"
            )


def uniform_law(domain: Domain, dtype: torch.dtype | None = None) -> Distribution:
    """The uniform law in ``dtype`` where the domain can choose it; the contract asks for ``uniform()`` alone."""
    takes_dtype = "dtype" in inspect.signature(domain.uniform).parameters
    return domain.uniform(dtype) if takes_dtype else domain.uniform()


class WithoutWalls(Domain):
    """A domain that has none: nothing is near one, and nothing is damped."""

    def boundary_distance(self, x: Tensor) -> Tensor:
        return x.new_full(batch_shape(x, self.event_shape), math.inf)

    def inward_normal(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        return vector


class Uniform(Distribution):
    """The uniform law on a bounded domain.

    Args:
        domain: the domain.
        draw: ``draw(shape, dtype, device, generator)`` → that many states, ``[*shape, *event]``.
        log_volume: its log-volume, which is the entropy.
        dtype: of the draws; torch's default by default.
    """

    arg_constraints = {}
    support = constraints.real

    def __init__(self, domain: Domain, draw: Draw, log_volume: float, dtype: torch.dtype | None = None):
        self.domain, self.draw, self.dtype = domain, draw, dtype or torch.get_default_dtype()
        self.log_volume = log_volume
        super().__init__(torch.Size(), torch.Size(domain.event_shape), validate_args=False)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``[*sample_shape, *event]`` on the generator's device."""
        device = torch.device("cpu") if generator is None else generator.device
        return self.draw(torch.Size(sample_shape), self.dtype, device, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """−log-volume inside, −∞ outside: ``[*batch]``."""
        check_event(x, self.domain.event_shape)
        return torch.where(self.domain.contains(x), -self.entropy().to(x), -math.inf)

    def entropy(self) -> Tensor:
        return torch.tensor(self.log_volume, dtype=torch.float64)


class FoldedDomain(Domain):
    """A domain reached by folding a covering space (cube, orthant, torus, simplex, products of them).

    An exact score continues across the walls as an odd, periodic field on the covering space; ``back`` carries it there.
    """

    @abstractmethod
    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The point of the domain above which ``u`` lies, and ``back(v)``, which carries a vector at that point to ``u``."""

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        return self.fold(x + displacement)[0]


class KernelDomain(Domain):
    """A domain whose Neumann heat kernel is known in closed form.

    ``sigma_min``: below this σ the kernel is an approximation that the domain states; 0 where it is exact at every σ.
    """

    sigma_min: float = 0.0

    @abstractmethod
    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        r"""The law of Brownian motion from ``x0``, reflected, after variance :math:`\sigma^2`; ``sigma`` broadcasts over the batch.

        Raises ``ValueError`` for points outside, ``sigma`` ≤ 0 or not finite, shapes that do not fit.
        """

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        """The same for loops over values that were checked before they began; override it where checks can be left out."""
        return self.heat_kernel(x0, sigma)


class HeatKernel(Distribution):
    r"""The Neumann heat kernel :math:`p_\sigma(\cdot\,|\,x_0)` of a domain.

    ``x0`` is ``[*batch, *event]``; ``sigma`` broadcasts over the batch (a number, 0-d, ``[*batch]``). The batch shape is
    their broadcast. Bad input is refused here, unless ``validate_args=False``, which is what
    ``KernelDomain.unchecked_kernel`` gives.
    A subclass gives ``_log_prob(x)`` and ``_score(x)``; on a domain without a fold ``_sample(z)``; and ``sample_with_target`` where it
    knows a cheaper target than the score.
    """

    arg_constraints = {}
    support = constraints.real

    def __init__(self, domain: KernelDomain, x0: Tensor, sigma: float | Tensor, validate_args: bool | None = None):
        self.domain = domain
        check_event(x0, domain.event_shape, "x0")
        sigma = as_like(sigma, x0)
        if validate_args is not False:
            domain.check(x0, "x0")
            check_positive(sigma, "sigma")
        ndim = len(domain.event_shape)
        try:
            batch = torch.broadcast_shapes(batch_shape(x0, domain.event_shape), sigma.shape)
        except RuntimeError:
            raise ValueError(
                f"sigma: got shape {tuple(sigma.shape)}, expected one that broadcasts over the batch "
                f"{tuple(batch_shape(x0, domain.event_shape))} of x0; drop its event dimensions"
            ) from None
        self.x0, self.sigma = x0, sigma
        #: sigma in broadcast form, ready for arithmetic with states
        self._sigma = expand_right(sigma, ndim)
        self._validate = validate_args is not False
        super().__init__(batch, torch.Size(domain.event_shape), validate_args=False)

    def _check(self, x: Tensor) -> Tensor:
        check_event(x, self.domain.event_shape)
        if self._validate:
            self.domain.check(x)
        return x

    def _noise(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        device = self.x0.device if generator is None else generator.device
        z = torch.randn(shape, dtype=self.x0.dtype, device=device, generator=generator)
        return z.to(self.x0.device)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws: ``[*sample_shape, *batch, *event]``."""
        return self._sample(self._noise(self._extended_shape(torch.Size(sample_shape)), generator))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p_σ(x | x0): ``[*batch]``, differentiable in ``x``, ``x0`` and ``sigma``."""
        return self._log_prob(self._check(x))

    def score(self, x: Tensor) -> Tensor:
        """∇ₓ log p_σ(x | x0), by its own formula (not by autograd): the shape of ``x`` broadcast with the batch."""
        return self._score(self._check(x))

    @torch.no_grad()
    def sample_with_target(self, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``(x, target)`` with E[target | x, x0] = score(x): what denoising score matching regresses on."""
        x = self.sample(generator=generator)
        return x, self._score(x)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, without checks, and where they share work at little more than the cost of one: for inner loops over many kernels."""
        return self._log_prob(x), self._score(x)

    def _sample(self, z: Tensor) -> Tensor:
        """The draw made of the unit normals ``z``: x0 + σz folded, which is exact wherever images give the kernel."""
        if not isinstance(self.domain, FoldedDomain):
            raise NotImplementedError(
                f"{type(self).__name__} does not define _sample(z), and {self.domain!r} has no fold"
            )
        return self.domain.fold(self.x0 + self._sigma * z)[0]

    @abstractmethod
    def _log_prob(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _score(self, x: Tensor) -> Tensor: ...
