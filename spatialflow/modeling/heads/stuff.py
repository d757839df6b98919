"""Stuff classes of every pixel, in the manner of Panoptic FPN.

Shape legend: N images, C channels, S stuff classes + 1 (class 0 is "things").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from spatialflow.modeling.layers.norms import build_norm
from spatialflow.modeling.losses import LossNormalizer
from spatialflow.utils.precision import full_precision


class StuffHead(nn.Module):
    """Brings all levels to a common stride, sums them and classifies (Kirillov et al. 2019b).

    A level of stride s passes log2(s / common stride) blocks of 3×3 convolution, norm, ReLU and
    ×2 upsampling; one at the common stride, a block without upsampling. Upsampling aligns corners,
    as in the reference; Detectron2's own head does not.
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
            input_shape: Channels and stride of each level of the stuff branch.
            num_classes: S.
            conv_dim: Channels inside the head.
            common_stride: Where the levels are summed.
            norm: Of the convolutions, a name that Detectron2 knows.
            loss_weight: Factor of the loss.
            ignore_value: Label of pixels that teach nothing.
            normalizer: Of the loss, given the number of pixels that are not padding.
            attention: ``levels``, applied to each level that comes in, and ``merged``, to their
                sum; neither if absent.
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
    def from_config(cls, cfg, input_shape, normalizer: LossNormalizer) -> dict:  # noqa: ANN001
        """Read ``MODEL.SEM_SEG_HEAD``."""
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
        """Classify every pixel.

        Args:
            features: The stuff branch, level name → (N, C, H, W).

        Returns:
            Logits (N, S, H', W') at the common stride.
        """
        attended = {level: self.attention["levels"](features[level]) for level in self.scale_heads}
        merged = sum(head(attended[level]) for level, head in self.scale_heads.items())
        return self.predictor(self.attention["merged"](merged))

    def upsample(self, logits: Tensor) -> Tensor:
        """Bring logits to the size of the padded input, in float32."""
        return F.interpolate(
            full_precision(logits),
            scale_factor=self.common_stride,
            mode="bilinear",
            align_corners=True,
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse, in eval mode, weights of a head with other attention.

        As with flows, Detectron2's checkpointer would only warn, and random blocks give results.
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
        """Cross-entropy, summed over labelled pixels, over the count of pixels without padding.

        Pixels to ignore stay in the denominator, as in the reference; each image's own size
        counts, where the reference takes the first image's for all.

        Args:
            logits: (N, S, H', W') at the common stride.
            targets: Labels (h, w) of each image, at the network's scale without padding.

        Returns:
            ``loss_stuff``, a scalar in float32, weighted.
        """
        # At full size logits take much memory, so the backward pass makes them anew, an image at a
        # time.
        loss = sum(
            checkpoint(self._loss, *pair, use_reentrant=False, preserve_rng_state=False)
            for pair in zip(logits.split(1), targets, strict=True)
        )
        pixels = torch.as_tensor(sum(image.numel() for image in targets), device=logits.device)
        return {"loss_stuff": self.loss_weight * loss / self.normalizer(pixels)}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over an image's pixels, of logits (1, S, H', W') and labels (h, w)."""
        height, width = labels.shape
        logits = self.upsample(logits)[..., :height, :width]
        return F.cross_entropy(
            logits, labels[None], ignore_index=self.ignore_value, reduction="sum"
        )


def resize_logits(logits: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Do what Detectron2's ``sem_seg_postprocess`` does, in the memory format of the logits.

    Args:
        logits: (S, H, W) of a padded image.
        image_size: (height, width) of the image without padding.
        size: (height, width) to resize to.

    Returns:
        (S, height, width).
    """
    cropped = logits[:, : image_size[0], : image_size[1]]
    if size == image_size:
        return cropped
    # An index of None would give the batch a stride that belongs to no memory format, and the
    # interpolation would copy both ways.
    batch = cropped.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size=size, mode="bilinear", align_corners=False)[0]
