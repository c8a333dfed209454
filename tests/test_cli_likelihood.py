"""carom likelihood: the library's numbers, for the rows asked for, and what it says of data that do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from carom import likelihood_command
from carom.cli import app
from carom.domains import Hypercube
from carom.processes import VE, Diffusion
from carom.recipe import Recipe
from carom.scores.neural import MLP, MLPConfig, NeuralScore, load_data
from carom.solvers import Exact, Heun, Hutchinson, bits_per_dim, elbo, karras
from carom.solvers.noise import mix

runner = CliRunner()


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, ["likelihood", *(str(a) for a in arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.output


def make(classes: int, continuous: bool = False) -> NeuralScore:
    torch.manual_seed(0)
    data = load_data("digits")
    network = MLP(MLPConfig((1, 8, 8), 16, 1, classes=classes))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    score = NeuralScore(network, Diffusion(Hypercube((1, 8, 8)), VE(sigma_min=0.05)))
    if not continuous:
        score.stored = data.on(score.process.domain).stored
    return score


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make(10).save("m.safetensors")
    return tmp_path


def read(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


SHORT = ("--data", "digits", "--levels", 3, "--draws", 3)


@pytest.mark.parametrize("labels", [True, False])
def test_it_reports_what_the_library_finds(here: Path, labels: bool) -> None:
    text = run(
        "m.safetensors", *SHORT, "--n", 5, "--batch", 5, "--divergence", "exact", "--out", "b.npz", "--seed", 3,
        "--classes" if labels else "--no-classes",
    )  # fmt: skip
    found = read("b.npz")
    score, data = NeuralScore.load("m.safetensors"), load_data("digits")
    values, label = data.read(torch.as_tensor(found["row"]))
    condition = {"label": label} if labels else {}
    times = karras(score.process, 3)
    options = {"transform": score.stored.transform, "times": times, "condition": condition}
    options["seed"] = [mix(3, row) for row in found["row"].tolist()]
    flow = bits_per_dim(score.process, score, values, solver=Heun(), divergence=Exact(), **options)
    bound = elbo(score.process, score, values, draws=3, **options)
    np.testing.assert_allclose(found["flow"], flow.each.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found["bound"], bound.bits_per_dim.numpy(), rtol=1e-6)
    assert re.search(rf"flow \(ODE\).*{flow.value:.4f}.*{flow.standard_error:.4f}", text)
    assert re.search(rf"SDE \(ELBO\).*{float(bound.bits_per_dim.mean()):.4f}", text)
    assert re.search(rf"SDE − flow.*{float((bound.bits_per_dim - flow.each).mean()):.4f}", text)
    assert "5 rows → b.npz" in text and "probes" not in text


def test_rows_are_drawn_once_and_by_the_seed(here: Path) -> None:
    text = run("m.safetensors", *SHORT, "--n", 9, "--batch", 4, "--divergence", "hutchinson:2", "--out", "a.npz")
    assert "due to its probes" in text
    run("m.safetensors", *SHORT, "--n", 9, "--batch", 4, "--divergence", "hutchinson:2", "--out", "b.npz")
    run("m.safetensors", *SHORT, "--n", 9, "--batch", 4, "--seed", 1, "--out", "c.npz")
    a, b, c = (read(f"{name}.npz") for name in "abc")
    assert len(set(a["row"])) == 9 and (a["flow"] == b["flow"]).all() and (a["row"] != c["row"]).any()


def test_rows_have_seeds_of_their_own_and_probes_their_share_of_the_error(here: Path) -> None:
    text = run(
        "m.safetensors", *SHORT, "--n", 3, "--batch", 1, "--divergence", "hutchinson:2", "--out", "a.npz", "--seed", 4
    )
    found, score, data = read("a.npz"), NeuralScore.load("m.safetensors"), load_data("digits")
    values, label = data.read(torch.as_tensor(found["row"]))
    errors = []
    for k in range(3):
        each = bits_per_dim(
            score.process, score, values[k : k + 1], transform=score.stored.transform, times=karras(score.process, 3),
            seed=[mix(4, int(found["row"][k]))], condition={"label": label[k : k + 1]}, solver=Heun(), divergence=Hutchinson(2),
        )  # fmt: skip
        assert found["flow"][k] == pytest.approx(each.value, rel=1e-6)
        errors.append(float(each.likelihood.standard_error) / (64 * np.log(2)))
    # of the mean of three
    assert f"error {np.sqrt(np.mean(np.square(errors)) / 3):.4f} is due to its probes" in text


def test_rows_that_failed_or_met_walls_are_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = likelihood_command.Rows.measure

    def measured(self, *arguments):
        found = real(self, *arguments)
        flow, bound, pushed = found.flow.clone(), found.bound.clone(), found.pushed.clone()
        flow[0], bound[4], pushed[1:3] = torch.nan, torch.nan, torch.tensor([0.2, 0.5])
        return found._replace(flow=flow, bound=bound, pushed=pushed)

    monkeypatch.setattr(likelihood_command.Rows, "measure", measured)
    text = run("m.safetensors", *SHORT, "--n", 5, "--batch", 5)
    assert "walls pushed 2 rows back, by up to 0.5" in text
    assert "2 rows failed on the way, left out" in text and "3 rows, " in text and "nan" not in text


@pytest.mark.parametrize("divergence", ["exact", "hutchinson:1"])
def test_a_row_costs_the_same_whatever_the_batch_and_n(here: Path, divergence: str) -> None:
    common = ("m.safetensors", *SHORT, "--divergence", divergence, "--dequantise", 2)
    run(*common, "--n", 7, "--batch", 7, "--out", "a.npz")
    run(*common, "--n", 5, "--batch", 2, "--out", "b.npz")
    a, b = read("a.npz"), read("b.npz")
    assert (a["row"][:5] == b["row"]).all()
    for name in ("flow", "bound"):
        # float32 sums in another order, through a network of weights of order 1
        np.testing.assert_allclose(a[name][:5], b[name], rtol=1e-4)


def test_no_two_seeds_share_the_draws_of_a_row(here: Path) -> None:
    np.save("one.npy", np.full((2, 1, 8, 8), 5, dtype=np.int64))
    bits = []
    for seed in (0, 1, 2):
        run("m.safetensors", "--data", "one.npy", "--levels", 3, "--draws", 3, "--seed", seed, "--out", "a.npz")
        bits += [*read("a.npz")["flow"], *read("a.npz")["bound"]]
    # equal rows, so that they differ by their draws alone
    assert len(set(bits)) == 12


def recipe(data: dict[str, object]) -> None:
    Recipe.from_config({"data": data}).write("m.json")


TRAINED = "these rows are the model's own training data"


def test_the_data_are_those_of_the_recipe_and_it_says_that_they_were_trained_on(here: Path) -> None:
    rest = ("--levels", 3, "--draws", 2, "--n", 3)
    assert "no recipe lies beside m.safetensors to name its data" in run("m.safetensors", *rest, code=2)
    assert TRAINED not in run("m.safetensors", "--data", "digits", *rest)
    recipe({"source": "digits"})
    text = run("m.safetensors", *rest)
    assert "digits: 3 of 1,797 rows" in text and TRAINED in text
    assert text.index("1,797 rows") < text.index(TRAINED) < text.index("flow (ODE)")
    np.save("x.npy", np.random.default_rng(0).integers(0, 17, (4, 8, 8)))
    recipe({"source": "x.npy", "layout": "HW", "bins": 17})
    assert TRAINED in run("m.safetensors", "--data", Path("x.npy").absolute(), *rest)
    np.save("new.npy", np.load("x.npy"))
    text = run("m.safetensors", "--data", "new.npy", *rest)  # read as x.npy is
    assert "new.npy: 3 of 4 rows" in text and TRAINED not in text


def idx(path: str, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    Path(path).write_bytes(head + values.astype(np.uint8).tobytes())


def test_of_data_in_parts_the_test_part_is_scored_unless_told(here: Path) -> None:
    score = make(0)
    for stem, count in (("train", 6), ("t10k", 4)):
        idx(f"{stem}-images-idx3-ubyte", np.random.default_rng(0).integers(0, 256, (count, 8, 8)))
        idx(f"{stem}-labels-idx1-ubyte", np.zeros(count))
    score.stored = load_data("mnist:.").on(score.process.domain).stored
    score.save("m.safetensors")
    recipe({"source": "mnist:."})
    rest = ("--levels", 3, "--draws", 2, "--n", 9)
    text = run("m.safetensors", *rest)
    assert "--n 9: the data have 4 rows, all of which are taken" in text
    assert "mnist:., test part: 4 of 4 rows" in text and TRAINED not in text
    text = run("m.safetensors", "--data", f"mnist:{here}", "--part", "train", *rest)
    assert "train part: 6 of 6 rows" in text and TRAINED in text
    assert "--part: got 'val', expected test or train" in run("m.safetensors", "--part", "val", code=2)
    assert "--part: got 'test' for 'digits', which has no parts" in run(
        "m.safetensors", "--data", "digits", "--part", "test", code=2
    )


def test_walls_that_push_back_may_mean_that_steps_are_too_coarse(here: Path) -> None:
    assert re.search(r"walls pushed .*or the steps are too coarse: try more --levels", run("m.safetensors", *SHORT))


def test_more_dequantisations_tighten_the_flow_s_bound(here: Path) -> None:
    bits = []
    for count in (1, 16):
        run("m.safetensors", *SHORT, "--n", 20, "--divergence", "exact", "--dequantise", count, "--out", "a.npz")
        bits.append(read("a.npz")["flow"].mean())
    assert bits[1] < bits[0]


def test_continuous_data_have_densities(here: Path) -> None:
    make(0, continuous=True).save("c.safetensors")
    np.save("x.npy", np.random.default_rng(0).random((6, 1, 8, 8)).astype(np.float32))
    text = run("c.safetensors", "--data", "x.npy", "--levels", 3, "--draws", 2, "--n", 100)
    text = " ".join(text.replace("│", " ").split())  # cells wrap where the console is narrow
    assert "6 rows" in text and "bits of the flow's density of the values" in text and "dequantised" not in text
    assert "upper bound on the bits of the SDE's density" in text and "neither is always the larger" in text


def test_ctrl_c_reports_the_rows_that_are_done(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = likelihood_command.Rows.measure, []

    def interrupted(self, *arguments):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(likelihood_command.Rows, "measure", interrupted)
    text = run("m.safetensors", *SHORT, "--n", 20, "--batch", 4, "--out", "a.npz", code=130)
    assert text.index("interrupted: 8 of 20 rows") < text.index("flow (ODE)") and len(read("a.npz")["row"]) == 8
    calls[:] = [0, 0]
    text = run("m.safetensors", *SHORT, "--n", 20, "--batch", 4, code=130)
    assert "interrupted: nothing was scored" in text and "flow (ODE)" not in text


def test_refusals(here: Path) -> None:
    assert "--divergence: got 'trace', expected exact or hutchinson:PROBES" in run(
        "m.safetensors", *SHORT, "--divergence", "trace", code=2
    )
    assert "--out: got b.csv, expected a file that ends in .npz" in run("m.safetensors", "--out", "b.csv", code=2)
    assert "--solver: got 'heum' (did you mean heun?)" in run("m.safetensors", *SHORT, "--solver", "heum", code=2)
    for solver in ("euler-maruyama", "reflected-strang", "er-sde-3"):
        text = run("m.safetensors", *SHORT, "--solver", solver, code=2)
        assert f"got '{solver}', expected a deterministic rule, e.g. adaptive, unipc-3 or heun" in text
        assert "rows" not in text  # before the data are read or a bar begins
    assert "(did you mean adaptive?)" in run("m.safetensors", *SHORT, "--solver", "adaptive-ode", code=2)
    np.save("x.npy", np.zeros((4, 8, 8), dtype=np.float32))
    assert "--data: got rows of shape (8, 8), expected (1, 8, 8)" in run("m.safetensors", "--data", "x.npy", code=2)
    np.save("y.npy", np.zeros((4, 1, 8, 8), dtype=np.float32))
    assert "--data: got continuous values, expected whole numbers 0 … 16" in run(
        "m.safetensors", "--data", "y.npy", code=2
    )
