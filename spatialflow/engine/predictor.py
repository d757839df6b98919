"""Predict the panoptic segmentation of images with Detectron2's predictor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from torch import nn

from spatialflow.data.augmentation import ResizeShortestEdge
from spatialflow.engine.checkpoint import Checkpointer
from spatialflow.engine.preparation import for_checkpoint
from spatialflow.modeling.tta import TestTimeAugmentation
from spatialflow.utils.errors import CheckpointError


class Predictor(DefaultPredictor):
    """Detectron2's ``DefaultPredictor``, with checks of the weights that it loads.

    The file must be whole and have every tensor of the model, and no code in it runs.

    Detectron2's own predictor unpickles ``.pkl`` files, and only warns of missing tensors.
    With ``TEST.AUG.ENABLED`` the model combines several views of each image
    (:class:`spatialflow.modeling.tta.TestTimeAugmentation`), made from the image at its own size.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build the model and load ``MODEL.WEIGHTS``.

        Raises:
            CheckpointError: If the key is empty, or the file is missing, cannot be read, or is of
                another model.
        """
        if not cfg.MODEL.WEIGHTS:
            raise CheckpointError(
                "MODEL.WEIGHTS is empty: a prediction needs trained weights, such as "
                "OUTPUT_DIR/model_final.pth"
            )
        bare = for_checkpoint(cfg)
        bare.MODEL.WEIGHTS = ""
        super().__init__(bare)
        self.cfg = cfg.clone()
        check = cfg.MODEL.SPATIALFLOW.CHECK_WEIGHTS
        Checkpointer(self.model, check_weights=check).load(cfg.MODEL.WEIGHTS, checkpointables=[])
        size = cfg.INPUT.MIN_SIZE_TEST
        if cfg.TEST.AUG.ENABLED:
            self.model: nn.Module = TestTimeAugmentation(cfg, self.model).eval()
            size = 0  # leaves an image as it is
        self.aug = ResizeShortestEdge(size, cfg.INPUT.MAX_SIZE_TEST)

    @overload
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]: ...

    @overload
    def __call__(self, original_image: Sequence[np.ndarray]) -> list[dict[str, Any]]: ...

    def __call__(
        self, original_image: np.ndarray | Sequence[np.ndarray]
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Predict one image, or several as one batch.

        Args:
            original_image: (H, W, 3) uint8, in the order blue, green, red, such as
                ``spatialflow.data.read_image(path, "BGR")``; or a list of them. Their sizes may
                differ.

        Returns:
            ``instances``, ``sem_seg`` and ``panoptic_seg``, as the model returns them; for a list
            of images a list. An image in a list gets what it gets alone, up to rounding.

        Raises:
            ValueError: If an image is something else. Grey levels, an alpha channel or deeper
                pixels would give a result that means nothing.
        """
        several = isinstance(original_image, list | tuple)
        items = [self._input(image) for image in (original_image if several else [original_image])]
        with torch.no_grad():
            found: list[dict[str, Any]] = self.model(items) if items else []
        return found if several else found[0]

    def _input(self, image: Any) -> dict[str, Any]:
        """Return the input of the model for one image, as Detectron2's predictor makes it."""
        found = type(image).__name__
        if isinstance(image, np.ndarray):
            found = f"{image.dtype} of shape {image.shape}"
        height, width, channels = (*getattr(image, "shape", ()), 0, 0, 0)[:3]
        is_image = isinstance(image, np.ndarray) and image.ndim == channels == 3
        if not (is_image and image.dtype == np.uint8 and height * width > 0):
            raise ValueError(
                f"an image of (H, W, 3) uint8 in the order BGR expected, {found} given; "
                'spatialflow.data.read_image(path, "BGR") reads one'
            )
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        resized = self.aug.get_transform(image).apply_image(image)
        pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": pixels, "height": height, "width": width}
