"""No host sync on an accelerator, tested without one: on the meta device every value that is read raises, and so do shapes that depend
on data. A copy between devices waits as well (from memory that is not pinned, as constants are), so within ``elsewhere`` copies raise too.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from carom.domains import (
    Ball,
    Domain,
    Euclidean,
    Hypercube,
    KernelDomain,
    Orthant,
    Polytope,
    Product,
    RegularSimplex,
    Simplex,
    Torus,
)
from carom.domains.constants import OnDevice
from carom.domains.permanent import subset_layers
from carom.processes import EDM, VE, VP, CosineVP, Diffusion, Discrete, FlowMatching, Learned, Schedule, SubVP
from carom.scores import GaussianMixtureScore, from_prediction
from carom.scores.neural import (
    MLP,
    VDM,
    Bins,
    ClassifierMLP,
    ClassifierMLPConfig,
    ConditionalFlowMatching,
    CrossEntropy,
    DenoisingScoreMatching,
    HighOrderScoreMatching,
    IDDPMPreconditioning,
    ImplicitScoreMatching,
    LatentImageScoreMatching,
    LogitNormalTime,
    MLPConfig,
    NeuralScore,
    NoisyClassifier,
    Objective,
    ResidualHead,
    ResidualMatching,
    SecondMomentHead,
    SecondMomentMatching,
    SlicedScoreMatching,
    VariationalBound,
    VPredictionPreconditioning,
)
from carom.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    Adams,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverPP,
    EDMStochastic,
    Euler,
    EulerMaruyama,
    Heun,
    LangevinCorrector,
    LepingleEulerMaruyama,
    Milstein,
    PredictorCorrector,
    ReflectedStrang,
    Restart,
    ReverseDiffusion,
    RungeKutta,
    SASolver,
    Solver,
    UniPC,
    bind,
    integrate,
    karras,
)
from carom.solvers.loop import default_wall
from carom.validation.problems import CosineScore

AWAY = torch.device("meta")
TRIANGLE = Polytope([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], [1.0, 1.0, 1.0])
KERNELS: tuple[KernelDomain, ...] = (
    Euclidean((2,)),
    Orthant((2,)),
    Torus((2,)),
    Torus((2,), [1.0, 2.0]),
    Hypercube((2,)),
    Hypercube((2,), [0.0, -1.0], [1.0, 2.0]),
    Hypercube((2,), [0.0, -math.inf], [1.0, math.inf]),
    Simplex(3),
    RegularSimplex(3),
    Product(Hypercube((1,)), Simplex(2)),
)
BALL = Ball(3)  # its table has thousands of modes: one test of the kernel is enough
SCHEDULES = (VP(), SubVP(), VE(sigma_max=2.0), EDM(), CosineVP(), FlowMatching(), Discrete.ddpm(50))


class NoCopies(TorchDispatchMode):
    """Refuses operations that take from one device and give to another; a 0-d CPU tensor beside others is a number, and passes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        copies = "copy" in str(func)
        tensors = [v for v in tree_leaves((args, kwargs, out)) if isinstance(v, Tensor) and (v.dim() or copies)]
        if len({v.device.type for v in tensors}) > 1:
            raise RuntimeError(f"{func} copies between devices: {[(v.device.type, tuple(v.shape)) for v in tensors]}")
        return out


class NoNumbers(TorchFunctionMode):
    """Refuses tensors made of Python numbers on a device, which are made on the CPU and copied (``full`` and ``new_full`` are not)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        makers = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
        value = args[1 if func is Tensor.new_tensor else 0] if func in makers else None
        if func in makers and out.device == AWAY and not isinstance(value, Tensor):
            raise RuntimeError(f"{func.__name__} copies {args} to the device")
        return out


@contextmanager
def elsewhere() -> Iterator[None]:
    with NoCopies(), NoNumbers():
        yield


@pytest.fixture(autouse=True)
def values_could_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the library spares its checks on meta tensors, and here it must spare them because of the device."""

    def readable(*tensors: Tensor) -> bool:
        return not torch.compiler.is_compiling()

    for name, module in list(sys.modules.items()):
        if name.startswith("carom.") and hasattr(module, "values_are_readable"):
            monkeypatch.setattr(module, "values_are_readable", readable)


def states(domain: Domain, n: int = 4) -> Tensor:
    return torch.rand(n, *domain.event_shape, device=AWAY)


def all_away(value: Any) -> bool:
    return all(v.device == AWAY for v in tree_leaves(value) if isinstance(v, Tensor))


def twice(call: Callable[[], Any]) -> Any:
    """What the second call gives: the first may bring constants along."""
    call()
    with elsewhere():
        result = call()
    assert all_away(result)
    return result


# what the harness sees ----------------------------------------------------------------------------------------------


def test_the_harness_catches_reads_and_copies() -> None:
    x, here = torch.rand(3, device=AWAY), torch.rand(3)
    with elsewhere():
        assert (x + torch.full((), 2.0, device=AWAY)).sum().device == AWAY
        for wrong in (
            lambda: x.sum().item(),
            lambda: bool((x > 0).any()),
            lambda: x[x > 0],
            lambda: here.to(AWAY),
            lambda: torch.tensor(2.0, device=AWAY),
            lambda: torch.as_tensor(2.0, device=AWAY),
            lambda: x.new_tensor([1.0]),
        ):
            with pytest.raises((RuntimeError, NotImplementedError)):
                wrong()


# domains, kernels, schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", KERNELS, ids=repr)
def test_kernels_stay_on_the_device(domain: KernelDomain) -> None:
    x, sigma = states(domain), torch.rand(4, device=AWAY)
    kernel = domain.unchecked_kernel(x, sigma)
    twice(kernel.sample_with_target)
    twice(lambda: (kernel.log_prob_and_score(x), kernel._log_prob(x), kernel._score(x)))
    twice(lambda: domain.unchecked_kernel(x, 0.3)._score(x))  # a number is filled in, not copied


@pytest.mark.slow
def test_the_kernel_of_a_ball_stays_on_the_device() -> None:
    twice(BALL.unchecked_kernel(states(BALL, 2), torch.rand(2, device=AWAY)).sample_with_target)


@pytest.mark.parametrize("domain", [*KERNELS, BALL, TRIANGLE, RegularSimplex(4)], ids=repr)
def test_walls_stay_on_the_device(domain: Domain) -> None:
    x, width = states(domain), torch.full((), 0.1, device=AWAY)
    v = torch.randn_like(x)
    twice(lambda: (domain.contains(x), domain.boundary_distance(x), domain.difference(x, v)))
    twice(lambda: (domain.inward_normal(x), domain.damp(x, v, width), domain.damp(x, v, 0.1)))  # type: ignore[arg-type]
    if domain is not TRIANGLE:  # its projection waits for the rows that are outside
        twice(lambda: domain.project(x))
    if isinstance(domain, KernelDomain):  # billiards among flat walls wait for the last ball of the batch
        twice(lambda: domain.reflect(x, v))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_stay_on_the_device(schedule: Schedule) -> None:
    t = torch.rand(4, device=AWAY)
    for name in ("scale", "sigma", "std", "drift_rate", "diffusion", "half_log_snr"):
        twice(lambda name=name: getattr(schedule, name)(t))
        twice(lambda name=name: getattr(schedule, name)(t[0]))
    twice(lambda: schedule.time(t))


# losses -------------------------------------------------------------------------------------------------------------

DENOISING = (
    DenoisingScoreMatching(),
    DenoisingScoreMatching.edm(),
    DenoisingScoreMatching.simple,
    DenoisingScoreMatching.likelihood,
    DenoisingScoreMatching.min_snr,
    SlicedScoreMatching(),
)
FOLDING = (
    LatentImageScoreMatching(),
    ConditionalFlowMatching(),
    ConditionalFlowMatching(LogitNormalTime()),
    ImplicitScoreMatching(),
)


def loss_stays_away(process: Diffusion, objective: Any, *preconditioning: Any) -> None:
    network = MLP(MLPConfig(process.domain.event_shape, 8, 1)).to(AWAY)
    score = NeuralScore(network, process, *preconditioning)
    made: Objective = objective if isinstance(objective, Objective) else objective(process)
    x0 = states(process.domain)
    score.loss(x0, made).backward()
    with elsewhere():
        loss = score.loss(x0, made)
        loss.backward()
    assert loss.device == AWAY and all(p.grad is None or p.grad.device == AWAY for p in network.parameters())


@pytest.mark.parametrize("objective", DENOISING, ids=lambda o: getattr(o, "__name__", repr(o)))
@pytest.mark.parametrize("domain", KERNELS, ids=repr)
def test_denoising_losses_stay_on_the_device(domain: KernelDomain, objective: Any) -> None:
    loss_stays_away(Diffusion(domain, VE() if domain.bounded else VE(sigma_max=2.0)), objective)


@pytest.mark.parametrize("objective", FOLDING, ids=repr)
@pytest.mark.parametrize("domain", KERNELS, ids=repr)
def test_losses_on_the_covering_space_stay_on_the_device(domain: KernelDomain, objective: Objective) -> None:
    loss_stays_away(Diffusion(domain, VE() if domain.bounded else VE(sigma_max=2.0)), objective)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_losses_under_any_schedule_stay_on_the_device(schedule: Schedule) -> None:
    process = Diffusion(Euclidean((2,)), schedule)
    loss_stays_away(process, DenoisingScoreMatching.simple)
    loss_stays_away(process, DenoisingScoreMatching(), IDDPMPreconditioning(20))
    loss_stays_away(process, ConditionalFlowMatching(), VPredictionPreconditioning())


def test_losses_with_a_schedule_for_each_part_stay_on_the_device() -> None:
    domain = Product(Hypercube((1,)), Simplex(2))
    loss_stays_away(Diffusion(domain, [VE(), VE(sigma_max=1.0)]), DenoisingScoreMatching())


def gradients_stay_away(module: nn.Module, loss: Callable[[], Tensor]) -> None:
    module.to(AWAY)
    twice(loss).backward()
    assert any(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("domain", [Euclidean((2,)), Hypercube((2,)), Simplex(3)], ids=repr)
def test_derivatives_and_moments_stay_on_the_device(domain: KernelDomain) -> None:
    process, x0 = Diffusion(domain, VE(sigma_max=2.0)), states(domain)
    score = NeuralScore(MLP(MLPConfig((2,), 8, 1)), process)
    for objective in (HighOrderScoreMatching(), HighOrderScoreMatching(probes=1)):
        gradients_stay_away(score, lambda objective=objective: objective(score, x0))
    for kind, matching in ((SecondMomentHead, SecondMomentMatching()), (ResidualHead, ResidualMatching(score))):
        head = kind(MLP(MLPConfig((2,), 8, 1)), process)
        gradients_stay_away(head, lambda head=head, matching=matching: matching(head, x0))


@pytest.mark.parametrize(
    "objective",
    [VariationalBound(), VariationalBound(bins=Bins(8)), VDM(Learned()), VDM(Learned(), steps=10, bins=Bins(8))],
    ids=repr,
)
def test_bounds_stay_on_the_device(objective: Any) -> None:
    process = Diffusion(Euclidean((2,)), Discrete.ddpm(50))
    score = NeuralScore(MLP(MLPConfig((2,), 8, 1)), process)
    if isinstance(objective, nn.Module):
        objective.to(AWAY)
    gradients_stay_away(score, lambda: score.loss(states(process.domain), objective))


def test_a_classifier_stays_on_the_device() -> None:
    process = Diffusion(Hypercube((2,)), VE())
    classifier = NoisyClassifier(ClassifierMLP(ClassifierMLPConfig((2,), classes=3)), process)
    label = torch.zeros(4, dtype=torch.int64, device=AWAY)
    gradients_stay_away(classifier, lambda: CrossEntropy()(classifier, states(process.domain), label=label))


# solvers ------------------------------------------------------------------------------------------------------------

RULES: tuple[Solver, ...] = (
    Euler(),
    Heun(),
    RungeKutta(),
    DDIM(),
    DDIM(1.0),
    DPMSolver(3),
    DPMSolver(2, multistep=True),
    DPMSolverPP(2),
    DPMSolverPP(3, multistep=False),
    DPMSolverPP(2, sde=True),
    UniPC(3),
    DEIS(3),
    Adams(4),
    IPNDM(4),
    Ancestral(),
    ReverseDiffusion(),
    SASolver(2, 2),
    ERSDE(3),
    EDMStochastic(2.0, s_min=0.0, s_noise=1.0),
    Restart([(0.3, 0.5, 4, 2)]),
    PredictorCorrector(ReverseDiffusion(), LangevinCorrector(0.16, 2)),
    AnnealedLangevin(3, 0.01),
    EulerMaruyama(),
    Milstein(),
)
OPEN, BOX = Diffusion(Euclidean((2,)), VP()), Diffusion(Hypercube((2,)), VE())
ON_THE_BOX = (Euler(), Heun(), DPMSolverPP(2), UniPC(3), EulerMaruyama(), EDMStochastic(2.0), ReflectedStrang())


def solves_away(solver: Solver, process: Diffusion, score: Any, steps: int = 5) -> None:
    """The part of a solve between its plan and its bookkeeping: where the network's time is spent."""
    equation = solver.accepts[0](process, score)  # type: ignore[call-arg]
    equation = equation.bound(default_wall(equation, solver))
    times = karras(process, steps + 1)
    x = states(process.domain)
    plan = solver.plan(equation, times)
    records = bind(plan, x)
    draws = [tuple(torch.randn_like(x) for _ in range(record.draws)) for record in plan]
    twice(lambda: integrate(equation, x, records, solver, draws))


@pytest.mark.parametrize("solver", RULES, ids=repr)
def test_solvers_stay_on_the_device(solver: Solver) -> None:
    covariances = [[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.4]]]
    solves_away(solver, OPEN, GaussianMixtureScore(OPEN, [0.3, 0.7], [[0.5, -0.3], [-1.0, 0.8]], covariances))


@pytest.mark.parametrize("solver", ON_THE_BOX, ids=repr)
def test_solvers_between_walls_stay_on_the_device(solver: Solver) -> None:
    solves_away(solver, BOX, CosineScore(BOX))


@pytest.mark.parametrize("domain", [Simplex(3), RegularSimplex(3), BALL, Torus((2,), [1.0, 2.0])], ids=repr)
def test_networks_on_other_domains_stay_on_the_device(domain: KernelDomain) -> None:
    process = Diffusion(domain, VE())
    score = NeuralScore(MLP(MLPConfig(domain.event_shape, 8, 1)).to(AWAY), process).eval()
    with torch.no_grad():
        for solver in (Heun(), EulerMaruyama()):
            solves_away(solver, process, score)


def test_borrowed_networks_with_labels_from_a_table_stay_on_the_device() -> None:
    process = Diffusion(Euclidean((2,)), Discrete.ddpm(50))
    solves_away(DDIM(), process, from_prediction(lambda x, label: x * label[:, None], process, "noise"))


def test_a_half_line_rule_stays_on_the_device() -> None:
    process = Diffusion(Orthant((1,)), VE(sigma_max=2.0))
    solves_away(LepingleEulerMaruyama(), process, lambda x, t: -x)


# constants ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Discrete.ddpm(50),
        lambda: Hypercube((2,), [0.0, -1.0], [1.0, 2.0]),
        lambda: Torus((2,), [1.0, 2.0]),
        lambda: GaussianMixtureScore(OPEN, [1.0], [[0.0, 0.0]], 1.0),
    ],
)
def test_constants_are_copied_once_and_travel_on_the_cpu_alone(make: Callable[[], Any]) -> None:
    thing = make()
    held = [v for v in vars(thing).values() if isinstance(v, OnDevice)]
    assert held
    for constants in held:
        assert constants(AWAY) is constants(AWAY)
        assert list(copy.deepcopy(constants)._kept) == [torch.device("cpu")]


def test_constants_are_never_made_of_fake_tensors() -> None:
    """Whoever comes first under FakeTensorMode or in inference mode leaves nothing behind that is fake, or not fit for training."""
    subset_layers.cache_clear()
    for first in (lambda: FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode):
        simplex, polytope = RegularSimplex(4), Polytope([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], [1.0, 1.0, 1.0])
        schedule = Discrete.ddpm(50)
        with first():
            simplex.facets(), polytope.facets(), polytope._damping(torch.device("cpu")), subset_layers(3)
            schedule.sigma(torch.rand(3))
        made = (simplex.facets(), polytope._damping(torch.device("cpu")), subset_layers(3))
        assert all(type(v) is Tensor and not v.is_inference() for v in tree_leaves(made) if isinstance(v, Tensor))
        x = torch.rand(3, 2, requires_grad=True)
        polytope.damp(x, torch.ones(3, 2), torch.tensor(0.1)).sum().backward()
        t = torch.rand(3, requires_grad=True)
        schedule.sigma(t).sum().backward()
        assert x.grad is not None and t.grad is not None
