"""List all problems of a data set: `python -m spatialflow.data.check FOLDER`.

The command prints one line for each problem, and a summary. Exit status 0: no problem; 1: problems;
2: the command itself is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from detectron2.data import DatasetCatalog

from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.dataset_spec import DatasetSpec
from spatialflow.data.registration import register_builtin
from spatialflow.data.validation.defects import printable
from spatialflow.data.validation.report import Report, find_defects


class _Parser(argparse.ArgumentParser):
    """Report a wrong command in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}; try --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check command.

    Args:
        argv: Arguments; None takes those of the command line.

    Returns:
        0 if there is no problem, 1 if there are some.

    Raises:
        SystemExit: With status 2 if the command is wrong.
    """
    parser = _Parser(
        prog="python -m spatialflow.data.check",
        description="Lists every problem of a COCO panoptic data set.",
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="NAME_OR_FOLDER",
        help="a built-in data set, or a folder with images/, panoptic/ and panoptic.json",
    )
    parser.add_argument("--images", metavar="DIR", help="the images, where they lie elsewhere")
    parser.add_argument("--json", metavar="FILE", help="the JSON, where it lies elsewhere")
    parser.add_argument("--panoptic", metavar="DIR", help="the PNGs, where they lie elsewhere")
    dataset = _find_dataset(parser.parse_args(argv), parser)
    report = Report()
    for defect in find_defects(dataset, report):
        _print(str(defect))
    _print(report.summary())
    return 1 if report.defects else 0


def _find_dataset(args: argparse.Namespace, parser: _Parser) -> PanopticDataset:
    register_builtin()
    places = {"images": args.images, "json": args.json, "panoptic": args.panoptic}
    registered = dict(DatasetCatalog).get(args.target)
    if isinstance(registered, PanopticDataset) and not any(places.values()):
        return registered
    missing = [f"--{name}" for name, place in places.items() if not place]
    if args.target is None:
        if missing:
            parser.error(f"a data set or {', '.join(missing)} expected")
        root = Path(places["images"]).parent
    else:
        root = Path(args.target).expanduser()
        if not root.is_dir():
            names = [n for n, d in DatasetCatalog.items() if isinstance(d, PanopticDataset)]
            parser.error(f"{args.target!r} is no folder and none of {', '.join(sorted(names))}")
    return PanopticDataset(
        DatasetSpec(
            name=str(root),
            images=os.path.abspath(places["images"] or root / "images"),
            annotations_json=os.path.abspath(places["json"] or root / "panoptic.json"),
            panoptic_root=os.path.abspath(places["panoptic"] or root / "panoptic"),
        )
    )


def _print(line: str) -> None:
    """Write a line; replace characters that the console cannot show by escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
