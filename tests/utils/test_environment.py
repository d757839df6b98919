"""How threads wait, in every program."""

import ast
import os
import sys

import pytest

from spatialflow.utils.environment import let_threads_sleep
from tests.conftest import ROOT

PROGRAMS = [
    path.relative_to(ROOT)
    for folder in ("demo", "benchmarks", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__main__" in path.read_text() and "tests" not in path.parts
]


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_unless_the_user_has_chosen(monkeypatch, given, expected):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == expected


@pytest.mark.parametrize("path", PROGRAMS, ids=str)
def test_a_program_imports_the_package_before_pytorch(path):
    """OpenMP reads how to wait when PyTorch is imported."""
    for node in ast.parse((ROOT / path).read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        packages = {name.partition(".")[0] for name in names}
        if packages & {"spatialflow", "benchmarks", "experiments"}:
            return
        assert packages <= set(sys.stdlib_module_names), path
