"""carom inpaint: what is known stays, what is hidden is drawn, and what it says of masks and data that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from carom.cli import app
from carom.domains import Hypercube
from carom.inpaint_command import COVER, _condition, covered, hidden_part
from carom.processes import VE, Diffusion
from carom.scores.neural import MLP, MLPConfig, NeuralScore, load_data

runner = CliRunner()


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, ["inpaint", *(str(a) for a in arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    score = NeuralScore(
        MLP(MLPConfig((1, 8, 8), 16, 1, classes=10)), Diffusion(Hypercube((1, 8, 8)), VE(sigma_min=0.05))
    )
    score.stored = load_data("digits").on(score.process.domain).stored
    score.save("m.safetensors")
    return tmp_path


SHORT = ("m.safetensors", "--data", "digits", "--levels", 3, "--resamplings", 2, "--n", 3, "--draws", 2)


@pytest.mark.parametrize("hide", ["right", "left", "top", "bottom", "middle", "0.4"])
def test_what_is_known_stays_and_the_rest_is_drawn(here: Path, hide: str) -> None:
    text = run(*SHORT, "--hide", hide, "--out", "x.npy", "--seed", 2)
    assert "3 pictures" in text and "6 completions, " in text and "x.npy" in text
    made = np.load("x.npy")
    generator = torch.Generator().manual_seed(2)
    data = load_data("digits")
    rows = torch.randperm(len(data), generator=generator)[:3]
    hidden = hidden_part(hide, (1, 8, 8), generator).numpy()
    assert 0.2 < hidden.mean() < 0.6
    values = data.read(rows)[0].numpy()
    assert made.shape == (3, 2, 1, 8, 8) and made.dtype == np.uint8
    for k in range(2):
        assert (made[:, k][:, ~hidden] == values[:, ~hidden]).all()
        assert (made[:, k][:, hidden] != values[:, hidden]).any()
    assert (made[:, 0] != made[:, 1]).any()
    # two steps, each twice, and one denoising
    assert "5 evaluations each" in text
    if hide == "right":  # a completion is the same whatever comes after it
        run(*SHORT, "--hide", hide, "--out", "y.npy", "--seed", 2, "--n", 2)
        assert (np.load("y.npy") == made[:2]).all()


def test_a_picture_a_mask_of_one_s_own_and_classes(here: Path) -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:4] = True
    np.save("mask.npy", mask)
    text = run(*SHORT, "--hide", "mask.npy", "--classes", "--solver", "heun", "--out", "a.png")
    assert Path("a.png").stat().st_size > 500
    assert "digits: 3 of 1,797 rows" in text and "columns: original | what is left | draws 1–2" in text
    assert "columns" not in run(*SHORT, "--hide", "mask.npy", "--out", "a.npy")
    run(*SHORT, "--hide", "mask.npy", "--out", "b.npy")
    assert (np.load("a.npy") == np.load("b.npy")).all()


def test_each_completion_hears_the_label_of_its_picture(here: Path) -> None:
    score = NeuralScore.load("m.safetensors")
    assert _condition(score, torch.tensor([3, 7]), 3)["label"].tolist() == [3, 3, 3, 7, 7, 7]


def test_the_names_of_parts_are_theirs() -> None:
    """On a picture higher than wide; the random share hides all channels of a pixel together."""
    part = lambda name: hidden_part(name, (3, 8, 4), torch.Generator().manual_seed(0))
    for name, rows, columns in (
        ("right", slice(0, 8), slice(2, 4)),
        ("left", slice(0, 8), slice(0, 2)),
        ("top", slice(0, 4), slice(0, 4)),
        ("bottom", slice(4, 8), slice(0, 4)),
        ("middle", slice(2, 6), slice(1, 3)),
    ):
        wanted = torch.zeros(3, 8, 4, dtype=torch.bool)
        wanted[:, rows, columns] = True
        assert torch.equal(part(name), wanted), name
    few, many = (part(share) for share in ("0.1", "0.9"))
    assert float(few.double().mean()) < 0.3 and float(many.double().mean()) > 0.7
    assert torch.equal(few[0], few[1]) and torch.equal(few[0], few[2])


def test_what_is_hidden_looks_like_no_data() -> None:
    hidden = torch.zeros(1, 6, 6, dtype=torch.bool)
    hidden[:, 1:5, 1:5] = True
    grey = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    seen = covered(grey, hidden)
    assert torch.equal(seen[:, :, 0], grey[:, :, 0].expand(2, 3, 6)) and len(set(COVER)) == 3
    assert torch.equal(seen[:, :, 1:5, 1:5], torch.tensor(COVER)[:, None, None].expand(2, 3, 4, 4))
    # of coloured pictures, in which a channel may be hidden alone: stripes
    hidden = torch.cat([hidden, hidden & False, hidden & False])
    colour = grey.expand(2, 3, 6, 6)
    seen = covered(colour, hidden)
    assert torch.equal(seen[..., 0], colour[..., 0])
    inside = seen[0, 0, 1:5, 1:5]
    assert sorted(set(inside.flatten().tolist())) == pytest.approx([COVER[0], 1.0])
    assert float((inside == 1).double().mean()) == 0.5


def test_ctrl_c_says_that_nothing_was_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("carom.solvers.inpaint", interrupted)
    assert "interrupted: nothing was written" in run(*SHORT, "--out", "x.npy", code=130)
    assert not Path("x.npy").exists()


def test_refusals(here: Path) -> None:
    assert "--hide: got 'centre', expected one of right, left" in run(*SHORT, "--hide", "centre", code=2)
    assert "--hide: got '1.5', expected one of" in run(*SHORT, "--hide", "1.5", code=2)
    np.save("mask.npy", np.zeros((8, 8)))
    assert "--hide: got float64 of shape (8, 8)" in run(*SHORT, "--hide", "mask.npy", code=2)
    for shape in ((7, 8), (2, 8, 8), (1, 1, 8, 8)):
        np.save("mask.npy", np.zeros(shape, dtype=bool))
        text = run(*SHORT, "--hide", "mask.npy", code=2)
        assert f"--hide: got bool of shape {shape} in mask.npy, expected bool that broadcasts to (1, 8, 8)" in text
    assert "--out: got x.jpg, expected a file that ends in .png or .npy" in run(*SHORT, "--out", "x.jpg", code=2)
    assert "expected a rule with fixed steps, e.g. ancestral, ddim or heun" in run(
        *SHORT, "--solver", "adaptive", code=2
    )
    np.save("x.npy", np.zeros((4, 1, 4, 4), dtype=np.uint8))
    assert "--data: got rows of shape (1, 4, 4), expected (1, 8, 8)" in run("m.safetensors", "--data", "x.npy", code=2)
    np.save("z.npy", np.full((4, 1, 8, 8), 0.25, dtype=np.float32))
    text = run("m.safetensors", "--data", "z.npy", code=2)
    assert "--data: got values from 0.25 to 0.25 that are not whole, expected whole numbers 0 … 16" in text
    np.save("z.npy", np.full((4, 1, 8, 8), 17))
    assert "--data: got values from 17 to 17, expected whole" in run("m.safetensors", "--data", "z.npy", code=2)
    assert "--part: got 'train' for 'digits', which has no parts" in run(*SHORT, "--part", "train", code=2)
    assert "no recipe lies beside" in run("m.safetensors", code=2)
    np.save("y.npy", np.random.default_rng(0).integers(0, 17, (4, 1, 8, 8)).astype(np.uint8))
    assert "--classes: got it for a model that hears none, or data without labels" in run(
        "m.safetensors", "--data", "y.npy", "--classes", code=2
    )
