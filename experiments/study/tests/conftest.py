"""What the study's tests share."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from spatialflow.data import unregister


@pytest.fixture
def clean_catalog(tmp_path, monkeypatch):
    """Generated scenes go to a folder of the test, and its data sets are unregistered after it."""
    monkeypatch.setenv("SPATIALFLOW_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog) | set(MetadataCatalog)
    yield
    for name in (set(DatasetCatalog) | set(MetadataCatalog)) - before:
        unregister(name)
