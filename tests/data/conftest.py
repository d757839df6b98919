"""Small panoptic data sets for the tests of this folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from spatialflow.data import register_builtin, register_panoptic, unregister
from spatialflow.data.panoptic_png import write_panoptic_png
from spatialflow.data.registration import _builtin_specs

CATEGORIES = [
    {"id": 7, "name": "cat", "isthing": 1, "color": [200, 10, 10], "supercategory": "animal"},
    {"id": 3, "name": "dog", "isthing": 1, "color": [10, 200, 10], "supercategory": "animal"},
    {"id": 9, "name": "grass", "isthing": 0, "color": [10, 90, 10], "supercategory": "ground"},
    {"id": 12, "name": "sand", "isthing": 0, "color": [220, 200, 90], "supercategory": "ground"},
    {"id": 15, "name": "sky", "isthing": 0, "color": [90, 150, 250], "supercategory": "air"},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Write evaluation JSONs of a test into its own folder."""
    monkeypatch.setenv("SPATIALFLOW_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def clean_catalogs():
    """Remove what a test registered, and what others have read of the built-in data sets."""
    for spec in _builtin_specs():
        unregister(spec.name)
    register_builtin()
    before = set(DatasetCatalog) | set(MetadataCatalog)
    yield
    for name in (set(DatasetCatalog) | set(MetadataCatalog)) - before:
        unregister(name)


@pytest.fixture
def write_dataset(tmp_path):
    """Return a function that writes a COCO panoptic data set and returns its folder.

    Each image is (ids (H, W), {segment id: category id or (category id, iscrowd)}).
    """

    def write(images, categories=CATEGORIES, folder="set", fields=("area", "bbox", "iscrowd")):
        root = tmp_path / folder
        for name in ("images", "panoptic"):
            (root / name).mkdir(parents=True)
        rng = np.random.default_rng(0)
        content = {"images": [], "annotations": [], "categories": categories}
        for number, (ids, classes) in enumerate(images):
            ids = np.asarray(ids, dtype=np.int32)
            picture = rng.integers(0, 256, (*ids.shape, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / "images" / f"{number:03d}.png")
            write_panoptic_png(root / "panoptic" / f"{number:03d}.png", ids)
            segments = []
            for segment_id, what in classes.items():
                category_id, iscrowd = what if isinstance(what, tuple) else (what, 0)
                rows, columns = np.nonzero(ids == segment_id)
                box = [0, 0, 0, 0]
                if rows.size:
                    left, top = int(columns.min()), int(rows.min())
                    box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
                measured = {"area": int(rows.size), "bbox": box, "iscrowd": iscrowd}
                segments.append(
                    {
                        "id": segment_id,
                        "category_id": category_id,
                        **{k: v for k, v in measured.items() if k in fields},
                    }
                )
            file_name = f"{number:03d}.png"
            content["images"].append(
                {
                    "id": number + 1,
                    "file_name": file_name,
                    "height": ids.shape[0],
                    "width": ids.shape[1],
                }
            )
            content["annotations"].append(
                {"image_id": number + 1, "file_name": file_name, "segments_info": segments}
            )
        (root / "panoptic.json").write_text(json.dumps(content))
        return root

    return write


@pytest.fixture
def register_folder():
    """Return a function that registers a folder in the layout of `write_dataset`."""

    def register(root, name="tiny", **options):
        root = Path(root)
        register_panoptic(
            name, root / "images", root / "panoptic.json", root / "panoptic", **options
        )
        return name

    return register
