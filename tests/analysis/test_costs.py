"""Costs of the parts of the published network, against figures by hand."""

import json
import math

import pytest
from detectron2.modeling import build_model

from spatialflow.analysis.costs import measure_parts
from spatialflow.cli.analyze_model import rows
from spatialflow.config import load_genotype
from tests.modeling.test_refined import EAGER, REFINED

C = 256
HEIGHT, WIDTH = 256, 384
# Positions of P3 to P7 at 256 × 384 pixels.
LEVELS = [HEIGHT * WIDTH / stride**2 for stride in (8, 16, 32, 64, 128)]
ALL, FINE = sum(LEVELS), sum(LEVELS[:3])
CONV = 9 * C * C


@pytest.mark.slow
def test_the_published_network_costs_what_it_should(program, tmp_path):
    path = tmp_path / "parts.json"
    words = ["--config-file", "coco/spatialflow_r50_20e.yaml", "--size", HEIGHT, WIDTH]
    done = program("spatialflow", "analyze", "model", *words, "--json", path, "MODEL.DEVICE", "cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(path.read_text())
    parts = found["parts"]
    assert found["detections"] == 100

    def millions(name):
        return round(parts[name]["parameters"] / 1e6, 2)

    assert millions("everything") == 50.80
    assert [millions(n) for n in ("backbone", "FPN", "box branch", "cls branch")] == [
        23.51,
        8.00,
        2.44,
        4.02,
    ]
    assert [millions(n) for n in ("stuff branch", "mask branch", "stuff head", "mask head")] == [
        2.36,
        0.59,
        1.34,
        2.64,
    ]
    expected = {
        "box branch": (4 * CONV + 9 * C * 36) * ALL,
        "cls branch": (4 * CONV + 9 * C * 720) * ALL,
        "stuff branch": 4 * CONV * FINE,
        "mask branch": CONV * FINE,
        # Four convolutions and a transposed one on 100 maps of 14 × 14, and of the 80 masks of
        # 28 × 28 that of the detected class.
        "mask head": 100 * (4 * CONV * 14**2 + 4 * C * C * 14**2 + C * 28**2),
    }
    for flow in load_genotype("spatialflow").flows:
        levels = ALL if flow.target.startswith("cls") else FINE
        expected[f"flow {flow}"] = CONV * levels
    for name, value in expected.items():
        assert parts[name]["multiply_adds"] == pytest.approx(value, rel=1e-3), name
    accounted = sum(part["multiply_adds"] for name, part in parts.items() if name != "everything")
    assert parts["everything"]["multiply_adds"] == pytest.approx(accounted, rel=0.01)
    assert all(part["seconds"] > 0 for part in parts.values())
    assert parts["mask head"]["activations"] > 100 * C * 14**2
    assert math.isclose(float(rows(parts)[-1][1]), 50.80)
    assert "| mask head | 2.64 |" in done.stdout


@pytest.mark.parametrize("pool_from", ["branch", "pyramid"])
def test_the_parts_of_a_refined_network_are_the_whole(tiny_cfg, pool_from):
    changes = {"MODEL.SPATIALFLOW.POOL_FROM": pool_from, "MODEL.SPATIALFLOW.RESIDUAL": "learned"}
    cfg = tiny_cfg({**REFINED, **EAGER, **changes})
    found = measure_parts(build_model(cfg).eval(), load_genotype("spatialflow"), (64, 96))
    parts = dict(found["parts"])
    everything = parts.pop("everything")
    assert {"region branch", "region head"} <= parts.keys()
    assert sum(part["parameters"] for part in parts.values()) == everything["parameters"]
    accounted = sum(part["multiply_adds"] for part in parts.values())
    assert everything["multiply_adds"] == pytest.approx(accounted, rel=0.01)
