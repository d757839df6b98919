"""Convert a checkpoint of the authors' SpatialFlow code into one for this project.

    python tools/convert_reference_checkpoint.py --input IN.pth --output OUT.pth \
        --config-file CFG [--things-other-index N] [KEY VALUE ...]

Evaluate the result with:

    python train_net.py --eval-only --config-file CFG MODEL.WEIGHTS OUT.pth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from spatialflow import get_cfg
from spatialflow.reference.conversion import (
    Conversion,
    ReferenceLayout,
    convert_reference,
    default_things_other_index,
    read_reference_checkpoint,
    stuff_outputs,
)
from spatialflow.utils.files import write_atomically


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Convert a checkpoint of the authors' code.")
    parser.add_argument("--input", required=True, type=Path, help="checkpoint of their code")
    parser.add_argument("--output", required=True, type=Path, help="checkpoint to write")
    parser.add_argument("--config-file", required=True, help="config of the model: name or path")
    parser.add_argument(
        "--things-other-index",
        type=int,
        help="index of things-other among the stuff outputs (default: 36 if there are 54)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    return parser.parse_intermixed_args(argv)


def convert(source: Path, cfg: CfgNode, things_other: int | None) -> Conversion:
    """Read and convert a checkpoint.

    Args:
        source: Checkpoint of the authors' code.
        cfg: Config of the model.
        things_other: Index of the class things-other among the authors' stuff outputs; None takes
            the one that is known for COCO.

    Raises:
        ValueError: If the file cannot be read, does not fit the model, or the index is needed.
    """
    reference = read_reference_checkpoint(source)
    if things_other is None:
        outputs = stuff_outputs(reference)
        things_other = default_things_other_index(outputs)
        if things_other is None:
            raise ValueError(
                f"--things-other-index is needed: {source} has {outputs} stuff outputs, and only "
                "of those with 54 (COCO) is it known that things-other has index 36"
            )
    layout = ReferenceLayout.from_config(cfg, reference, things_other)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    return convert_reference(reference, build_model(cfg).state_dict(), layout)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one file, and return the exit status."""
    arguments = parse_arguments(argv)
    try:
        cfg = get_cfg(arguments.config_file, arguments.opts)
        conversion = convert(arguments.input, cfg, arguments.things_other_index)
        content = {
            "model": conversion.state,
            "__author__": "SpatialFlow (converted from the authors' code)",
            "matching_heuristics": False,
        }
        write_atomically(arguments.output, lambda file: torch.save(content, file))
    except (OSError, ValueError) as error:
        print(f"convert_reference_checkpoint: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.input}: {conversion.summary()}")
    print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
