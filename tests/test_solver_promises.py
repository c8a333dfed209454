"""What every solver promises beside its order: few graphs, little memory, gradients, per-sample control, saving, a current table."""

import itertools
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from carom.domains import Euclidean, Hypercube
from carom.processes import EDM, SDE, VE, VP, Diffusion, Wall
from carom.scores import EmpiricalScore, GaussianMixtureScore
from carom.solvers import (
    BOGACKI_SHAMPINE,
    DDIM,
    DEIS,
    DORMAND_PRINCE,
    ERSDE,
    IPNDM,
    TSITOURAS,
    Adams,
    AdaptiveODE,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    BrownianPath,
    Cover,
    DPMSolver,
    DPMSolverPP,
    EDMStochastic,
    EulerMaruyama,
    ExponentialAdams,
    Heun,
    LangevinCorrector,
    LinearSolver,
    Milstein,
    PredictorCorrector,
    ReflectedStrang,
    Restart,
    ReverseDiffusion,
    SampleNoise,
    SASolver,
    Solver,
    Status,
    Tableau,
    TorchDiffEq,
    TorchSDE,
    UniPC,
    WhiteNoise,
    bind,
    integrate,
    karras,
    sample,
    solve,
    uniform_lambda,
)
from carom.validation.order_matrix import entries

F64 = torch.float64
OPEN = Diffusion(Euclidean((2,)), VP())
BOX = Diffusion(Hypercube((2,)), VE())
RULES: tuple[Solver, ...] = (
    DDIM(),
    DDIM(1.0),
    DPMSolver(3),
    DPMSolver(3, multistep=True),
    DPMSolverPP(3),
    DPMSolverPP(2, multistep=False),
    DPMSolverPP(2, sde=True),
    UniPC(2),
    UniPC(3),
    DEIS(3),
    ExponentialAdams(4, "velocity"),
    ExponentialAdams(5),
    Adams(4),
    IPNDM(4),
    Ancestral(),
    ReverseDiffusion(),
    SASolver(2, 3),
    ERSDE(3),
    EDMStochastic(2.0, s_min=0.0, s_noise=1.0),
    Restart([(0.3, 0.5, 4, 2)]),
    PredictorCorrector(ReverseDiffusion(), LangevinCorrector(0.16, 2)),
    AnnealedLangevin(3, 0.01),
    Milstein(),
)


def mixture(process: Diffusion = OPEN) -> GaussianMixtureScore:
    covariances = [[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.4]]]
    return GaussianMixtureScore(process, [0.3, 0.7], [[0.5, -0.3], [-1.0, 0.8]], covariances)


def empirical() -> EmpiricalScore:
    return EmpiricalScore(BOX, torch.rand(23, 2, generator=torch.Generator().manual_seed(3), dtype=F64) ** 2)


def normals(solver: Solver, record: Any, x: Tensor, source: Any) -> tuple[Tensor, ...]:
    return tuple(source(0.0, 1.0) for _ in range(record.draws))


# ------------------------------------------------------------------------------------------------------ one compiled step


@pytest.mark.parametrize("solver", RULES, ids=repr)
def test_one_compiled_step_serves_every_grid(solver: Solver) -> None:
    """At most three graphs, however many steps and wherever they lie: a first step, one within, a last one."""
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(solver.step, fullgraph=True, backend=counter)
    equation = solver.accepts[0](OPEN, mixture()).bound(Wall())  # type: ignore[call-arg]
    x = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    # low orders before high ones reuse no graph of another arity, so rules of high order are traced on long grids
    for n in (9, 12, 17):
        source, states = WhiteNoise(1).open(x, 1), [(x, ()), (x, ())]
        for record in bind(solver.plan(equation, uniform_lambda(OPEN, n)), x):
            noise = normals(solver, record, x, source)
            states = [
                rule(equation, u, record, state, noise)
                for rule, (u, state) in zip((step, solver.step), states, strict=True)
            ]
        torch.testing.assert_close(states[0][0], states[1][0], rtol=1e-11, atol=1e-11)
    assert counter.frame_count <= 3
    torch._dynamo.reset()


@pytest.mark.parametrize("solver", RULES, ids=repr)
def test_integrate_compiles_whole(solver: Solver) -> None:
    torch._dynamo.reset()
    equation = solver.accepts[0](OPEN, mixture())  # type: ignore[call-arg]
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    records = bind(solver.plan(equation, uniform_lambda(OPEN, 6)), x)
    source = WhiteNoise(2).open(x, 1)
    draws = [normals(solver, record, x, source) for record in records]
    whole = torch.compile(integrate, fullgraph=True, backend="eager")
    want, _ = integrate(equation, x, records, solver, draws)
    torch.testing.assert_close(whole(equation, x, records, solver, draws)[0], want, rtol=1e-11, atol=1e-11)
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------------------------------- memory


class Live(TorchDispatchMode):
    """The most bytes that tensors made under it held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and (storage := value.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_states(solver: Solver, process: Diffusion) -> float:
    """Peak memory of a run in states, the score's output included and the caller's start left out."""
    equation = solver.accepts[0](process, lambda x, t: -x)  # type: ignore[call-arg]
    x = torch.rand(3, *process.domain.event_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Live() as memory:
        solve(equation, x, uniform_lambda(process, 12), solver, noise=WhiteNoise(0))
    return memory.peak / (x.numel() * x.element_size())


FIXED_RULES = [
    e.solver
    for e in entries()
    if not e.solver.adaptive
    and e.solver.order is not None
    and not isinstance(e.solver, (TorchDiffEq, TorchSDE, Restart))
]


@pytest.mark.parametrize("solver", [s for s in FIXED_RULES if not s.stochastic], ids=repr)
def test_deterministic_rules_hold_their_order_and_three_states(solver: Solver) -> None:
    """The state, the next one, the field's output and one prediction for each order (the corrected iPNDM keeps p of them at order 2, the
    distributed third-order rules two, and rising orders those of the highest). The scalars of the plan are a few percent of so small a
    state. Between walls the rules that read intermediate points hold one projected point more."""
    order = {"IPNDM": 4, "DPMSolver": 3, "DPMSolverPP": 3}.get(type(solver).__name__, 0)
    most = max(solver.order or 0, order, getattr(solver, "corrector", 0)) + 3
    assert peak_states(solver, Diffusion(Euclidean((2000,)), VP())) <= most + 0.1
    assert peak_states(solver, Diffusion(Hypercube((2000,)), VE())) <= most + 1.1


@pytest.mark.parametrize("solver", [s for s in FIXED_RULES if s.stochastic and isinstance(s, LinearSolver)], ids=repr)
def test_stochastic_rules_hold_their_predictions_and_their_normals_beside(solver: Solver) -> None:
    records = solver.plan(solver.accepts[0](OPEN, lambda x, t: -x), uniform_lambda(OPEN, 12))  # type: ignore[call-arg]
    predictions = max(len(r.coefficients[1]) + sum(s.reading is not None for s in r.coefficients[0]) for r in records)
    most = predictions + max(r.draws for r in records) + 3
    assert peak_states(solver, Diffusion(Euclidean((2000,)), VP())) <= most + 0.1
    # a fold needs a state and a half (the phase, the folded point, which side), and where a point between is read, one more
    assert peak_states(solver, Diffusion(Hypercube((2000,)), VE())) <= most + 2.4


# ------------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("solver", [*RULES, AdaptiveODE(1e-6, 1e-6, "exponential"), TorchSDE("srk")], ids=repr)
def test_solve_is_differentiable(solver: Solver) -> None:
    process = Diffusion(Euclidean((2,)), EDM(sigma_min=0.2, sigma_max=3.0))
    equation = solver.accepts[0](process, mixture(process))  # type: ignore[call-arg]
    x = torch.randn(2, 2, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    times = karras(process, 4)
    assert torch.autograd.gradcheck(
        lambda x: solve(equation, x, times, solver, noise=SampleNoise([3, 4])).x, (x,), atol=1e-6
    )


@pytest.mark.parametrize("k", [1, 3, 100])
@pytest.mark.parametrize(
    "solver", [Heun(), UniPC(3), ExponentialAdams(4), ERSDE(3), EulerMaruyama(), ReflectedStrang()], ids=repr
)
def test_checkpointed_steps_have_the_same_gradients_in_less_memory(solver: Solver, k: int) -> None:
    rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
    equation = solver.accepts[0](BOX, lambda x, t: -rate * x * (1 - x))  # type: ignore[call-arg]
    x = torch.rand(2, 2, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def gradients(checkpoint: int) -> tuple[Tensor, ...]:
        run = solve(equation, x, karras(BOX, 9), solver, noise=WhiteNoise(0), checkpoint=checkpoint)
        return run.x, *torch.autograd.grad(run.x.square().sum(), (x, rate))

    for got, want in zip(gradients(k), gradients(0), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


def test_checkpointed_steps_do_use_less_memory() -> None:
    process = Diffusion(Euclidean((2000,)), VP())
    x = torch.randn(1, 2000).requires_grad_()

    def peak(checkpoint: int) -> int:
        with Live() as memory:
            flow = process.flow(lambda x, t: -x.tanh())
            solve(flow, x, uniform_lambda(process, 65), Heun(), checkpoint=checkpoint).x.sum().backward()
        return memory.peak

    assert peak(8) < 0.4 * peak(0)  # 8 of 64 steps at a time, and the 8 states between


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [(TorchDiffEq("dopri5", adjoint=True), 1e-6), (TorchSDE("milstein", adjoint=True), 0.03)],
    ids=repr,
)
def test_adjoints_agree_with_backpropagation(solver: Any, tolerance: float) -> None:
    """The flow's to the solver's tolerance; the SDE's to O(h) of its second, backward solve, of steps of 1/200."""
    network = torch.nn.Linear(2, 2, dtype=F64)
    torch.manual_seed(2)
    torch.nn.init.normal_(network.weight, std=0.3)

    class Score(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return -x + self.network(x).tanh()

    process, x = Diffusion(Euclidean((2,)), VE(sigma_max=1.0)), torch.randn(3, 2, dtype=F64).requires_grad_()
    equation = solver.accepts[0](process, Score())
    times = torch.linspace(1.0, 0.5, 101, dtype=F64)
    plain = type(solver)(solver.method)
    results = []
    for rule in (solver, plain):
        end = solve(equation, x, times, rule, noise=BrownianPath(range(3))).x
        results.append((end, *torch.autograd.grad(end.square().sum(), (x, *network.parameters()))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_adjoints_refuse_what_the_other_library_lacks() -> None:
    with pytest.raises(ValueError, match="torchsde does not offer"):
        TorchSDE("srk", adjoint=True)


# ------------------------------------------------------------------------------------------------------- per-sample control


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "exponential"])
def test_neighbours_change_neither_the_answer_nor_its_cost(method: str) -> None:
    process = Diffusion(Euclidean((1,)), EDM())
    score = GaussianMixtureScore(process, [0.5, 0.5], [[-1.0], [1.0]], 1e-4)
    x, solver = torch.tensor([[0.01], [40.0], [-80.0], [100.0]], dtype=F64), AdaptiveODE(1e-6, 1e-6, method)
    batch = solve(process.flow(score), x, karras(process, 2), solver)
    for i in range(4):
        alone = solve(process.flow(score), x[i : i + 1], karras(process, 2), solver)
        assert torch.equal(alone.x[0], batch.x[i]) and int(alone.nfe[0]) == int(batch.nfe[i])
    assert len(set(batch.nfe.tolist())) > 1 and bool(batch.ok.all())


@pytest.mark.parametrize(("process", "score"), [(BOX, empirical()), (OPEN, mixture())], ids=["box", "open"])
def test_adaptive_sde_is_per_sample_too(process: Diffusion, score: Any) -> None:
    solver, grid, seeds = AdaptiveSDE(2e-2, 2e-2), uniform_lambda(process, 2, sigma_max=1.0, sigma_min=0.2), [7, 1, 30]
    batch = sample(process, score, solver, grid, shape=3, seed=seeds, dtype=F64, denoise=False)
    assert bool(batch.ok.all()) and bool(process.domain.contains(batch.x).all())
    assert int(batch.stats["rejected"].sum()) > 0, "no step was rejected: the test sees no bridge"
    for i, seed in enumerate(seeds):
        alone = sample(process, score, solver, grid, shape=1, seed=[seed], dtype=F64, denoise=False)
        assert torch.equal(alone.x[0], batch.x[i]) and int(alone.nfe[0]) == int(batch.nfe[i])


def test_adaptive_sde_stops_one_sample_at_max_nfe() -> None:
    score, grid = mixture(), uniform_lambda(OPEN, 2, sigma_max=2.0, sigma_min=0.05)
    full = sample(OPEN, score, AdaptiveSDE(), grid, shape=4, seed=range(4), dtype=F64, denoise=False)
    least, most = int(full.nfe.min()), int(full.nfe.max())
    assert least < most
    cut = sample(OPEN, score, AdaptiveSDE(max_nfe=most - 1), grid, shape=4, seed=range(4), dtype=F64, denoise=False)
    stopped = cut.status == Status.MAX_EVALUATIONS
    assert bool(stopped.any()) and not bool(stopped.all()) and bool(cut.x.isfinite().all())
    assert torch.equal(cut.x[~stopped], full.x[~stopped]) and int(cut.nfe.max()) <= most - 1
    assert bool((cut.failed_time[stopped] > float(grid[-1])).all())


def test_adaptive_sde_keeps_the_law_though_it_rejects() -> None:
    """Rejections drawn afresh would bias the law; bridged on one path they do not. Ornstein–Uhlenbeck, variance known; half of all tries
    are rejected at first."""
    n = 400
    ou = SDE(lambda x, t: -5 * x, 1.0, Euclidean((1,)))
    run = solve(
        ou, torch.full((n, 1), 2.0, dtype=F64), [0.0, 0.4], AdaptiveSDE(1e-2, 3e-2), noise=SampleNoise(range(n))
    )
    variance = (1 - math.exp(-4.0)) / 10
    assert int(run.stats["rejected"].sum()) > n / 2
    # standard errors √(v/n) = .016 and v√(2/n) = .007; the tolerance leaves less
    assert abs(float(run.x.mean()) - 2 * math.exp(-2.0)) < 4 * math.sqrt(variance / n)
    assert abs(float(run.x.var()) - variance) < 4 * variance * math.sqrt(2 / n)


@pytest.mark.parametrize(
    ("method", "tolerances", "most"), [("dopri5", (5, 6, 7, 8), 0.95), ("exponential", (3, 4, 5), 0.75)]
)
def test_mixed_stiffness_costs_less_than_one_step_size_for_all(
    method: str, tolerances: tuple[int, ...], most: float
) -> None:
    """Samples that fall into narrow wells beside samples that do not: at the same root mean square error, fewer evaluations in all than
    torchdiffeq's dopri5, whose step size is the batch's. With the same pair at fine tolerances, with the exponential one at coarse ones.
    Errors scatter from one tolerance to the next, so a parabola through ours is compared with the mean of theirs."""
    process = Diffusion(Euclidean((1,)), EDM())
    score = GaussianMixtureScore(process, [0.5, 0.5], [[-1.0], [1.0]], [1e-6, 0.25])
    x, grid = 80 * torch.linspace(-1.5, 1.5, 24, dtype=F64)[:, None], karras(process, 2)
    flow = process.flow(score)
    exact = solve(flow, x, grid, AdaptiveODE(1e-12, 1e-12)).x

    def curve(make: Any, tolerances: list[float]) -> tuple[list[float], list[float]]:
        """−log error, log evaluations in all."""
        runs = [solve(flow, x, grid, make(tolerance)) for tolerance in tolerances]
        errors = [-math.log(float((run.x - exact).square().mean().sqrt())) for run in runs]
        return errors, [math.log(float(torch.as_tensor(run.nfe).expand(len(x)).sum())) for run in runs]

    fine = [10 ** (-k / 4) for k in range(4 * min(tolerances) - 2, 4 * max(tolerances) + 3)]
    ours = curve(lambda tol: AdaptiveODE(tol, tol, method), fine)
    theirs = curve(lambda tol: TorchDiffEq("dopri5", rtol=tol, atol=tol), [10.0**-k for k in tolerances])
    design = np.polyfit(*ours, 2)
    ratios = np.exp(np.polyval(design, theirs[0]) - np.array(theirs[1]))
    assert float(np.exp(np.log(ratios).mean())) < most, ratios


# ------------------------------------------------------------------------------------------------------------- embedded pairs


@pytest.mark.parametrize("table", [DORMAND_PRINCE, TSITOURAS, BOGACKI_SHAMPINE], ids=lambda t: t.name)
def test_pairs_satisfy_the_order_conditions(table: Tableau) -> None:
    """Butcher's conditions through order 5 (both rows of a pair through their own order), to the digits of the coefficients."""
    a = torch.zeros(len(table.b), len(table.b), dtype=F64)
    for i, row in enumerate(table.a):
        a[i + len(table.b) - len(table.a), : len(row)] = torch.tensor([float(v) for v in row], dtype=F64)
    b, c = torch.tensor([float(v) for v in table.b], dtype=F64), a.sum(-1)
    torch.testing.assert_close(c, torch.tensor([float(v) for v in table.c], dtype=F64), rtol=0, atol=1e-12)
    trees = {
        1: [(b.sum(), 1)],
        2: [(b @ c, 2)],
        3: [(b @ c**2, 3), (b @ a @ c, 6)],
        4: [(b @ c**3, 4), (b @ (c * (a @ c)), 8), (b @ a @ c**2, 12), (b @ a @ a @ c, 24)],
        5: [
            (b @ c**4, 5),
            (b @ (c**2 * (a @ c)), 10),
            (b @ (a @ c) ** 2, 20),
            (b @ (c * (a @ c**2)), 15),
            (b @ (c * (a @ a @ c)), 30),
            (b @ a @ c**3, 20),
            (b @ a @ (c * (a @ c)), 40),
            (b @ a @ a @ c**2, 60),
            (b @ a @ a @ a @ c, 120),
        ],
    }
    for order, conditions in trees.items():
        for value, inverse in conditions if order <= table.order else ():
            assert float(value) == pytest.approx(1 / inverse, abs=1e-12)


# ------------------------------------------------------------------------------------------------------------- bookkeeping


@pytest.mark.parametrize(
    "solver", [UniPC(3), ExponentialAdams(4), ERSDE(2), Restart([(0.3, 0.5, 4, 2)]), AdaptiveSDE(0.1, 0.1)], ids=repr
)
def test_saved_states_are_those_of_the_callback_and_inside(solver: Solver) -> None:
    grid, seen = karras(BOX, 7), []
    run = sample(
        BOX,
        empirical(),
        solver,
        grid,
        shape=2,
        seed=range(2),
        dtype=F64,
        save="all",
        callback=seen.append,
        denoise=False,
    )
    assert run.trajectory is not None and run.trajectory.shape == (7, 2, 2)
    assert [info.step for info in seen] == list(range(1, 7)) and torch.equal(run.trajectory[-1], run.x)
    for info, state in zip(seen, run.trajectory[1:], strict=True):
        assert torch.equal(info.x, state) and bool(BOX.domain.contains(state).all())
    again = sample(BOX, empirical(), solver, grid, shape=2, seed=range(2), dtype=F64, denoise=False)
    assert torch.equal(again.x, run.x), "looking on changes nothing"
    some = sample(
        BOX,
        empirical(),
        solver,
        grid,
        shape=2,
        seed=range(2),
        dtype=F64,
        save=[float(grid[3]), float(grid[6])],
        denoise=False,
    )
    assert some.trajectory is not None and torch.equal(some.trajectory, run.trajectory[[3, 6]])


def test_paths_of_a_recipe_are_read_at_times_of_their_own() -> None:
    """Sources for one row each: the path of a seed, whatever its batch; two recipes of one seed share it."""
    x = torch.empty(3, 2, dtype=F64)
    for recipe in (SampleNoise([4, 5, 6]), BrownianPath([4, 5, 6])):
        paths = recipe.open(x, 1).paths()
        alone = BrownianPath([5]).open(x[:1], 1)
        assert len(paths) == 3 and torch.equal(paths[1](0.7, 0.3)[0], alone(0.7, 0.3)[0])
    first, second = WhiteNoise(1).open(x, 1).paths(), WhiteNoise(1).open(x, 1).paths()
    assert torch.equal(first[2](0.7, 0.3), second[2](0.7, 0.3)) and not torch.equal(
        first[0](0.7, 0.3), first[1](0.7, 0.3)
    )


def test_torchsde_takes_our_noise() -> None:
    """Its Euler–Maruyama with our seeds is ours, to rounding."""
    x, grid = torch.randn(4, 2, dtype=F64), uniform_lambda(OPEN, 9)
    equation = OPEN.reverse(mixture())
    for noise in (SampleNoise(range(4)), BrownianPath(range(4))):
        ours = solve(equation, x, grid, EulerMaruyama(), noise=noise).x
        torch.testing.assert_close(
            solve(equation, x, grid, TorchSDE("euler"), noise=noise).x, ours, rtol=1e-9, atol=1e-9
        )


def test_solutions_say_how_the_run_went() -> None:
    run = sample(OPEN, mixture(), AdaptiveODE(), karras(OPEN, 2), shape=3, seed=0)
    assert set(run.stats) >= {"accepted", "rejected"} and run.stats["accepted"].shape == (3,)


@pytest.mark.parametrize("wall", [Cover()], ids=repr)
def test_a_callback_under_the_cover_sees_points_inside(wall: Any) -> None:
    seen: list[Any] = []
    sample(BOX, empirical(), ERSDE(2), karras(BOX, 9), shape=5, seed=1, wall=wall, callback=seen.append)
    assert all(bool(BOX.domain.contains(info.x).all()) for info in seen)
    assert all(a.time > b.time for a, b in itertools.pairwise(seen))
