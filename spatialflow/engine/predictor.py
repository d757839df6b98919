"""Predict the panoptic segmentation of single images with Detectron2's predictor."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from torch import nn

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
        if cfg.TEST.AUG.ENABLED:
            self.model: nn.Module = TestTimeAugmentation(cfg, self.model).eval()
            self.aug = ResizeShortestEdge(0)  # leaves an image as it is
