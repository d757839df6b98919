"""Map a data set's dict to the model's input: image, instances and semantic map.

H, W: height and width after augmentation; K: number of thing classes; C: number of stuff classes
and one for things; M: number of instances; S: number of segments in the image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Boxes, Instances

from spatialflow.data.augmentation import keep_a_pixel
from spatialflow.data.dataset_spec import IGNORE_LABEL
from spatialflow.data.foreign import numbered
from spatialflow.data.images import read_image
from spatialflow.data.registration import ensure_metadata
from spatialflow.data.validation.decoding import ListedImage
from spatialflow.data.validation.file_rules import SegmentMap, read_segments
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.masks import mask_box

logger = logging.getLogger(__name__)

# Augmentations move uint8 maps by nearest neighbour and pad them with 255. So one byte numbers the
# segments 0 … 254; an image with more segments needs two bytes.
_BYTE = 256


class PanopticMapper:
    """Read an image, and derive its ground truth from the panoptic PNG.

    Masks, boxes and the semantic map all come from one map of segments after the augmentation, so
    they cannot disagree.
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
        white_level: float | None = None,
    ) -> None:
        """Keep the parts. `PanopticMapper(cfg, augmentations=…)` replaces those of the config.

        Args:
            is_train: Whether to return ground truth.
            augmentations: Detectron2's augmentations, applied in this order.
            image_format: "RGB", "BGR" or "L".
            thing_labels: Mapping of the data set's number to class 0 … K - 1, of things only.
            stuff_labels: Mapping of the data set's number to label 1 … C - 1, of stuff only. The
                numbers are equal to these labels, unless other code registered the data set.
            ignore_label: Value of the semantic map where the truth is unknown.
            white_level: Value of white in images of more than 8 bits; None refuses them.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList([keep_a_pixel(a) for a in augmentations])
        self.image_format = image_format
        self.thing_labels = dict(thing_labels)
        self.stuff_labels = dict(stuff_labels)
        self.ignore_label = ignore_label
        self.white_level = white_level
        mode = "training" if is_train else "inference"
        logger.debug("augmentations in %s: %s", mode, self.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Return the arguments from `INPUT` and, for training, the classes of `DATASETS.TRAIN`.

        Raises:
            ValueError: If the training sets have different classes.
        """
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        thing_labels, stuff_labels = _training_labels(cfg.DATASETS.TRAIN) if is_train else ({}, {})
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            # Detectron2's own configs do not have the key.
            "white_level": cfg.INPUT.get("WHITE_LEVEL"),
            "thing_labels": thing_labels,
            "stuff_labels": stuff_labels,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one image.

        Files are read without the thorough checks of `validation/file_rules.py`. A file that fails
        is read again with them, for the same message as the check command gives.

        Args:
            dataset_dict: One dict of a registered data set, also of other code; `height` and
                `width` may be missing, and `isthing` where no number is that of a thing and of
                stuff.

        Returns:
            `file_name`, `image_id`, `height`, `width` (of the file) and `image` (3, H, W) uint8; in
            training also `instances` and `sem_seg`. `instances` has `gt_boxes` (M, 4) in pixels,
            `gt_classes` (M,) 0 … K - 1 and `gt_masks` (M, H, W), without crowds and without things
            that left the image. `sem_seg` (H, W) int64 is 0 for things and crowds, 1 … C - 1 for
            stuff, and `ignore_label` for void.

        Raises:
            DataError: If a file cannot be read, or the sizes or the segments of image, PNG and JSON
                disagree.
        """
        image = read_image(
            dataset_dict["file_name"],
            self.image_format,
            listed=_listed_image(dataset_dict) if _has_size(dataset_dict) else None,
            white_level=self.white_level,
        )
        dataset_dict = {**dataset_dict, "height": image.shape[0], "width": image.shape[1]}
        mapped = {k: dataset_dict[k] for k in ("file_name", "image_id", "height", "width")}
        if not self.is_train:
            inputs = T.AugInput(image)
            self.augmentations(inputs)
            mapped["image"] = _as_tensor(inputs.image)
            return mapped

        index = read_segment_map(dataset_dict).index
        segments = dataset_dict["segments_info"]
        labels = self._segment_labels(segments)
        # Augmentations that look at the semantic map, such as crops by class area, need it here.
        inputs = T.AugInput(image, sem_seg=labels[index].astype(np.uint8))
        transforms = self.augmentations(inputs)
        index = _transform_index(transforms, index, len(segments))
        mapped["image"] = _as_tensor(inputs.image)
        mapped["sem_seg"] = torch.from_numpy(labels[index])
        mapped["instances"] = self._instances(index, segments)
        return mapped

    def _segment_labels(self, segments: list[dict]) -> np.ndarray:
        """Return (S + 1,) semantic labels of the segments; the last one is for void."""
        labels = [0 if self._is_thing(s) else self.stuff_labels[s["category_id"]] for s in segments]
        return np.array([*labels, self.ignore_label], dtype=np.int64)

    def _is_thing(self, segment: dict) -> bool:
        return bool(segment.get("isthing", segment["category_id"] in self.thing_labels))

    def _instances(self, index: np.ndarray, segments: list[dict]) -> Instances:
        """Return the things with a pixel in the (H, W) map of positions, without crowds."""
        areas = np.bincount(index.ravel(), minlength=len(segments) + 1)
        kept = [
            i
            for i, s in enumerate(segments)
            if self._is_thing(s) and not s.get("iscrowd", 0) and areas[i] > 0
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


def read_segment_map(dataset_dict: dict) -> SegmentMap:
    """Read the panoptic PNG of an image, and match its pixels with the segments of the JSON.

    Args:
        dataset_dict: One dict of `DatasetCatalog.get`.

    Raises:
        ConfigError: If the dict is not one of a panoptic data set.
        DataError: If the PNG cannot be read, or its size or segments differ from the JSON.
    """
    missing = [k for k in ("pan_seg_file_name", "segments_info") if k not in dataset_dict]
    if missing:
        raise ConfigError(
            f"{dataset_dict['file_name']}: the data set's dict has no {', '.join(missing)}; "
            "those of a panoptic data set expected, as of spatialflow.register_panoptic"
        )
    return read_segments(
        dataset_dict["pan_seg_file_name"],
        dataset_dict["segments_info"],
        _listed_image(dataset_dict),
    )


def panoptic_ground_truth(
    dataset_dict: dict, metadata: Metadata
) -> tuple[torch.Tensor, list[dict]]:
    """Return an image's ground truth in the form of a model's panoptic result.

    `Visualizer.draw_panoptic_seg_predictions` draws it, and evaluators accept it as a result.

    Args:
        dataset_dict: One dict of `DatasetCatalog.get`.
        metadata: Metadata of the data set.

    Returns:
        (H, W) int32 segment ids (0 for void), and segments with `id`, `isthing`, `category_id`
        (contiguous; stuff 1, 2, …) and `area`. Crowds are left out. H and W are those of the file.

    Raises:
        DataError: If the PNG cannot be read, or its size or segments differ from the JSON.
    """
    if not _has_size(dataset_dict):  # any white level will do
        height, width = read_image(dataset_dict["file_name"], white_level=1).shape[:2]
        dataset_dict = {**dataset_dict, "height": height, "width": width}
    ids = read_segment_map(dataset_dict).ids
    things = numbered(metadata, isthing=True)
    segments = []
    for segment in dataset_dict["segments_info"]:
        if segment.get("iscrowd", 0):
            ids[ids == segment["id"]] = 0
            continue
        kept = {key: segment[key] for key in ("id", "category_id", "area") if key in segment}
        segments.append({**kept, "isthing": segment.get("isthing", kept["category_id"] in things)})
    return torch.from_numpy(ids), segments


def _has_size(dataset_dict: dict) -> bool:
    return "height" in dataset_dict and "width" in dataset_dict


def _listed_image(dataset_dict: dict) -> ListedImage:
    return ListedImage(
        name=dataset_dict["file_name"],
        size=(dataset_dict["height"], dataset_dict["width"]),
        # Dicts of data sets that other code registered do not name their JSON.
        where=dataset_dict.get("annotations_json", "the JSON"),
    )


def _training_labels(names: Sequence[str]) -> tuple[dict[int, int], dict[int, int]]:
    """Return the labels of things and of stuff by number, equal in all training sets."""
    if not names:
        raise ConfigError("DATASETS.TRAIN is empty; the name of a registered data set is expected")
    first, *others = (ensure_metadata(name) for name in names)
    keys = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
    for other in others:
        for key in (*keys, "thing_classes", "stuff_classes"):
            if getattr(first, key) != getattr(other, key):
                raise ConfigError(
                    f"DATASETS.TRAIN: {first.name!r} and {other.name!r} have different {key}"
                )
    thing_labels, stuff_labels = (
        {number: i for i, number in enumerate(numbered(first, isthing=isthing), start=not isthing)}
        for isthing in (True, False)
    )
    return thing_labels, stuff_labels


def _transform_index(transforms: T.TransformList, index: np.ndarray, void: int) -> np.ndarray:
    """Apply geometric transforms to a map of positions, byte by byte.

    Args:
        transforms: Transforms that were applied to the image.
        index: (height, width) positions of segments 0 … `void` - 1, and `void` for void.
        void: S, the number of segments.

    Returns:
        (H, W) positions of the same type. Pixels that an augmentation padded are `void`.
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
    """Return the (channels, H, W) tensor of an (H, W, channels) array."""
    return torch.from_numpy(np.stack(cv2.split(image)))
