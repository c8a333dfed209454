r"""What stands between a network and a score: scalings that keep its inputs and its regression target of unit size.

Everything is in the coordinates :math:`X = x / s` of the heat flow, at noise level σ, so that one network serves every
schedule. σ comes in broadcast form, ``[B, 1, …, 1]`` next to X ``[B, *event]``. With F the network,

.. math:: \nabla \log p_σ(X) = A(X, σ) + u(σ)\, F\big(c_{in}(σ)(X - centre),\ c_{noise}(σ)\big),

and the *unit* u is chosen so that F regresses on a target of unit size at every σ.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...domains import Domain, Hypercube
from ...domains.registry import from_config
from ...domains.tensors import number


class Preconditioning(ABC):
    """What a preconditioning answers; to write one, give these five functions, pure and element by element in σ."""

    @abstractmethod
    def inputs(self, x: Tensor, sigma: Tensor) -> Tensor:
        """What the network sees of X: c_in(σ)·(X − centre)."""

    @abstractmethod
    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the network sees of σ: finite for σ > 0."""

    @abstractmethod
    def unit(self, sigma: Tensor) -> Tensor:
        """u(σ): how much one unit of the network's output adds to the score. The loss is measured in it."""

    @abstractmethod
    def score(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The score of X made of the network's output."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """``{"type": name, **arguments}``, JSON-able, without the domain."""

    def check(self, domain: Domain) -> None:
        """Refuse a domain this preconditioning is not made for; by default none is refused."""
        return


class EDMPreconditioning(Preconditioning):
    r"""The denoiser :math:`D = μ + c_{skip}(X - μ) + c_{out} F(c_{in}(X - μ), \tfrac14 \ln σ)`, score = (D − X)/σ².

    With d the spread of the data: c_skip = d²/(σ² + d²), c_out = σd/√(σ² + d²), c_in = 1/√(σ² + d²). For data N(μ, d²)
    the best F is 0 and the loss 1 at every σ.

    Args:
        sigma_data: d > 0, the standard deviation of the data per axis.
        mean: μ, its mean.

    Karras et al. 2022, table 1 (there μ = 0).
    """

    def __init__(self, sigma_data: float = 0.5, mean: float = 0.0):
        self.sigma_data = number(sigma_data, "sigma_data", low=0.0, open_low=True)
        self.mean = number(mean, "mean")

    def __repr__(self) -> str:
        return f"EDMPreconditioning(sigma_data={self.sigma_data:g}, mean={self.mean:g})"

    def config(self) -> dict[str, Any]:
        return {"type": "EDMPreconditioning", "sigma_data": self.sigma_data, "mean": self.mean}

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 * self.c_in(sigma) ** 2

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data * self.c_in(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def unit(self, sigma: Tensor) -> Tensor:
        return self.sigma_data * self.c_in(sigma) / sigma

    def inputs(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.c_in(sigma) * (x - self.mean)

    def score(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        # (D − X)/σ² with c_skip − 1 = −σ²·c_in², which D − X would round away at small σ
        return self.unit(sigma) * raw - self.c_in(sigma) ** 2 * (x - self.mean)

    def denoised(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """D itself."""
        return self.mean + self.c_skip(sigma) * (x - self.mean) + self.c_out(sigma) * raw


class Reflected(Preconditioning):
    r"""score = u(σ)·F for data in a box, with u² the mean Fisher information of its heat kernel, axis by axis.

    On [0, 1], :math:`u(σ)^2 = E[(∂_x \log p_σ(x|x_0))^2]` over uniform :math:`x_0` and :math:`x ∼ p_σ(·|x_0)` is what the
    targets of score matching average to: :math:`σ^{-2}(1 - 1.533σ)` for small σ and :math:`π^2 e^{-π^2 σ^2}` for large σ. Here

    .. math:: u(σ) = e^{-π^2 σ^2/2} \sqrt{π^2 + σ^{-2} e^{-1.28σ - 5σ^2}},

    smooth, right at both ends and within 0.5 % of quadrature in between; an axis of width w has u(σ/w)/w. From σ = 2w on
    (where the kernel is uniform to 5e-9) u stays, and there is nothing left to learn. Inputs are mapped to [−1, 1],
    c_noise = ¼ ln(σ / longest width).

    Args:
        domain: a :class:`Hypercube`.
        wall: damp the normal component at the walls over a layer min(σ, w/4), so that the score's flux through them is
            exactly 0, as the true score's is. The probability flow and covering walls need it to reach their order.
    """

    # σ/w beyond which the kernel is flat to rounding
    _FLAT = 2.0

    def __init__(self, domain: Hypercube, wall: bool = True):
        if not isinstance(domain, Hypercube):
            raise TypeError(
                f"Reflected: got {domain!r}, expected a Hypercube, whose Fisher information it knows; for another bounded "
                "domain derive from Preconditioning and pass NeuralScore(…, preconditioning=…)"
            )
        self.domain, self.wall = domain, bool(wall)

    def __repr__(self) -> str:
        return f"Reflected({self.domain!r}, wall={self.wall})"

    def config(self) -> dict[str, Any]:
        return {"type": "Reflected", "wall": self.wall}

    def check(self, domain: Domain) -> None:
        if not isinstance(domain, Hypercube) or domain.config() != self.domain.config():
            raise ValueError(f"preconditioning: got one made for {self.domain!r}, expected one for {domain!r}")

    def inputs(self, x: Tensor, sigma: Tensor) -> Tensor:
        low, high = self.domain.bounds(x)
        return (x - 0.5 * (low + high)) * (2 / (high - low))

    def c_noise(self, sigma: Tensor) -> Tensor:
        return (sigma / self.domain.width).clamp(max=self._FLAT).log() / 4

    def unit(self, sigma: Tensor) -> Tensor:
        low, high = self.domain.bounds(sigma)
        width = high - low
        r = (sigma / width).clamp(max=self._FLAT)
        return (-0.5 * math.pi**2 * r**2).exp() * (math.pi**2 + (-1.28 * r - 5 * r**2).exp() / r**2).sqrt() / width

    def score(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        score = self.unit(sigma) * raw
        if not self.wall:
            return score
        low, high = self.domain.bounds(x)
        layer = torch.minimum(sigma, torch.as_tensor((high - low) / 4, dtype=x.dtype, device=x.device))
        return self.domain.damp(x, score, layer)


def default_preconditioning(domain: Domain) -> Preconditioning:
    """:class:`Reflected` with the wall on a hypercube, :class:`EDMPreconditioning` where the domain is unbounded."""
    if isinstance(domain, Hypercube):
        return Reflected(domain)
    if not domain.bounded:
        return EDMPreconditioning()
    raise TypeError(
        f"NeuralScore: got {domain!r}, for which no preconditioning is known; pass one: NeuralScore(…, preconditioning=…)"
    )


def preconditioning_from_config(config: Mapping[str, Any], domain: Domain) -> Preconditioning:
    """The inverse of ``preconditioning.config()``, on this domain; unknown names and arguments are refused."""
    arguments = dict(config)
    if arguments.get("type") == "Reflected":
        arguments["domain"] = domain
    return from_config(arguments, {c.__name__: c for c in (EDMPreconditioning, Reflected)}, "preconditioning")
