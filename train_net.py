#!/usr/bin/env python
"""Train or evaluate a model from a config.

python train_net.py --config-file generated/spatialflow.yaml
python train_net.py --config-file coco/spatialflow_r50_20e.yaml --num-gpus 8
python train_net.py --config-file FILE --resume
python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS model_final.pth
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser, launch

from spatialflow.engine import Trainer, setup


def main(args: argparse.Namespace) -> Any:
    """Run in one process, of which there may be several."""
    try:
        cfg = setup(args)
        built = Trainer.build_model(cfg) if args.eval_only else Trainer(cfg)
    except ValueError as error:
        sys.exit(f"train_net.py: {error}")
    if args.eval_only:
        built.eval()  # in which weights of another genotype are refused
        checkpointer = DetectionCheckpointer(built, cfg.OUTPUT_DIR)
        try:
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        except ValueError as error:
            sys.exit(f"train_net.py: {error}")
        return Trainer.test(cfg, built)
    built.resume_or_load(resume=args.resume)
    return built.train()


if __name__ == "__main__":
    arguments = default_argument_parser(__doc__).parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
