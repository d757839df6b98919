"""The images of a JSON that a data set has: its part of a split, its first ones, those it lists."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from spatialflow.data.dataset_spec import DatasetSpec
from spatialflow.data.validation.defects import Defect
from spatialflow.data.validation.json_rules import Listing


def in_validation_split(file_name: str, fraction: float, seed: int) -> bool:
    """Return whether an image belongs to the validation part of a split.

    The result does not depend on the other images, so a data set that grows keeps its split.

    Args:
        file_name: File name of the image in the JSON.
        fraction: Expected share of images in the validation part, between 0 and 1.
        seed: Seed of the split.
    """
    digest = hashlib.sha256(f"{seed}:{file_name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


@dataclass(frozen=True)
class Selection:
    """The images of a JSON that a registration keeps.

    Attributes:
        pairs: (image entry, annotation) pairs in the order of the images' names. Images that
            `defects` name cannot be used.
        defects: Defects of these images, and of entries without a known image.
        unannotated: Number of images without an annotation in the whole JSON.
    """

    pairs: list[tuple[dict, dict]]
    defects: list[Defect]
    unannotated: int

    def sound_pairs(self) -> list[tuple[dict, dict]]:
        """Return the pairs of images that no defect names."""
        bad = {defect.image for defect in self.defects}
        return [pair for pair in self.pairs if pair[0]["file_name"] not in bad]


def select(spec: DatasetSpec, listing: Listing) -> Selection:
    """Select the annotated images that a registration keeps.

    Args:
        spec: Description of the data set.
        listing: Annotated images of its JSON.
    """
    pairs = sorted(listing.pairs, key=lambda pair: pair[0]["file_name"])
    if spec.split is not None:
        part, fraction, seed = spec.split
        pairs = [
            pair
            for pair in pairs
            if in_validation_split(pair[0]["file_name"], fraction, seed) == (part == "val")
        ]
    unlisted: list[str] = []
    if spec.keep is not None:
        pairs, unlisted = spec.keep(spec, pairs)
    pairs = pairs[: spec.limit]
    kept = {image["file_name"] for image, _ in pairs}
    elsewhere = {image["file_name"] for image, _ in listing.pairs} - kept
    defects = [defect for defect in listing.defects if defect.image not in elsewhere]
    if spec.keep is not None and not unlisted:  # other defects are of images that it has not
        defects = [defect for defect in defects if defect.image in kept]
    defects += [
        Defect(spec.annotations_json, f"lists no sound entry of {name}, an image of {spec.name}")
        for name in unlisted
    ]
    if not pairs:
        defects.append(Defect(spec.annotations_json, _why_empty(spec, listing)))
    return Selection(pairs, defects, listing.unannotated)


def _why_empty(spec: DatasetSpec, listing: Listing) -> str:
    """Return the message of a data set without images: what left them out, and what to change."""
    annotated = len(listing.pairs)
    if annotated and spec.keep is not None:
        return f"data set {spec.name!r} has none of the {annotated} annotated images"
    if not annotated or spec.split is None:
        left_out = f"; {listing.unannotated} have no annotation" if listing.unannotated else ""
        return f"data set {spec.name!r} has no annotated image{left_out}"
    part, fraction, seed = spec.split
    more = "larger" if part == "val" else "smaller"
    fraction_key, seed_key = (
        ("DATASETS.FOLDER.VAL_FRACTION", "DATASETS.FOLDER.SPLIT_SEED")
        if spec.own
        else ("the fraction of the split", "its seed")
    )
    return (
        f"data set {spec.name!r}, the {part!r} part of a split, has none of the {annotated} "
        f"annotated images: {fraction_key} {fraction} and {seed_key} {seed} given, a {more} "
        "fraction or another seed expected"
    )
