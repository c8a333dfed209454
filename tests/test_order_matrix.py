"""Every solver against every problem: the orders it claims, measured; see ``carom.validation.order_matrix``."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from carom.solvers import SOLVERS, AnalyticDPM, DPMSolverPP, ExponentialAdams, ReverseDiffusion, Solver, UniPC
from carom.validation import check_solver
from carom.validation import strategies as some
from carom.validation.order_matrix import COLUMNS, blank, entries, measure_cell

CELLS = [(entry, column) for entry in entries() for column in COLUMNS]


@pytest.mark.parametrize(("entry", "column"), CELLS, ids=[f"{entry.name}-{column.name}" for entry, column in CELLS])
def test_cell(entry, column) -> None:
    reason = blank(entry, column)
    print(reason or measure_cell(entry, column))


def test_every_solver_of_the_library_is_in_the_matrix() -> None:
    # AnalyticDPM needs statistics: its order is measured in test_analytic.py
    assert {type(entry.solver) for entry in entries()} | {AnalyticDPM} >= set(SOLVERS)


def test_blanks_are_few_and_have_reasons() -> None:
    """No deterministic rule of ours is left out anywhere, and every stochastic one is measured somewhere."""
    for entry in entries():
        reasons = [blank(entry, column) for column in COLUMNS]
        assert all(reason is None or len(reason) > 10 for reason in reasons)
        ours = type(entry.solver).__name__ not in ("TorchDiffEq", "TorchSDE")
        if ours and not entry.solver.stochastic:
            assert reasons == [None] * 4
        assert None in reasons or type(entry.solver).__name__ == "LepingleEulerMaruyama"


# ------------------------------------------------------------------------------- hypothesis: any problem, schedule, grid, start

FLOWS = [
    ExponentialAdams(2),
    ExponentialAdams(3, "noise"),
    ExponentialAdams(4, "velocity"),
    UniPC(2),
    DPMSolverPP(2),
    DPMSolverPP(3, multistep=False),
]


QUICK = [Phase.explicit, Phase.generate]  # shrinking would solve for minutes


@settings(max_examples=10, phases=QUICK)  # each solves some fifty times
@given(st.data(), st.sampled_from(FLOWS))
def test_order_on_any_mixture_schedule_grid_and_start(data: st.DataObject, solver: Solver) -> None:
    # two axes with stds apart: on one, a rule's leading error may vanish by accident
    problem, grid = data.draw(some.mixtures(dim=2)), data.draw(some.grids())
    start = data.draw(some.starts(problem, float(grid(problem.process, 2)[0])))
    check_solver(solver, problem, grid=grid, start=start)


NOISY = [ReverseDiffusion(), DPMSolverPP(2, multistep=False, sde=True), ExponentialAdams(2, "noise", sde=True)]


@settings(max_examples=6, phases=QUICK)
@given(st.data(), st.sampled_from(NOISY))
def test_weak_order_on_any_gaussian_schedule_and_grid(data: st.DataObject, solver: Solver) -> None:
    problem = data.draw(some.mixtures(dim=2))
    check_solver(solver, problem, grid=data.draw(some.grids()), steps=(16, 32, 64, 128))
