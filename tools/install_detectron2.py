"""Install Detectron2 as plain Python with pip alone, unless one is installed.

Detectron2 is on no package registry under its own name, and its usual route, from git, compiles an
extension that nothing here needs. This script installs a wheel of its Python code, pinned by hash,
into the environment of the running interpreter. Run it with the environment's python, after torch:

    .venv/bin/python tools/install_detectron2.py

The wheel has a tag for CPython 3.10 because of that extension. The tag is overridden, and the
extension stays unused.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

WHEEL_DISTRIBUTION = "sal-detectron2"
REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements" / "detectron2.txt"
STRAY_PACKAGE = "tools"
# Imports the parts of Detectron2 that the project uses, so that a broken one is found here.
PROBE = """
import detectron2
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.modeling import build_model
print(detectron2.__version__, detectron2.__file__)
"""
HELP = """
What now:
  * `spatialflow doctor` prints what is installed and what works;
  * the usual route needs git and a C++ compiler:
        pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'
  * docs/install.md lists known errors by their text."""


class InstallError(RuntimeError):
    """Detectron2 could not be installed. The message says why."""


def probe() -> tuple[bool, str]:
    """Import Detectron2 in a new interpreter.

    Returns:
        Whether it works; and its version and file, or the text of the error.
    """
    # With -P a folder named detectron2 in the working directory is not imported.
    result = subprocess.run(
        [sys.executable, "-P", "-c", PROBE], capture_output=True, text=True, check=False
    )
    return result.returncode == 0, (result.stdout if result.returncode == 0 else result.stderr)


def is_missing(error: str) -> bool:
    """Return whether an import error says that Detectron2 is missing, not that it is broken."""
    return "No module named 'detectron2'" in error


def install(site_packages: Path) -> None:
    """Install the pinned wheel into a folder.

    Raises:
        InstallError: If pip fails. It has printed its own message.
    """
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--python-version", "3.10"),
        *("--target", str(site_packages), "--require-hashes", "--requirement", str(REQUIREMENTS)),
    ]
    if subprocess.run(command, check=False).returncode != 0:
        raise InstallError(f"pip could not install what {REQUIREMENTS} names; its words are above")


def remove_stray_package(site_packages: Path) -> list[str]:
    """Remove the top-level package `tools` that the wheel drops beside `detectron2`.

    A file is removed only if the wheel's record lists it with its present content, so that a
    `tools` of another distribution stays.

    Returns:
        The removed files, relative to `site_packages`.
    """
    record = find_record(site_packages)
    if record is None:
        return []
    with record.open(newline="") as stream:
        rows = list(csv.reader(stream))
    removed, kept = [], []
    for row in rows:
        name, recorded_hash = row[0], row[1]
        if not name.startswith(f"{STRAY_PACKAGE}/"):
            kept.append(row)
            continue
        file = site_packages / name
        is_bytecode = name.endswith(".pyc")
        if file.is_file() and (is_bytecode or content_hash(file) == recorded_hash):
            file.unlink()
            removed.append(name)
    if removed:
        for folder in (STRAY_PACKAGE + "/__pycache__", STRAY_PACKAGE):
            remove_if_empty(site_packages / folder)
    if len(kept) < len(rows):
        with record.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(kept)
    return removed


def find_record(site_packages: Path) -> Path | None:
    """Return the wheel's RECORD in a folder, or None if the wheel is not installed there."""
    normal_name = WHEEL_DISTRIBUTION.replace("-", "_")
    return next(iter(sorted(site_packages.glob(f"{normal_name}-*.dist-info/RECORD"))), None)


def content_hash(file: Path) -> str:
    """Return the hash of a file in the form of a wheel's record."""
    digest = hashlib.sha256(file.read_bytes()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def remove_if_empty(folder: Path) -> None:
    """Remove a folder if it is empty."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def has_torch() -> bool:
    """Return whether both torch and torchvision are installed."""
    try:
        return bool(metadata.version("torch") and metadata.version("torchvision"))
    except metadata.PackageNotFoundError:
        return False


def ensure_detectron2(site_packages: Path) -> str:
    """Install Detectron2 if it is missing.

    Returns:
        One sentence on the installed version.

    Raises:
        InstallError: If Detectron2 cannot be installed, or an installed one does not work.
    """
    works, answer = probe()
    if works:
        return f"detectron2 is there already: {answer.strip()}"
    if not is_missing(answer):
        raise InstallError(f"A detectron2 is installed but cannot be imported:\n{answer}")
    if not has_torch():
        raise InstallError("Install torch and torchvision first, both from the same channel.")
    install(site_packages)
    works, answer = probe()
    if not works:
        raise InstallError(f"detectron2 was installed but cannot be imported:\n{answer}")
    return f"installed detectron2: {answer.strip()}"


def main() -> int:
    """Run the installation, and return the exit status."""
    site_packages = Path(sysconfig.get_paths()["purelib"])
    try:
        print(ensure_detectron2(site_packages))
    except InstallError as error:
        print(f"{error}{HELP}", file=sys.stderr)
        return 1
    if remove_stray_package(site_packages):
        print(f"removed the stray top-level package `{STRAY_PACKAGE}` of {WHEEL_DISTRIBUTION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
