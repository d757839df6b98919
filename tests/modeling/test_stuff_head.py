"""The stuff head: its layers by hand, and the pixels that its loss counts."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch.nn import functional as F

from spatialflow.modeling.heads import StuffHead, resize_logits
from spatialflow.modeling.losses import LossNormalizer

SHAPES = {f"p{i}": ShapeSpec(channels=4, stride=2**i) for i in (3, 4, 5)}
IGNORE = 255


@pytest.fixture
def common_stride():
    return 4


full_size = pytest.mark.parametrize("common_stride", [1])


@pytest.fixture
def head(common_stride):
    return StuffHead(
        input_shape=SHAPES,
        num_classes=3,
        conv_dim=32,
        common_stride=common_stride,
        norm="GN",
        loss_weight=0.25,
        ignore_value=IGNORE,
        normalizer=LossNormalizer(),
    )


def test_forward_by_hand(head):
    """Run 1, 2 and 3 blocks per level with aligned corners, sum at stride 4, and upsample by 4."""
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = {
        level: torch.randn(2, 4, 64 // s.stride, 96 // s.stride) for level, s in SHAPES.items()
    }
    state = head.state_dict()
    merged = 0
    for level, blocks in (("p3", 1), ("p4", 2), ("p5", 3)):
        x = features[level]
        for i in range(blocks):
            key = f"scale_heads.{level}.{2 * i}"
            assert f"{key}.bias" not in state
            x = F.conv2d(x, state[f"{key}.weight"], padding=1)
            x = F.group_norm(x, 32, state[f"{key}.norm.weight"], state[f"{key}.norm.bias"])
            x = F.interpolate(F.relu(x), scale_factor=2, mode="bilinear", align_corners=True)
        merged = merged + x
    logits = F.conv2d(merged, state["predictor.weight"], state["predictor.bias"])
    expected = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=True)
    actual = head.upsample(head(features))
    assert actual.shape == (2, 3, 64, 96)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "blocks"), [(2, [2, 3, 4]), (4, [1, 2, 3]), (8, [1, 1, 2])])
def test_a_level_at_the_common_stride_has_a_block_too(stride, blocks):
    head = StuffHead(
        input_shape=SHAPES,
        num_classes=3,
        conv_dim=32,
        common_stride=stride,
        norm="",
        loss_weight=1.0,
        ignore_value=IGNORE,
        normalizer=LossNormalizer(),
    )
    convolutions = [key for key, x in head.scale_heads.named_parameters() if x.ndim == 4]
    assert [sum(key.startswith(level) for key in convolutions) for level in SHAPES] == blocks
    features = {
        level: torch.randn(1, 4, 64 // s.stride, 32 // s.stride) for level, s in SHAPES.items()
    }
    assert head(features).shape == (1, 3, 64 // stride, 32 // stride)


def loss_slowly(logits, targets, weight):
    """Compute the loss pixel by pixel over each image's own area."""
    total, pixels = 0.0, 0
    for image_logits, labels in zip(logits, targets, strict=True):
        for row, line in enumerate(labels.tolist()):
            for column, label in enumerate(line):
                pixels += 1
                if label != IGNORE:
                    values = image_logits[:, row, column].tolist()
                    total += math.log(sum(math.exp(v) for v in values)) - values[label]
    return weight * total / pixels


def targets_of_two_sizes():
    first, second = torch.randint(0, 3, (6, 8)), torch.randint(0, 3, (8, 5))
    first[2:4] = IGNORE
    return [first, second]


@full_size
def test_loss_of_two_sizes_equals_the_slow_loop(head):
    logits, targets = torch.randn(2, 3, 8, 8), targets_of_two_sizes()
    for batch in (targets, targets[::-1]):
        loss = head.losses(logits, batch)["loss_stuff"].item()
        assert loss == pytest.approx(loss_slowly(logits, batch, 0.25), rel=1e-5)


@full_size
def test_ignored_pixels_stay_in_the_denominator(head):
    labels = torch.full((8, 8), IGNORE)
    labels[0, :4] = 1
    loss = head.losses(torch.zeros(1, 3, 8, 8), [labels])["loss_stuff"].item()
    assert loss == pytest.approx(0.25 * 4 * math.log(3) / 64, rel=1e-5)


@full_size
def test_padding_does_not_teach(head):
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    targets = targets_of_two_sizes()
    loss = head.losses(logits, targets)["loss_stuff"]
    loss.backward()
    learnt = logits.grad.abs().sum(dim=1) > 0
    expected = torch.zeros(2, 8, 8, dtype=torch.bool)
    for mask, labels in zip(expected, targets, strict=True):
        mask[: labels.shape[0], : labels.shape[1]] = labels != IGNORE
    assert torch.equal(learnt, expected)
    other = torch.where(expected[:, None], logits, torch.full_like(logits, 50.0))
    torch.testing.assert_close(head.losses(other, targets)["loss_stuff"], loss)


@full_size
def test_an_image_of_nothing_but_void(head):
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    loss = head.losses(logits, [torch.full((8, 8), IGNORE)])["loss_stuff"]
    assert loss == 0
    loss.backward()
    assert not logits.grad.any()


@full_size
def test_loss_is_in_single_precision(head):
    loss = head.losses(torch.randn(1, 3, 8, 8).bfloat16(), [torch.zeros(8, 8, dtype=torch.int64)])
    assert loss["loss_stuff"].dtype == torch.float32


def test_loss_at_the_common_stride_is_that_of_the_upsampled_logits(head):
    """Compare the gradient as well; the backward pass computes the upsampled logits again."""
    logits, targets = torch.randn(2, 3, 2, 2, requires_grad=True), targets_of_two_sizes()
    loss = head.losses(logits, targets)["loss_stuff"]
    (gradient,) = torch.autograd.grad(loss, logits)
    upsampled = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=True)
    expected = sum(
        F.cross_entropy(
            full[None, :, : labels.shape[0], : labels.shape[1]],
            labels[None],
            ignore_index=IGNORE,
            reduction="sum",
        )
        for full, labels in zip(upsampled, targets, strict=True)
    ) * (0.25 / sum(labels.numel() for labels in targets))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(12, 9), (30, 31), (5, 4)])
def test_resizing_is_detectron2s(layout, size):
    logits = torch.randn(1, 5, 16, 16).contiguous(memory_format=layout)[0]
    torch.testing.assert_close(
        resize_logits(logits, (12, 9), size), sem_seg_postprocess(logits, (12, 9), *size)
    )
