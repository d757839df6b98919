"""Inputs that a user may get wrong, by kind, for a test that tries them all.

Every kind is a generator of a name and a function. The function may do what it is asked for, as
some values are unusual and right; it may end by a user's error; anything else is a bug.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY

from darts.genotype import Genotype
from spatialflow.config import configs_root, get_cfg
from spatialflow.config.options import SUPERNET
from spatialflow.config.values import PATH_KEYS, leaves
from spatialflow.data.evaluation_json import cache_root
from spatialflow.engine import Trainer, prepare_config
from spatialflow.engine.checkpoint import check_weights_file
from spatialflow.search.trainer import SearchTrainer
from spatialflow.utils.files import read_json, read_json_lines
from spatialflow_cli.commands import COMMANDS, parser_of
from tests.conftest import TINY_RUN

Attempt = Callable[[], object]
Attempts = Iterator[tuple[str, Attempt]]

RUN = {
    **TINY_RUN,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.STEPS": (),
    "SOLVER.IMS_PER_BATCH": 1,
    "DATASETS.SCENES.TRAIN": 4,
    "DATASETS.SCENES.VAL": 1,
    "SEED": 1,
    "OUTPUT_DIR": "run",
}
HUGE = 10**20
WORDS = ("", "x", "\0", "\udcff", "a" * 5000, "~nobody-here/x", "é\n", "\x1b[31m", "True", "../..")
"""Texts for a key of a text."""
VALUES: dict[type, tuple[Any, ...]] = {
    bool: (None, 1, 0.5, "yes", [], {}),
    int: (None, 0, -1, -2, 1, 3, HUGE, -HUGE, 0.5, math.nan, "x", True, [1], {}),
    float: (None, 0.0, -1.0, 1e300, 1e-300, math.nan, math.inf, -math.inf, 3, HUGE, "x", [], {}),
    str: (None, *WORDS, "/dev/null", "/proc/self/mem", 3, [], {}),
    list: (
        *(None, "x", 3, {}, [], [None], ["x"], [0], [-1], [1.5], [math.nan], [math.inf], [[]]),
        *([[1, 2], [3]], [1, 2, 3, 4, 5, 6, 7], [HUGE], [True], [{}], ["\0"], ["~nobody-here"]),
        *([1e300], [[[[1]]]], ["\udcff"]),
    ),
    type(None): (0, -1, "x", [], {}, math.nan, math.inf, HUGE, True),
}
"""Type of a default → values that are wrong or unusual in its place."""
NAMES: dict[str, tuple[str, ...]] = {
    "MODEL.META_ARCHITECTURE": ("Spatialflow", SUPERNET, "RetinaNet", "GeneralizedRCNN"),
    "MODEL.BACKBONE.NAME": tuple(name for name, _ in BACKBONE_REGISTRY),
    "MODEL.ANCHOR_GENERATOR.NAME": tuple(name for name, _ in ANCHOR_GENERATOR_REGISTRY),
    "MODEL.DEVICE": ("cuda", "cuda:9", "mps", "meta", "cpu:3", "xla", "vulkan", "cpu\n"),
    "MODEL.SPATIALFLOW.TRUNK": ("timm:", "timm:nothing", "timm:resnet18\n", "efficientnet_lite9"),
    "INPUT.FORMAT": ("L", "RGB", "YUV-BT.601", "RGBA", "rgb"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupCosineLR", "WarmupStepWithFixedGammaLR", "cosine"),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead", "FastRCNNHead"),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("giou", "diou", "ciou", "iou"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "DATALOADER.SAMPLER_TRAIN": ("RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
    "INPUT.CROP.TYPE": ("absolute", "relative"),
    "TEST.EXPECTED_RESULTS": ("[['a', 'b', 'c', 1, 1]]", "['x']"),
}
"""Key → names of its own that exist, here or in Detectron2, or nearly do."""
REGIONS: tuple[tuple[str, Any], ...] = (
    ("MODEL.SPATIALFLOW.REGIONS.ENABLED", True),
    ("MODEL.ROI_HEADS.IN_FEATURES", ("p3", "p4", "p5")),
    ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    ("MODEL.ROI_BOX_HEAD.NUM_FC", 1),
    ("MODEL.ROI_BOX_HEAD.FC_DIM", 16),
)
WITH_IT: dict[str, tuple[tuple[str, Any], ...]] = {
    "INPUT.CROP.": (("INPUT.CROP.ENABLED", True),),
    "TEST.AUG.": (("TEST.AUG.ENABLED", True), ("TEST.AUG.MIN_SIZES", (64,))),
    "TEST.AMP.": (("TEST.AMP.ENABLED", True),),
    "TEST.PRECISE_BN.": (("TEST.PRECISE_BN.ENABLED", True), ("TEST.PRECISE_BN.NUM_ITER", 1)),
    "SOLVER.AMP.": (("SOLVER.AMP.ENABLED", True),),
    "SOLVER.CLIP_GRADIENTS.": (("SOLVER.CLIP_GRADIENTS.ENABLED", True),),
    "MODEL.SPATIALFLOW.BOX_FILL.": (("MODEL.SPATIALFLOW.BOX_FILL.ENABLED", True),),
    "MODEL.RESNETS.": (("MODEL.BACKBONE.FREEZE_AT", 0),),
    "MODEL.RPN.": REGIONS,
    "MODEL.ROI_HEADS.": REGIONS,
    "MODEL.ROI_BOX_HEAD.": REGIONS,
    "MODEL.SPATIALFLOW.REGIONS.": REGIONS[1:],
}
"""Beginning of keys → keys with which these have an effect."""


UNREAD = ("MODEL.ROI_BOX_CASCADE_HEAD.", "MODEL.ROI_KEYPOINT_")
"""Beginning of keys of parts that only other networks have: they are read, and no step is done."""


def one_step(changes: dict[str, Any], *, trainer: type[Trainer] = Trainer) -> None:
    """Read a config, train one step, and predict one image."""
    file = "generated/spatialflow.yaml" if trainer is Trainer else "search/demo.yaml"
    cfg = get_cfg(file, [word for pair in {**RUN, **changes}.items() for word in pair])
    if any(key.startswith(UNREAD) for key in changes):
        return
    check_weights_file(cfg.MODEL.WEIGHTS)
    trainer.check(cfg)
    prepare_config(cfg)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    run = trainer(cfg)
    run.resume_or_load(resume=False)
    run.train()


def options(folder: Path) -> Attempts:
    """Every key, with values of other types and of unusual sizes."""
    for key, default in leaves(get_cfg()).items():
        if key.startswith("SEARCH."):
            continue
        with_it = {
            k: v for prefix, keys in WITH_IT.items() if key.startswith(prefix) for k, v in keys
        }
        if key.startswith("DATASETS.FOLDER."):
            with_it |= {"DATASETS.FOLDER.PATH": str(folder), "DATASETS.TRAIN": ("folder_train",)}
        for value in (*VALUES[type(default)], *NAMES.get(key, ())):
            changes = {**with_it, key: value}
            yield f"{key} {value!r:.40}", lambda c=changes: one_step(c)


def search_options() -> Attempts:
    """Every key of a search, alike."""
    base = {"MODEL.META_ARCHITECTURE": SUPERNET, "DATASETS.TEST": ()}
    for key, default in leaves(get_cfg()).items():
        for value in VALUES[type(default)] if key.startswith("SEARCH.") else ():
            changes = {**base, key: value}
            yield f"{key} {value!r:.40}", lambda c=changes: one_step(c, trainer=SearchTrainer)


def config_files(folder: Path) -> Attempts:
    """Files that are no config, or one of something else."""
    deep = "a: " + "[" * 3000 + "]" * 3000
    bomb = "a0: &a0 [1, 1]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    texts: dict[str, str | bytes] = {
        "empty": "",
        "blank": "\n\n",
        "a comment": "# nothing",
        "a number": "3",
        "a text": "MODEL",
        "a list": "- MODEL",
        "null": "null",
        "two documents": "SEED: 1\n---\nSEED: 2\n",
        "tabs": "MODEL:\n\tDEVICE: cpu\n",
        "not closed": "MODEL: {DEVICE: cpu",
        "a Python object": "SEED: !!python/object/apply:os.system ['true']",
        "another tag": "SEED: !thing 3",
        "binary": b"\x00\x01\x02\xff\xfe",
        "Latin-1": "OUTPUT_DIR: é".encode("latin-1"),
        "UTF-16": "SEED: 1".encode("utf-16"),
        "with a mark": "SEED: 1".encode("utf-8-sig"),
        "control characters": "SEED: 1\x07\n",
        "deep": deep,
        "deep mapping": "{a: " * 3000 + "1" + "}" * 3000,
        "a bomb": bomb,
        "a bomb in a key": bomb + "INPUT: {MIN_SIZE_TRAIN: *a11}\n",
        "an alias of itself": "MODEL: &m\n  a: *m\n",
        "an unknown alias": "MODEL: *m\n",
        "a key twice": "SEED: 1\nSEED: 2\n",
        "a section twice": "MODEL: {DEVICE: cpu}\nMODEL: {WEIGHTS: x}\n",
        "a number for a key": "1: 2\n",
        "null for a key": "~: 2\n",
        "a list for a key": "? [1, 2]\n: 3\n",
        "a key in a number": "MODEL: {DEVICE: {x: 1}}\n",
        "a merge key": "<<: 3\n",
        "a long value": f"OUTPUT_DIR: {'a' * 10**6}\n",
        "a long key": f"{'A' * 10**5}: 1\n",
        "a date": "OUTPUT_DIR: 2020-01-01\n",
        "a set": "OUTPUT_DIR: !!set {a, b}\n",
        "its own base": "_BASE_: its own base.yaml\n",
        "a base of null": "_BASE_: null\n",
        "a base of a number": "_BASE_: 3\n",
        "a base of a mapping": "_BASE_: {a: b}\n",
        "a list of bases": "_BASE_: [3, null]\n",
        "an empty base": "_BASE_: ''\n",
        "a base that is missing": "_BASE_: nowhere.yaml\n",
        "a base that is a folder": "_BASE_: .\n",
        "a base of nobody": "_BASE_: ~nobody-here/x.yaml\n",
        "a base on a socket": "_BASE_: http://127.0.0.1:9/x.yaml\n",
        "version 0": "VERSION: 0\n",
        "version 99": "VERSION: 99\n",
        "version x": "VERSION: x\n",
        "a mapping for SEARCH": "SEARCH: 3\n",
        "a number for SEARCH.ENABLED": "SEARCH: {ENABLED: 3}\n",
        "a base inside": "MODEL: {_BASE_: x.yaml}\n",
    }
    for section in ("MODEL", "SOLVER", "DATASETS", "INPUT", "TEST", "DATALOADER"):
        for value in ("3", "null", "[]", "x", "{}", "{X: 1}", "1.5", "true"):
            texts[f"{section} of {value}"] = f"{section}: {value}\n"
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        yield name, lambda path=path: get_cfg(path)
    circle = [folder / f"circle{i}.yaml" for i in range(3)]
    for i, path in enumerate(circle):
        path.write_text(f"_BASE_: {circle[i - 1].name}\n")
    yield "a circle of bases", lambda: get_cfg(circle[0])
    for i in range(500):
        (folder / f"long{i}.yaml").write_text(f"_BASE_: long{i + 1}.yaml\n")
    yield "a long chain of bases", lambda: get_cfg(folder / "long0.yaml")


def paths(folder: Path) -> Attempts:
    """Names for a config, and for every key and variable that holds a path."""
    (folder / "locked").mkdir(mode=0o000)
    (folder / "loop").symlink_to("loop")
    names = (
        *WORDS,
        *("/", "/dev/null", "/proc/self/mem", "/root/x/y", "a/" * 3000, "nul\0", "-", "--", "://"),
        *("~", "~/", "~root", "~nobody-here", "$HOME/x", "{}", "%s", "http://127.0.0.1:9/x"),
        *("detectron2://nowhere", "file:///x", str(folder), str(folder / "locked" / "x")),
        *(str(folder / "loop"), os.fsdecode(b"/tmp/\xff\xfe"), "x?matching_heuristics=True", "?"),
    )
    for name in names:
        yield f"--config-file {name!r:.40}", lambda name=name: get_cfg(name)
        for key in PATH_KEYS:
            if key in ("OUTPUT_DIR", "SEARCH.WEIGHTS"):
                yield f"{key} {name!r:.40}", lambda k=key, n=name: get_cfg(None, [k, n])
            elif "://" not in name:  # no network
                yield f"{key} {name!r:.40}", lambda k=key, n=name: one_step({k: n})


def variables(monkeypatch: Any) -> Attempts:
    """Values of the environment's variables."""

    def attempt(name: str, value: str) -> None:
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            if name == "SPATIALFLOW_CACHE":
                cache_root()
            one_step({"DATASETS.TRAIN": ("spatialflow_coco_2017_val",), "DATASETS.TEST": ()})

    for name in ("SPATIALFLOW_CACHE", "DETECTRON2_DATASETS"):
        for value in ("", "~nobody-here/x", "/dev/null", "\udcff", "a" * 5000, "relative", "://"):
            yield f"{name}={value!r:.40}", lambda n=name, v=value: attempt(n, v)


def genotypes(folder: Path) -> Attempts:
    """Files that are no genotype, or one that cannot be built."""
    good = json.loads((configs_root() / "genotypes" / "spatialflow.json").read_text())
    wrong: tuple[Any, ...] = (None, True, 0, -1, 1.5, HUGE, math.nan, "", "x", "\0", [], {}, [[]])
    contents: dict[str, Any] = {
        f"{name} {value!r:.30}": {**good, name: value} for name in good for value in wrong
    }
    for part in ("from", "to", "port", "operation"):
        for value in (
            *wrong,
            "box.0",
            "box.01",
            "box.9",
            "box.\uff14",
            "box." + "9" * 5000,
            "a\n.1",
        ):
            flow = {**good["flows"][0], part: value}
            contents[f"flow {part} {value!r:.30}"] = {**good, "flows": [flow]}
    for value in (
        *wrong,
        {"stuff.attention.merged": 3},
        {"x": "y"},
        {"stuff.attention.levels": ""},
    ):
        contents[f"choices of {value!r:.30}"] = {**good, "choices": value}
    contents["a flow twice"] = {**good, "flows": good["flows"] * 2}
    contents["another key"] = {**good, "more": 1}
    contents["NaN in the provenance"] = {**good, "provenance": {"loss": math.nan, "b": [math.inf]}}
    for name in good:
        contents[f"no {name}"] = {key: value for key, value in good.items() if key != name}
    text = json.dumps(good)
    texts: dict[str, str | bytes] = {name: json.dumps(c) for name, c in contents.items()}
    texts |= {
        "empty": "",
        "cut off": text[:-5],
        "a list": "[]",
        "null": "null",
        "deep": "[" * 100_000,
        "deep object": '{"version": ' * 50_000,
        "a key twice": text.replace('"version"', '"name": "a", "version"', 1),
        "a long number": text.replace(": 1,", f": {'1' * 5000},", 1),
        "with a mark": text.encode("utf-8-sig"),
        "UTF-16": text.encode("utf-16"),
        "Latin-1": text.replace("spatialflow", "é").encode("latin-1"),
        "binary": b"\x00\xff",
        "lone surrogate": text.replace("spatialflow", "\\ud800", 1),
        "comments": text + "// end",
    }
    path = folder / "wrong.json"
    for name, content in texts.items():
        data = content if isinstance(content, bytes) else content.encode()

        def attempt(data: bytes = data) -> None:
            path.write_bytes(data)
            genotype = Genotype.load(path)
            json.loads(genotype.to_json(), parse_constant=_refuse)
            prepare_config(get_cfg(None, ["MODEL.SPATIALFLOW.GENOTYPE", str(path), *COUNTS]))

        yield name, attempt


COUNTS = ("MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} was written")


def json_files(folder: Path) -> Attempts:
    """Broken files of the kind that the project writes, and reads again."""
    path = folder / "wrong.json"
    for text in (b"", b"{", b"[" * 100_000, b"NaN", b"3", b"null", b"\xff", b'{"a": NaN}', b"[]"):
        for read in (lambda: read_json(path, dict), lambda: read_json_lines(path)):

            def attempt(text: bytes = text, read: Attempt = read) -> None:
                path.write_bytes(text)
                read()

            yield f"{text[:20]!r}", attempt


def command_lines() -> Attempts:
    """Words after each command."""
    lines = (
        *([], ["--help-me"], ["-x"], ["--config-file"], ["SEED"], ["SEED", "1", "2"], ["x", "--"]),
        *(["--num-gpus", "x"], ["--num-gpus", "9" * 5000], ["--num-gpus", "1.5"], ["--resume=1"]),
        *(["--input"], ["--input", "a.png", "MODEL.WEIGHTS"], ["--seeds", "x"], ["--size", "0"]),
        *(["--size", "1", "x"], ["--threads", "-1"], ["--threads", "x"], ["--one", "a"]),
        *(["--output", "~nobody-here/x"], ["--config-file=~nobody-here/x"], ["\udcff"], ["\n"]),
        *(["--genotypes"], ["--random", "x"], ["--seed", ""], ["--json", "~nobody-here"]),
        *(["--config-file", "x", "--config-file"], ["--things-other-index", "x"], ["a" * 10_000]),
    )
    for name, command in COMMANDS.items():
        for words in lines:
            parser = parser_of(command, f"spatialflow {name}")
            yield f"{name} {words!r:.40}", lambda p=parser, w=words: p.parse_args(w)
