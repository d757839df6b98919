"""A fixture for tests that need the study's generated scenes to be registered."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from spatialflow.data import generate_scenes, unregister


@pytest.fixture
def few_scenes(tmp_path, monkeypatch):
    """Data sets of scenes hold four each, whatever a config asks for, while the test runs."""

    def generate_few(root, *, count, seed, size):
        generate_scenes(root, count=min(count, 4), seed=seed, size=size)

    monkeypatch.setattr("spatialflow.data.synthetic.registration.generate_scenes", generate_few)
    monkeypatch.setenv("SPATIALFLOW_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog) | set(MetadataCatalog)
    yield
    for name in (set(DatasetCatalog) | set(MetadataCatalog)) - before:
        unregister(name)
