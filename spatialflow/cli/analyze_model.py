"""``spatialflow analyze model``: parameters, operations and time of each part of a network."""

from __future__ import annotations

import argparse

import torch
from detectron2.modeling import build_model

from spatialflow.analysis.costs import measure_parts
from spatialflow.analysis.tables import complete, fill, table
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.config import genotype_of, get_cfg
from spatialflow.engine import prepare_config
from spatialflow.utils.files import check_outputs, write_json
from spatialflow.utils.signals import StopSignals


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


def main(args: argparse.Namespace) -> int:
    """Print the table, complete a page, write JSON, and return the exit status.

    Weights are random, and as many things are detected as the config allows.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    with errors_in_one_line(), StopSignals():
        if args.json:
            check_outputs(args.json.parent, [args.json.name])
        if args.write:
            fill(args.write.read_text(), {"parts": ""}, str(args.write))
        opts = ["MODEL.WEIGHTS", "", "MODEL.SPATIALFLOW.TRUNK_PRETRAINED", False]
        # Without training no score is above the threshold of the config.
        opts += ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
        cfg = get_cfg(args.config_file, [*opts, *args.opts])
        if min(cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) < 1:
            prepare_config(cfg)
        # All scores are alike, too: NMS of all candidates in all classes would take minutes.
        few = min(cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST, cfg.TEST.DETECTIONS_PER_IMAGE)
        cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST = few
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        found = measure_parts(model, genotype_of(cfg), (args.size[0], args.size[1]))
        text = table(["part", "M parameters", "GMAC", "M activations", "ms"], rows(found["parts"]))
        print(text)
        print(f"\n{args.size[0]} × {args.size[1]} pixels, {found['detections']} detections")
        if args.write:
            complete([args.write], {"parts": text})
        if args.json:
            write_json(args.json, found)
    return 0
