"""The architecture gradient against exact differentiation through the virtual step, in float64."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from darts.architect import Architect, VirtualStep
from darts.mixed import MixedEdge
from darts.operations import OPERATIONS
from darts.relaxation import KINDS, Architecture, Relaxation, architecture_parameters
from darts.space import Branch, SearchSpace, Topology


class Supernet(nn.Module):
    """Two branches and three relaxed edges, with a batch norm and a regression at the end."""

    def __init__(self, kind="softmax", operations=OPERATIONS, partial_channels=1):
        super().__init__()
        topology = Topology([Branch("a", 2, ("p3",)), Branch("b", 2, ("p3",))])
        space = SearchSpace.build(topology, operations=operations)
        self.architecture = Architecture(
            space, Relaxation(kind, partial_channels=partial_channels, initial_std=0.3)
        )
        self.nodes = nn.ModuleDict(
            {node.name.replace(".", "_"): nn.Conv2d(4, 4, 3, padding=1) for node in topology.nodes}
        )
        self.edges = nn.ModuleDict(
            {edge.key: MixedEdge(edge, 4, self.architecture) for edge in space.edges}
        )
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        a1 = torch.tanh(self.nodes["a_1"](x))
        b1 = torch.tanh(self.nodes["b_1"](x + self.edges["a_1_to_b_1_input"](a1)))
        a2 = torch.tanh(self.nodes["a_2"](a1 + self.edges["b_1_to_a_2_input"](b1)))
        into_b2 = self.edges["a_1_to_b_2_input"](a1) + self.edges["a_2_to_b_2_input"](a2)
        return self.dropout(self.norm(self.nodes["b_2"](b1 + into_b2)))


def loss_of(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, 4, 6, 6, generator=generator, dtype=torch.float64) for _ in "xy")


@pytest.fixture
def build():
    def build(seed=0, *, steps=3, momentum=0.9, rate=0.1, **options):
        torch.manual_seed(seed)
        model = Supernet(**options).double()
        architecture = architecture_parameters(model)
        architect = Architect(model, architecture, loss_of)
        weights = architect.weights
        optimizer = torch.optim.SGD(weights.values(), rate, momentum=momentum, weight_decay=1e-3)
        for step in range(steps):
            model.architecture.draw()
            optimizer.zero_grad()
            loss_of(model, batch(100 + step)).backward()
            optimizer.step()
        model.architecture.draw()
        return model, architect, optimizer

    return build


def exact(model, architecture, optimizer, train, held_out):
    """Differentiate the loss after one step of SGD through that step."""
    state = torch.get_rng_state()
    weights = {n: p for n, p in model.named_parameters() if n not in architecture}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    loss = loss_of(lambda x: functional_call(model, buffers, (x,)), train)
    gradients = torch.autograd.grad(
        loss, list(weights.values()), create_graph=True, materialize_grads=True
    )
    group = optimizer.param_groups[0]
    moved = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        buffer = optimizer.state.get(weight, {}).get("momentum_buffer", torch.zeros_like(weight))
        change = gradient + group["weight_decay"] * weight + group["momentum"] * buffer
        moved[name] = weight - group["lr"] * change
    torch.set_rng_state(state)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    loss = loss_of(lambda x: functional_call(model, {**buffers, **moved}, (x,)), held_out)
    # With a drawn path the other operations' parameters are not used.
    found = torch.autograd.grad(loss, list(architecture.values()), materialize_grads=True)
    torch.set_rng_state(state)
    return dict(zip(architecture, found, strict=True))


def error(given, expected):
    """The relative error of a whole gradient."""
    given, expected = (torch.cat([g.flatten() for g in x.values()]) for x in (given, expected))
    return ((given - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"steps": 0}, {"partial_channels": 2}])
def test_second_order_is_exact(build, seed, options):
    model, architect, optimizer = build(seed, **options)
    train, held_out = batch(seed), batch(seed + 50)
    step = VirtualStep.of(optimizer, architect.weights)
    _, given = architect.second_order(train, held_out, step)
    expected = exact(model, architect.architecture, optimizer, train, held_out)
    assert error(given, expected) < 1e-5
    first = architect.first_order(held_out)[1]
    assert error(first, expected) > 1e-3, "the second order makes no difference here"


def test_known_gradients_are_those_that_would_be_computed(build):
    model, architect, optimizer = build()
    model.eval()  # nothing is drawn
    train, held_out = batch(1), batch(2)
    step = VirtualStep.of(optimizer, architect.weights)
    _, expected = architect.second_order(train, held_out, step)
    weights = architect.weights
    loss = loss_of(model, train)
    known = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    _, given = architect.second_order(train, held_out, step, gradients=known)
    assert error(given, expected) < 1e-10
    _, other = architect.second_order(
        train, held_out, step, gradients={name: 2 * g for name, g in known.items()}
    )
    assert error(other, expected) > 1e-3
    # SGD leaves a weight without a gradient where it is, whatever its decay and momentum.
    left_out = next(iter(known))
    assert left_out not in step.take(weights, {n: g for n, g in known.items() if n != left_out})


@pytest.mark.parametrize("kind", KINDS)
def test_second_order_of_every_relaxation(build, kind):
    model, architect, optimizer = build(kind=kind)
    train, held_out = batch(1), batch(2)
    _, given = architect.second_order(train, held_out, VirtualStep.of(optimizer, architect.weights))
    expected = exact(model, architect.architecture, optimizer, train, held_out)
    assert error(given, expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_first_order_is_autograd(build, kind):
    model, architect, _ = build(kind=kind)
    state = torch.get_rng_state()
    loss, given = architect.first_order(batch(3))
    torch.set_rng_state(state)
    model.zero_grad()
    expected = loss_of(model, batch(3))
    expected.backward()
    assert torch.equal(loss, expected.detach())
    for name, parameter in architect.architecture.items():
        assert torch.equal(given[name], parameter.grad), name


@pytest.mark.parametrize("order", [1, 2])
def test_nothing_is_touched(build, order):
    model, architect, optimizer = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    if order == 1:
        architect.first_order(batch(4))
    else:
        architect.second_order(batch(5), batch(4), VirtualStep.of(optimizer, architect.weights))
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for state, buffer in zip(optimizer.state.values(), buffers, strict=True):
        assert torch.equal(state["momentum_buffer"], buffer)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert gradient is None if parameter.grad is None else torch.equal(parameter.grad, gradient)


def test_gradients_are_averaged(build):
    model, architect, _ = build()
    doubled = Architect(
        model,
        architect.architecture,
        loss_of,
        average=lambda named: {name: 2 * value for name, value in named.items()},
    )
    _, once = architect.first_order(batch(1))
    _, twice = doubled.first_order(batch(1))
    assert all(torch.equal(2 * once[name], twice[name]) for name in once)


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"nesterov": True}, "nesterov"), ({"dampening": 0.5}, "dampening")],
)
def test_steps_that_are_not_foreseen(build, options, problem):
    _, architect, _ = build(steps=0)
    optimizer = torch.optim.SGD(architect.weights.values(), 0.1, momentum=0.9, **options)
    with pytest.raises(ValueError, match=problem):
        VirtualStep.of(optimizer, architect.weights)


def test_several_momenta_are_not_foreseen(build):
    _, architect, _ = build(steps=0)
    groups = [
        {"params": [p], "momentum": 0.1 * i} for i, p in enumerate(architect.weights.values())
    ]
    with pytest.raises(ValueError, match="one momentum of all weights expected"):
        VirtualStep.of(torch.optim.SGD(groups, 0.1), architect.weights)


def test_optimizers_that_are_not_foreseen(build):
    _, architect, _ = build(steps=0)
    with pytest.raises(ValueError, match="AdamW given"):
        VirtualStep.of(torch.optim.AdamW(architect.weights.values()), architect.weights)
    few = torch.optim.SGD(list(architect.weights.values())[:1], 0.1)
    with pytest.raises(ValueError, match="does not own"):
        VirtualStep.of(few, architect.weights)


def test_the_virtual_step_is_of_the_loss_that_the_weights_learn_by(build):
    model, architect, optimizer = build()
    model.eval()
    step = VirtualStep.of(optimizer, architect.weights)
    known = {name: torch.ones_like(weight) for name, weight in architect.weights.items()}
    found = []
    for factor in (0, 1, 2):
        one = Architect(
            model,
            architect.architecture,
            loss_of,
            train_loss=lambda call, data, factor=factor: factor * loss_of(call, data),
        )
        _, gradient = one.second_order(batch(1), batch(2), step, gradients=known)
        found.append(torch.cat([g.flatten() for g in gradient.values()]))
    assert not torch.allclose(found[1], found[0])
    # The product with the Hessian is linear in that loss.
    once, twice = found[1] - found[0], found[2] - found[0]
    torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-9)
