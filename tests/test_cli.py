"""The command line, as a user types it: what it prints, what it writes, what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from carom import __version__
from carom.cli import SOLVERS, app
from carom.solvers import SOLVERS as solver_classes

runner = CliRunner()


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, [str(a) for a in arguments], catch_exceptions=True)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    np.save(folder / "points.npy", np.random.default_rng(0).random((200, 3)).astype(np.float32) ** 2)
    path = folder / "points.safetensors"
    output = run("train", "--data", folder / "points.npy", "--network", "mlp", "--steps", 20, "--out", path)
    assert "20 steps" in output
    return path


def test_version_and_help():
    assert run("--version").strip() == __version__
    for command in ("demo", "train", "sample", "solvers"):
        assert command in run("--help")
        run(command, "--help")


def test_the_table_of_solvers_names_each_and_its_order():
    output = run("solvers")
    for name in (
        "Euler",
        "Heun",
        "RungeKutta",
        "AdaptiveODE",
        "EulerMaruyama",
        "ReflectedEulerMaruyama",
        "TorchDiffEq",
    ):
        assert name in output


def test_the_page_of_solvers_is_current():
    page = Path(__file__).parents[1] / "docs" / "solvers.md"
    assert page.read_text() == run("solvers", "--markdown"), "write it anew: carom solvers --markdown > docs/solvers.md"
    for cls in solver_classes:
        assert f"| {cls.__name__} |" in page.read_text()


def test_bad_names_are_refused_with_those_there_are(model):
    assert "unipc-3" in run("sample", model, "--solver", "magic", code=2)


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_every_solver_samples_inside(model, tmp_path, solver):
    out = tmp_path / "x.npy"
    output = run("sample", model, "--solver", solver, "--n", 5, "--levels", 4, "--out", out)
    assert "5 samples" in output
    x = np.load(out)
    assert x.shape == (5, 3) and x.min() >= 0 and x.max() <= 1


def test_a_sample_does_not_depend_on_how_many_are_asked_for(model, tmp_path):
    run("sample", model, "--n", 6, "--levels", 4, "--seed", 10, "--out", tmp_path / "six.npy")
    run("sample", model, "--n", 2, "--levels", 4, "--seed", 13, "--out", tmp_path / "two.npy")
    # sample i has seed + i; a network agrees with itself to rounding across batch sizes
    assert np.allclose(np.load(tmp_path / "six.npy")[3:5], np.load(tmp_path / "two.npy"), atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "wall"), [("uniform", "reflect"), ("quadratic", "project"), ("uniform-lambda", "cover")]
)
def test_grids_and_walls(model, tmp_path, grid, wall):
    run("sample", model, "--grid", grid, "--wall", wall, "--n", 3, "--levels", 3, "--out", tmp_path / "x.npy")


def test_resuming_goes_on_where_training_stopped(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((64, 2)).astype(np.float32))
    common = ["train", "--data", tmp_path / "x.npy", "--network", "mlp", "--batch-size", 16, "--out"]
    run(*common, tmp_path / "whole.safetensors", "--steps", 12)
    run(*common, tmp_path / "parts.safetensors", "--steps", 7)
    run(*common, tmp_path / "parts.safetensors", "--steps", 12, "--resume")
    from carom.scores.neural import NeuralScore

    whole, parts = (NeuralScore.load(tmp_path / f"{n}.safetensors") for n in ("whole", "parts"))
    x = torch.rand(4, 2)
    assert torch.equal(whole(x, 0.5), parts(x, 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "nowhere.safetensors"], "nowhere.safetensors"),
        (["sample", "MODEL", "--out", "x.jpg"], "expected a name that ends in .npy or .png"),
        (["sample", "MODEL", "--out", "x.png"], "write the values with --out samples.npy"),
        (
            ["train", "--data", "words.txt"],
            "neither a known name nor a file or folder; expected 'digits', 'fashion-mnist'",
        ),
        (["train", "--data", "INTEGERS", "--network", "mlp"], "expected bins = B for levels 0 … B − 1, or floats"),
        (
            ["train", "--data", "OUTSIDE", "--network", "mlp", "--steps", "1"],
            "8 of 8 values outside, the first 3 at (0, 0); expected in [0, 1]",
        ),
        (["train", "--data", "FLAT", "--steps", "1"], "use --network mlp"),
    ],
)
def test_refusals_are_one_clear_line(model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("integers.npy", np.ones((4, 2), dtype=np.int64))
    np.save("outside.npy", np.full((4, 2), 3.0))
    np.save("flat.npy", np.full((4, 2), 0.5))
    names = {"MODEL": model, "INTEGERS": "integers.npy", "OUTSIDE": "outside.npy", "FLAT": "flat.npy"}
    output = run(*(names.get(a, a) for a in arguments), code=2)
    flat = " ".join(output.replace("│", " ").split())
    assert message in flat and "Traceback" not in output


def test_misspelt_options_are_refused(model):
    run("sample", model, "--solvr", "heun", code=2)
    run("sample", model, "--solver", "hein", code=2)


@pytest.mark.slow
def test_the_demo_writes_what_it_promises(tmp_path):
    output = run("demo", "--seconds", 1, "--samples", 64, "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["solvers"]) == 5
    for row in report["solvers"]:
        assert row["solver"] in output and row["outside"] == 0.0 and row["failed"] == 0
        assert row["distance"] > 0 and row["evaluations"] > 0
    pictures = {p.name for p in tmp_path.glob("*.png")}
    assert len(pictures) == 6 and "trajectory.png" in pictures
    assert (tmp_path / "digits.safetensors").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_that_resumes(tmp_path):
    out = tmp_path / "model.safetensors"
    command = [sys.executable, "-m", "carom.cli", "train", "--steps", "100000", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        # the bar's first count says that a step was made
        seen = ""
        deadline = time.monotonic() + 120
        while "loss" not in seen and time.monotonic() < deadline:
            seen += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "Interrupted; go on with the same command and --resume" in stdout
    steps = int(re.search(r"(\d+) steps? in", stdout)[1])
    assert steps >= 1
    assert f"{steps + 2} steps" in run("train", "--steps", steps + 2, "--out", out, "--resume")


def test_training_makes_its_folder_and_never_overwrites_a_model(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((32, 2)).astype(np.float32))
    out = tmp_path / "new" / "folder" / "m.safetensors"
    common = ["train", "--data", tmp_path / "x.npy", "--network", "mlp", "--steps", 1]
    run(*common, "--out", out)
    before = out.read_bytes()
    assert "go on with it by --resume" in " ".join(run(*common, "--out", out, code=2).split())
    assert out.read_bytes() == before
    assert "expected the name of a file" in " ".join(run(*common, "--out", tmp_path, code=2).split())
