"""Stuff head: stuff classes of every pixel, as in Panoptic FPN.

Shape legend: N images, h and w the size of an image before padding, C channels, H and W the size of
a map, S stuff classes + 1 (class 0 is "things").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from spatialflow.modeling.layers.norms import build_norm
from spatialflow.modeling.losses import LossNormalizer
from spatialflow.utils.precision import full_precision


class StuffHead(nn.Module):
    """Bring all levels to a common stride, sum and classify them (arXiv 1901.02446, figure 3).

    A level of stride s passes log2(s / common stride) blocks of 3×3 convolution, norm, ReLU and ×2
    upsampling. A level at the common stride passes one block without upsampling. Upsampling aligns
    corners, as in the reference. Detectron2's own head does not align them.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: Mapping[str, ShapeSpec],
        num_classes: int,
        conv_dim: int,
        common_stride: int,
        norm: str,
        loss_weight: float,
        ignore_value: int,
        normalizer: LossNormalizer,
        attention: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Build the head.

        Args:
            input_shape: Level name → channels and stride, for each level of the stuff branch.
            num_classes: S, the number of stuff classes + 1.
            conv_dim: Channels of the convolutions inside the head.
            common_stride: Stride at which the levels are summed, in pixels of the input.
            norm: Norm of the convolutions, by Detectron2's name; "" for none.
            loss_weight: Factor of the loss.
            ignore_value: Label of pixels that are left out of the loss.
            normalizer: Denominator of the loss, from the number of pixels that are not padding.
            attention: Site → attention block. ``levels`` is applied to each level of the stuff
                branch, ``merged`` to the sum of the levels. A missing site has no attention.
        """
        super().__init__()
        attention = attention or {}
        self.attention = nn.ModuleDict(
            {site: attention.get(site, nn.Identity()) for site in ("levels", "merged")}
        )
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        self.normalizer = normalizer
        self.scale_heads = nn.ModuleDict()
        for level, shape in input_shape.items():
            blocks: list[nn.Module] = []
            doublings = int(math.log2(shape.stride / common_stride))
            for i in range(max(doublings, 1)):
                conv = Conv2d(
                    shape.channels if i == 0 else conv_dim,
                    conv_dim,
                    kernel_size=3,
                    padding=1,
                    bias=not norm,
                    norm=build_norm(norm, conv_dim),
                    activation=F.relu,
                )
                weight_init.c2_msra_fill(conv)
                blocks.append(conv)
                if doublings > 0:
                    blocks.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
            self.scale_heads[level] = nn.Sequential(*blocks)
        self.predictor = Conv2d(conv_dim, num_classes, kernel_size=1)
        weight_init.c2_msra_fill(self.predictor)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec], normalizer: LossNormalizer
    ) -> dict[str, Any]:
        """Return the constructor's arguments for a config.

        Args:
            cfg: A config; ``MODEL.SEM_SEG_HEAD`` is read.
            input_shape: Level name → channels and stride of the pyramid level.
            normalizer: Denominator of the loss.
        """
        keys = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {level: input_shape[level] for level in keys.IN_FEATURES},
            "num_classes": keys.NUM_CLASSES,
            "conv_dim": keys.CONVS_DIM,
            "common_stride": keys.COMMON_STRIDE,
            "norm": keys.NORM,
            "loss_weight": keys.LOSS_WEIGHT,
            "ignore_value": keys.IGNORE_VALUE,
            "normalizer": normalizer,
        }

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Classify every position at the common stride.

        Args:
            features: Stuff branch, level name → (N, C, H, W).

        Returns:
            Logits (N, S, H, W) at the common stride.
        """
        attended = {level: self.attention["levels"](features[level]) for level in self.scale_heads}
        merged = sum(head(attended[level]) for level, head in self.scale_heads.items())
        return self.predictor(self.attention["merged"](merged))

    def upsample(self, logits: Tensor) -> Tensor:
        """Return logits at the size of the padded input, in float32.

        Args:
            logits: Logits (N, S, H, W) at the common stride.
        """
        return F.interpolate(
            full_precision(logits),
            scale_factor=self.common_stride,
            mode="bilinear",
            align_corners=True,
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse weights of a head with other attention in eval mode.

        Detectron2's checkpointer only warns about missing and unexpected keys, and a head with
        random blocks would still return results.

        Raises:
            ValueError: If the attention differs; lists the weights on one side only.
        """
        here = f"{prefix}attention."
        stored = {key.removeprefix(here) for key in state_dict if key.startswith(here)}
        own = set(self.attention.state_dict())
        if f"{prefix}predictor.weight" in state_dict and not self.training and stored != own:
            raise ValueError(
                "the checkpoint has other attention for stuff than the genotype's choices: only "
                f"in the checkpoint {sorted(stored - own)}, only in the genotype "
                f"{sorted(own - stored)}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def losses(self, logits: Tensor, targets: list[Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy, summed over labelled pixels and divided by all pixels.

        Ignored pixels count in the denominator, as in the reference, and padding does not. The
        reference takes the size of the first image for all images; here each image's own counts.

        Args:
            logits: Logits (N, S, H, W) at the common stride.
            targets: Labels of each image, (h, w).

        Returns:
            ``loss_stuff``, a scalar in float32, multiplied by the loss weight.
        """
        # Logits at full size take much memory, so the backward pass computes them again, one image
        # at a time.
        loss = sum(
            checkpoint(self._loss, *pair, use_reentrant=False, preserve_rng_state=False)
            for pair in zip(logits.split(1), targets, strict=True)
        )
        pixels = torch.as_tensor(sum(image.numel() for image in targets), device=logits.device)
        return {"loss_stuff": self.loss_weight * loss / self.normalizer(pixels)}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss of an image, from logits (1, S, H, W) and labels (h, w)."""
        height, width = labels.shape
        logits = self.upsample(logits)[..., :height, :width]
        return F.cross_entropy(
            logits, labels[None], ignore_index=self.ignore_value, reduction="sum"
        )


def resize_logits(logits: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Crop and resize logits as Detectron2's ``sem_seg_postprocess``, keeping the memory format.

    Args:
        logits: Logits (S, H, W) at the size of the padded image.
        image_size: (h, w), the size of the image without padding.
        size: (height, width) of the result.

    Returns:
        Logits (S, height, width).
    """
    cropped = logits[:, : image_size[0], : image_size[1]]
    if size == image_size:
        return cropped
    # An index of None would give the batch axis a stride that belongs to no memory format. The
    # interpolation would then copy its input and its output.
    batch = cropped.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size=size, mode="bilinear", align_corners=False)[0]
