"""Lists everything that is wrong with a data set: `python -m spatialflow.data.check FOLDER`.

One line for each problem and one that sums up. Exit status 0: no problem; 1: problems; 2: the
command itself is wrong.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from detectron2.data import DatasetCatalog

from spatialflow.data.builtin import register_builtin
from spatialflow.data.dataset import DatasetEntry
from spatialflow.data.dataset_spec import PanopticSource, Selection, read_categories, select
from spatialflow.data.validation.defects import Problem, printable
from spatialflow.data.validation.entry_rules import (
    comparable_segments,
    file_name_message,
    size_message,
)
from spatialflow.data.validation.file_rules import missing_files, read_image
from spatialflow.data.validation.segment_map import read_segments

# Images that are decoded at the same time: each may need some hundred megabytes.
_MOST_THREADS = 8


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}; try --help\n")


@dataclass
class Report:
    """What was found.

    Attributes:
        images: images of the data set.
        segments: their segments.
        classes: classes, after a remap.
        unannotated: images that the JSON's `annotations` do not list.
        problems: how many there are.
        affected: what problems call the images that they concern.
    """

    images: int = 0
    segments: int = 0
    classes: int = 0
    unannotated: int = 0
    problems: int = 0
    affected: set[str] = field(default_factory=set)

    def summary(self) -> str:
        """Returns one line."""
        counted = (
            _plural(self.images, "image"),
            _plural(self.segments, "segment"),
            _plural(self.classes, "class", "classes"),
        )
        found = _plural(self.problems, "problem") if self.problems else "no problem"
        if self.affected:
            found += f", {_plural(len(self.affected), 'image')} affected"
        if self.unannotated:
            found += f"; {_plural(self.unannotated, 'image')} without annotation left out"
        return f"{', '.join(counted)}: {found}"


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def find_problems(entry: DatasetEntry, report: Report) -> Iterator[Problem]:
    """Yields all problems of a data set: of its JSON, then image by image.

    Every image and PNG is decoded; files are told of once, for the first defect that hides others.

    Args:
        entry: the data set; it need not be registered.
        report: is filled on the way.
    """
    for problem in _problems(entry, report):
        report.problems += 1
        if problem.image is not None:
            report.affected.add(problem.image)
        yield problem


def _problems(entry: DatasetEntry, report: Report) -> Iterator[Problem]:
    source, content, problems = entry.examine()
    yield from problems
    if content is None:
        return
    if not problems:
        try:
            report.classes = len(_classes(source, content))
        except ValueError as error:  # a remap that does not fit the categories
            where = source.annotations_json
            yield Problem(where, str(error).removeprefix(f"{where}: "))
    selection = select(source, content)
    report.images = len(selection.pairs)
    report.unannotated = selection.unannotated
    report.segments = sum(
        len(annotation["segments_info"])
        for _, annotation in selection.pairs
        if isinstance(annotation.get("segments_info"), list)
    )
    yield from selection.problems
    yield from _problems_of_files(source, selection)


def _classes(source: PanopticSource, content: dict) -> list:
    where = source.annotations_json
    return read_categories(content["categories"], source.remap, where=where)[0]


def _problems_of_files(source: PanopticSource, selection: Selection) -> Iterator[Problem]:
    if not all(Path(folder).is_dir() for folder in (source.images, source.panoptic_root)):
        return
    named = [pair for pair in selection.pairs if file_name_message(pair[1]) is None]
    absent: dict[str, Problem] = {}
    for problem in missing_files(source.files(named), source.annotations_json):
        absent.setdefault(problem.file, problem)

    def examine(pair: tuple[dict, dict]) -> list[Problem]:
        return list(_problems_of_pair(source, *pair, absent))

    pool = ThreadPoolExecutor(max_workers=min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        for problems in pool.map(examine, selection.pairs):
            yield from problems
    finally:
        pool.shutdown(cancel_futures=True)


def _problems_of_pair(
    source: PanopticSource, image: dict, annotation: dict, absent: dict[str, Problem]
) -> Iterator[Problem]:
    """What is wrong with an image and its PNG, as far as the JSON can be compared with them."""
    if size_message(image) is not None:
        return
    files = source.image_files(image)
    path = source.image_path(image)
    if path in absent:
        yield absent[path]
    else:
        found = read_image(path, files)
        if isinstance(found, Problem):
            yield found
    segments = comparable_segments(annotation)
    if segments is None or file_name_message(annotation) is not None:
        return
    path = source.png_path(annotation)
    if path in absent:
        yield absent[path]
        return
    compared = read_segments(path, segments, files)
    if isinstance(compared, list):
        yield from compared


def _find_entry(args: argparse.Namespace, parser: _Parser) -> DatasetEntry:
    register_builtin()
    places = {"images": args.images, "json": args.json, "panoptic": args.panoptic}
    entry = dict(DatasetCatalog).get(args.target)
    if isinstance(entry, DatasetEntry) and not any(places.values()):
        return entry
    missing = [f"--{name}" for name, place in places.items() if not place]
    if args.target is None:
        if missing:
            parser.error(f"a data set or {', '.join(missing)} expected")
        root = Path(places["images"]).parent
    else:
        root = Path(args.target).expanduser()
        if not root.is_dir():
            names = [n for n, e in DatasetCatalog.items() if isinstance(e, DatasetEntry)]
            parser.error(f"{args.target!r} is no folder and none of {', '.join(sorted(names))}")
    return DatasetEntry(
        PanopticSource(
            name=str(root),
            images=os.path.abspath(places["images"] or root / "images"),
            annotations_json=os.path.abspath(places["json"] or root / "panoptic.json"),
            panoptic_root=os.path.abspath(places["panoptic"] or root / "panoptic"),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checker.

    Args:
        argv: arguments; None takes those of the command line.

    Returns:
        0 if there is no problem, 1 if there are some. A wrong command exits with 2.
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
    entry = _find_entry(parser.parse_args(argv), parser)
    report = Report()
    for problem in find_problems(entry, report):
        _say(str(problem))
    _say(report.summary())
    return 1 if report.problems else 0


def _say(line: str) -> None:
    """Writes a line, whatever the console can show."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
