"""COCO 2017, Cityscapes and ADE20K at the usual paths under `DETECTRON2_DATASETS`.

Only names and paths are in here: classes and colours come from each data set's JSON, so importing
this module needs no data. `DETECTRON2_DATASETS` is read when a data set is used, not on import.
"""

import os
from dataclasses import replace
from pathlib import Path

from spatialflow.data.dataset import CHECK_COMMAND, DatasetEntry
from spatialflow.data.dataset_spec import PanopticSource
from spatialflow.data.registration import add_to_catalogs, is_registered

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

    def hint(self) -> str:
        """Names the variable."""
        return (
            f". Data set {self.declared.name!r} is looked for in the folder that the environment "
            f"variable {ROOT_VARIABLE} names (now "
            f"{os.environ.get(ROOT_VARIABLE, 'not set: ./datasets')})"
        )

    def check_command(self) -> str:
        """Returns the command that lists everything that is wrong with the data."""
        return f"{CHECK_COMMAND} {self.declared.name}"


def register_builtin() -> None:
    """Registers the built-in data sets; called again it does nothing."""
    for source in _builtin_sources():
        if not is_registered(source):
            add_to_catalogs(BuiltinEntry(source))
