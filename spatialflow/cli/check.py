"""``spatialflow check``: list all problems of a data set."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog

from spatialflow.cli.console import divert, print_line
from spatialflow.cli.errors import errors_in_one_line, program_name
from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.dataset_spec import DatasetSpec
from spatialflow.data.registration import find_dataset, view_of
from spatialflow.data.validation.report import Report, find_defects
from spatialflow.utils.errors import ConfigError


def main(args: argparse.Namespace) -> int:
    """Print one line for each problem, and a summary.

    Returns:
        0 if there is no problem, 1 if there are some, 2 if there is no such data set.
    """
    with errors_in_one_line():
        return _main(args)


def _main(args: argparse.Namespace) -> int:
    try:
        status = _check(args)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        print_line(f"{program_name()}: {error}; try --help", sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        divert(sys.stdout)
        return 1


def _check(args: argparse.Namespace) -> int:
    return print_problems(_find_dataset(args), white_level=args.white_level)


def print_problems(dataset: PanopticDataset, *, white_level: float | None = None) -> int:
    """Print one line for each problem of a data set, and a summary.

    Args:
        dataset: Data set to check; it need not be registered.
        white_level: The value of ``INPUT.WHITE_LEVEL``.

    Returns:
        0 if there is no problem, 1 if there are some.
    """
    report = Report()
    for defect in find_defects(dataset, report, white_level=white_level):
        print_line(str(defect))
    print_line(report.summary())
    return 1 if report.defects else 0


def dataset_in(root: Path, **places: str | None) -> PanopticDataset:
    """Return the data set in a folder in COCO panoptic layout.

    Args:
        root: The folder.
        places: Where ``images``, ``json`` and ``panoptic`` lie, if not in the folder.
    """
    return PanopticDataset(
        DatasetSpec(
            name=str(root),
            images=os.path.abspath(places.get("images") or root / "images"),
            annotations_json=os.path.abspath(places.get("json") or root / "panoptic.json"),
            panoptic_root=os.path.abspath(places.get("panoptic") or root / "panoptic"),
        )
    )


def _find_dataset(args: argparse.Namespace) -> PanopticDataset:
    places = {"images": args.images, "json": args.json, "panoptic": args.panoptic}
    if args.target in DatasetCatalog and not any(places.values()):
        registered = dict(DatasetCatalog)[view_of(args.target)]
        if isinstance(registered, PanopticDataset) or not Path(args.target).is_dir():
            return find_dataset(args.target)
    missing = [f"--{name}" for name, place in places.items() if not place]
    if args.target is None:
        if missing:
            raise ConfigError(f"a data set or {', '.join(missing)} expected")
        root = Path(places["images"]).parent
    else:
        root = Path(args.target).expanduser()
        if not root.is_dir():
            names = [n for n, d in DatasetCatalog.items() if isinstance(d, PanopticDataset)]
            raise ConfigError(
                f"{args.target!r} is no folder and none of {', '.join(sorted(names))}"
            )
    return dataset_in(root, **places)
