"""What is wrong with a data set's files, as values.

The checker lists problems, loading counts or raises them, the mapper raises them: all three get
them from the same rules, so one defect has one message. `json_rules.py` has the rules of the JSON,
`file_rules.py` those of images and PNGs.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

from spatialflow.utils.errors import DataError

# Values of a JSON may be of any size and depth; a message is one line.
_REPR = reprlib.Repr()
_REPR.maxlevel = 2
_REPR.maxstring = _REPR.maxother = 80


@dataclass(frozen=True)
class Problem:
    """One defect of a data set.

    Attributes:
        file: the file that it is in, or the one of two that disagree.
        message: what is wrong with it.
        image: what has to be left out to be rid of it: an image's `file_name` in the JSON, or the
            place of a JSON entry that names none. None if the data set as a whole is unusable.
    """

    file: str
    message: str
    image: str | None = None

    def __str__(self) -> str:
        """One printable line, whatever the names in it hold."""
        return printable(f"{self.file}: {self.message}")

    def error(self) -> DataError:
        """Returns the error that says this."""
        return DataError(str(self))


def combined_error(problems: Sequence[Problem], command: str) -> DataError:
    """Returns one error for one or more problems.

    Args:
        problems: the first one is told, the others are counted.
        command: the command that lists them all.
    """
    if len(problems) == 1:
        return problems[0].error()
    more = f" … and {len(problems) - 1} more; `{printable(command)}` lists them"
    return DataError(f"{problems[0]}{more}")


def printable(text: str) -> str:
    """Writes line breaks, control characters and lone surrogates as escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def shown(value: object) -> str:
    """Returns a value of a JSON as messages show it: shortened."""
    return _REPR.repr(value)


def enumeration(values: Sequence[object], most: int = 5) -> str:
    """Lists a few values and counts the rest."""
    text = ", ".join(str(v) for v in values[:most])
    return text if len(values) <= most else f"{text} and {len(values) - most} more"
