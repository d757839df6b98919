"""The focal loss: fvcore's values, gradients and gradients of gradients."""

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss

from spatialflow.modeling.losses import focal_loss


def by_fvcore(logits, classes, alpha, gamma):
    """Logits are (..., K), classes (...)."""
    valid = classes >= 0
    one_hot = classes[valid][:, None] == torch.arange(logits.shape[-1])
    options = {"alpha": alpha, "gamma": gamma, "reduction": "sum"}
    return sigmoid_focal_loss(logits[valid].float(), one_hot.float(), **options)


@pytest.fixture(params=[1, 3])
def anchors(request):
    classes = torch.randint(-1, request.param + 1, (2, 40))
    return (torch.randn(2, 40, request.param, requires_grad=True), classes)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.0), (-1, 0.0), (0.25, 0.5)])
def test_values_and_gradients(anchors, alpha, gamma):
    logits, classes = anchors
    found = focal_loss(logits, classes[..., None], dim=2, alpha=alpha, gamma=gamma)
    expected = by_fvcore(logits, classes, alpha, gamma)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(x, logits, create_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*slopes)
    second = [torch.autograd.grad(x.square().sum(), logits)[0] for x in slopes]
    torch.testing.assert_close(*second)


def test_large_logits(anchors):
    logits, classes = anchors
    extreme = (logits.detach() * 100).requires_grad_()
    found = focal_loss(extreme, classes[..., None], dim=2, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(found, by_fvcore(extreme, classes, 0.25, 2.0))
    found.backward()
    assert extreme.grad.isfinite().all()


def test_sixteen_bits_are_summed_in_thirty_two(anchors):
    logits, classes = anchors
    half = logits.detach().bfloat16().requires_grad_()
    found = focal_loss(half, classes[..., None], dim=2, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(found, by_fvcore(half, classes, 0.25, 2.0))
    found.backward()
    assert half.grad.dtype == torch.bfloat16


def test_what_is_ignored_or_absent_costs_nothing():
    logits = torch.randn(1, 4, 2, requires_grad=True)
    ignored = torch.full((1, 4, 1), -1)
    loss = focal_loss(logits, ignored, dim=2, alpha=0.25, gamma=2.0)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
