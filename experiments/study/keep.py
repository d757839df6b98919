"""Copy results of the study's runs into the repository, and back to go on with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spatialflow.search.log import LOG_FILE, read_log
from spatialflow.utils.files import write_atomically

HISTORY = "histories"
PATTERNS = ("*/*-seed*.json", "genotypes/*.json", "genotypes/*/*.json", "finalist.json")
MEASURED = ("iteration", "architecture_loss", "expected_cost", "entropy", "absent")


def keep(folder: Path, kept: Path) -> int:
    """Copy results, genotypes and histories of searches from a working folder.

    Args:
        folder: Working folder of a data set and round.
        kept: Folder in the repository.

    Returns:
        The number of files that were copied, without histories.
    """
    files = list(_results(folder))
    for path in files:
        _copy(path, kept / path.relative_to(folder))
    for log in folder.glob(f"searches/*/{LOG_FILE}"):
        target = kept / HISTORY / f"{log.parent.name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = [_short(line) for line in read_log(log)]
        _write(
            target,
            "[\n" + ",\n".join(json.dumps(line, allow_nan=False) for line in lines) + "\n]\n",
        )
    return len(files)


def restore(kept: Path, folder: Path) -> None:
    """Copy kept files back to a working folder. Files that are there stay as they are."""
    for path in _results(kept):
        target = folder / path.relative_to(kept)
        if not target.exists():
            _copy(path, target)


def _results(folder: Path) -> Iterator[Path]:
    for pattern in PATTERNS:
        yield from (p for p in folder.glob(pattern) if ".partial" not in str(p))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, source.read_text())


def _write(target: Path, text: str) -> None:
    write_atomically(target, lambda file: file.write(text.encode()))


def _short(line: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a line of a search's log that charts show."""
    probabilities = {
        what: [round(value, 4) for value in values]
        for what, values in line["probabilities"].items()
    }
    measured = {name: round(line[name], 5) for name in MEASURED if name in line}
    return {**measured, "probabilities": probabilities}
