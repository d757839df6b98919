"""The checker finds a problem in a set exactly if a training, or its evaluation, refuses it."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import spatialflow
from spatialflow.data import register_panoptic, unregister
from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.dataset_spec import DatasetSpec
from spatialflow.data.loader import EvaluationLoader, build_train_loader
from spatialflow.data.panoptic_png import write_panoptic_png
from spatialflow.data.validation.report import Report, find_defects
from spatialflow.engine import Trainer, prepare_config
from spatialflow.evaluation import build_evaluator
from spatialflow.utils.errors import ConfigError, DataError
from tests.conftest import TINY

THING, STUFF = 7, 9
SIZES = ((40, 56), (48, 48), (1, 300), (300, 1), (1, 1), (33, 2))
# Height and width with MAX_SIZE_TRAIN 64: the short side is rounded to 0 by Detectron2.
FORMATS = ("png", "jpg", "gif", "bmp", "webp", "tif", "ppm", "animated gif")
MODES = ("RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "F", "16-bit colours")
CONTENTS = ("both", "thing", "stuff", "crowd", "void")
FILES = ("fine",) * 12 + ("missing", "fifo", "folder", "empty")
NAME = "agreement"


@dataclass(frozen=True)
class Picture:
    """The properties of one image of a generated set."""

    size: tuple[int, int] = SIZES[0]
    format: str = "png"
    mode: str = "RGB"
    content: str = "both"
    orientation: int = 1
    annotated_as_turned: bool = True
    file: str = "fine"


@dataclass(frozen=True)
class Set:
    """The properties of a generated set."""

    pictures: tuple[Picture, ...] = (Picture(),)
    things: int = 1
    stuff: int = 1
    large_ids: bool = False
    text_ids: bool = False
    listed_areas: bool = True
    split: tuple[str, float, int] | None = None


PICTURES = st.builds(
    Picture,
    size=st.sampled_from(SIZES),
    format=st.sampled_from(FORMATS),
    mode=st.sampled_from(MODES[:6]) | st.sampled_from(MODES),
    content=st.sampled_from(CONTENTS),
    orientation=st.just(1) | st.integers(1, 8),
    annotated_as_turned=st.just(True) | st.booleans(),
    file=st.sampled_from(FILES),
)
SETS = st.builds(
    Set,
    pictures=st.lists(PICTURES, min_size=1, max_size=3).map(tuple),
    things=st.sampled_from((1, 1, 1, 3, 0)),
    stuff=st.sampled_from((1, 1, 0, 3, 254, 255)),
    large_ids=st.booleans(),
    text_ids=st.booleans(),
    listed_areas=st.booleans(),
    split=st.none() | st.builds(lambda seed: ("train", 0.5, seed), st.integers(0, 99)),
)


def save_picture(path, picture):
    """Write the file of an image; a format that lacks the mode gets RGB."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*picture.size, 3), dtype=np.uint8)
    if picture.mode == "16-bit colours":
        encoded = cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes()
        path.write_bytes(encoded)
        return
    if picture.mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(picture.mode)
    exif = Image.Exif()
    exif[274] = picture.orientation
    options = {"exif": exif} if picture.format in ("png", "jpg", "webp", "tif") else {}
    if picture.format == "animated gif":
        options = {"save_all": True, "append_images": [Image.fromarray(255 - pixels)]}
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(path.suffix[1:], path.suffix[1:].upper())
    try:
        image.save(path, kind, **options)
    except (OSError, ValueError):
        Image.fromarray(pixels).save(path, kind, **options)


def spoil(path, how):
    if how != "fine":
        path.unlink()
    if how == "fifo":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "empty":
        path.touch()


def draw_ids(size, content, classes):
    """Return a map of ids, 0 … 2, and the (id, category, crowd) of its segments."""
    ids = np.zeros(size, dtype=np.int32)
    if content == "void":
        return ids, []
    flat = ids.reshape(-1)
    flat[:] = 1
    segments = [(1, *{"stuff": (STUFF, 0), "crowd": (THING, 1)}.get(content, (THING, 0)))]
    if content == "both" and flat.size > 1:
        flat[flat.size // 2 :] = 2
        segments.append((2, STUFF, 0))
    return ids, [s for s in segments if s[1] in classes]


def write_set(root, described):
    (root / "images").mkdir(parents=True)
    (root / "panoptic").mkdir()
    categories = [(THING + 1000 * i, 1) for i in range(described.things)]
    categories += [(STUFF + 1000 * i, 0) for i in range(described.stuff)]
    classes = {c for c, _ in categories}
    content = {"images": [], "annotations": []}
    content["categories"] = [{"id": c, "name": f"c{c}", "isthing": t} for c, t in categories]
    for number, picture in enumerate(described.pictures):
        name = f"{number}.{picture.format.split()[-1]}"
        save_picture(root / "images" / name, picture)
        spoil(root / "images" / name, picture.file)
        size = picture.size
        if picture.annotated_as_turned and picture.orientation >= 5:
            size = size[::-1]
        ids, segments = draw_ids(size, picture.content, classes)
        ids[~np.isin(ids, [s[0] for s in segments])] = 0
        scale = 65000 if described.large_ids else 1
        write_panoptic_png(root / "panoptic" / f"{number}.png", ids * scale)
        infos = []
        for segment_id, category, crowd in segments:
            info = {"id": segment_id * scale, "category_id": category, "iscrowd": crowd}
            if described.listed_areas:
                rows, columns = np.nonzero(ids == segment_id)
                (top, left), (bottom, right) = (
                    (int(f(rows)), int(f(columns))) for f in (np.min, np.max)
                )
                info["area"] = int(rows.size)
                info["bbox"] = [left, top, right + 1 - left, bottom + 1 - top]
            infos.append(info)
        image_id = f"image {number}" if described.text_ids else number
        height, width = size
        content["images"].append(
            {"id": image_id, "file_name": name, "height": height, "width": width}
        )
        content["annotations"].append(
            {"image_id": image_id, "file_name": f"{number}.png", "segments_info": infos}
        )
    (root / "panoptic.json").write_text(json.dumps(content))


def check(spec):
    return [str(defect) for defect in find_defects(PanopticDataset(spec), Report())]


def config(root):
    keys = {
        **TINY,
        "OUTPUT_DIR": str(root / "output"),
        "DATASETS.TRAIN": (NAME,),
        "DATASETS.TEST": (NAME,),
        "MODEL.RETINANET.NUM_CLASSES": -1,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": -1,
        "MODEL.RETINANET.NORM": "",
        "MODEL.SPATIALFLOW.TRUNK": "resnet",
        "INPUT.MAX_SIZE_TRAIN": 64,
        "INPUT.MAX_SIZE_TEST": 64,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "relative",
        "INPUT.CROP.SIZE": [0.4, 0.4],
        "SEED": 1,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.IMS_PER_BATCH": 2,
    }
    return spatialflow.get_cfg("Base-Small.yaml", [item for pair in keys.items() for item in pair])


def read_all(cfg):
    """Read all that a training and its evaluation read, without a model."""
    loader = build_train_loader(cfg, seed=1)
    for image in DatasetCatalog.get(NAME):
        loader._images.mapper(image)
    build_evaluator(cfg, NAME)
    for batch in EvaluationLoader(cfg, NAME):
        assert min(batch[0]["image"].shape) > 0


def train(cfg):
    """Train for two steps, and evaluate."""
    trainer = Trainer(cfg)
    trainer.train()


def assert_agreement(described, run):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPATIALFLOW_CACHE", f"{folder}/cache")
        root = Path(folder) / "set"
        write_set(root, described)
        places = [str(root / name) for name in ("images", "panoptic.json", "panoptic")]
        problems = check(DatasetSpec(NAME, *places, split=described.split))
        refusal = None
        try:
            register_panoptic(NAME, *places, split=described.split)
            cfg = config(Path(folder))
            prepare_config(cfg)
            run(cfg)
        except (ConfigError, DataError) as error:
            refusal = str(error)
        finally:
            unregister(NAME)
        assert bool(problems) == (refusal is not None), (problems, refusal)


def one(**properties):
    return Set(pictures=(Picture(**properties),))


@settings(max_examples=50)
@example(Set(things=0))
@example(Set(stuff=0))
@example(Set(stuff=255))
@example(one(content="void"))
@example(one(content="crowd"))
@example(one(size=(300, 1)))
@example(one(format="gif"))
@example(one(format="ppm"))
@example(one(mode="16-bit colours"))
@example(one(orientation=6, annotated_as_turned=False))
@example(one(orientation=6, size=(1, 300)))
@example(one(file="fifo"))
@example(Set(split=("train", 0.5, 0)))
@example(Set(split=("train", 0.5, 1)))
@given(described=SETS)
def test_checker_and_training_agree(described):
    assert_agreement(described, read_all)


@pytest.mark.soak
@settings(max_examples=150)
@given(described=SETS)
def test_checker_and_whole_trainings_agree(described):
    assert_agreement(described, train)
