"""Eight solvers on one image model: distance to held-out pictures against evaluations, the weights never touched.

The model is the checkpoint that ships with carom (Fashion-MNIST in the cube, class-conditional; labels are drawn as the data have them), or
``--checkpoint``. The distance is a Fréchet distance in the 64 features of a small convolutional network trained here to tell the ten
classes apart: "own-CNN FD", comparable within this table only. Every solver starts from the same noise. Some 5 minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from carom.bundled import DEFAULT, find_checkpoint
from carom.domains import Hypercube
from carom.scores.neural import NeuralScore, fashion_mnist, to_domain
from carom.solvers import (
    DDIM,
    DEIS,
    DPMSolverPP,
    Euler,
    ExponentialAdams,
    Heun,
    ReflectedEulerMaruyama,
    Solver,
    UniPC,
    karras,
    sample,
    uniform_lambda,
)
from carom.validation import frechet_distance, pictures

SOLVERS: dict[str, Solver] = {
    "Euler": Euler(),
    "Heun": Heun(),
    "DDIM": DDIM(),
    "DPM-Solver++(2M)": DPMSolverPP(2),
    "UniPC-3": UniPC(3),
    "DEIS-3": DEIS(3),
    "exponential Adams 3": ExponentialAdams(3),
    "reflected Euler–Maruyama": ReflectedEulerMaruyama(),
}


class Features(nn.Module):
    """Two strided convolutions and 64 features, under a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.features, self.last = nn.Linear(32 * 49, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.silu(self.second(functional.silu(self.first(2 * x - 1))))
        return functional.silu(self.features(hidden.flatten(1)))


def trained_features(x: Tensor, labels: Tensor, steps: int = 1500) -> Features:
    torch.manual_seed(0)
    net = Features()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        functional.cross_entropy(net.last(net(x[rows])), labels[rows]).backward()
        optimizer.step()
    return net.eval()


def images(part: str) -> tuple[Tensor, Tensor]:
    data = fashion_mnist(part)
    assert data.labels is not None
    return to_domain(data.values, Hypercube(data.event_shape))[0], data.labels


def levels_for(solver: Solver, evaluations: int) -> int:
    """Levels of a grid whose solve takes so many evaluations, the last denoising included."""
    return (evaluations + 1) // 2 if isinstance(solver, Heun) else evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=DEFAULT)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of samples")
    options = parser.parse_args()
    try:
        (x, labels), (held_out, held_labels) = images("train"), images("test")
    except FileNotFoundError as error:
        print(f"skipped: {error}")
        return
    net = trained_features(x, labels)
    with torch.no_grad():
        accuracy = float((net.last(net(held_out)).argmax(1) == held_labels).double().mean())
    features = torch.no_grad()(net)
    with find_checkpoint(options.checkpoint) as path:
        score = NeuralScore.load(path)
    real = frechet_distance(x[: options.samples], held_out[-5000:], features)
    print(f"own CNN: {accuracy:.1%} right on held-out pictures")
    print(f"own-CNN FD of {options.samples} real pictures: {real.value:.2f} ± {real.standard_error:.2f}")
    counts = (5, 10, 20)
    print(f"| solver | {' | '.join(f'{n} evaluations' for n in counts)} |\n|---|{'---|' * len(counts)}")
    condition = {"label": held_labels[: options.samples]}
    for name, solver in SOLVERS.items():
        cells = []
        for n in counts:
            grid = (karras if isinstance(solver, Heun) else uniform_lambda)(score.process, levels_for(solver, n))
            run = sample(score.process, score, solver, grid, shape=options.samples, seed=0, condition=condition)
            distance = frechet_distance(run.x, held_out[-5000:], features)
            cells.append(
                f"{distance.value:.2f} ± {distance.standard_error:.2f}" + (f" ({run.nfe})" if run.nfe != n else "")
            )
            if options.pictures is not None and n == 20:
                options.pictures.mkdir(parents=True, exist_ok=True)
                pictures.image_grid(run.x[:64], options.pictures / f"{name.replace(' ', '_')}.png")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
