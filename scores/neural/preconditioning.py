r"""What stands between a network and a score: scalings that keep its inputs and its regression target of unit size.

Everything is in the coordinates :math:`X = x / s` of the heat flow, at noise level σ, so that one network serves every
schedule. σ comes in broadcast form, ``[B, 1, …, 1]`` next to X ``[B, *event]``. With F the network,

.. math:: \nabla \log p_σ(X) = A(X, σ) + u(σ)\, F\big(c_{in}(σ)(X - centre),\ c_{noise}(σ)\big),

and the *unit* u is chosen so that F regresses on a target of unit size at every σ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ...domains import Domain


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

    @property
    def damped(self) -> bool:
        """Whether scores have no component normal to the walls at them, whatever the network says."""
        return False

    def check(self, domain: Domain) -> None:
        """Refuse a domain this preconditioning is not made for; by default none is refused."""
        return
