"""Initial values by seed and name: equal where networks share parameters, distributed as before."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from spatialflow.modeling.backbone.trunks import build_trunk
from spatialflow.modeling.initialization import RandomTape
from spatialflow.search.space import random_genotypes, write_genotypes

GENOTYPES = ("spatialflow", "parallel", "spatialflow_deformable", "random")
SUPERNET = {"MODEL.META_ARCHITECTURE": "SpatialFlowSupernet"}


@pytest.fixture
def initial(tiny_cfg, tmp_path):
    """Return a function that builds a network in a given random state, and returns its values."""

    def build(changes, state=0):
        genotype = changes.get("MODEL.SPATIALFLOW.GENOTYPE")
        if genotype == "random":
            space = tiny_cfg({**SUPERNET, "SEARCH.SPACE.PORTS": ["input", "gate"]})
            (path,) = write_genotypes(random_genotypes(space, 1, 7), tmp_path)
            changes = {**changes, "MODEL.SPATIALFLOW.GENOTYPE": str(path)}
        torch.manual_seed(state)
        return {n: p.detach() for n, p in build_model(tiny_cfg(changes)).named_parameters()}

    return build


def shared(one, other):
    """Names of the common parameters; a flow may have another operation in the other network."""
    return [n for n in one.keys() & other.keys() if one[n].shape == other[n].shape]


def differing(one, other):
    return [n for n in shared(one, other) if not torch.equal(one[n], other[n])]


@pytest.mark.parametrize("other", GENOTYPES[1:])
def test_genotypes_start_from_the_same_shared_parameters(initial, other):
    first = initial({"SEED": 3, "MODEL.SPATIALFLOW.GENOTYPE": GENOTYPES[0]})
    second = initial({"SEED": 3, "MODEL.SPATIALFLOW.GENOTYPE": other}, state=1)
    common = shared(first, second)
    assert {n.partition(".")[0] for n in common} == {
        *("backbone", "box_head", "flow_graph", "mask_head", "stuff_head")
    }
    assert len(common) > 100
    assert first.keys() != second.keys()
    assert differing(first, second) == []


def test_a_seed_is_all_that_initial_values_depend_on(initial):
    first = initial({"SEED": 3})
    assert differing(first, initial({"SEED": 3}, state=1)) == []
    changed = set(differing(first, initial({"SEED": 4})))
    # Biases, norms and gates that start from a constant are the same with every seed.
    assert changed == {n for n, p in first.items() if p.min() < p.max()}
    without = initial({"SEED": -1})
    assert set(differing(without, initial({"SEED": -1}, state=1))) == changed


def test_a_tower_has_its_values_whatever_its_length_and_its_neighbours(initial):
    first = initial({"SEED": 3})
    second = initial({"SEED": 3, "MODEL.ROI_MASK_HEAD.NUM_CONV": 1, "MODEL.RESNETS.DEPTH": 34})
    assert differing(first, second) == []


@pytest.mark.parametrize("changes", [{}, SUPERNET, {"MODEL.RESNETS.NORM": "BN"}])
def test_distributions_stay_as_modules_choose_them(initial, changes):
    ours, theirs = initial({"SEED": 3, **changes}), initial({"SEED": -1, **changes})
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        scale = theirs[name].std(correction=0)
        if scale == 0:
            assert torch.equal(value, theirs[name]), name
        elif value.numel() >= 256:
            assert value.std(correction=0) / scale == pytest.approx(1, abs=0.25), name
            assert abs(value.mean() - theirs[name].mean()) < 0.5 * scale, name
        if value.numel() >= 2048:
            # Uniform and normal values differ in how far they reach: 1.7 and 3.3 deviations.
            reach = value.abs().max() / theirs[name].abs().max()
            assert reach == pytest.approx(1, abs=0.4), name


def test_the_global_generator_goes_on_as_if_nothing_were_drawn_again(initial):
    initial({"SEED": 3})
    after = torch.rand(3)
    initial({"SEED": -1})
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_pretrained_weights_stay_as_they_are(initial, name):
    keys = {"MODEL.SPATIALFLOW.TRUNK": name, "SEED": 3}
    values = initial(keys)
    pretrained = dict(
        build_trunk(name, pretrained=True).named_parameters(prefix="backbone.bottom_up")
    )
    assert pretrained
    assert differing(values, pretrained) == []
    assert differing(values, initial({**keys, "MODEL.SPATIALFLOW.TRUNK_PRETRAINED": False})) != []


class Odd(nn.Module):
    """Random values by other ways than a fill in place."""

    def __init__(self):
        super().__init__()
        self.scaled = nn.Parameter(0.1 * torch.randn(200) + 5)
        self.orthogonal = nn.Parameter(torch.empty(8, 8))
        nn.init.orthogonal_(self.orthogonal)
        self.partial = nn.Parameter(torch.full((400,), 7.0))
        with torch.no_grad():
            self.partial[200:].uniform_(-1, 1)
        self.zeroed = nn.Parameter(torch.randn(5))
        nn.init.zeros_(self.zeroed)
        self.copied = nn.Parameter(self.scaled.detach().clone())
        whole = torch.randn(50)
        before = whole.clone()
        self.cancelled = nn.Parameter(before - whole.mul_(2) / 2)


def test_values_that_went_through_other_operations_are_drawn_again():
    values = []
    for state in (0, 1):
        torch.manual_seed(state)
        with RandomTape() as tape:
            module = Odd()
        before = module.scaled.detach().clone()
        tape.draw_again({"odd": module}, seed=2)
        assert not torch.equal(module.scaled, before)
        values.append({n: p.detach() for n, p in module.named_parameters()})
    assert differing(*values) == []
    found = values[0]
    assert found["scaled"].mean().item() == pytest.approx(5, abs=0.05)
    assert found["scaled"].std().item() == pytest.approx(0.1, abs=0.03)
    torch.testing.assert_close(found["orthogonal"] @ found["orthogonal"].T, torch.eye(8))
    assert bool((found["partial"][:200] == 7).all())
    assert found["partial"][200:].abs().max() <= 1
    assert found["partial"][200:].std().item() == pytest.approx(1 / 3**0.5, abs=0.1)
    assert not found["zeroed"].any()
    assert not found["cancelled"].any()
    assert not torch.equal(found["copied"], found["scaled"])  # another name, other values
