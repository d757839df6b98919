"""What a run needs at its end is tried before its first step; one run works in a folder."""

import json
import os
import shutil
from collections import namedtuple

import pytest
import torch
from detectron2.data import DatasetCatalog

from spatialflow.data import generate_scenes, register_panoptic, unregister
from spatialflow.data.readable import check_images
from spatialflow.engine import Trainer, prepare_config, setup
from spatialflow.engine.distributed import in_main_process
from spatialflow.engine.output import check_run_outputs
from spatialflow.search.trainer import SearchTrainer
from spatialflow.utils.errors import ConfigError, DataError, ProcessError
from tests.conftest import TINY, TINY_RUN, parse
from tests.search.test_search import SEARCH

# --- One run in a folder -------------------------------------------------------------------------


def words(scenes, output, *more):
    keys = {**TINY, "DATASETS.TRAIN": (scenes,), "DATASETS.TEST": (scenes,), "OUTPUT_DIR": output}
    keys |= {"MODEL.RETINANET.NUM_CLASSES": 5, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5}
    return [*more, *(word for pair in keys.items() for word in pair)]


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_second_run_in_a_folder_is_refused_and_leaves_no_trace(
    scenes, tmp_path, other_run, evaluation
):
    output = tmp_path / "output"
    first = other_run(output)
    (output / ".model_0000003.pth.abc.partial").write_bytes(b"half")
    (output / "last_checkpoint").write_text("model_0000001.pth")
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    more = ["--eval-only", "--resume"] if evaluation else []
    advice = f"MODEL.WEIGHTS {output}/model_0000001.pth" if evaluation else "wait until it has"
    with pytest.raises(ConfigError, match=rf"which other_run \(process {first.pid} .*{advice}"):
        setup(parse("train", words(scenes, output, *more)))
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before


def test_trainers_are_refused_without_setup_too(scenes_cfg, tmp_path, other_run):
    cfg = scenes_cfg()
    trainer, search = Trainer(cfg), SearchTrainer(scenes_cfg(SEARCH))
    partial = tmp_path / "output" / ".model_0000003.pth.abc.partial"
    partial.write_bytes(b"half")
    first = other_run(cfg.OUTPUT_DIR)
    for work in (trainer.train, lambda: Trainer.test(cfg, trainer.model), search.write_genotype):
        with pytest.raises(ConfigError, match="OUTPUT_DIR: .* given, which other_run"):
            work()
    first.communicate()
    trainer.resume_or_load(resume=True)
    Trainer.test(cfg, trainer.model.eval())
    assert partial.is_file()  # a reader does not know whose it is
    trainer.max_iter = 0
    trainer.train()
    assert not partial.exists()


def test_partial_files_stay_where_nothing_tells_whose_they_are(scenes_cfg, tmp_path, monkeypatch):
    trainer = Trainer(scenes_cfg({"DATASETS.TEST": ()}))
    partial = tmp_path / "output" / ".model_0000003.pth.abc.partial"
    partial.write_bytes(b"half")
    monkeypatch.setattr("spatialflow.utils.hold.fcntl", None)
    trainer.max_iter = 0
    trainer.train()
    assert partial.is_file()


def test_two_runs_after_each_other_in_one_process(scenes, tmp_path):
    for _ in range(2):
        cfg = setup(parse("train", words(scenes, tmp_path / "output")))
        with pytest.raises(ConfigError, match="DATASETS.FOLDER.PATH"):
            setup(parse("train", [*words(scenes, tmp_path), "DATASETS.FOLDER.PATH", "absent"]))
    Trainer.test(cfg, Trainer.build_model(cfg).eval())


def test_all_processes_fail_with_the_main_one(monkeypatch):
    with pytest.raises(ConfigError, match="^of the main one$"):
        in_main_process(lambda: (_ for _ in ()).throw(ConfigError("of the main one")))
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda text: ["of the main one", text])
    with pytest.raises(ProcessError, match="the main process has failed: of the main one"):
        in_main_process(lambda: pytest.fail("called"))


# --- Before the first step -----------------------------------------------------------------------


def refuse(trainer, error, match):
    """Assert that a training is refused before its first step."""
    trainer.run_step = lambda: pytest.fail("a step was taken")
    with pytest.raises(error, match=match):
        trainer.train()


def in_the_way(name):
    def make(output):
        (output / name).mkdir(parents=True)

    return make


def file_in_the_way(name):
    def make(output):
        (output / name).write_text("")

    return make


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (in_the_way("results.json"), "results.json: a result goes there, and it is a folder"),
        (in_the_way("model_final.pth"), "model_final.pth: .* a folder"),
        (in_the_way("model_0000004.pth"), "model_0000004.pth: .* a folder"),
        (in_the_way("last_checkpoint"), "last_checkpoint: .* a folder"),
        (
            in_the_way("inference/tiny_scenes/panoptic_results.json"),
            "inference/tiny_scenes/panoptic_results.json: .* a folder",
        ),
        (file_in_the_way("inference"), "inference/tiny_scenes: .* a file or lies below one"),
    ],
)
def test_places_of_results_are_tried(scenes_cfg, tmp_path, make, place):
    trainer = Trainer(scenes_cfg())
    make(tmp_path / "output")
    refuse(trainer, ConfigError, place)


def test_places_of_a_search_are_tried(scenes_cfg, tmp_path):
    trainer = SearchTrainer(scenes_cfg(SEARCH))
    (tmp_path / "output" / "report.html").mkdir(parents=True)
    refuse(trainer, ConfigError, "report.html: a result goes there, and it is a folder")


def test_the_report_of_a_search_is_tried(scenes_cfg, own_scenes):
    root, register = own_scenes
    register()
    trainer = SearchTrainer(scenes_cfg({**SEARCH, "DATASETS.TRAIN": ("own_scenes",)}))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.rehearse_end()
    assert trainer.model.training
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for image in (root / "images").iterdir():
        image.write_bytes(b"")
    refuse(trainer, DataError, "images/.*png: ")


def test_a_search_without_a_step_of_the_architecture_is_refused(scenes_cfg):
    keys = {**SEARCH, "SEARCH.WARMUP": 0.95, "SOLVER.MAX_ITER": 10}
    with pytest.raises(ConfigError, match="SEARCH.WARMUP: 0.95 given, a share that leaves"):
        SearchTrainer(scenes_cfg(keys))


def test_a_full_disk_is_noticed(scenes_cfg, monkeypatch):
    trainer = Trainer(scenes_cfg())
    state = trainer.model.state_dict().values()
    whole = 3 * sum(value.numel() * value.element_size() for value in state)  # AdamW
    usage = namedtuple("usage", "total free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, whole * 0.9))
    refuse(trainer, ConfigError, r"OUTPUT_DIR: .* \d+ MiB are free and a checkpoint takes \d+ MiB")
    for total, free in ((10**9, whole), (0, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, given=(total, free): usage(*given))
        check_run_outputs(trainer.cfg, trainer.files, trainer.model, trainer.optimizer)


def test_a_cache_that_cannot_be_written_is_noticed(scenes_cfg, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", "/sys"):
        monkeypatch.setenv("SPATIALFLOW_CACHE", str(place))
        message = f"SPATIALFLOW_CACHE: '{place}' given, .* cannot be written: .*another folder"
        refuse(Trainer(scenes_cfg()), ConfigError, message)
        cfg = scenes_cfg({"DATASETS.TRAIN": ("scenes_train",)})
        with pytest.raises(ConfigError, match=message):
            prepare_config(cfg)


@pytest.fixture
def own_scenes(tmp_path, scenes_root, scenes):
    """Copy the scenes, and return the folder and a function that registers it as `own_scenes`."""
    root = tmp_path / "own"
    shutil.copytree(scenes_root, root)

    def register(**options):
        places = root / "images", root / "panoptic.json", root / "panoptic"
        register_panoptic("own_scenes", *places, **options)

    yield root, register
    unregister("own_scenes")


@pytest.mark.parametrize("part", ["images", "panoptic"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_files_of_the_validation_are_read(scenes_cfg, own_scenes, part, damage):
    root, register = own_scenes
    register()
    trainer = Trainer(scenes_cfg({"DATASETS.TEST": ("own_scenes",)}))
    last = sorted((root / part).iterdir())[-1]
    if damage == "gone":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:-200])
    refuse(trainer, DataError, f"{part}/{last.name}: ")


def test_images_are_read_once(own_scenes, monkeypatch):
    root, register = own_scenes
    register()
    check_images("own_scenes", "RGB", None)
    monkeypatch.setattr("spatialflow.data.readable.read_image", None)
    check_images("own_scenes", "RGB", None)
    image = next((root / "images").iterdir())
    os.utime(image, (1, 1))
    with pytest.raises(TypeError):
        check_images("own_scenes", "RGB", None)


def test_a_rehearsal_changes_nothing(scenes_cfg):
    trainer = Trainer(scenes_cfg({"MODEL.RESNETS.NORM": "BN"}))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    drawn = torch.get_rng_state()
    trainer.rehearse(trainer.cfg, trainer.model)
    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_views_are_tried(scenes_cfg, monkeypatch):
    """As anything else that only an evaluation does."""

    def fail(*_):
        raise ConfigError("TEST.AUG: a view")

    monkeypatch.setattr("spatialflow.modeling.tta.TestTimeAugmentation._run_image", fail)
    refuse(Trainer(scenes_cfg({"TEST.AUG.ENABLED": True})), ConfigError, "TEST.AUG: a view")


def test_data_that_no_evaluator_knows_are_noticed(scenes_cfg, scenes):
    DatasetCatalog.register("foreign", lambda: DatasetCatalog.get(scenes))
    try:
        trainer = Trainer(scenes_cfg({"DATASETS.TEST": ("foreign",)}))
        refuse(trainer, ConfigError, "data set 'foreign' is not panoptic")
    finally:
        DatasetCatalog.remove("foreign")


@pytest.mark.parametrize(
    ("keys", "part", "expected"),
    [
        ({"VAL_FRACTION": 0.001}, "val", "VAL_FRACTION 0.001 .*SPLIT_SEED 0 given, a larger"),
        ({"VAL_FRACTION": 0.999}, "train", "VAL_FRACTION 0.999 .*SPLIT_SEED 0 given, a smaller"),
    ],
)
def test_an_empty_part_is_refused_before_anything_is_written(
    scenes, scenes_root, tmp_path, keys, part, expected
):
    output = tmp_path / "output"
    given = {"DATASETS.FOLDER.PATH": scenes_root}
    given |= {f"DATASETS.FOLDER.{key}": value for key, value in keys.items()}
    given |= {"DATASETS.TRAIN": ("folder_train",), "DATASETS.TEST": ("folder_val",)}
    pairs = [word for pair in given.items() for word in pair]
    with pytest.raises(DataError, match=rf"'{part}' part .* none of the 6 .*{expected}"):
        setup(parse("train", [*words(scenes, output), *pairs]))
    assert not output.exists()


def test_an_evaluation_of_nothing_is_refused(scenes, tmp_path):
    more = ["DATASETS.TEST", (), "MODEL.WEIGHTS", __file__]
    with pytest.raises(ConfigError, match="DATASETS.TEST is empty"):
        setup(parse("evaluate", [*words(scenes, tmp_path / "output"), *more]))


def test_images_without_annotations_are_counted(scenes_cfg, own_scenes):
    root, register = own_scenes
    content = json.loads((root / "panoptic.json").read_text())
    (root / "panoptic.json").write_text(json.dumps({**content, "annotations": []}))
    register()
    trainer = Trainer(scenes_cfg({"DATASETS.TEST": ("own_scenes",)}))
    refuse(trainer, DataError, "'own_scenes' has no annotated image; 6 have no annotation")


# --- Classes -------------------------------------------------------------------------------------


@pytest.fixture
def built_in(tmp_path, monkeypatch):
    """Put generated scenes where COCO is looked for."""
    root = tmp_path / "datasets" / "coco"
    for part in ("train", "val"):
        generate_scenes(tmp_path / part, count=2, size=(64, 64))
        shutil.move(tmp_path / part / "images", root / f"{part}2017")
        shutil.move(tmp_path / part / "panoptic", root / f"panoptic_{part}2017")
        (root / "annotations").mkdir(exist_ok=True)
        target = root / "annotations" / f"panoptic_{part}2017.json"
        shutil.move(tmp_path / part / "panoptic.json", target)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("SPATIALFLOW_CACHE", str(tmp_path / "cache"))
    return root / "annotations"


COCO = {
    "DATASETS.TRAIN": ("spatialflow_coco_2017_train",),
    "DATASETS.TEST": ("spatialflow_coco_2017_val",),
}


@pytest.mark.parametrize("evaluation", [False, True])
def test_other_classes_under_a_built_in_name(built_in, tmp_path, evaluation):
    keys = {**TINY, **COCO, "OUTPUT_DIR": tmp_path / "output", "MODEL.RETINANET.NUM_CLASSES": 80}
    keys |= {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 54, "MODEL.WEIGHTS": __file__}
    pairs = [word for pair in keys.items() for word in pair]
    message = r"MODEL.RETINANET.NUM_CLASSES: 80 given, but data set '\w+' has 5 .*that or -1"
    with pytest.raises(ConfigError, match=message):
        setup(parse("train", [*(["--eval-only"] if evaluation else []), *pairs]))
    assert not (tmp_path / "output").exists()


def test_other_classes_in_the_validation(built_in, scenes_cfg):
    path = built_in / "panoptic_val2017.json"
    path.write_text(path.read_text().replace('"gravel"', '"snow"'))
    with pytest.raises(ConfigError, match="'spatialflow_coco_2017_train' and .* different classes"):
        setup(parse("train", [word for pair in {**TINY_RUN, **COCO}.items() for word in pair]))
    trainer = Trainer(scenes_cfg(COCO))  # no program has compared them
    refuse(trainer, ConfigError, "'spatialflow_coco_2017_train' and .* have different classes")


# --- Iterations ----------------------------------------------------------------------------------


def test_fewer_iterations_than_are_done(scenes_cfg, caplog):
    keys = {"DATASETS.TEST": (), "SOLVER.MAX_ITER": 2}
    first = Trainer(scenes_cfg(keys))
    first.train()
    caplog.set_level("INFO")
    again = Trainer(scenes_cfg(keys))
    again.resume_or_load(resume=True)
    assert "its iterations are done; a larger SOLVER.MAX_ITER goes on" in caplog.text
    shorter = Trainer(scenes_cfg({**keys, "SOLVER.MAX_ITER": 1}))
    with pytest.raises(ConfigError, match=r"SOLVER.MAX_ITER: 1 given, .* done 2 iterations"):
        shorter.resume_or_load(resume=True)
    shorter = Trainer(scenes_cfg({**keys, "SOLVER.MAX_ITER": 1}))
    shorter.resume_or_load(resume=False)
    assert shorter.start_iter == 0
