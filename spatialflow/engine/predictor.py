"""Predict the panoptic segmentation of single images with Detectron2's predictor."""

from __future__ import annotations

from typing import Any

import numpy as np
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

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Predict one image.

        Args:
            original_image: (H, W, 3) uint8, in the order blue, green, red, such as
                ``spatialflow.data.read_image(path, "BGR")``.

        Returns:
            ``instances``, ``sem_seg`` and ``panoptic_seg``, as the model returns them.

        Raises:
            ValueError: If the image is something else. Grey levels, an alpha channel or deeper
                pixels would give a result that means nothing.
        """
        found = type(original_image).__name__
        if isinstance(original_image, np.ndarray):
            found = f"{original_image.dtype} of shape {original_image.shape}"
            height, width, channels = (*original_image.shape, 0, 0, 0)[:3]
            if (
                original_image.dtype == np.uint8
                and original_image.ndim == channels == 3
                and height * width > 0
            ):
                return super().__call__(original_image)
        raise ValueError(
            f"an image of (H, W, 3) uint8 in the order BGR expected, {found} given; "
            'spatialflow.data.read_image(path, "BGR") reads one'
        )
