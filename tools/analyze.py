#!/usr/bin/env python
r"""Parameters, multiply-adds, activations and time of each part of a network.

    python tools/analyze.py --config-file coco/spatialflow_r50_20e.yaml --size 800 1344
    python tools/analyze.py --config-file Base-Small.yaml --size 320 320 --json parts.json \
        MODEL.SPATIALFLOW.GENOTYPE output/search/genotype.json

One random image through random weights, with as many detections as the config allows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from detectron2.export.flatten import TracingAdapter
from detectron2.modeling import build_model
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn

from darts.genotype import Genotype
from spatialflow.analysis.tables import complete, table
from spatialflow.analysis.timing import OPERATIONS
from spatialflow.cli.errors import SETUP_ERRORS, errors_in_one_line
from spatialflow.config import find_config, genotype_of, get_cfg
from spatialflow.engine import prepare_config
from spatialflow.utils.files import write_atomically

ROUNDS = 3


def parts_of(model: nn.Module, genotype: Genotype) -> dict[str, list[str]]:
    """Return the parts of a network, each with the names of its modules."""
    names = [name for name, _ in model.named_modules()]
    levels = [n for n in names if n.startswith("backbone.") and n.count(".") == 1]
    parts = {
        "backbone": ["backbone.bottom_up"],
        "FPN": [n for n in levels if not n.startswith("backbone.bottom_up")],
    }
    predictors = {"box": ["box_head.bbox_pred"], "cls": ["box_head.cls_score"]}
    nodes = [n for n in names if n.startswith("flow_graph.nodes.") and n.count(".") == 2]
    for branch in ("box", "cls", "stuff", "mask"):
        mine = [n for n in nodes if n.split(".")[2].startswith(f"{branch}_")]
        parts[f"{branch} branch"] = mine + predictors.get(branch, [])
    for flow in genotype.flows:
        parts[f"flow {flow}"] = [f"flow_graph.flows.{flow.key}"]
    parts["stuff head"] = ["stuff_head"]
    parts["mask head"] = ["mask_head"]
    return parts


def analyze(model: nn.Module, genotype: Genotype, size: tuple[int, int]) -> dict[str, Any]:
    """Measure one image of a size.

    Returns:
        For each part, and ``everything``: ``parameters``; ``multiply_adds``; ``activations``, the
        numbers that convolutions, attention and products write; ``seconds``, the median of three
        passes; and of the whole the number of ``detections``.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    batch = [{"image": image, "height": size[0], "width": size[1]}]
    adapter = TracingAdapter(model, batch, allow_non_tensor=True)
    flops = FlopCountAnalysis(adapter, adapter.flattened_inputs)
    activations = ActivationCountAnalysis(adapter, adapter.flattened_inputs)
    for counter in (flops, activations):
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    flops.set_op_handle(**OPERATIONS)
    seconds, total, detections = _times(model, batch)
    by_name = dict(model.named_modules())
    found = {
        part: {
            "parameters": sum(p.numel() for n in names for p in by_name[n].parameters()),
            "multiply_adds": int(sum(flops.by_module()[f"model.{n}"] for n in names)),
            "activations": int(sum(activations.by_module()[f"model.{n}"] for n in names)),
            "seconds": sum(seconds.get(n, 0.0) for n in names),
        }
        for part, names in parts_of(model, genotype).items()
    }
    found["everything"] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": int(flops.total()),
        "activations": int(activations.total()),
        "seconds": total,
    }
    return {"parts": found, "detections": detections, "size": list(size)}


@torch.no_grad()
def _times(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[dict[str, float], float, int]:
    """Return the seconds in each module and in all, and how much was detected."""
    rounds: list[Counter[str]] = []
    handles = []
    for name, module in model.named_modules():
        stopwatch = _Stopwatch(name, rounds)
        handles.append(module.register_forward_pre_hook(stopwatch.start))
        handles.append(module.register_forward_hook(stopwatch.stop))
    for _ in range(ROUNDS):
        rounds.append(Counter())
        (result,) = model(batch)
    for handle in handles:
        handle.remove()
    names = rounds[0]
    median = {name: statistics.median(spent[name] for spent in rounds) for name in names}
    return median, median[""], len(result["instances"])


class _Stopwatch:
    """Adds the seconds of a module's calls to the last of the rounds."""

    def __init__(self, name: str, rounds: list[Counter[str]]) -> None:
        self.name, self.rounds = name, rounds
        self.started = 0.0

    def start(self, *_: Any) -> None:
        self.started = _clock()

    def stop(self, *_: Any) -> None:
        self.rounds[-1][self.name] += _clock() - self.started  # type: ignore[assignment]


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rows(parts: dict[str, dict[str, float]]) -> list[list[str]]:
    """Write a part a row."""
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
    """Print the table, and write JSON where asked to."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with errors_in_one_line(SETUP_ERRORS):
        opts = ["MODEL.WEIGHTS", "", "MODEL.SPATIALFLOW.TRUNK_PRETRAINED", False]
        # Without training no score is above the threshold of the config.
        opts += ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
        cfg = get_cfg(str(find_config(args.config_file)), [*opts, *args.opts])
        if min(cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) < 1:
            prepare_config(cfg)
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        found = analyze(model, genotype_of(cfg), (args.size[0], args.size[1]))
    head = ["part", "M parameters", "GMAC", "M activations", "ms"]
    text = table(head, rows(found["parts"]))
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
    parser.add_argument("--json", type=Path, help="write the same as JSON")
    parser.add_argument("--write", type=Path, help="page to complete")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
