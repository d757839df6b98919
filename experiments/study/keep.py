"""What of a study's runs stays in the repository, and how a run goes on from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spatialflow.search.log import LOG_FILE, read_log
from spatialflow.utils.files import write_atomically

ROOT = Path(__file__).parents[1] / "results" / "study"
HISTORY = "histories"
RESULTS = ("*/*-seed*.json", "genotypes/*.json", "genotypes/*/*.json", "finalist.json")
MEASURED = ("iteration", "architecture_loss", "expected_cost", "entropy", "absent")


def keep(folder: Path, kept: Path) -> int:
    """Copy results, genotypes and the histories of searches out of a working folder.

    Returns:
        The number of files that are kept now.
    """
    files = list(_results(folder))
    for path in files:
        _copy(path, kept / path.relative_to(folder))
    for log in folder.glob(f"searches/*/{LOG_FILE}"):
        target = kept / HISTORY / f"{log.parent.name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = [_short(line) for line in read_log(log)]
        _write(target, "[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")
    return len(files)


def restore(kept: Path, folder: Path) -> None:
    """Put what is kept back into a working folder, where it has nothing of that name."""
    for path in _results(kept):
        target = folder / path.relative_to(kept)
        if not target.exists():
            _copy(path, target)


def _results(folder: Path) -> Iterator[Path]:
    for pattern in RESULTS:
        yield from (p for p in folder.glob(pattern) if ".partial" not in str(p))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, source.read_text())


def _write(target: Path, text: str) -> None:
    write_atomically(target, lambda file: file.write(text.encode()))


def _short(line: dict[str, Any]) -> dict[str, Any]:
    """Return what is drawn of a line of a search's log."""
    probabilities = {
        what: [round(value, 4) for value in values]
        for what, values in line["probabilities"].items()
    }
    measured = {name: round(line[name], 5) for name in MEASURED if name in line}
    return {**measured, "probabilities": probabilities}
