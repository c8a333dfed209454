r"""A network that is a gradient: of a scalar made of any other network.

With N the inner network, the energy and the answer are

.. math:: E(x, c) = -\tfrac12 ⟨x, N(x, c)⟩,\qquad F(x, c) = -\nabla_x E = \tfrac12 \big(N(x, c) + J_N(x, c)^T x\big).

Of the energies in use this is the one that is zero where N is (a fresh network), so that an untrained score is the preconditioning's;
that of a denoiser, :math:`\tfrac12 |x - N|^2`, starts with a score of −x in units that mean something else at every noise level.
The factor makes F = N for every N that is the gradient of a quadratic form. Du et al. 2023; Salimans & Ho 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ...domains.tensors import twice_differentiable
from ..energy import descent
from .networks import answer, network_from_config, network_to_config, parts, register_network


@dataclass(frozen=True)
class ConservativeConfig:
    """Settings of :class:`Conservative`. network: the config of the network inside, ``{"type": name, **fields}``."""

    network: Mapping[str, Any] = field(default_factory=dict)


@register_network(ConservativeConfig)
class Conservative(nn.Module):
    r"""F(x, c) = −∇ₓE(x, c): a network whose Jacobian in x is symmetric, out of any network; see the module.

    An evaluation costs three to four of the network inside, and training differentiates twice, which all its layers must allow.
    Attention is computed without fused kernels, which do not. Implicit score matching differentiates a third time, where PyTorch's
    ``LayerNorm`` and ``BatchNorm`` are silently wrong: in networks of one's own use others; those of the library do.

    The score is a gradient where the preconditioning scales all axes alike and damps none: :class:`EDMPreconditioning`, and
    ``Reflected(domain, wall=False)`` on domains with one unit for all axes; damping at walls multiplies it by a matrix.

    Args:
        network: any ``nn.Module``, as for :class:`NeuralScore`. Registered classes travel in the checkpoint.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"Conservative: got {type(network).__name__}, expected an nn.Module, e.g. MLP(MLPConfig((2,)))"
            )
        self.network = network

    @classmethod
    def from_config(cls, config: ConservativeConfig) -> Conservative:
        return cls(network_from_config(config.network))

    @property
    def config(self) -> ConservativeConfig:
        return ConservativeConfig(network_to_config(self.network))

    def energy(self, x: Tensor, c_noise: Tensor, **condition: Any) -> Tensor:
        """E: ``[B]``."""
        with twice_differentiable():
            (output,) = parts(answer(self.network(x, c_noise, **condition)), x, most=1)
        return -0.5 * (x * output).reshape(len(x), -1).sum(-1)

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Any) -> Tensor:
        """x ``[B, *event]``, c_noise ``[B]`` → ``[B, *event]``."""
        return descent(lambda v: self.energy(v, c_noise, **condition), x)
