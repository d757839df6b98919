"""The commands of ``spatialflow``: what each takes, and which module does its work."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spatialflow_cli.arguments import Group, Parser, count_argument, file_argument, path_argument
from spatialflow_cli.data_arguments import (
    add_analyze_arguments,
    add_check_arguments,
    add_convert_arguments,
)

COLUMNS = 80
"""Width of ``--help``."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        summary: What it does, in one line.
        usage: Arguments in one line, after the name of the program.
        module: Module with ``main``, a function from the parsed arguments to the exit status.
        define: Function that adds the arguments to a group.
        notes: Examples and remarks at the end of ``--help``.
    """

    summary: str
    usage: str
    module: str
    define: Callable[[Group], None]
    notes: str = ""


def parser_of(command: Command, program: str) -> argparse.ArgumentParser:
    """Return the parser of a command.

    Args:
        command: The command.
        program: Name of the program in messages, such as ``spatialflow train``.
    """
    parser = Parser(
        prog=program,
        usage=f"%(prog)s {command.usage}".rstrip(),
        description=f"{command.summary}.",
        epilog=command.notes,
        add_help=False,
        formatter_class=functools.partial(
            argparse.RawDescriptionHelpFormatter, width=COLUMNS, max_help_position=24
        ),
    )
    group = parser.add_argument_group("arguments")
    command.define(group)
    group.add_argument("-h", "--help", action="help", help="show this text")
    return parser


def _pairs(group: Group) -> None:
    group.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, given last"
    )


def _config_file(group: Group, *, required: bool = True) -> None:
    help_text = "path of a config, or name of one that comes along"
    group.add_argument(
        "--config-file", type=path_argument, metavar="FILE", required=required, help=help_text
    )


def add_run_arguments(group: Group) -> None:
    """Add the arguments of a run in one or several processes, named as Detectron2 names them."""
    _config_file(group, required=False)
    group.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR")
    number = functools.partial(group.add_argument, type=int, metavar="N")
    number("--num-gpus", default=1, help="processes on this machine, with or without GPUs")
    number("--num-machines", default=1, help="number of machines")
    number("--machine-rank", default=0, help="number of this machine, from 0")
    group.add_argument("--dist-url", metavar="URL", help="address of machine 0: tcp://HOST:PORT")
    group.add_argument(
        "-v", "--verbose", action="store_true", help="show all that log.txt gets on the console"
    )
    _pairs(group)


def _train(group: Group) -> None:
    group.add_argument("--eval-only", action="store_true", help="evaluate, and do not train")
    add_run_arguments(group)


def _evaluate(group: Group) -> None:
    add_run_arguments(group)
    group.set_defaults(eval_only=True)


def _search(group: Group) -> None:
    group.add_argument(
        "--derive-only",
        type=path_argument,
        metavar="CKPT",
        help="derive from a search's checkpoint",
    )
    group.add_argument("--random", type=int, metavar="N", help="write N random genotypes instead")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random ones")
    add_run_arguments(group)


def _predict(group: Group) -> None:
    _config_file(group)
    group.add_argument(
        "--input",
        required=True,
        nargs="+",
        type=path_argument,
        metavar="FILE_OR_FOLDER",
        help="images, and folders of images",
    )
    group.add_argument(
        "--output", required=True, type=path_argument, metavar="FOLDER", help="folder to write to"
    )
    _pairs(group)


def _threads(group: Group) -> None:
    group.add_argument("--threads", type=count_argument, metavar="N", help="threads of PyTorch")


def _analyze_model(group: Group) -> None:
    _config_file(group)
    group.add_argument(
        "--size",
        nargs=2,
        type=count_argument,
        default=[800, 1344],
        metavar=("H", "W"),
        help="size of the image in pixels (default: 800 1344)",
    )
    group.add_argument("--json", type=file_argument, metavar="FILE", help="JSON file to write")
    group.add_argument("--write", type=file_argument, metavar="PAGE", help="page to complete")
    _threads(group)
    _pairs(group)


def _import_weights(group: Group) -> None:
    group.add_argument(
        "--input",
        required=True,
        type=file_argument,
        metavar="FILE",
        help="checkpoint of their code",
    )
    group.add_argument(
        "--output", required=True, type=file_argument, metavar="FILE", help="checkpoint to write"
    )
    _config_file(group)
    group.add_argument(
        "--things-other-index",
        type=int,
        metavar="N",
        help="index of things-other among the stuff outputs (default: 36 if there are 54)",
    )
    _pairs(group)


def _trials(group: Group) -> None:
    _config_file(group)
    group.add_argument(
        "--genotypes",
        nargs="+",
        required=True,
        type=path_argument,
        metavar="NAME_OR_FILE",
        help="what to train",
    )
    group.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="N",
        help="seeds to train with (default: 0 1 2)",
    )
    group.add_argument(
        "--output",
        type=file_argument,
        default=Path("output/comparison"),
        metavar="DIR",
        help="results",
    )
    group.add_argument("--no-speed", action="store_true", help="measure no FLOPs and no times")
    group.add_argument(
        "--write",
        type=file_argument,
        nargs="*",
        default=[],
        metavar="PAGE",
        help="pages to complete",
    )
    group.add_argument(
        "--mark", default="comparison", metavar="NAME", help="name of the table in those pages"
    )
    _threads(group)
    group.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    group.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys and values, given last",
    )


def _nothing(group: Group) -> None:
    """Add no argument."""


COMMANDS = {
    "train": Command(
        summary="Train a model from a config",
        usage="--config-file FILE [options] [KEY VALUE ...]",
        module="spatialflow.cli.train",
        define=_train,
        notes=r"""examples:
  spatialflow train --config-file generated/spatialflow.yaml
  spatialflow train --config-file coco/spatialflow_r50_20e.yaml --num-gpus 8
  spatialflow train --config-file OUTPUT_DIR/config.yaml --resume
  spatialflow train --config-file FILE MODEL.SPATIALFLOW.GENOTYPE genotype.json
  torchrun --standalone --nproc-per-node 8 -m spatialflow_cli train \
      --config-file coco/spatialflow_r50_20e.yaml
SPATIALFLOW_TRACEBACK=1 in the environment adds a stack trace to an error.""",
    ),
    "search": Command(
        summary="Search the flows of a network, and write a genotype",
        usage="--config-file FILE [options] [KEY VALUE ...]",
        module="spatialflow.cli.search",
        define=_search,
        notes=r"""examples:
  spatialflow search --config-file search/default.yaml OUTPUT_DIR output/search
  spatialflow search --config-file OUTPUT_DIR/config.yaml --resume
  spatialflow search --config-file FILE --derive-only OUTPUT_DIR/model_final.pth
  torchrun --standalone --nproc-per-node 4 -m spatialflow_cli search \
      --config-file search/coco_gates.yaml""",
    ),
    "evaluate": Command(
        summary="Evaluate a trained model on the test sets of its config",
        usage="--config-file FILE [options] [KEY VALUE ...]",
        module="spatialflow.cli.train",
        define=_evaluate,
        notes=r"""example:
  spatialflow evaluate --config-file output/generated/config.yaml \
      MODEL.WEIGHTS output/generated/model_final.pth
With --resume, the weights are those of the last checkpoint in OUTPUT_DIR.""",
    ),
    "predict": Command(
        summary="Predict on image files and folders with a trained model",
        usage="--config-file FILE --input IMAGE ... --output DIR ...",
        module="spatialflow.cli.predict",
        define=_predict,
        notes=r"""The folder gets overlays/<name>.png, panoptic/<name>.png (segment ids), and
panoptic.json in COCO panoptic format. The exit status is 1 if an image fails.

example:
  spatialflow predict --config-file output/demo/config.yaml \
      --input image.png my_data/images --output output/predictions \
      MODEL.WEIGHTS output/demo/model_final.pth""",
    ),
    "check": Command(
        summary="List every problem of a COCO panoptic data set",
        usage="[NAME_OR_FOLDER] [options]",
        module="spatialflow.cli.check",
        define=add_check_arguments,
        notes="""The exit status is 0 if there is no problem, 1 if there are some.

example:
  spatialflow check my_data""",
    ),
    "convert": Command(
        summary="Convert labels of another format to COCO panoptic layout",
        usage="FORMAT FOLDER ... --output FOLDER [options]",
        module="spatialflow.cli.convert",
        define=add_convert_arguments,
        notes="""cmp is the CMP Facade Database: folders of its two archives, unzipped.

The result is checked as by `spatialflow check`. The exit status is 1 if
something could not be converted, or if the checker finds a problem.

example:
  spatialflow convert cmp CMP_facade_DB_base --output facades""",
    ),
    "analyze model": Command(
        summary="Print parameters, multiply-adds and time of each part",
        usage="--config-file FILE [options] [KEY VALUE ...]",
        module="spatialflow.cli.analyze_model",
        define=_analyze_model,
        notes=r"""The input is an image of noise. Weights are random, and as many things are
detected as the config allows.

example:
  spatialflow analyze model --config-file Base-Small.yaml --size 320 320 \
      MODEL.SPATIALFLOW.GENOTYPE output/search/genotype.json""",
    ),
    "analyze data": Command(
        summary="Count a data set's segments, and propose a config for it",
        usage="FOLDER [--output FILE] [KEY VALUE ...]",
        module="spatialflow.cli.analyze_data",
        define=add_analyze_arguments,
        notes=r"""Training images alone are looked at. Keys are those of DATASETS. A file that
exists is not replaced.

examples:
  spatialflow analyze data my_data --output my_data.yaml
  spatialflow analyze data my_data DATASETS.FOLDER.REMAP supercategories""",
    ),
    "import-weights": Command(
        summary="Convert a checkpoint of the authors' SpatialFlow code",
        usage="--input IN --output OUT --config-file FILE ...",
        module="spatialflow.cli.import_weights",
        define=_import_weights,
        notes=r"""example:
  spatialflow import-weights --input THEIRS.pth --output r50.pth \
      --config-file coco/spatialflow_r50_20e.yaml""",
    ),
    "trials": Command(
        summary="Train genotypes alike; compare PQ, with intervals, and cost",
        usage="--config-file FILE --genotypes NAME ... [options]",
        module="spatialflow.cli.trials",
        define=_trials,
        notes=r"""Differences are to the first genotype, paired by seed and image. After a stop,
the same command goes on.

example:
  spatialflow trials --config-file nuclei/spatialflow.yaml \
      --genotypes spatialflow parallel output/search/genotype.json \
      --opts DATASETS.FOLDER.PATH nuclei_train433""",
    ),
    "doctor": Command(
        summary="Say what is installed, what works, and what to do",
        usage="",
        module="spatialflow_cli.doctor",
        define=_nothing,
        notes="The exit status is 0 if everything that is needed works.",
    ),
}
