"""Candidate operations of a flow."""

import pytest
import torch
from torch.nn import functional as F

from darts.operations import GATE_OPERATIONS, OPERATIONS, build_operation


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_shape_is_kept(name, size):
    x = torch.randn(2, 8, *size)
    assert build_operation(name, 8)(x).shape == x.shape


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_parameter_and_the_source_get_a_gradient(name):
    # Wide enough that no ReLU inside blocks every path by chance.
    operation = build_operation(name, 128)
    x = torch.randn(2, 128, 7, 5, requires_grad=True)
    (operation(x) * torch.randn(2, 128, 7, 5)).sum().backward()
    assert x.grad.abs().sum() > 0
    for key, parameter in operation.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_operations_differ():
    x = torch.randn(2, 8, 9, 9)
    outputs = [build_operation(name, 8)(x) for name in OPERATIONS]
    for i, first in enumerate(outputs):
        for second in outputs[i + 1 :]:
            assert not torch.allclose(first, second)


@pytest.mark.parametrize(("channels", "std"), [(256, 0.01), (64, 0.02)])
@pytest.mark.parametrize(("name", "size"), [("conv_1x1", 1), ("conv_3x3", 3)])
def test_convolutions_are_plain(name, size, channels, std):
    operation = build_operation(name, channels)
    x = torch.randn(1, channels, 6, 6)
    conv = operation.conv
    assert conv.weight.shape == (channels, channels, size, size)
    assert conv.weight.std().item() == pytest.approx(std, rel=0.1)
    assert not conv.bias.any()
    with torch.no_grad():
        conv.bias.fill_(-1.0)
    expected = F.conv2d(x, conv.weight, conv.bias, padding=size // 2)
    torch.testing.assert_close(operation(x), expected)
    assert (operation(x) < 0).any(), "an activation at the end"


@pytest.mark.parametrize(("name", "reach"), [("sep_conv_3x3", 1), ("dil_conv_3x3", 2)])
def test_reach_of_the_separable_convolutions(name, reach):
    operation = build_operation(name, 4)
    x = torch.zeros(1, 4, 9, 9)
    x[..., 4, 4] = 1
    touched = (operation(x) - operation(torch.zeros_like(x))).abs().sum(dim=1)[0] > 0
    rows = touched.any(dim=1).nonzero().flatten()
    assert rows.tolist() == [4 - reach, 4, 4 + reach]


@pytest.mark.parametrize("name", ["channel_gate", "spatial_gate"])
def test_gates_scale_the_source_by_a_share(name):
    x = torch.rand(2, 8, 7, 5) + 0.1
    share = build_operation(name, 8)(x) / x
    assert ((share > 0) & (share < 1)).all()
    over = (2, 3) if name == "channel_gate" else (1,)
    torch.testing.assert_close(share, share.mean(dim=over, keepdim=True).expand_as(share))


@pytest.mark.parametrize("name", GATE_OPERATIONS)
def test_zero_init_gives_zero_and_can_learn(name):
    operation = build_operation(name, 8, zero_init=True)
    output = operation(torch.randn(1, 8, 5, 5))
    assert not output.any()
    (output * torch.randn(1, 8, 5, 5)).sum().backward()
    assert operation.last.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - set(GATE_OPERATIONS)))
def test_operations_that_cannot_write_a_gate(name):
    with pytest.raises(ValueError, match=f"{name}.*conv_1x1"):
        build_operation(name, 8, zero_init=True)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"conv_7x7.*identity"):
        build_operation("conv_7x7", 8)
