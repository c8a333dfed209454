"""What a training step costs beside the network: everything but its forward and backward pass, as a share of the step.

The step is that of ``train``: batch, levels, noise, loss, gradient norm, clipping, AdamW, moving average, and the loss by σ. The network is
timed alone on inputs of the same kind with a gradient of the same shape. The share is the difference of the two, round by round: on a busy
machine it comes with the noise of both, so what beside the network is timed by itself as well, part by part, and that sum is the figure.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved, machine, settle_allocator, verdict
from torch import Tensor, nn

from carom.domains import Euclidean, Hypercube
from carom.processes import EDM, VE, Diffusion
from carom.scores.neural import DenoisingScoreMatching, NeuralScore, UNet, UNetConfig
from carom.scores.neural.batches import Batches
from carom.scores.neural.metrics import Curve
from carom.scores.neural.updates import Updates
from carom.scores.neural.workers import Workers

EVENT = (3, 32, 32)
PROCESSES = {
    "Hypercube, reflected VE": Diffusion(Hypercube(EVENT), VE()),
    "Euclidean, EDM": Diffusion(Euclidean(EVENT), EDM()),
}


class Free(nn.Module):
    """A network that costs nothing and has the weights of one that does: what is left of the step is the loss around it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(()))
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.answer.expand_as(x)


class Step:
    """The parts of one training step of this network, as ``train`` takes them."""

    def __init__(self, network: nn.Module, process: Diffusion, batch: int):
        self.score = NeuralScore(network, process).train()
        self.score.track_ema()
        self.batches = Batches(torch.rand(4 * batch, *EVENT), process.domain, batch, 1, 0)
        rate: Callable[[int], float] = lambda step: 1e-4
        self.updates = Updates(self.score, None, rate, lambda step: 0.999, 0.0, 1.0, Workers())
        self.curve = Curve(process.schedule.sigma_min, process.schedule.sigma_max, torch.device("cpu"))
        self.generator, self.number = torch.Generator(), 0
        self()

    def loss(self) -> Tensor:
        torch.manual_seed(self.number)
        self.generator.manual_seed(self.number)
        x, _ = self.batches.at(self.number, 0, torch.device("cpu"))
        terms = DenoisingScoreMatching().terms(self.score, x, self.generator)
        self.curve.add(terms)
        return terms.loss.mean()

    def backward(self) -> Tensor:
        self.updates.begin()
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def __call__(self) -> None:
        self.updates.finish(self.backward(), self.number)
        self.number += 1

    def update(self) -> None:
        """On the gradients that are there."""
        self.updates.finish(torch.ones(()), self.number)


def alone(network: nn.Module, batch: int) -> Callable[[], Any]:
    x, c_noise, gradient = torch.randn(batch, *EVENT), torch.randn(batch) / 4, torch.randn(batch, *EVENT) / batch

    def run() -> None:
        network.zero_grad(set_to_none=True)
        network(x, c_noise).backward(gradient)

    return run


def measure(name: str, process: Diffusion, batch: int, config: UNetConfig, seconds: float) -> None:
    network = UNet(config)
    step, around = Step(network, process, batch), Step(Free(network), process, batch)
    cases = {
        "network": alone(network, batch),
        "step": step,
        "loss": around.backward,
        "update": step.update,
    }
    times = interleaved(cases, rounds=9, seconds=seconds)
    rounds = zip(*(times.seconds[key] for key in cases), strict=True)
    shares = [
        ((loss + update) / (network + loss + update), (whole - network) / whole)
        for network, whole, loss, update in rounds
    ]
    parts, difference = (100 * statistics.median(column) for column in zip(*shares, strict=True))
    print(
        f"{name:26}{batch:6}{1e3 * times.median('network'):12.0f}{1e3 * times.median('loss'):10.1f}"
        f"{1e3 * times.median('update'):10.1f}{parts:10.1f} %   {verdict(parts, 5)}   (by difference {difference:.1f} %)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="*", default=[128], help="128 takes a minute a line on one core")
    parser.add_argument("--channels", type=int, default=32, help="of the U-Net: more cost more beside the same loss")
    parser.add_argument("--seconds", type=float, default=20.0, help="per line, at most, but for three rounds")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    settle_allocator()
    config = UNetConfig(image_channels=EVENT[0], channels=arguments.channels)
    size = sum(p.numel() for p in UNet(config).parameters())
    print(f"U-Net of {size:,} weights at {EVENT}, float32; {machine()}\n")
    print(f"{'':26}{'batch':>6}{'network ms':>12}{'loss ms':>10}{'update ms':>10}{'share':>12}")
    for name, process in PROCESSES.items():
        for batch in arguments.batches:
            measure(name, process, batch, config, arguments.seconds)


if __name__ == "__main__":
    main()
