"""Guidance by weight, on walls and in the open: do guided pictures saturate, and are they of their class?

Two class-conditional models of Fashion-MNIST with the same U-Net, data and budget: reflected in the cube, and VP in R^d, the latter sampled
as it is, with static and with dynamic thresholding of x̂0. For each weight of classifier-free guidance:

* saturated: the share of pixels within half a grey level of 0 or 255, after the clip to the range that pictures need (the data: ``real``);
* near: the same within eight grey levels, which the eye takes for black and white;
* right: the share that a small convolutional network of our own, trained here on real pictures, sorts into the class asked for;
* outside: the share of pixels beyond the range before the clip.

``--reflected`` and ``--vp`` name checkpoints; one that does not exist is trained first, by the recipe of the checkpoint that comes with
carom (1,500 steps take 25 minutes on two cores), and kept there. The table itself takes some 10 minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from swap_image import Features, images, trained_features
from torch import Tensor

from carom.assemble import build, train_arguments
from carom.bundled import DEFAULT, find_checkpoint
from carom.recipe import Recipe, override, read_config
from carom.scores import ClassifierFree, DynamicThreshold, StaticThreshold
from carom.scores.neural import NeuralScore, train
from carom.solvers import Heun, karras, sample
from carom.validation import pictures

WEIGHTS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 15.0)
MODELS = {"reflected": {}, "VP": {"domain": {"type": "Euclidean"}, "schedule": {"type": "VP"}}}
#: name → (model, what is done to the guided score)
WAYS = {
    "reflected": ("reflected", lambda score: score),
    "VP": ("VP", lambda score: score),
    "VP, static threshold": ("VP", StaticThreshold),
    "VP, dynamic threshold": ("VP", DynamicThreshold),
}


def model(name: str, path: Path, steps: int) -> NeuralScore:
    """The checkpoint, trained first where there is none."""
    if path.exists():
        return NeuralScore.load(path)
    with find_checkpoint(DEFAULT) as file:
        given = read_config(file.with_suffix(".json"))
    changes = {**MODELS[name], "training.steps": steps, "training.decay_steps": 4000}
    recipe = Recipe.from_config(override(given, changes.items()))
    score, data = build(recipe)
    train(score, data, checkpoint=path, **train_arguments(recipe.training))
    return score


class Measures(NamedTuple):
    """Shares of pixels and, for ``right``, of pictures."""

    saturated: float
    near: float
    right: float
    outside: float

    def __str__(self) -> str:
        outside = f", {self.outside:.1%} outside" if self.outside else ""
        return f"{self.saturated:.1%} / {self.near:.1%}, {self.right:.0%}{outside}"


def measure(x: Tensor, labels: Tensor, low: float, net: Features) -> Measures:
    """Of samples in [low, 1]."""
    grey = (x - low) / (1 - low)
    outside = float(((grey < 0) | (grey > 1)).double().mean())
    grey = grey.clamp(0, 1)
    to_end = 255 * torch.minimum(grey, 1 - grey)
    with torch.no_grad():
        right = float((net.last(net(grey)).argmax(1) == labels).double().mean())
    return Measures(*(float((to_end < d).double().mean()) for d in (0.5, 8)), right, outside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reflected", type=Path, default=Path("guidance-reflected.safetensors"))
    parser.add_argument("--vp", type=Path, default=Path("guidance-vp.safetensors"))
    parser.add_argument("--steps", type=int, default=1500, help="of trainings")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--levels", type=int, default=18, help="of Heun's rule")
    parser.add_argument("--weights", type=float, nargs="*", default=WEIGHTS)
    parser.add_argument(
        "--picture", type=Path, help="a figure of the table, .png, and beside it samples at the largest weight"
    )
    options = parser.parse_args()
    try:
        (x, labels), (held_out, held_labels) = images("train"), images("test")
    except FileNotFoundError as error:
        print(f"skipped: {error}")
        return
    net = trained_features(x, labels)
    models = {
        "reflected": model("reflected", options.reflected, options.steps),
        "VP": model("VP", options.vp, options.steps),
    }
    real = measure(held_out[:5000], held_labels[:5000], 0.0, net)
    print(f"saturated / near, right. Real: {real}. {options.samples} samples, Heun's rule on {options.levels} levels")
    wanted = torch.arange(options.samples) % 10
    print("| weight | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS))
    rows = []
    for weight in options.weights:
        cells = []
        for name, (which, around) in WAYS.items():
            score = models[which]
            guided = around(ClassifierFree(score, weight, negative={"label": -1}))
            times = karras(score.process, options.levels)
            run = sample(
                score.process, guided, Heun(), times, shape=options.samples, seed=0, condition={"label": wanted}
            )
            assert bool(run.x.isfinite().all()), f"{name} at weight {weight}: not finite"
            cells.append(measure(run.x, wanted, 0.0 if which == "reflected" else -1.0, net))
            if options.picture is not None and weight == options.weights[-1]:
                file = options.picture.with_name(
                    f"{options.picture.stem}-{name.replace(', ', '-').replace(' ', '-')}.png"
                )
                pictures.image_grid(
                    run.x[:60].clamp(0.0 if which == "reflected" else -1.0, 1),
                    file,
                    low=0.0 if which == "reflected" else -1.0,
                )
        rows.append(cells)
        print(f"| {weight:g} | {' | '.join(map(str, cells))} |", flush=True)
    if options.picture is not None:
        draw(options.weights, rows, real, options.picture)


def draw(weights: list[float], rows: list[list[Measures]], real: Measures, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    titles = (
        "pixels within 1/2 grey level of an end",
        "pixels within 8 grey levels of an end",
        "right class (own CNN)",
    )
    for k, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        for j, name in enumerate(WAYS):
            axis.plot(weights, [row[j][k] for row in rows], "o-", ms=3, label=name)
        axis.axhline(real[k], color="0.5", ls=":", label="real")
        axis.set(
            xscale="log",
            xlabel="weight of guidance",
            title=title,
            xticks=weights,
            xticklabels=[f"{w:g}" for w in weights],
        )
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
