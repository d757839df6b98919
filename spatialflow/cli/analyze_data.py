"""``spatialflow analyze data``: what a data set has, and a config that suits it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from tabulate import tabulate

from spatialflow.analysis.anchor_coverage import Coverage, measure_coverage
from spatialflow.analysis.config_text import COLUMNS, Choice, config_text
from spatialflow.analysis.data_proposal import propose
from spatialflow.analysis.data_statistics import DataStatistics, training_statistics
from spatialflow.cli.console import print_line
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.config import get_cfg
from spatialflow.config.values import leaves, shown
from spatialflow.engine import prepare_config
from spatialflow.utils.console import start_logging
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import check_outputs, write_text
from spatialflow.utils.signals import StopSignals
from spatialflow.utils.text import printable

BASE = "Base-Refined-Small.yaml"
BEFORE = "Base-Small.yaml"
MOST_CLASSES = 20
"""Rows of the table of classes; COCO has 133."""
NAME_LETTERS = 14
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def main(args: argparse.Namespace) -> int:
    """Print the page, write the config, and return the exit status."""
    with errors_in_one_line(), StopSignals():
        if args.output:
            _check_output(args.output)
        start_logging()
        cfg = _config(args.folder, args.opts)
        found = training_statistics(cfg)
        choices = propose(found, cfg)
        before = measure_coverage(found, get_cfg(BEFORE), "anchors before")
        pairs = [item for choice in choices for item in (choice.key, choice.value)]
        after = measure_coverage(found, get_cfg(BASE, pairs), "anchors after")
        for line in (*_statistics_lines(found, cfg), *_proposal_lines(choices, before, after), ""):
            print_line(line)
        if args.output:
            name = Path(cfg.DATASETS.FOLDER.PATH).name
            header = (
                f"Proposed by `spatialflow analyze data` from {len(found.image_sizes)} training "
                f"images of {name}, with reasons.\nNothing was trained with it yet."
            )
            text = config_text([*choices, *_fixed(cfg, args.opts)], BASE, header)
            _check_output(args.output)
            write_text(args.output, text)
            print_line(f"Next: spatialflow train --config-file {args.output}")
        else:
            print_line("--output FILE.yaml writes these values as a config.")
    return 0


def _check_output(path: Path) -> None:
    if os.path.lexists(path):
        raise ConfigError(f"--output: {path} exists already; the name of a new file expected")
    check_outputs(path.parent, [path.name])


def _config(folder: str, opts: list[str]) -> CfgNode:
    """Return the prepared config of a folder's data.

    Raises:
        ConfigError: If there is no such folder, or a key is not one of the data.
        DataError: As ``spatialflow check`` finds it, as far as training notices it at its start.
    """
    if not os.path.isdir(folder):
        raise ConfigError(
            f"{shown(folder)} is no folder; one with images/, panoptic/ and panoptic.json expected"
        )
    if "DATASETS.FOLDER.PATH" in opts[::2]:
        raise ConfigError("DATASETS.FOLDER.PATH given, but FOLDER is it; other keys expected")
    others = [key for key in opts[::2] if not key.startswith("DATASETS.")]
    if others:
        raise ConfigError(
            f"{shown(others[0])[1:-1]} given, keys of DATASETS expected; the file that --output "
            "writes is the place for others"
        )
    cfg = get_cfg(BASE, ["DATASETS.FOLDER.PATH", folder, *opts])
    prepare_config(cfg)
    return cfg


def _fixed(cfg: CfgNode, opts: list[str]) -> list[Choice]:
    """Return the keys of the written config that nothing is counted for."""
    path = cfg.DATASETS.FOLDER.PATH
    given, default = (leaves(get_cfg(BASE, pairs).DATASETS, "DATASETS.") for pairs in (opts, []))
    changed = {key: value for key, value in given.items() if value != default[key]}
    run = f"output/{Path(path).name}_refined"
    return [
        Choice("DATASETS.FOLDER.PATH", path, ""),
        *(Choice(key, value, "as given") for key, value in sorted(changed.items())),
        Choice("SEED", 0, ""),
        Choice("OUTPUT_DIR", run, ""),
    ]


def _statistics_lines(found: DataStatistics, cfg: CfgNode) -> list[str]:
    folder = cfg.DATASETS.FOLDER
    short, long = found.image_sizes.min(axis=1), found.image_sizes.max(axis=1)
    bits = ", ".join(f"{count} of {bits} bits" for bits, count in found.bits.items())
    things, segments = found.things_per_image, found.segments_per_image
    lines = [
        f"{len(short)} training images of {folder.PATH}: {bits} a channel.",
        f"Others (DATASETS.FOLDER.VAL_FRACTION {folder.VAL_FRACTION}) are not looked at.",
        "",
        *_table(
            ["", "least", "25%", "median", "75%", "95%", "most"],
            [
                ["shorter side, px", *_spread(short)],
                ["longer side, px", *_spread(long)],
                ["segments an image", *_spread(segments)],
                ["things an image", *_spread(things)],
            ],
        ),
        "",
        *_class_table(found),
    ]
    without = int((things == 0).sum())
    if without:
        lines += ["", f"{without} images have no thing: the training leaves them out."]
    return lines


def _spread(values: np.ndarray) -> list[str]:
    return [f"{value:.0f}" for value in np.quantile(values, (0, 0.25, 0.5, 0.75, 0.95, 1))]


def _class_table(found: DataStatistics) -> list[str]:
    """Return a row for each class, those with most segments first."""
    names = (*found.thing_classes, *found.stuff_classes)
    rows = []
    for label, name in enumerate(names):
        own = (found.label == label) & ~found.crowd
        isthing = label < len(found.thing_classes)
        sizes = np.sqrt(found.area[own])
        box = found.box[own]
        quantiles = (0.05, 0.5, 0.95) if isthing and own.any() else ()
        ratios = [f"{np.quantile(box[:, 3] / box[:, 2], q):.2f}" for q in quantiles]
        rows.append(
            (
                len(sizes),
                [
                    _cut(name),
                    "thing" if isthing else "stuff",
                    str(len(sizes)),
                    str(len(np.unique(found.image[own]))),
                    " ".join(f"{np.quantile(sizes, q):4.0f}" for q in QUANTILES if len(sizes)),
                    " ".join(ratios),
                ],
            )
        )
    rows.sort(key=lambda row: -row[0])
    head = [
        "class",
        "kind",
        "segments",
        "images",
        "√area, px: 5 25 50 75 95%",
        "height/width: 5 50 95%",
    ]
    lines = _table(head, [row for _, row in rows[:MOST_CLASSES]])
    if len(rows) > MOST_CLASSES:
        rest = sum(count for count, _ in rows[MOST_CLASSES:])
        lines.append(f"and {len(rows) - MOST_CLASSES} classes more, of {rest} segments")
    return lines


def _cut(name: str) -> str:
    text = printable(name)
    return text if len(text) <= NAME_LETTERS else f"{text[: NAME_LETTERS - 1]}…"


def _proposal_lines(choices: list[Choice], before: Coverage, after: Coverage) -> list[str]:
    lines = ["", "Proposal", ""]
    for choice in choices:
        value = f"{choice.key} {_value(choice.value)}"
        short = len(value) + len(choice.reason) + 2 <= COLUMNS
        lines += [f"{value}  {choice.reason}"] if short else [value, f"    {choice.reason}"]
    rows = [
        [
            what,
            f"{one.positives:.1f}",
            f"{one.small_positives:.1f}",
            f"{one.missed:.1%}",
            f"{one.small_missed:.1%}",
        ]
        for what, one in ((BEFORE, before), ("the proposal", after))
    ]
    head = ["anchors", "positive per thing", "small quarter", "best IoU < 0.5", "small quarter"]
    return [*lines, "", f"Anchors of {after.things} things:", "", *_table(head, rows)]


def _value(value: object) -> str:
    """Return a value as a command line takes it, in one word."""
    return "".join(str(value).replace("'", "").split())


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    aligned = ["left"] + ["right"] * (len(head) - 1)
    text = tabulate(rows, head, tablefmt="simple", disable_numparse=True, colalign=aligned)
    return text.splitlines()
