#!/usr/bin/env python
r"""Print parameters, multiply-adds, activations and time of each part of a network.

    python tools/analyze.py --config-file coco/spatialflow_r50_20e.yaml --size 800 1344
    python tools/analyze.py --config-file Base-Small.yaml --size 320 320 --json parts.json \
        MODEL.SPATIALFLOW.GENOTYPE output/search/genotype.json

The input is one image of noise. Weights are random, and as many things are detected as the config
allows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from detectron2.modeling import build_model

from spatialflow.analysis.costs import measure_parts
from spatialflow.analysis.tables import complete, table
from spatialflow.cli.errors import SETUP_ERRORS, errors_in_one_line
from spatialflow.config import genotype_of, get_cfg
from spatialflow.engine import prepare_config
from spatialflow.utils.files import write_atomically


def rows(parts: dict[str, dict[str, float]]) -> list[list[str]]:
    """Return a row of the table for each part."""
    return [
        [
            name,
            f"{part['parameters'] / 1e6:.2f}",
            f"{part['multiply_adds'] / 1e9:.1f}",
            f"{part['activations'] / 1e6:.1f}",
            f"{1000 * part['seconds']:.0f}",
        ]
        for name, part in parts.items()
    ]


def main() -> None:
    """Print the table, complete a page, and write JSON."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with errors_in_one_line(SETUP_ERRORS):
        opts = ["MODEL.WEIGHTS", "", "MODEL.SPATIALFLOW.TRUNK_PRETRAINED", False]
        # Without training no score is above the threshold of the config.
        opts += ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
        cfg = get_cfg(args.config_file, [*opts, *args.opts])
        if min(cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) < 1:
            prepare_config(cfg)
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        found = measure_parts(model, genotype_of(cfg), (args.size[0], args.size[1]))
    text = table(["part", "M parameters", "GMAC", "M activations", "ms"], rows(found["parts"]))
    print(text)
    print(f"\n{args.size[0]} × {args.size[1]} pixels, {found['detections']} detections")
    if args.write:
        complete([args.write], {"parts": text})
    if args.json:
        content = json.dumps(found, indent=1) + "\n"
        write_atomically(args.json, lambda file: file.write(content.encode()))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="name or path")
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1344], metavar=("H", "W"))
    parser.add_argument("--json", type=Path, help="JSON file to write")
    parser.add_argument("--write", type=Path, help="page to complete")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
