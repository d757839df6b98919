"""Detectron2's predictor, with weights read as carefully as in training, and views."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from torch import nn

from spatialflow.engine.checkpoint import Checkpointer
from spatialflow.modeling.tta import TestTimeAugmentation


class Predictor(DefaultPredictor):
    """``DefaultPredictor`` whose weights have to be whole and fit the model, and run no code.

    With ``TEST.AUG.ENABLED`` it sees an image in several views, made of it at its own size.

    Detectron2's own unpickles ``.pkl`` files, and only warns where tensors are missing.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build the model and load ``MODEL.WEIGHTS``.

        Raises:
            CheckpointError: If the file is missing, cannot be read, or is of another model.
        """
        bare = cfg.clone()
        bare.defrost()
        bare.MODEL.WEIGHTS = ""
        bare.MODEL.SPATIALFLOW.TRUNK_PRETRAINED = False
        super().__init__(bare)
        self.cfg = cfg.clone()
        Checkpointer(self.model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
        if cfg.TEST.AUG.ENABLED:
            self.model: nn.Module = TestTimeAugmentation(cfg, self.model).eval()
            self.aug = ResizeShortestEdge(0)  # leaves an image as it is
