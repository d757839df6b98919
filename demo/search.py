#!/usr/bin/env python
"""Search flows on generated scenes, and train the found network. ``make search-demo`` runs this."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from detectron2.config import CfgNode
from quickstart import PICTURE_FILE, draw_examples, row  # beside this file

from darts.genotype import Genotype
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.config.options import SUPERNET
from spatialflow.engine import Trainer, setup
from spatialflow.search.trainer import SearchTrainer
from spatialflow.utils.files import check_outputs
from spatialflow_cli.arguments import Parser, path_argument

SEARCH_CONFIG = "search/demo.yaml"


def main() -> None:
    """Search, derive a genotype, train and evaluate it."""
    args = parse_arguments()
    with errors_in_one_line():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Search, train what is found, and print."""
    folder = Path(args.output)
    start = time.perf_counter()
    opts = ["MODEL.META_ARCHITECTURE", SUPERNET, *args.opts]
    check_outputs(folder / "trained", [PICTURE_FILE])
    search = SearchTrainer(config(folder, opts, SearchTrainer))
    search.resume_or_load(resume=False)
    search.train()
    path = search.write_genotype()
    searched = time.perf_counter()
    genotype = Genotype.load(path)
    trained = folder / "trained"
    opts = ["MODEL.SPATIALFLOW.GENOTYPE", str(path), "SOLVER.IMS_PER_BATCH", "4"]
    opts += ["SOLVER.MAX_ITER", "320"]
    opts += ["DATASETS.TEST", "('scenes_val',)", *args.opts]
    cfg = config(trained, opts, Trainer)
    trainer = Trainer(cfg)
    trainer.train()
    picture = draw_examples(cfg, cfg.DATASETS.TEST[0], trained / PICTURE_FILE, 6)
    trained_at = time.perf_counter()
    flows = "\n".join(f"  {flow}" for flow in genotype.flows) or "  none"
    loss = genotype.provenance["held_out_loss"]
    print(
        f"\n{len(genotype.flows)} flows, at {genotype.provenance['cost']:.2f} of the cost of the "
        f"human ones, found in {(searched - start) / 60:.1f} minutes with "
        f"{torch.get_num_threads()} threads:\n{flows}\n"
        f"Held-out loss: supernet {loss['supernet']:.2f}, derived {loss['derived']:.2f}\n"
        f"Trained and evaluated in {(trained_at - searched) / 60:.1f} minutes; on unseen images "
        f"PQ, things, stuff: {row(trainer._last_eval_results['panoptic_seg'])}\n"
        f"Genotype: {path}, drawn in {path.with_suffix('.svg')}; report: {folder}/report.html\n"
        f"Pictures: {picture}\n"
    )


def config(folder: Path, opts: list[str], trainer: type[Trainer]) -> CfgNode:
    """Return the config of a run, with its output in a folder."""
    words = [*opts, "OUTPUT_DIR", str(folder)]
    args = argparse.Namespace(config_file=SEARCH_CONFIG, opts=words, eval_only=False)
    return setup(args, trainer=trainer)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output", type=path_argument, default="output/search_demo", help="folder for results"
    )
    parser.add_argument("opts", nargs="*", help="config KEY VALUE pairs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
