"""The arguments of the commands that work on data sets."""

from __future__ import annotations

from spatialflow_cli.arguments import Group, above_zero, file_argument, path_argument, size_argument

FORMATS = ("cmp",)
"""Formats that ``spatialflow convert`` reads; its module has their readers."""


def add_check_arguments(group: Group) -> None:
    """Add the arguments of ``spatialflow check``."""
    group.add_argument(
        "target",
        nargs="?",
        type=path_argument,
        metavar="NAME_OR_FOLDER",
        help="a built-in data set, or a folder with images/, panoptic/ and panoptic.json",
    )
    group.add_argument(
        "--images", type=path_argument, metavar="DIR", help="the images, where they lie elsewhere"
    )
    group.add_argument(
        "--json", type=path_argument, metavar="FILE", help="the JSON, where it lies elsewhere"
    )
    group.add_argument(
        "--panoptic", type=path_argument, metavar="DIR", help="the PNGs, where they lie elsewhere"
    )
    group.add_argument(
        "--white-level",
        type=above_zero,
        metavar="N",
        help="INPUT.WHITE_LEVEL of the trainings, for images of more than 8 bits",
    )


def add_analyze_arguments(group: Group) -> None:
    """Add the arguments of ``spatialflow analyze data``."""
    group.add_argument(
        "folder",
        type=path_argument,
        metavar="FOLDER",
        help="a folder with images/, panoptic/ and panoptic.json",
    )
    group.add_argument("--output", type=file_argument, metavar="FILE", help="config to write")
    # Not all that is left: options may come after the folder.
    group.add_argument(
        "opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys of the data"
    )


def add_convert_arguments(group: Group) -> None:
    """Add the arguments of ``spatialflow convert``."""
    group.add_argument("format", choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    group.add_argument(
        "input", nargs="+", type=path_argument, metavar="FOLDER", help="folders to read"
    )
    group.add_argument(
        "--output",
        required=True,
        type=path_argument,
        metavar="FOLDER",
        help="folder to write to, new or empty",
    )
    group.add_argument(
        "--max-size",
        type=size_argument,
        default=640,
        metavar="N",
        help="longest side of the images in pixels; 0 keeps their size (default: 640)",
    )
