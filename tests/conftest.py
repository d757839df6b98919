"""Small models and inputs for the whole suite: nothing here takes more than a second."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances
from hypothesis import settings

import spatialflow
from spatialflow.data import generate_scenes, register_panoptic, unregister
from spatialflow_cli.commands import COMMANDS, parser_of

# The machine's speed is no property of the code.
settings.register_profile("suite", deadline=None, max_examples=50)
settings.load_profile("suite")

# Small images need small anchors: from 2 × stride.
ANCHORS = tuple(tuple(2 * 2**i * 2 ** (j / 3) for j in range(3)) for i in range(3, 8))
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "EvalBN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ANCHOR_GENERATOR.SIZES": ANCHORS,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.RETINANET.NUM_CLASSES": 3,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 64,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
}
# Over a config of the small models, for a program that trains for seconds on generated scenes.
TINY_RUN = {
    **TINY,
    "MODEL.SPATIALFLOW.TRUNK": "resnet",
    # The refined configs read res2.
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RETINANET.NORM": "",
    "MODEL.RETINANET.NUM_CLASSES": -1,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": -1,
    "DATASETS.SCENES.TRAIN": 6,
    "DATASETS.SCENES.VAL": 3,
    "DATASETS.SCENES.SIZE": 96,
}
GROUP_NORM = {
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
}
ROOT = Path(__file__).resolve().parents[1]
PYTHON_PATH = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
"""Where programs in other folders find the packages."""


def parse(command, words):
    """Parse the arguments of a command of spatialflow."""
    return parser_of(COMMANDS[command], f"spatialflow {command}").parse_args([*map(str, words)])


def pytest_collection_modifyitems(config, items):
    """Deselect the long forms of tests, and those that need a GPU, unless -m asks for them."""
    for marker in ("soak", "gpu"):
        if marker in config.option.markexpr:
            continue
        left = [item for item in items if item.get_closest_marker(marker)]
        if left:
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if not item.get_closest_marker(marker)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail a test that skips where all that tests need has to be installed."""
    report = yield
    everything_is_here = os.environ.get("CI") or os.environ.get("SPATIALFLOW_TEST_DATA")
    if report.skipped and not hasattr(report, "wasxfail") and everything_is_here:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} may not skip here: {call.excinfo.value}"
    return report


@pytest.fixture(autouse=True, scope="session")
def _signals():
    """Let SIGINT through where the suite runs in the background of a shell, which ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_cfg(tmp_path):
    """Return a function that gives the config of a tiny ResNet-18 model, KEY=VALUE changed."""

    def build(changes=None, file=None):
        keys = {**TINY, "OUTPUT_DIR": str(tmp_path / "output"), **(changes or {})}
        return spatialflow.get_cfg(file, [item for pair in keys.items() for item in pair])

    return build


def _rectangles(height, width, count, num_classes):
    """Ground truth of `count` rectangles that grow from the top left corner on."""
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for i in range(count):
        top, left = i * height // (count + 1), i * width // (count + 1)
        masks[i, top : top + height // 3 + 4 * i, left : left + width // 3 + 4 * i] = True
    instances = Instances((height, width))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.arange(count) % num_classes
    return instances


@pytest.fixture
def make_input():
    """Return a function that makes one image with ground truth, as the mapper does.

    With `stuff=False` all that is not a thing is void; without things the stuff goes on under them.
    """

    def make(height=100, width=130, *, things=2, stuff=True, num_classes=3, num_stuff=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        instances = _rectangles(height, width, things, num_classes)
        sem_seg = torch.full((height, width), 255)
        if stuff:
            rows = torch.arange(height) * num_stuff // height
            sem_seg = (1 + rows)[:, None].repeat(1, width)
        sem_seg[instances.gt_masks.tensor.any(dim=0)] = 0
        return {
            "image": image,
            "instances": instances,
            "sem_seg": sem_seg,
            "height": height,
            "width": width,
        }

    return make


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory):
    """The folder of a generated data set of six scenes of 96 px."""
    root = tmp_path_factory.mktemp("scenes") / "set"
    generate_scenes(root, count=6, seed=3, size=(96, 96))
    return root


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    """A cache of the test's own; what is registered meanwhile is taken out again."""
    monkeypatch.setenv("SPATIALFLOW_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog) | set(MetadataCatalog)
    yield
    for name in (set(DatasetCatalog) | set(MetadataCatalog)) - before:
        unregister(name)


@pytest.fixture
def real_data():
    """The folder of real data; without one the test is skipped."""
    folder = os.environ.get("SPATIALFLOW_TEST_DATA")
    if not folder:
        pytest.skip("SPATIALFLOW_TEST_DATA names no folder of real panoptic data")
    return Path(folder)


@pytest.fixture
def scenes(scenes_root, own_data):
    """The name of that data set, registered as long as the test runs."""
    register_panoptic(
        "tiny_scenes",
        scenes_root / "images",
        scenes_root / "panoptic.json",
        scenes_root / "panoptic",
    )
    return "tiny_scenes"


@pytest.fixture
def scenes_cfg(tiny_cfg, scenes):
    """Return a function that gives a config for training on the tiny scenes."""

    def build(changes=None):
        return tiny_cfg(
            {
                "DATASETS.TRAIN": (scenes,),
                "DATASETS.TEST": (scenes,),
                "MODEL.RETINANET.NUM_CLASSES": 5,
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
                "SEED": 1,
                "SOLVER.OPTIMIZER": "AdamW",
                "SOLVER.BASE_LR": 0.001,
                "SOLVER.IMS_PER_BATCH": 2,
                "SOLVER.WARMUP_ITERS": 0,
                "SOLVER.MAX_ITER": 6,
                **(changes or {}),
            }
        )

    return build


HOLDER = """
import os, sys, types
package = types.ModuleType("spatialflow")  # without the seconds that its imports take
package.__path__ = [sys.argv[1]]
sys.modules["spatialflow"] = package
from spatialflow.utils.hold import hold
folder, sys.argv[0] = sys.argv[2], "other_run"
hold(folder, "OUTPUT_DIR")
worker = os.fork()  # as the workers of a loader
if worker:
    print(worker, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_run():
    """Return a function that starts a process that holds a folder until its input is closed."""
    started = []

    def start(folder):
        command = [sys.executable, "-W", "ignore", "-c", HOLDER, ROOT / "spatialflow", folder]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([*map(str, command)], stdin=pipe, stdout=pipe, text=True))
        started[-1].worker = int(started[-1].stdout.readline())
        return started[-1]

    yield start
    for process in started:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=60)


@pytest.fixture
def program(tmp_path):
    """Return a function that runs a script of the repository, or spatialflow, in another folder."""

    def start(script, *arguments, wrapper=()):
        what = ["-m", "spatialflow_cli"] if script == "spatialflow" else [str(ROOT / script)]
        environment = {
            **os.environ,
            "PYTHONPATH": PYTHON_PATH,
            "PYTHONWARNINGS": "ignore",
            "CUDA_VISIBLE_DEVICES": "",  # several processes run on any machine
            "SPATIALFLOW_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [*wrapper, sys.executable, *what, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return start
