"""A domain of one's own: ordered pairs x1 ≤ x2. Folding is sorting, the kernel has one image, and the laws judge."""

import torch
from torch.distributions import Normal

from carom.domains import FoldedDomain, HeatKernel, KernelDomain
from carom.validation import check_domain


class OrderedPair(FoldedDomain, KernelDomain):
    event_shape, is_cone = (2,), True  # scaling keeps the order, so every schedule may be used

    def contains(self, x, atol=0.0):
        return x[..., 0] - x[..., 1] <= 2 * atol

    def project(self, x):
        return torch.where(self.contains(x).unsqueeze(-1), x, x.mean(-1, keepdim=True))

    def fold(self, u):
        x, order = u.sort(dim=-1, stable=True)
        return x, lambda v: torch.zeros_like(v).scatter(-1, order, v)  # carries a vector at x back to u

    def boundary_distance(self, x):
        return (x[..., 1] - x[..., 0]) / 2**0.5

    def heat_kernel(self, x0, sigma):
        return OrderedPairKernel(self, x0, sigma)


class OrderedPairKernel(HeatKernel):
    def _log_prob(self, x):
        return torch.logaddexp(*(Normal(y, self._sigma).log_prob(x).sum(-1) for y in (self.x0, self.x0.flip(-1))))

    def _score(self, x):
        swapped = torch.sigmoid(-x.diff(dim=-1) * self.x0.diff(dim=-1) / self._sigma**2)  # weight of the image
        return (self.x0 + swapped * (self.x0.flip(-1) - self.x0) - x) / self._sigma**2


print(check_domain(OrderedPair()))
