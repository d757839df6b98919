"""COCO 2017, Cityscapes and ADE20K at the usual paths under `DETECTRON2_DATASETS`.

Only names and paths are in here: classes and colours come from each data set's JSON, so importing
this module needs no data. `DETECTRON2_DATASETS` is read when a data set is used, not on import.
"""

import os
from dataclasses import replace
from pathlib import Path

from .register import DatasetEntry, add_to_catalogs, is_registered
from .source import PanopticSource, load_panoptic_json

ROOT_VARIABLE = "DETECTRON2_DATASETS"


def _builtin_sources() -> list[PanopticSource]:
    sources = []
    for part in ("train", "val"):
        sources.append(
            PanopticSource(
                name=f"spatialflow_coco_2017_{part}",
                images=f"coco/{part}2017",
                annotations_json=f"coco/annotations/panoptic_{part}2017.json",
                # The archive unpacks beside its JSON, in annotations/; the usual place is one
                # level up, where Detectron2's own COCO data sets look for it.
                panoptic_root=f"coco/panoptic_{part}2017",
            )
        )
        sources.append(
            PanopticSource(
                name=f"spatialflow_cityscapes_fine_{part}",
                images=f"cityscapes/leftImg8bit/{part}",
                annotations_json=f"cityscapes/gtFine/cityscapes_panoptic_{part}.json",
                panoptic_root=f"cityscapes/gtFine/cityscapes_panoptic_{part}",
                city_folders=True,
            )
        )
    for part, folder in (("train", "training"), ("val", "validation")):
        sources.append(
            PanopticSource(
                name=f"spatialflow_ade20k_{part}",
                images=f"ADEChallengeData2016/images/{folder}",
                annotations_json=f"ADEChallengeData2016/ade20k_panoptic_{part}.json",
                panoptic_root=f"ADEChallengeData2016/ade20k_panoptic_{part}",
            )
        )
    return sources


class BuiltinEntry(DatasetEntry):
    """A data set whose folder is named by an environment variable."""

    def resolve(self) -> PanopticSource:
        """Returns the registration under the folder that `DETECTRON2_DATASETS` names now."""
        root = Path(os.environ.get(ROOT_VARIABLE, "datasets")).expanduser().absolute()
        declared = self.declared
        return replace(
            declared,
            images=str(root / declared.images),
            annotations_json=str(root / declared.annotations_json),
            panoptic_root=str(root / declared.panoptic_root),
        )

    def read(self) -> tuple[PanopticSource, dict]:
        """Reads the JSON; a missing file's message names the variable."""
        source = self.resolve()
        hint = (
            f" Data set {source.name!r} is looked for in the folder that the environment variable "
            f"{ROOT_VARIABLE} names (now {os.environ.get(ROOT_VARIABLE, 'not set: ./datasets')})"
        )
        content = load_panoptic_json(source.annotations_json, hint)
        for folder in (source.images, source.panoptic_root):
            if not Path(folder).is_dir():
                raise ValueError(f"no such folder: {folder}.{hint}")
        return source, content


def register_builtin() -> None:
    """Registers the built-in data sets; called again it does nothing."""
    for source in _builtin_sources():
        if not is_registered(source):
            add_to_catalogs(BuiltinEntry(source))
