"""From a data set's dict to what the model reads: image, instances and semantic map.

H, W: height and width after augmentation; M: number of instances; S: segments of the image.
"""

import copy
import logging
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances

from spatialflow.data.registration import IGNORE_LABEL, ensure_metadata
from spatialflow.data.segments import checked_segments, image_files
from spatialflow.data.validation.defects import Problem
from spatialflow.data.validation.file_rules import read_image
from spatialflow.utils.masks import mask_box

logger = logging.getLogger(__name__)

# Augmentations resample uint8 maps by nearest neighbour and pad them with 255, so segments are
# numbered in bytes: 0 … 254, or two bytes where an image has more segments.
_BYTE = 256


class PanopticMapper:
    """Reads an image and derives its ground truth from the panoptic PNG.

    Masks, boxes and the semantic map are all taken from one map of segments after the augmentation,
    so they cannot disagree.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        thing_labels: Mapping[int, int],
        stuff_labels: Mapping[int, int],
        ignore_label: int = IGNORE_LABEL,
    ) -> None:
        """Keeps its parts; pass `augmentations=` beside a config to replace the config's.

        Args:
            is_train: whether ground truth is wanted.
            augmentations: Detectron2's, applied in this order.
            image_format: "RGB", "BGR" or "L".
            thing_labels: category id of the data set → 0 … K - 1, things only.
            stuff_labels: category id of the data set → 1 … S - 1, stuff only.
            ignore_label: value of the semantic map where nothing is known.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.thing_labels = dict(thing_labels)
        self.stuff_labels = dict(stuff_labels)
        self.ignore_label = ignore_label
        mode = "training" if is_train else "inference"
        logger.info("augmentations in %s: %s", mode, self.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Reads INPUT.* and, for training, the classes of DATASETS.TRAIN.

        Raises:
            ValueError: if the training sets do not have the same classes.
        """
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        thing_labels, stuff_labels = _training_labels(cfg.DATASETS.TRAIN) if is_train else ({}, {})
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "thing_labels": thing_labels,
            "stuff_labels": stuff_labels,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Maps one image.

        Args:
            dataset_dict: one dict of a registered data set.

        Returns:
            `file_name`, `image_id`, `height`, `width` (of the file) and `image` (3, H, W) uint8.
            In training also `instances` with `gt_boxes`, `gt_classes` (0 … K - 1) and `gt_masks`
            (`BitMasks`), crowds and things that left the image removed; and `sem_seg` (H, W) int64:
            0 for things, crowds included, 1 … S - 1 for stuff, `ignore_label` where void.

        Raises:
            DataError: if a file cannot be read, or image, PNG and JSON disagree.
        """
        mapped = {k: dataset_dict[k] for k in ("file_name", "image_id", "height", "width")}
        image = read_image(mapped["file_name"], image_files(dataset_dict), self.image_format)
        if isinstance(image, Problem):
            raise image.error()
        if not self.is_train:
            inputs = T.AugInput(image)
            self.augmentations(inputs)
            mapped["image"] = _as_tensor(inputs.image)
            return mapped

        segments = dataset_dict["segments_info"]
        index = checked_segments(dataset_dict).index
        labels = self._segment_labels(segments)
        # Augmentations that look at the semantic map (crops by class area) find it here.
        inputs = T.AugInput(image, sem_seg=labels[index].astype(np.uint8))
        transforms = self.augmentations(inputs)
        index = _transform_index(transforms, index, len(segments))
        mapped["image"] = _as_tensor(inputs.image)
        mapped["sem_seg"] = torch.from_numpy(labels[index])
        mapped["instances"] = self._instances(index, segments)
        return mapped

    def _segment_labels(self, segments: list[dict]) -> np.ndarray:
        """(S + 1,) semantic label of each segment, the last one for "no segment"."""
        labels = [self.stuff_labels.get(s["category_id"], 0) for s in segments]
        return np.array([*labels, self.ignore_label], dtype=np.int64)

    def _instances(self, index: np.ndarray, segments: list[dict]) -> Instances:
        """The things that are left after the augmentation."""
        areas = np.bincount(index.ravel(), minlength=len(segments) + 1)
        kept = [
            i
            for i, s in enumerate(segments)
            if s["category_id"] in self.thing_labels and not s["iscrowd"] and areas[i] > 0
        ]
        masks = index[None] == np.array(kept, dtype=index.dtype)[:, None, None]  # (M, H, W)
        boxes = np.array([mask_box(mask) for mask in masks], dtype=np.float32)
        instances = Instances(index.shape)
        instances.gt_masks = BitMasks(torch.from_numpy(masks))
        instances.gt_boxes = Boxes(torch.from_numpy(boxes.reshape(-1, 4)))
        instances.gt_classes = torch.tensor(
            [self.thing_labels[segments[i]["category_id"]] for i in kept], dtype=torch.int64
        )
        return instances


def _training_labels(names: Sequence[str]) -> tuple[dict[int, int], dict[int, int]]:
    """Category id → label, for things and for stuff, the same for all training sets."""
    if not names:
        raise ValueError("DATASETS.TRAIN is empty; the name of a registered data set is expected")
    first, *others = (ensure_metadata(name) for name in names)
    keys = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
    for other in others:
        for key in (*keys, "thing_classes", "stuff_classes"):
            if getattr(first, key) != getattr(other, key):
                raise ValueError(
                    f"DATASETS.TRAIN: {first.name!r} and {other.name!r} have different {key}"
                )
    thing_labels, stuff_labels = (copy.copy(getattr(first, key)) for key in keys)
    return thing_labels, stuff_labels


def _transform_index(transforms: T.TransformList, index: np.ndarray, void: int) -> np.ndarray:
    """Applies geometry to a map of positions, byte by byte.

    Args:
        transforms: what was applied to the image.
        index: (H, W) positions 0 to `void`; `void` means "no segment".
        void: the number of segments.

    Returns:
        map of the new size, of the same type. Pixels that an augmentation padded are `void`.
    """
    wide = void >= _BYTE
    padded = _BYTE**2 - 1 if wide else _BYTE - 1
    index = index.copy()
    index[index == void] = padded
    if wide:
        low, high = (
            transforms.apply_segmentation(byte.astype(np.uint8))
            for byte in (index & 255, index >> 8)
        )
        moved = low + _BYTE * high.astype(index.dtype)
    else:
        moved = transforms.apply_segmentation(index)
    return np.where(moved == padded, index.dtype.type(void), moved)


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) array → (C, H, W) tensor."""
    return torch.from_numpy(np.stack(cv2.split(image)))
