import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NARROW = ROOT / "configs" / "reference" / "narrow.yaml"
COMPACT = Path(__file__).parent / "compact"


def load_script(path: Path) -> ModuleType:
    """Import a script that belongs to no package."""
    name = f"script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def check_parity_tool() -> ModuleType:
    return load_script(ROOT / "tools" / "check_parity.py")


@pytest.fixture(scope="session")
def make_compact() -> ModuleType:
    return load_script(Path(__file__).parent / "make_compact.py")


@pytest.fixture(scope="session")
def full_fixture() -> Path:
    """The folder of the full fixture; it must be there where SPATIALFLOW_TEST_DATA is set."""
    data = os.environ.get("SPATIALFLOW_TEST_DATA")
    if not data:
        pytest.skip("SPATIALFLOW_TEST_DATA is not set: the full parity fixture is beside that data")
    folder = Path(data).parent / "reference" / "parity" / "r50"
    assert folder.is_dir(), f"SPATIALFLOW_TEST_DATA is set, but {folder} does not exist"
    return folder


@pytest.fixture(scope="session")
def narrow_config() -> Path:
    return NARROW


@pytest.fixture(scope="session")
def compact_folder() -> Path:
    return COMPACT
