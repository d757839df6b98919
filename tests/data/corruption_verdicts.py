"""Judge whether the library handled a broken data set correctly.

A simple reader that does not use the library reads the same files. Training samples and evaluation
truth must be equal to what it returns, unless the set is reported as broken.
"""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image, ImageOps

from spatialflow.data import (
    PanopticMapper,
    instances_json,
    panoptic_json,
    register_panoptic,
    unregister,
)
from spatialflow.utils.errors import DataError
from spatialflow_cli.main import main

NAME = "broken"
REPORTED = "reported by name"
HARMLESS = "harmless"
OTHER = "another valid set"
WRONG = "wrong"
VERDICTS = (REPORTED, HARMLESS, OTHER, WRONG)
ONLY_CHECKED = (
    "is damaged: ",
    "is truncated: the file ends ",
    "has other areas than ",
    "has other boxes than ",
)
"""Beginnings of the checker's messages about files that training may use anyway."""


class Judge:
    """Compare broken sets with the clean set that they were made from."""

    def __init__(self, clean):
        self.clean_samples, stopped = training(clean)
        self.clean_truth = evaluation(clean)
        assert not stopped
        assert run_checker(clean)[0] == 0

    def __call__(self, root, touched):
        """Return a verdict and, if it is WRONG, the reason.

        Any error of the library that is no DataError is raised.
        """
        named = [str(path) for path in touched]
        status, lines = run_checker(root)
        samples, stopped = training(root)
        truth = evaluation(root)
        problems = lines[:-1]
        if bool(problems) != (status == 1) or status not in (0, 1):
            return WRONG, f"exit status {status} with {len(problems)} problems"
        for message in (*problems, *stopped, *([truth] if isinstance(truth, str) else [])):
            if not any(name in message for name in named):
                return WRONG, f"names none of {named}: {message}"
            if "\n" in message or "Traceback" in message:
                return WRONG, f"more than a line: {message}"
        if stopped and not problems:
            return WRONG, f"the checker finds nothing, training says {stopped}"
        missed = self._missed(root, samples, problems, stopped)
        if missed:
            return WRONG, f"training does not notice {missed}"
        unknown = [m for m in stopped if not any(m.startswith(p) for p in problems)]
        if unknown:
            return WRONG, f"the checker does not say this: {unknown[0]}"
        why = self._misread(root, samples, truth, not problems)
        if why:
            return WRONG, why
        if problems:
            return REPORTED, ""
        same = _equal_sets(samples, self.clean_samples) and truth == self.clean_truth
        return HARMLESS if same else OTHER, ""

    @staticmethod
    def _missed(root, samples, problems, stopped):
        """Return the problems that training should have noticed, but did not."""
        if not stopped:
            used = problems
        else:
            files = _files_of(root, samples) if samples else set()
            used = [p for p in problems if p.partition(": ")[0] in files]
        return [p for p in used if not p.partition(": ")[2].startswith(ONLY_CHECKED)]

    @staticmethod
    def _misread(root, samples, truth, complete):
        """Return where samples or truth differ from the files, or None."""
        try:
            if not isinstance(truth, str) and truth != plain_truth(root):
                return f"evaluated with {truth}"
            expected = plain_samples(root, None if complete else set(samples)) if samples else {}
        except Exception as error:
            return f"used, but the files cannot be read plainly: {error!r}"
        if set(samples) != set(expected):
            return f"images {sorted(samples)} instead of {sorted(expected)}"
        for name, sample in samples.items():
            if not _equal(sample, expected[name]):
                return f"{name} is not what its files say"
        return None


def run_checker(root):
    """Return the exit status and the printed lines."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        status = main(["check", str(root)])
    return status, printed.getvalue().rstrip("\n").split("\n")


def _register(root):
    register_panoptic(NAME, root / "images", root / "panoptic.json", root / "panoptic")


def training(root):
    """Return the arrays of each image's sample by image name, and the messages of refused images.

    Loading that stops must report the first problem of those that skipping finds.
    """
    samples, messages = {}, []
    try:
        _register(root)
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = (NAME,)
        cfg.INPUT.FORMAT = "RGB"
        mapper = PanopticMapper(cfg, True, augmentations=[])
        dicts, problems = DatasetCatalog[NAME].load()
        messages = [str(problem) for problem in problems]
        try:
            assert DatasetCatalog.get(NAME) == dicts
            assert not problems
        except DataError as error:
            assert str(error).startswith(messages[0])  # noqa: PT017
        for one in dicts:
            try:
                mapped = mapper(one)
            except DataError as error:
                messages.append(str(error))
                continue
            instances = mapped["instances"]
            samples[Path(one["file_name"]).name] = {
                "image_id": mapped["image_id"],
                "image": mapped["image"].numpy().transpose(1, 2, 0),
                "sem_seg": mapped["sem_seg"].numpy(),
                "classes": instances.gt_classes.numpy(),
                "masks": instances.gt_masks.tensor.numpy(),
                "boxes": instances.gt_boxes.tensor.numpy(),
            }
    except DataError as error:
        messages.append(str(error))
    finally:
        unregister(NAME)
    return samples, messages


def evaluation(root):
    """Return (panoptic, instances) truth as sorted lists, or the message of its error."""
    try:
        _register(root)
        truth = json.loads(panoptic_json(NAME).read_text())
        panoptic = [
            (str(a["image_id"]), s["category_id"], s["iscrowd"], s["area"])
            for a in truth["annotations"]
            for s in a["segments_info"]
        ]
        things = json.loads(instances_json(NAME).read_text())["annotations"]
        instances = [
            (str(a["image_id"]), a["category_id"], a["iscrowd"], a["area"]) for a in things
        ]
        return sorted(panoptic), sorted(instances)
    except DataError as error:
        return str(error)
    finally:
        unregister(NAME)


def _plain_json(root):
    """Return the JSON, and its thing and stuff category ids in order."""
    content = json.loads((root / "panoptic.json").read_text())
    categories = sorted(content["categories"], key=lambda c: c["id"])
    things = [c["id"] for c in categories if c["isthing"]]
    return content, things, [c["id"] for c in categories if not c["isthing"]]


def _plain_ids(root, annotation):
    ids = np.asarray(Image.open(root / "panoptic" / annotation["file_name"]), dtype=np.int64)
    return ids[..., :3] @ [1, 256, 65536]


def plain_samples(root, wanted=None):
    """Read all images, or some, into the form of `training`, without the library."""
    content, things, stuff = _plain_json(root)
    samples = {}
    for annotation in content["annotations"]:
        image = _image_of(annotation, content)
        if wanted is not None and (image is None or Path(image["file_name"]).name not in wanted):
            continue
        picture = ImageOps.exif_transpose(Image.open(root / "images" / image["file_name"]))
        ids = _plain_ids(root, annotation)
        assert ids.shape == (picture.height, picture.width) == (image["height"], image["width"])
        sem_seg, classes, masks, boxes = np.full(ids.shape, 255), [], [], []
        for s in annotation["segments_info"]:
            mask, isthing = ids == s["id"], s["category_id"] in things
            sem_seg[mask] = 0 if isthing else 1 + stuff.index(s["category_id"])
            if isthing and not s.get("iscrowd"):
                rows, columns = np.nonzero(mask)
                classes.append(things.index(s["category_id"]))
                masks.append(mask)
                corner = columns.max() + 1, rows.max() + 1
                boxes.append([columns.min(), rows.min(), *corner])
        samples[Path(image["file_name"]).name] = {
            "image_id": image["id"],
            "image": np.asarray(picture.convert("RGB")),
            "sem_seg": sem_seg,
            "classes": np.array(classes, dtype=int),
            "masks": np.array(masks).reshape(-1, *ids.shape),
            "boxes": np.array(boxes).reshape(-1, 4),
        }
    return samples


def plain_truth(root):
    """Read JSON and PNGs into the form of `evaluation`, without the library."""
    content, things, _ = _plain_json(root)
    panoptic, instances = {}, []
    for annotation in content["annotations"]:
        ids, image_id = _plain_ids(root, annotation), str(annotation["image_id"])
        for s in annotation["segments_info"]:
            category, crowd = s["category_id"], int(s.get("iscrowd", 0))
            area, isthing = int((ids == s["id"]).sum()), category in things
            if isthing:
                instances.append((image_id, category, crowd, area))
            # PQ counts an image's stuff of one class, and its crowds of one class, as one segment.
            whole = crowd or not isthing
            key = (image_id, category, crowd, None if whole else s["id"])
            panoptic[key] = panoptic.get(key, 0) + area
    return sorted((*k[:3], area) for k, area in panoptic.items()), sorted(instances)


def _files_of(root, names):
    """Return the paths of the images with these names, and of their PNGs."""
    content = json.loads((root / "panoptic.json").read_text())
    files = set()
    for annotation in content["annotations"]:
        image = _image_of(annotation, content)
        if image is not None and Path(image["file_name"]).name in names:
            files.add(str(root / "images" / image["file_name"]))
            files.add(str(root / "panoptic" / annotation["file_name"]))
    return files


def _image_of(annotation, content):
    """Return the entry of an annotation's image, or None if there is none."""
    if not isinstance(annotation, dict):
        return None
    images = [i for i in content["images"] if isinstance(i, dict)]
    named = [i for i in images if isinstance(i.get("file_name"), str)]
    return next((i for i in named if i.get("id") == annotation.get("image_id")), None)


def _equal(one, other):
    return all(np.array_equal(one[key], other[key]) for key in other)


def _equal_sets(one, other):
    return set(one) == set(other) and all(_equal(one[name], other[name]) for name in other)
