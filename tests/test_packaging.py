"""The package is what pyproject.toml says, and Detectron2's wheel leaves nothing stray behind."""

import importlib
import importlib.util
import pkgutil
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import darts
import spatialflow
import spatialflow_cli

MODULES = sorted(
    module.name
    for package in (darts, spatialflow, spatialflow_cli)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)


@pytest.fixture(scope="module")
def project(pytestconfig):
    return tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_says_what_it_is(name):
    assert importlib.import_module(name).__doc__


def test_versions_agree(project):
    assert spatialflow.__version__ == project["version"]
    assert metadata.version(project["name"]) == project["version"]


def test_the_import_registers_the_architecture():
    from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

    assert META_ARCH_REGISTRY.get("SpatialFlow") is spatialflow.SpatialFlow
    assert "build_spatialflow_fpn_backbone" in BACKBONE_REGISTRY


@pytest.mark.parametrize("name", spatialflow.__all__)
def test_all_public_names_exist(name):
    assert getattr(spatialflow, name) is not None


def test_what_the_project_promises_to_need_is_here(project):
    from packaging.requirements import Requirement

    for line in project["dependencies"]:
        requirement = Requirement(line)
        version = metadata.version(requirement.name)
        assert requirement.specifier.contains(version), f"{requirement} wanted, {version} installed"


def test_no_module_is_beside_the_packages():
    assert not [m.name for m in pkgutil.iter_modules(spatialflow.__path__) if not m.ispkg]


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("backbone", "modeling.backbone.pyramid", "FeaturePyramid"),
        ("flows", "modeling.flow_graph", "FlowGraph"),
        ("fusion", "modeling.fusion", "PanopticFusion"),
        ("heads", "modeling.heads", "BoxSelection"),
        ("heads", "modeling.heads", "DenseBoxHead"),
        ("heads", "modeling.heads", "ProposalMaskHead"),
        ("heads", "modeling.heads", "StuffHead"),
        ("losses", "modeling.losses", "LossNormalizer"),
        ("packed", "modeling.layers.packed_conv", "pack_convolutions"),
        ("trunks", "modeling.backbone.trunks", "build_trunk"),
        ("visualize", "utils.visualize", "draw_panoptic"),
        ("visualize", "utils.visualize", "side_by_side"),
    ],
)
def test_old_import_paths_work_with_a_warning(old, new, name):
    expected = getattr(importlib.import_module(f"spatialflow.{new}"), name)
    module = importlib.import_module(f"spatialflow.{old}")
    assert getattr(spatialflow, old) is module
    assert importlib.util.find_spec(module.__name__) is not None
    with pytest.warns(DeprecationWarning, match=rf"spatialflow.{old} has moved: .* import {name}"):
        assert getattr(module, name) is expected


def test_a_name_that_an_old_module_never_had():
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec("from spatialflow.heads import Nothing")


# --- tools/install_detectron2.py -----------------------------------------------------------------


@pytest.fixture(scope="module")
def installer(pytestconfig):
    file = pytestconfig.rootpath / "tools" / "install_detectron2.py"
    spec = importlib.util.spec_from_file_location("install_detectron2", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site_packages(tmp_path, installer):
    """Detectron2's wheel as installed: `detectron2` and a stray `tools`."""
    for name in ("detectron2/__init__.py", "tools/__init__.py", "tools/train_net.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"# {name}")
    (tmp_path / "tools" / "__pycache__").mkdir()
    (tmp_path / "tools" / "__pycache__" / "train_net.pyc").write_bytes(b"")
    rows = [
        f"{name},{installer.content_hash(tmp_path / name)},1"
        for name in ("detectron2/__init__.py", "tools/__init__.py", "tools/train_net.py")
    ]
    rows += ["tools/__pycache__/train_net.pyc,,", "sal_detectron2-0.7.2.dist-info/RECORD,,"]
    record = tmp_path / "sal_detectron2-0.7.2.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("\n".join(rows) + "\n")
    return tmp_path


def test_the_stray_package_is_not_installed_here(installer):
    record = installer.find_record(Path(sysconfig.get_paths()["purelib"]))
    if record is None:
        pytest.skip("this Detectron2 is not from the wheel")
    assert "\ntools/" not in record.read_text()


def test_stray_package_goes_and_detectron2_stays(installer, site_packages):
    assert len(installer.remove_stray_package(site_packages)) == 3
    assert not (site_packages / "tools").exists()
    assert (site_packages / "detectron2" / "__init__.py").exists()
    record = installer.find_record(site_packages).read_text()
    assert "tools/" not in record
    assert "detectron2/__init__.py,sha256=" in record
    assert installer.remove_stray_package(site_packages) == []


def test_files_of_others_in_the_stray_package_stay(installer, site_packages):
    tools = site_packages / "tools"
    (tools / "train_net.py").write_text("# changed by somebody")
    (tools / "mine.py").write_text("# not the wheel's")
    installer.remove_stray_package(site_packages)
    assert sorted(file.name for file in tools.iterdir()) == ["mine.py", "train_net.py"]


def test_nothing_goes_where_the_wheel_is_not_installed(installer, tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("")
    assert installer.remove_stray_package(tmp_path) == []
    assert (tmp_path / "tools" / "__init__.py").exists()


def test_a_detectron2_that_works_is_left_alone(installer, site_packages, monkeypatch):
    monkeypatch.setattr(installer, "probe", lambda: (True, "0.6 /home/me/detectron2"))
    monkeypatch.setattr(installer, "install", lambda _: pytest.fail("installed another one"))
    assert installer.ensure_detectron2(site_packages) == (
        "detectron2 is there already: 0.6 /home/me/detectron2"
    )


@pytest.mark.parametrize(
    ("error", "has_torch", "message"),
    [
        ("ImportError: libcudart.so.12", True, "installed but cannot be imported:\nImportError"),
        ("No module named 'detectron2'", False, "Install torch and torchvision first"),
    ],
)
def test_failures_say_what_to_do(
    error, has_torch, message, installer, site_packages, monkeypatch, capsys
):
    monkeypatch.setattr(installer, "probe", lambda: (False, error))
    monkeypatch.setattr(installer, "has_torch", lambda: has_torch)
    monkeypatch.setattr(installer, "install", lambda _: pytest.fail("installed all the same"))
    assert installer.main() == 1
    output = capsys.readouterr().err
    assert message in output
    assert "spatialflow doctor" in output
    assert "docs/install.md" in output
