"""``spatialflow import-weights``: convert a checkpoint of the authors' SpatialFlow code."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from spatialflow.cli.errors import errors_in_one_line
from spatialflow.config import get_cfg
from spatialflow.engine.preparation import for_checkpoint
from spatialflow.reference.conversion import (
    Conversion,
    ReferenceLayout,
    convert_reference,
    default_things_other_index,
    read_reference_checkpoint,
    stuff_outputs,
)
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import check_outputs, write_atomically
from spatialflow.utils.signals import StopSignals


def convert(source: Path, cfg: CfgNode, things_other: int | None) -> Conversion:
    """Read and convert a checkpoint.

    Args:
        source: Checkpoint of the authors' code.
        cfg: Config of the model.
        things_other: Index of the class things-other among the authors' stuff outputs; None takes
            the one that is known for COCO.

    Raises:
        CheckpointError: If the file cannot be read or does not fit the model.
        ConfigError: If the config does not fit the file, or the index is needed.
    """
    check = cfg.MODEL.SPATIALFLOW.CHECK_WEIGHTS
    reference = read_reference_checkpoint(source, check_weights=check)
    if things_other is None:
        outputs = stuff_outputs(reference)
        things_other = default_things_other_index(outputs)
        if things_other is None:
            raise ConfigError(
                f"--things-other-index is needed: {source} has {outputs} stuff outputs, and only "
                "of those with 54 (COCO) is it known that things-other has index 36"
            )
    layout = ReferenceLayout.from_config(cfg, reference, things_other)
    cfg = for_checkpoint(cfg)
    cfg.MODEL.DEVICE = "cpu"
    return convert_reference(reference, build_model(cfg).state_dict(), layout)


def main(args: argparse.Namespace) -> int:
    """Convert one file, and return the exit status."""
    with errors_in_one_line(), StopSignals():
        cfg = get_cfg(args.config_file, args.opts)
        check_outputs(args.output.parent, [args.output.name])
        conversion = convert(args.input, cfg, args.things_other_index)
        content = {
            "model": conversion.state,
            "__author__": "SpatialFlow (converted from the authors' code)",
            "matching_heuristics": False,
        }
        write_atomically(args.output, lambda file: torch.save(content, file))
    print(f"{args.input}: {conversion.summary()}")
    print(f"written: {args.output}")
    return 0
