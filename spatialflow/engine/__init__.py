"""Training and evaluation on Detectron2's ``DefaultTrainer``."""

from spatialflow.engine.checkpoint import Checkpointer
from spatialflow.engine.predictor import Predictor
from spatialflow.engine.preparation import prepare_config
from spatialflow.engine.setup import setup
from spatialflow.engine.step import StepTrainer
from spatialflow.engine.trainer import Trainer

__all__ = ["Checkpointer", "Predictor", "StepTrainer", "Trainer", "prepare_config", "setup"]
