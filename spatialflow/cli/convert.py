"""``spatialflow convert``: convert labels of another format to COCO panoptic layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spatialflow.cli.check import dataset_in, print_problems
from spatialflow.cli.console import print_line
from spatialflow.cli.errors import errors_in_one_line, program_name
from spatialflow.data.convert import cmp
from spatialflow.data.convert.writer import write_dataset
from spatialflow.utils.console import start_logging
from spatialflow.utils.signals import StopSignals

FORMATS: dict[str, Any] = {"cmp": cmp}
"""Module of each format that the command line names."""


def main(args: argparse.Namespace) -> int:
    """Convert, check what was written, and list what could not be converted.

    Returns:
        0 if everything was converted and the checker finds no problem, 1 otherwise.
    """
    with errors_in_one_line(), StopSignals():
        start_logging()
        chosen = FORMATS[args.format]
        sources = chosen.find_sources([Path(folder) for folder in args.input], args.max_size)
        output = Path(args.output)
        result = write_dataset(output, chosen.CATEGORIES, sources)
        print_line(f"{result.images} of {len(sources)} image(s) in {output}")
        if result.hidden:
            print_line(f"{result.hidden} segment(s) lie under others and are left out")
        sound = not result.images or print_problems(dataset_in(output)) == 0
        print_failures(result.failures)
    return 0 if sound and not result.failures else 1


def print_failures(failures: Sequence[str]) -> None:
    """Print a line for each thing that could not be converted, and their number."""
    for failure in failures:
        print_line(f"{program_name()}: {failure}", sys.stderr)
    if failures:
        print_line(f"{program_name()}: {len(failures)} problem(s) of the input", sys.stderr)
