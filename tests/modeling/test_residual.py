"""Branches with the pyramid they started from."""

import pytest
import torch

from spatialflow.modeling.layers.residual import SCALE, PyramidResidual


@pytest.fixture
def maps():
    pyramid = {"p3": 7 * torch.randn(2, 4, 6, 5) + 1, "p4": torch.randn(2, 4, 3, 2)}
    pyramid["p3"][1] *= 3
    outputs = {
        name: {level: torch.randn_like(x) for level, x in pyramid.items()}
        for name in ("box", "stuff")
    }
    return outputs, pyramid


def test_rms_adds_each_position_at_unit_scale(maps):
    outputs, pyramid = maps
    added = PyramidResidual("rms", ["box"])(outputs, pyramid)
    for level, x in pyramid.items():
        difference = added["box"][level] - outputs["box"][level]
        torch.testing.assert_close(difference, x / x.square().mean(1, keepdim=True).sqrt())


def test_other_branches_stay_as_they_are(maps):
    outputs, pyramid = maps
    before = {level: x.clone() for level, x in outputs["stuff"].items()}
    added = PyramidResidual("rms", ["box"])(outputs, pyramid)
    for level, x in before.items():
        assert torch.equal(added["stuff"][level], x)
    assert list(PyramidResidual("rms", ["box"]).parameters()) == []


def test_learned_scales_get_gradients(maps):
    outputs, pyramid = maps
    residual = PyramidResidual("learned", ["box"])
    added = residual(outputs, pyramid)
    for level, x in pyramid.items():
        torch.testing.assert_close(added["box"][level], outputs["box"][level] + SCALE * x)
    added["box"]["p3"].sum().backward()
    assert residual.scales["box"].grad == pytest.approx(pyramid["p3"].sum().item(), rel=1e-4)


def test_a_map_of_zeros_adds_nothing(maps):
    outputs, pyramid = maps
    added = PyramidResidual("rms", ["box"])(outputs, {k: 0 * x for k, x in pyramid.items()})
    assert torch.equal(added["box"]["p3"], outputs["box"]["p3"])
