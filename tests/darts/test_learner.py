"""The steps of an architecture: what fades, what is measured, when it stops, what is restored."""

import json

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from darts.architect import Architect
from darts.curvature import WINDOW, CurvatureWatch
from darts.genotype import Flow, Genotype
from darts.learner import ArchitectureLearner, LearnerSettings, NotFiniteError
from darts.relaxation import Architecture, Relaxation, architecture_parameters
from spatialflow.search.log import read_log
from tests.darts.test_architect import Supernet, batch


def losses_of(model, data):
    given, expected = model(data[0]), data[1]
    return {"first": (given - expected).square().mean(), "second": 100 * given.abs().mean()}


@pytest.fixture
def build():
    def build(seed=0, *, architecture=None, **settings):
        torch.manual_seed(seed)
        supernet = Supernet().double()
        return ArchitectureLearner(
            supernet,
            supernet.architecture,
            LearnerSettings(iterations=10, **{"rate": 0.1, **settings}),
            costs={
                (edge.key, name): float(name == "conv_3x3")
                for edge in supernet.architecture.space.edges
                for name in edge.operations
            },
            budget=0.25,
            losses=losses_of,
        )

    return build


def values(learner):
    return torch.cat([p.detach().flatten() for p in learner.parameters.values()])


def steps_of(learner):
    return [int(one.get("step", 0)) for one in learner.state_dict()["optimizer"].values()]


def test_the_architecture_is_frozen_in_the_warmup_and_for_good_when_asked(build):
    learner = build(warmup=3)
    assert [learner.begin(i) for i in range(5)] == [False, False, False, True, True]
    learner.frozen = True
    assert not learner.begin(9)


def test_what_fades(build):
    learner = build(auxiliary_skip=0.4, temperature=4.0)
    seen = []
    for iteration in (0, 5, 10):
        learner.begin(iteration)
        skips = {edge.auxiliary_skip for edge in learner._mixed}
        seen.append((*skips, learner.architecture.temperature))
    assert seen == [(0.4, 4.0), (0.2, 2.0), (0.0, 1.0)]


def test_each_task_counts_as_much_at_the_first_step(build):
    learner = build(normalize=True)
    learner.begin(0)
    learner.step(0, batch(0))
    assert learner.measure()["architecture_loss"] == pytest.approx(2.0)
    learner = build()
    learner.step(0, batch(0))
    assert learner.measure()["architecture_loss"] > 3


def test_a_task_without_a_loss_at_first_counts_from_where_it_has_one(build):
    learner = build(normalize=True)
    given, expected = batch(0)
    losses = learner._losses
    learner._losses = lambda model, data: losses(model, data[:2]) | {"third": data[2]}
    seen = []
    for iteration, third in enumerate((0.0, 3.0, 6.0)):
        learner.step(iteration, (given, expected, torch.tensor(third)))
        seen.append(learner._loss_scales.get("third"))
    assert seen == [None, 3.0, 3.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_not_taken(build, bad):
    learner = build(normalize=True)
    for scale in (bad, 1.0, bad):
        before, counted = values(learner), steps_of(learner)
        given, expected = batch(0)
        if scale == bad:
            with pytest.raises(NotFiniteError, match="loss is (nan|inf)|gradient"):
                learner.step(0, (given * scale, expected))
            assert torch.equal(values(learner), before)
            assert steps_of(learner) == counted
        else:
            learner.step(0, (given, expected))
            assert not torch.equal(values(learner), before)


def test_a_step_that_is_not_taken_fixes_no_scale(build):
    learner = build(normalize=True)
    losses = learner._losses
    learner._losses = lambda model, data: losses(model, data) | {"third": torch.tensor(bad)}
    bad = float("nan")
    with pytest.raises(NotFiniteError):
        learner.step(0, batch(0))
    assert learner._loss_scales == {}
    bad = 2.0
    learner.step(0, batch(0))
    assert learner._loss_scales["third"] == 2.0


def test_the_loss_is_the_mean_of_processes(build):
    learner = build()
    learner.architect.average = lambda named: {name: value / 2 for name, value in named.items()}
    alone = build()
    for one in (alone, learner):
        one.step(0, batch(0))
    halved = learner.measure()["architecture_loss"]
    assert halved == pytest.approx(alone.measure()["architecture_loss"] / 2)


def test_a_finite_loss_whose_gradient_is_not_is_refused(build):
    learner = build()
    learner._losses = lambda model, data: {"root": (model(data[0]) * 0).abs().sum().sqrt()}
    with pytest.raises(NotFiniteError, match="a gradient"):
        learner.step(0, batch(0))


def test_the_state_goes_to_the_device_of_the_parameters(build):
    learner = build()
    learner.step(0, batch(0))
    elsewhere = build()
    elsewhere.optimizer.param_groups[0]["params"] = [
        nn.Parameter(torch.empty_like(p, device="meta")) for p in elsewhere.parameters.values()
    ]
    moved = elsewhere.optimizer.param_groups[0]["params"]
    elsewhere.architect.architecture = dict(zip(elsewhere.parameters, moved, strict=True))
    elsewhere.load_state_dict(learner.state_dict())
    assert {elsewhere.optimizer.state[p]["exp_avg"].device.type for p in moved} == {"meta"}


@pytest.mark.parametrize(
    ("settings", "iteration", "nothing_at"),
    [({"beta_decay": 1.0}, 9, 0), ({"entropy": 1.0}, 9, 6), ({"cost": 1.0}, 0, None)],
)
def test_each_regulariser_acts_when_it_should(build, settings, iteration, nothing_at):
    plain, with_it = build(), build(**settings)
    for learner in (plain, with_it):
        learner.step(iteration, batch(0))
    assert not torch.equal(values(plain), values(with_it))
    assert with_it.measure()["penalty"] != 0
    if nothing_at is not None:
        early = build(**settings)
        early.step(nothing_at, batch(0))
        assert early.measure()["penalty"] == 0


def test_measurements_by_hand(build):
    learner = build()
    edges = learner.architecture.space.edges
    with torch.no_grad():
        for logits in learner.architecture.edges.values():
            logits.zero_()
        names = [*edges[0].operations, "none"]
        for edge, best in zip(edges, ("identity", "none", "conv_3x3", "conv_1x1"), strict=True):
            learner.architecture.edges[edge.key][names.index(best)] = 100.0
    measured = learner.measure()
    assert measured["parameter_free"] == pytest.approx(1 / 4)
    assert measured["absent"] == pytest.approx(1 / 4)
    assert measured["expected_cost"] == pytest.approx(1 / 0.25)
    assert measured["entropy"] == pytest.approx(0, abs=1e-6)


def test_flips_count_changes_of_the_likeliest(build):
    learner = build()
    learner._count_flips(0)
    edge = learner.architecture.space.edges[0]
    with torch.no_grad():
        for iteration, position in enumerate((1, 2, 2, 0), 1):
            learner.architecture.edges[edge.key].fill_(0)[position] = 9.0
            learner._count_flips(iteration)
    first = int(learner.measure()["flips"])
    assert first in (2, 3)  # whether the first draw was at 1 already
    assert learner.measure()["unchanged"] == 0
    learner._count_flips(7)
    assert learner.measure()["flips"] == first
    assert learner.measure()["unchanged"] == 3


def test_an_interrupted_search_ends_as_an_undisturbed_one(build):
    settings = {"normalize": True, "beta_decay": 0.1, "warmup": 1}
    whole, first, second = (build(**settings) for _ in range(3))
    state = None
    for iteration in range(6):
        learners = [whole, first if iteration < 3 else second]
        if iteration == 3:
            state = {k: v.clone() for k, v in first.architect.model.state_dict().items()}
            second.architect.model.load_state_dict(state)
            second.load_state_dict(first.state_dict())
        for learner in learners:
            torch.manual_seed(iteration)
            if learner.begin(iteration):
                learner.step(iteration, batch(iteration))
    assert torch.equal(values(whole), values(second))
    assert whole.measure() == second.measure()


def test_second_order_needs_the_next_batch(build):
    with pytest.raises(ValueError, match="`train` and `optimizer`"):
        build(order=2).step(0, batch(0))


def test_second_order_needs_the_gradients_of_the_weights(build):
    learner = build(order=2)
    optimizer = torch.optim.SGD(learner.architect.weights.values(), 0.1)
    with pytest.raises(ValueError, match="gradients in place"):
        learner.step(0, batch(0), train=batch(1), optimizer=optimizer)


@pytest.mark.parametrize("seed", range(3))
def test_the_dominant_eigenvalue_is_that_of_the_hessian(seed):
    torch.manual_seed(seed)
    model = Supernet().double().eval()
    architecture = architecture_parameters(model)

    def loss(call, data):
        return (call(data[0]) - data[1]).square().mean()

    def of_alpha(*alphas):
        named = dict(zip(architecture, alphas, strict=True))
        return loss(lambda x: functional_call(model, named, (x,)), batch(seed))

    blocks = hessian(of_alpha, tuple(p.detach() for p in architecture.values()))
    eigenvalues = torch.linalg.eigvalsh(torch.cat([torch.cat(row, dim=1) for row in blocks]))
    expected = eigenvalues[eigenvalues.abs().argmax()]
    architect = Architect(model, architecture, loss)
    before = torch.get_rng_state()
    given = architect.dominant_eigenvalue(batch(seed), iterations=60)
    assert given == pytest.approx(expected.item(), rel=0.02)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_search_goes_back_where_the_curvature_grows():
    watch = CurvatureWatch(0.75)
    steady = [watch.note(1.0, {"a": torch.tensor(float(i))}) for i in range(2 * WINDOW)]
    assert steady == [None] * (2 * WINDOW)
    # The mean of a window has to grow by a third; -1.5 counts by its magnitude.
    found = [watch.note(-1.5, {"a": torch.tensor(100.0 + i)}) for i in range(WINDOW)]
    first = next(i for i, value in enumerate(found) if value is not None)
    assert first == 3
    again = CurvatureWatch(0.75)
    again.load_state_dict(watch.state_dict())
    assert again.note(9.0, {"a": torch.tensor(0.0)}) is not None


def test_the_earlier_architecture_is_the_one_of_a_window_ago():
    watch = CurvatureWatch(0.75)
    for i in range(WINDOW):
        watch.note(1.0, {"a": torch.tensor(float(i))})
    found = [watch.note(9.0, {"a": torch.tensor(100.0)}) for _ in range(WINDOW)]
    assert found[:-1] == [None] * (WINDOW - 1)
    assert found[-1]["a"] == WINDOW - 1


def test_a_ratio_of_zero_never_stops():
    watch = CurvatureWatch(0.0)
    growing = [watch.note(10.0**i, {"a": torch.zeros(())}) for i in range(30)]
    assert growing == [None] * 30


def test_a_prior_is_added_to_its_flows_only():
    model = Supernet()
    architecture = Architecture(model.architecture.space, Relaxation(initial_std=0.0))
    flow = Flow("a.1", "b.1", "input", "conv_1x1")
    architecture.favour(Genotype("prior", (flow,)), 0.5)
    position = model.architecture.space.edges[0].operations.index("conv_1x1")
    for edge in architecture.space.edges:
        expected = torch.zeros(8)
        if edge.flow.edge == flow.edge:
            expected[position] = 0.5
        assert torch.equal(architecture.edges[edge.key].detach(), expected)


def test_of_a_line_that_a_resume_repeats_the_last_counts(tmp_path):
    lines = [{"iteration": i, "flips": j} for i, j in ((19, 0), (39, 1), (59, 2), (39, 3))]
    path = tmp_path / "search.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["flips"] for line in read_log(path)] == [0, 3, 2]


def test_a_frozen_architecture_stays_so_after_a_stop(build):
    first, second = build(), build()
    first.frozen = True
    second.load_state_dict(first.state_dict())
    assert not second.begin(5)
