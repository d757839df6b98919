"""Names that come from data are text wherever they are shown: no formula, no control sequence."""

import json
import logging
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from darts.drawing import to_dot, to_svg
from spatialflow.analysis.tables import table
from spatialflow.cli.predict import describe
from spatialflow.cli.results import ResultWriter
from spatialflow.data import panoptic_ground_truth
from spatialflow.data.loader import build_train_loader
from spatialflow.evaluation import build_evaluator
from spatialflow.modeling.topology import spatialflow_topology
from spatialflow.search.space import human_genotype
from spatialflow.utils import charts
from spatialflow.utils.html import Page, details, paragraph
from spatialflow.utils.text import cell, printable
from spatialflow.utils.visualize import draw_panoptic, side_by_side
from tests.data.conftest import clean_catalogs, own_cache, register_folder, write_dataset

__all__ = ["clean_catalogs", "own_cache", "register_folder", "write_dataset"]

NAMES = (
    "$x^$",  # no formula for matplotlib
    "$\\frac{1}$",
    "\x1b[31mred\x1b[0m",
    "two\nlines\r",
    "a\u202eb\u200bc",  # right to left, and a letter of no width
    "\ud800",
    "_hidden",
    "<b>&amp;|{{ 1 }}%s {0}",
    "\u00e9",
    "\x00\x07",
)


def shows(text):
    """Return whether a text is safe on a console and in a file, apart from its line breaks."""
    text.encode()
    return text.replace("\n", "").replace("\t", "").isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_names_become_one_printable_line(name):
    assert printable(name).isprintable()
    printable(name).encode()
    assert printable(printable(name)) == printable(name)
    assert (printable(name) == name) == name.isprintable()
    assert "|" not in cell(name).replace("\\|", "")


@pytest.fixture
def strange(write_dataset, register_folder):
    """A data set whose things and stuff have these names."""
    categories = [
        {"id": 10 * i + kind, "name": f"{name}{kind}", "isthing": kind, "supercategory": name}
        for i, name in enumerate(NAMES, start=1)
        for kind in (0, 1)
    ]
    ids = np.arange(1, 1 + len(categories)).repeat(64).reshape(len(categories), 8, 8)
    ids = np.concatenate(list(ids))
    classes = {i: c["id"] for i, c in enumerate(categories, start=1)}
    return register_folder(write_dataset([(ids, classes)] * 2, categories), "strange")


def test_names_of_classes_in_pictures_lines_and_json(strange, tmp_path):
    metadata, (one, _) = MetadataCatalog.get(strange), DatasetCatalog.get(strange)
    rgb = np.asarray(Image.open(one["file_name"]))
    truth = panoptic_ground_truth(one, metadata)
    assert draw_panoptic(rgb, *truth, metadata).ndim == 3
    assert shows(describe(truth[1], metadata))
    assert side_by_side([[rgb] * len(NAMES)], titles=NAMES).ndim == 3
    writer = ResultWriter(tmp_path / "out", metadata)
    writer.add(tmp_path / "\udcff.png", rgb, truth)
    writer.finish()
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert written["images"][0]["file_name"].endswith("\udcff.png")
    assert {c["name"] for c in written["categories"]} == {f"{n}{k}" for n in NAMES for k in (0, 1)}


def test_names_of_classes_in_the_logs_of_training_and_evaluation(
    strange, scenes_cfg, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    cfg = scenes_cfg({"DATASETS.TRAIN": (strange,)})
    build_train_loader(cfg, 0)
    evaluator = build_evaluator(cfg, strange, tmp_path)
    evaluator.reset()
    metadata = MetadataCatalog.get(strange)
    for one in DatasetCatalog.get(strange):
        truth = panoptic_ground_truth(one, metadata)
        found = torch.zeros(0, *truth[0].shape)
        instances = _no_instances(found)
        evaluator.process([one], [{"panoptic_seg": truth, "instances": instances}])
    results = evaluator.evaluate()
    assert results["panoptic_seg"]["PQ"] == 100
    messages = [record.getMessage() for record in caplog.records]
    named = [message for message in messages if "\\x1b[31mred" in message]
    assert len(named) >= 3  # the histogram, PQ and AP by class
    # Detectron2 colours its histogram.
    plain = [message.replace("\x1b[36m", "").replace("\x1b[0m", "") for message in messages]
    assert all(map(shows, plain))
    assert all(map(shows, results["bbox"]))


def _no_instances(masks):
    found = Instances(tuple(masks.shape[1:]))
    found.pred_masks, found.pred_boxes = masks, Boxes(torch.zeros(0, 4))
    found.scores, found.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_names_in_charts_drawings_and_pages(name, tmp_path):
    points = [(0.0, 0.1), (1.0, 0.9)]
    drawn = [
        charts.lines({name: points}, x="x", y="y"),
        charts.intervals({name: (0.0, -1.0, 1.0)}, x="x"),
        charts.small_multiples({name: {name: points}}, title=name, x="x"),
    ]
    for svg in drawn:
        ElementTree.fromstring(svg.encode())
        assert shows(svg)
    page = Page(name, name)
    page.section(name, paragraph(name), details(name, name))
    written = page.save(tmp_path / "page.html").read_text()
    assert "<b>&amp;|" not in written
    assert cell(name) in table([name], [[name]])


@pytest.mark.parametrize("name", NAMES)
def test_names_of_genotypes(name):
    genotype, topology = replace(human_genotype(), name=name), spatialflow_topology()
    ElementTree.fromstring(to_svg(genotype, topology).encode())
    assert shows(to_dot(genotype, topology))
