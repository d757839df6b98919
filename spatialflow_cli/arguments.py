"""The parser of a command line, and the kinds of its arguments."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

Group = argparse._ActionsContainer
"""What arguments are added to: a parser or one of its groups."""

MOST_LETTERS = 500
"""Length from which an error is cut."""

KEY = re.compile(
    r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|SEARCH|GLOBAL)(\.[A-Z0-9_]+)+"
    r"|OUTPUT_DIR|SEED|VERSION|VIS_PERIOD|CUDNN_BENCHMARK|FLOAT32_PRECISION"
)
"""The form of a key of a config."""


class Parser(argparse.ArgumentParser):
    """Parser that takes KEY VALUE pairs at any place, and reports a wrong line in one line.

    An option with several values, such as ``--input``, would take pairs after it for its values.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the words, and add the pairs among them to ``opts``."""
        words, pairs = self._without_pairs(list(sys.argv[1:] if args is None else args))
        found, extra = super().parse_known_args(words, namespace)
        if pairs:
            found.opts = [*found.opts, *pairs]
        return found, extra

    def _without_pairs(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Return the words without KEY VALUE pairs, and the pairs."""
        if not any(action.dest == "opts" for action in self._actions):
            return words, []
        others: list[str] = []
        pairs: list[str] = []
        while words:
            option = self._option_string_actions.get(others[-1]) if others else None
            wants_value = option is not None and option.nargs != 0 and option.dest != "opts"
            # A file of such a name is a file.
            if KEY.fullmatch(words[0]) and not wants_value and not os.path.exists(words[0]):
                pairs, words = pairs + words[:2], words[2:]
            else:
                others, words = [*others, words[0]], words[1:]
        return others, pairs

    def error(self, message: str) -> NoReturn:
        """End with status 2 and one line."""
        self.exit(2, f"{self.prog}: {one_line(message)[:MOST_LETTERS]}; try --help\n")


def one_line(text: str) -> str:
    """Return a text with line breaks and control characters as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def path_argument(word: str) -> str:
    """Return a path with its home folder; a shell expands ``~`` only where a word begins."""
    path = os.path.expanduser(word)
    if path.startswith("~"):
        raise argparse.ArgumentTypeError(f"{word!r}: no home folder {word.partition('/')[0]!r}")
    return path


def count_argument(word: str) -> int:
    """Return a number of things, 1 or more."""
    if not (word.isdecimal() and len(word) < 10 and int(word) > 0):
        raise argparse.ArgumentTypeError(f"{word!r} given, a number from 1 on expected")
    return int(word)


def size_argument(word: str) -> int:
    """Return a size in pixels, or 0."""
    if not (word.isdecimal() and len(word) < 10):
        raise argparse.ArgumentTypeError(f"{word!r} given, a number from 0 on expected")
    return int(word)


def file_argument(word: str) -> Path:
    """Return the path of a file or a folder."""
    return Path(path_argument(word))


def above_zero(word: str) -> float:
    """Return a finite number above 0."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{word} given, a number above 0 expected")
    return value


def show(text: str, program: str) -> None:
    """Print a text, or exit in one line where standard output cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        # Python flushes the rest at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"{program}: standard output: {error.strerror}")
