"""Defects of a data set's files, and the error that carries them.

The check command lists defects. Loading, training and evaluation raise them or leave the image out.
All get them from the same rules, so one defect always has one message: `json_rules.py` has the
rules of the JSON, `file_rules.py` those of images and PNGs.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

from spatialflow.utils.errors import DataError
from spatialflow.utils.text import printable

# Values of a JSON may have any size and depth; a message is one line.
_REPR = reprlib.Repr()
_REPR.maxlevel = 2
_REPR.maxstring = _REPR.maxother = 80


@dataclass(frozen=True)
class Defect:
    """One defect of a data set.

    Attributes:
        file: File with the defect. If two files disagree, the one that is more likely wrong.
        message: Description of the defect.
        image: Image to leave out to get rid of the defect: its `file_name` in the JSON, or the
            place of a JSON entry without a file name. None if the whole data set is unusable.
    """

    file: str
    message: str
    image: str | None = None

    def __str__(self) -> str:
        """Return one printable line, whatever characters the names contain."""
        return printable(f"{self.file}: {self.message}")


class DefectError(DataError):
    """Defects of a data set, raised.

    Attributes:
        defects: One or more defects. The text of the error is the first one.
        check_command: Command that lists all defects. If it is not empty, the text of the error
            also gives the number of the other defects, and this command.
    """

    def __init__(self, defects: Sequence[Defect], check_command: str = "") -> None:
        # Pickle passes these arguments again when a worker sends the error.
        super().__init__(defects, check_command)
        self.defects = list(defects)
        self.check_command = check_command

    def __str__(self) -> str:
        first, more = str(self.defects[0]), len(self.defects) - 1
        if not more or not self.check_command:
            return first
        return f"{first} … and {more} more; `{printable(self.check_command)}` lists them"


def shown(value: object) -> str:
    """Return the shortened representation of a JSON value for a message."""
    return _REPR.repr(value)


def enumeration(values: Sequence[object], most: int = 5) -> str:
    """Return the first values as a list in words, and the number of the others."""
    text = ", ".join(str(v) for v in values[:most])
    return text if len(values) <= most else f"{text} and {len(values) - most} more"
