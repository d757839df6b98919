"""The deformable model, compared with a slow version of its formulas and the authors' names."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from darts.genotype import Flow, Genotype
from spatialflow.config import get_cfg, load_genotype
from spatialflow.modeling.flow_graph import FlowGraph
from spatialflow.modeling.layers.deformable import DeformableBottleneck, DeformableConv
from spatialflow.modeling.topology import spatialflow_topology
from spatialflow.reference.conversion import ReferenceLayout, convert_reference, is_deformable
from spatialflow.reference.names import our_name

CHANNELS = 6


def sampled(image, y, x):
    """Return the bilinear value of a map (C, H, W) at a point, zero outside of the map."""
    height, width = image.shape[-2:]
    total = torch.zeros(image.shape[0], dtype=image.dtype)
    for row in (int(y // 1), int(y // 1) + 1):
        for column in (int(x // 1), int(x // 1) + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                total = total + weight * image[:, row, column]
    return total


def deformed(x, predicted, weight, bias):
    """Compute a modulated deformable 3×3 convolution with padding 1 of one image, in loops."""
    height, width = x.shape[-2:]
    output = torch.zeros(weight.shape[0], height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            total = bias.clone()
            for k in range(9):
                y = i + k // 3 - 1 + predicted[2 * k, i, j].item()
                z = j + k % 3 - 1 + predicted[2 * k + 1, i, j].item()
                modulation = torch.sigmoid(predicted[18 + k, i, j])
                total = total + modulation * (weight[:, :, k // 3, k % 3] @ sampled(x, y, z))
            output[:, i, j] = total
    return output


def graph_of(*flows, **choices):
    torch.manual_seed(0)
    topology = spatialflow_topology(box_levels=("p3",), stuff_levels=("p3",), mask_levels=("p3",))
    genotype = Genotype("deformable", flows, choices)
    graph = FlowGraph.from_genotype(genotype, channels=CHANNELS, topology=topology).double()
    for name, parameter in graph.named_parameters():
        torch.nn.init.normal_(parameter, std=0.4 if name.endswith("weight") else 0.2)
    return graph


def node_outputs(graph, x):
    """Return the output of every node, recorded by hooks."""
    kept = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: kept.update({name: output}))
        for name, module in graph.nodes.items()
    ]
    graph({"p3": x})
    for handle in handles:
        handle.remove()
    return kept


def test_a_node_looks_where_the_other_branch_is():
    """Check z = f(X + R), X' = relu(DCN(X; z)): the source changes the offsets only."""
    flow = Flow("box.1", "cls.1", "offset", "identity")
    graph = graph_of(flow, **{"cls.1.conv": "deformable"})
    x = torch.randn(1, CHANNELS, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        kept = node_outputs(graph, x)
        node = graph.nodes["cls_1"]
        predicted = F.conv2d(x + kept["box_1"], node.offset.weight, node.offset.bias, padding=1)
        expected = F.relu(deformed(x[0], predicted[0], node.weight, node.bias))
    torch.testing.assert_close(kept["cls_1"][0], expected)


def test_offsets_read_the_input_before_gates_and_additive_flows():
    flows = (
        Flow("box.4", "mask.1", "offset", "identity"),
        Flow("stuff.4", "mask.1", "input", "conv_1x1"),
        Flow("box.4", "mask.1", "gate", "conv_1x1"),
    )
    graph = graph_of(*flows, **{"mask.1.conv": "deformable"})
    x = torch.randn(1, CHANNELS, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        kept = node_outputs(graph, x)
        node = graph.nodes["mask_1"]
        predicted = F.conv2d(x + kept["box_4"], node.offset.weight, node.offset.bias, padding=1)
        gated = x * (1 + torch.tanh(graph.flows[flows[2].key](kept["box_4"])))
        added = gated + graph.flows[flows[1].key](kept["stuff_4"])
        expected = F.relu(deformed(added[0], predicted[0], node.weight, node.bias))
    torch.testing.assert_close(kept["mask_1"][0], expected)


def test_without_a_source_it_is_ordinary_dcn():
    graph = graph_of(**{"cls.2.conv": "deformable"})
    x = torch.randn(1, CHANNELS, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        kept = node_outputs(graph, x)
        node = graph.nodes["cls_2"]
        predicted = F.conv2d(kept["cls_1"], node.offset.weight, node.offset.bias, padding=1)
        expected = F.relu(deformed(kept["cls_1"][0], predicted[0], node.weight, node.bias))
    torch.testing.assert_close(kept["cls_2"][0], expected)


def test_zero_offsets_are_a_convolution_at_half_weight():
    conv = DeformableConv(4, 4, kernel_size=3, stride=2, padding=1, groups=2, bias=True)
    x = torch.randn(2, 4, 9, 8)
    expected = F.conv2d(x, conv.weight / 2, conv.bias, stride=2, padding=1, groups=2)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(
    ("flow", "choices", "problem"),
    [
        (Flow("box.1", "cls.1", "offset", "identity"), {}, "needs a deformable target"),
        (Flow("box.1", "cls.1", "offset", "conv_1x1"), {"cls.1.conv": "deformable"}, "as it is"),
    ],
)
def test_offsets_that_cannot_be(flow, choices, problem):
    with pytest.raises(ValueError, match=problem):
        graph_of(flow, **choices)


def test_the_deformable_model_trains_and_detects(tiny_cfg, make_input):
    changes = {
        "MODEL.SPATIALFLOW.GENOTYPE": "spatialflow_deformable",
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True],
        "MODEL.RESNETS.DEFORM_MODULATED": True,
    }
    model = build_model(tiny_cfg(changes))
    deformable = [m for m in model.modules() if isinstance(m, DeformableBottleneck)]
    assert len(deformable) == 4 + 6 + 3
    with EventStorage():
        sum(model([make_input(64, 64)]).values()).backward()
    for name, parameter in model.named_parameters():
        if ".offset." in name:
            assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        assert "panoptic_seg" in model.eval()([make_input(64, 64)])[0]


def test_weights_without_offsets_are_refused_in_evaluation(tiny_cfg):
    plain = build_model(tiny_cfg({"MODEL.SPATIALFLOW.GENOTYPE": "parallel"}))
    deformable = build_model(tiny_cfg({"MODEL.SPATIALFLOW.GENOTYPE": "spatialflow_deformable"}))
    with pytest.raises(ValueError, match=r"only in the genotype \['cls_1', "):
        deformable.flow_graph.eval().load_state_dict(plain.flow_graph.state_dict(), strict=False)


def reference_names():
    """Return names and shapes of a checkpoint of the authors' deformable code, made from ours."""
    cfg = get_cfg("reference/narrow_dcn.yaml", ["MODEL.DEVICE", "cpu"])
    state = build_model(cfg).state_dict()
    stems = {"cls": "cls", "stuff": "stuff", "mask": "mask"}
    theirs = {}
    for name, value in state.items():
        parts = name.split(".")
        if ".conv2.offset." in name:
            _, _, stage, block, _, _, field = parts
            layer = int(stage.removeprefix("res")) - 1
            theirs[f"backbone.layer{layer}.{block}.conv2.conv_offset.{field}"] = (name, value)
        elif name.startswith("flow_graph.nodes.") and ".offset." in name:
            branch, index = parts[2].split("_")
            place = int(index) - 1
            key = f"bbox_head.{stems[branch]}_spatial_flow_convs.{place}.conv.{parts[-1]}"
            theirs[key] = (name, value)
    return cfg, state, theirs


def test_the_authors_names_of_what_is_deformable():
    _, state, theirs = reference_names()
    offsets = {name for name in state if ".offset." in name}
    assert {ours for ours, _ in theirs.values()} == offsets
    assert len(offsets) == 2 * (4 + 23 + 3 + 9)
    for name, (ours, _) in theirs.items():
        assert our_name(name, deformable=True) == ours
    assert is_deformable({name: value for name, (_, value) in theirs.items()})
    plain = "bbox_head.cls_spatial_flow_convs.0.conv.weight"
    assert our_name(plain) == "flow_graph.flows.box_1_to_cls_1_input.conv.weight"


def test_a_deformable_checkpoint_says_which_config_it_needs():
    _, _, theirs = reference_names()
    reference = {name: value for name, (_, value) in theirs.items()}
    plain = build_model(get_cfg("reference/narrow.yaml", ["MODEL.DEVICE", "cpu"])).state_dict()
    with pytest.raises(ValueError, match="GENOTYPE spatialflow_deformable"):
        convert_reference(reference, plain, ReferenceLayout(3, 3, 4))


def test_the_published_deformable_genotype():
    genotype = load_genotype("spatialflow_deformable")
    spatialflow_topology().check(genotype)
    assert sum(flow.port == "offset" for flow in genotype.flows) == 9
    assert set(genotype.choices.values()) == {"deformable"}
