"""A folder like the repository after ``make demo``, with a tiny untrained model."""

import os
import shutil
from pathlib import Path

import pytest
from detectron2.checkpoint import Checkpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from spatialflow.data import unregister
from spatialflow.engine import prepare_config


@pytest.fixture
def after_demo(tmp_path, tiny_cfg, scenes_root, monkeypatch):
    """The folder, made the current one: output/demo, my_data and an image."""
    monkeypatch.setenv("SPATIALFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = set(DatasetCatalog) | set(MetadataCatalog)
    shutil.copytree(scenes_root, tmp_path / "my_data")
    shutil.copy(next((scenes_root / "images").iterdir()), tmp_path / "image.png")
    run = tmp_path / "output" / "demo"
    run.mkdir(parents=True)
    cfg = tiny_cfg(
        {
            "DATASETS.FOLDER.PATH": str(tmp_path / "my_data"),
            "DATASETS.FOLDER.VAL_FRACTION": 0.5,
            "DATASETS.TRAIN": ("folder_train",),
            "DATASETS.TEST": ("folder_val",),
            "MODEL.RETINANET.NUM_CLASSES": -1,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": -1,
            # Without training all scores are 0.01: let some become segments.
            "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.0,
            "TEST.DETECTIONS_PER_IMAGE": 3,
            # Group norm needs more than the one pixel that such a small image has on P7.
            "MODEL.RETINANET.NORM": "",
        }
    )
    prepare_config(cfg)
    (run / "config.yaml").write_text(cfg.dump())
    Checkpointer(build_model(cfg), str(run)).save("model_final")
    yield tmp_path
    for name in (set(DatasetCatalog) | set(MetadataCatalog)) - before:
        unregister(name)


@pytest.fixture(scope="session")
def repository():
    """The repository's folder."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """Processes that a test starts share the machine."""
    if "OMP_NUM_THREADS" not in os.environ:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
