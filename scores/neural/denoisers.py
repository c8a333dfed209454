r"""Preconditionings of denoisers in the open: the columns of Karras et al. 2022, table 1, and those of v and velocity networks.

With μ the mean of the data and X = x/s at noise level σ, a network F gives the denoiser

.. math:: D = μ + c_{skip}(X - μ) + c_{out}\,F\big(c_{in}(X - μ),\ c_{noise}\big),\qquad
          \nabla \log p_σ(X) = \frac{D - X}{σ^2} = \frac{c_{out}}{σ^2} F - \frac{1 - c_{skip}}{σ^2}(X - μ)

=========================  ================  ==================  ============  ===================  ====================
preconditioning            c_skip            c_out               c_in          c_noise              F predicts
=========================  ================  ==================  ============  ===================  ====================
VPPreconditioning          1                 −σ                  1/√(σ² + 1)   (M − 1)·t_VP(σ)      ε
VEPreconditioning          1                 σ                   1             ln(σ/2)              −ε
IDDPMPreconditioning       1                 −σ                  1/√(σ² + 1)   M − 1 − argmin|u−σ|  ε
EDMPreconditioning         d²/(σ² + d²)      σd/√(σ² + d²)       1/√(σ² + d²)  ¼ ln σ               (D − c_skip X)/c_out
VPredictionPreconditioning 1/(σ² + 1)        −σ/√(σ² + 1)        1/√(σ² + 1)   ¼ ln σ               v = s ε − std·x0
VelocityPreconditioning    1/(1 + σ)         −σ/(1 + σ)          1/(1 + σ)     t = σ/(1 + σ)        ε − x0
=========================  ================  ==================  ============  ===================  ====================

1 − c_skip is written out in each, for at small σ it is lost in 1 − c_skip, and so is c_skip itself where it is small at large σ.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ...domains.constants import OnDevice
from ...domains.tensors import is_int, number
from ...processes import VP
from ...solvers import iddpm_levels
from .preconditioning import Preconditioning


class DenoiserPreconditioning(Preconditioning):
    """What the columns have in common; a column is these four functions of σ, elementwise. ``mean`` is μ, the mean of the data."""

    mean: float

    @abstractmethod
    def c_in(self, sigma: Tensor) -> Tensor:
        """What the network's input is multiplied by."""

    @abstractmethod
    def c_out(self, sigma: Tensor) -> Tensor:
        """What one unit of the network's output adds to the denoiser."""

    @abstractmethod
    def shrinkage(self, sigma: Tensor) -> Tensor:
        """(1 − c_skip)/σ², without cancellation: what the score has of −(X − μ)."""

    @abstractmethod
    def gain(self, sigma: Tensor) -> Tensor:
        """c_out/σ²: what one unit of the network's output adds to the score."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return 1 - sigma**2 * self.shrinkage(sigma)

    def unit(self, sigma: Tensor) -> Tensor:
        return self.gain(sigma).abs()

    def inputs(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.c_in(sigma) * (x - self.mean)

    def score(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return self.gain(sigma) * raw - self.shrinkage(sigma) * (x - self.mean)

    def denoised(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """D itself."""
        return self.mean + self.c_skip(sigma) * (x - self.mean) + self.c_out(sigma) * raw

    def config(self) -> dict[str, Any]:
        return {"type": type(self).__name__, "mean": self.mean}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v:g}" for k, v in self.config().items() if k != "type")
        return f"{type(self).__name__}({arguments})"


class EDMPreconditioning(DenoiserPreconditioning):
    r"""Unit size at every σ: for data N(μ, d²) the best F is 0 and the loss 1.

    With d the spread of the data: c_skip = d²/(σ² + d²), c_out = σd/√(σ² + d²), c_in = 1/√(σ² + d²), c_noise = ¼ ln σ.

    Args:
        sigma_data: d > 0, the standard deviation of the data per axis.
        mean: μ, its mean.

    Karras et al. 2022, table 1 (there μ = 0).
    """

    def __init__(self, sigma_data: float = 0.5, mean: float = 0.0):
        self.sigma_data = number(sigma_data, "sigma_data", low=0.0, open_low=True)
        self.mean = number(mean, "mean")

    def config(self) -> dict[str, Any]:
        return {"type": "EDMPreconditioning", "sigma_data": self.sigma_data, "mean": self.mean}

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 * self.shrinkage(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data * self.c_in(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def shrinkage(self, sigma: Tensor) -> Tensor:
        return self.c_in(sigma) ** 2

    def gain(self, sigma: Tensor) -> Tensor:
        return self.sigma_data * self.c_in(sigma) / sigma


class _Noise(DenoiserPreconditioning):
    """F predicts ε up to its sign: c_skip = 1, c_out = ∓σ."""

    sign = -1.0

    def c_out(self, sigma: Tensor) -> Tensor:
        return self.sign * sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + 1).rsqrt()

    def shrinkage(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)

    def gain(self, sigma: Tensor) -> Tensor:
        return self.sign / sigma


class VPPreconditioning(_Noise):
    """The ε-network of the VP SDE, with the label (M − 1)·t that score_sde's continuous models take, 0 … M − 1.

    Args:
        beta_min, beta_max: of the VP schedule whose t it is; the process need not be that schedule.
        M: number of labels; 1000 in the sources.
        mean: μ, subtracted before anything else.

    Song et al. 2021; Karras et al. 2022, table 1, column VP.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, M: int = 1000, mean: float = 0.0):
        self.schedule, self.M = VP(beta_min, beta_max), _count(M)
        self.mean = number(mean, "mean")

    def config(self) -> dict[str, Any]:
        arguments = self.schedule.config() | {"M": self.M, "mean": self.mean}
        return arguments | {"type": "VPPreconditioning"}

    def c_noise(self, sigma: Tensor) -> Tensor:
        return (self.M - 1) * self.schedule.time(sigma)


class VEPreconditioning(_Noise):
    """The network of the VE SDE: it sees X as it is, and its output is −ε.

    Args: mean: μ. Inputs grow with σ: a network that is to see σ = 50 wants a normalisation in front.
    Song et al. 2021; Karras et al. 2022, table 1, column VE (there σ_min, σ_max are the schedule's).
    """

    sign = 1.0

    def __init__(self, mean: float = 0.0):
        self.mean = number(mean, "mean")

    def c_in(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return (0.5 * sigma).log()


class IDDPMPreconditioning(_Noise):
    """The ε-network of the improved DDPM, with the nearest of its M labels: M − 1 − argmin_j |u_j − σ|.

    Args: M, C1, C2: of the table u, see :func:`~carom.solvers.iddpm_levels`. mean: μ.
    Nichol & Dhariwal 2021; Karras et al. 2022, table 1, column iDDPM.
    """

    def __init__(self, M: int = 1000, C1: float = 0.001, C2: float = 0.008, mean: float = 0.0):
        self.M, self.C1, self.C2 = _count(M), number(C1, "C1", low=0.0), number(C2, "C2", low=0.0)
        self.mean = number(mean, "mean")
        u = iddpm_levels(self.M, self.C1, self.C2).flip(0)
        self._between = OnDevice((0.5 * (u[1:] + u[:-1]),))  # where one label gives way to the next

    def config(self) -> dict[str, Any]:
        return {"type": "IDDPMPreconditioning", "M": self.M, "C1": self.C1, "C2": self.C2, "mean": self.mean}

    def c_noise(self, sigma: Tensor) -> Tensor:
        (between,) = self._between(sigma.device)
        return torch.bucketize(sigma.detach().to(torch.float64), between).to(sigma.dtype)


class FinitePrediction(DenoiserPreconditioning):
    """Columns whose F stays finite where s or σ vanish, so that data and noise can be read from it there."""

    mean = 0.0

    def config(self) -> dict[str, Any]:
        return {"type": type(self).__name__}

    @abstractmethod
    def standard(self, scale: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """(s, std) of the same noise level in the clock F is defined on."""

    @abstractmethod
    def prediction(self, raw: Tensor, x: Tensor, scale: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, ε) of F and of x in that clock, which is also what F saw; scale and std as ``standard`` gives them."""


class VPredictionPreconditioning(FinitePrediction):
    """F predicts v = s ε − std·x0 of the variance-preserving state; what EDM's column is at d = 1, with the other sign.

    It stays finite where s or σ vanish, so a score with it offers ``prediction`` (see :class:`NeuralScore`).
    c_noise = ¼ ln σ, kept within ±5 (σ from 2e-9 to 5e8). Salimans & Ho 2022, app. D.
    """

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma * self.c_in(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + 1).rsqrt()

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.c_in(sigma) ** 2

    def c_noise(self, sigma: Tensor) -> Tensor:
        return (sigma.log() / 4).clamp(-5, 5)

    def shrinkage(self, sigma: Tensor) -> Tensor:
        return self.c_in(sigma) ** 2

    def gain(self, sigma: Tensor) -> Tensor:
        return -self.c_in(sigma) / sigma

    def standard(self, scale: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        size = torch.hypot(scale, std)
        return scale / size, std / size

    def prediction(self, raw: Tensor, x: Tensor, scale: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        return scale * x - std * raw, std * x + scale * raw


class VelocityPreconditioning(FinitePrediction):
    """F predicts the velocity ε − x0 of the path (1 − t) x0 + t ε: flow matching, for any schedule.

    Its unit is that of :class:`ConditionalFlowMatching`. It stays finite where s or σ vanish, so a score with it offers
    ``prediction``. Lipman et al. 2023; Liu et al. 2023.
    """

    def c_out(self, sigma: Tensor) -> Tensor:
        return -self.c_noise(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.c_in(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + 1 / sigma)  # 1 at σ = ∞

    def shrinkage(self, sigma: Tensor) -> Tensor:
        return self.c_in(sigma) / sigma

    def gain(self, sigma: Tensor) -> Tensor:
        return -self.c_in(sigma) / sigma

    def standard(self, scale: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        return scale / (scale + std), std / (scale + std)

    def prediction(self, raw: Tensor, x: Tensor, scale: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        return x - std * raw, x + scale * raw


def _count(M: int) -> int:
    if not is_int(M, 2):
        raise ValueError(f"M: got {M!r}, expected a whole number of at least 2")
    return M
