"""Find the command that a command line asks for, and run it."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from spatialflow_cli.arguments import one_line, show
from spatialflow_cli.commands import COMMANDS, parser_of

PROGRAM = "spatialflow"
HELP = ("-h", "--help")
OF_OTHERS = ("torch.fx._symbolic_trace", "torch.utils.cpp_extension", "detectron2.config.compat")
"""Loggers that warn at each start: of PyTorch's own code, a compiler, a config without VERSION."""
OWN_PACKAGES = ("spatialflow", "darts")
INTERRUPTED = 128 + 2
"""Exit status after Ctrl-C, as shells have it."""
DOCTOR = f"`{PROGRAM} doctor` says what is missing and what to do"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command ``spatialflow``.

    Args:
        words: Arguments; None takes those of the command line.

    Returns:
        The exit status: 0 after success, 2 for an unknown command.

    Raises:
        SystemExit: After an error that a user can mend, after ``--help`` of a command, and with
            status 2 for wrong arguments.
    """
    words = list(sys.argv[1:] if words is None else words)
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and name in COMMANDS:
            return run(name, words[count:], f"{PROGRAM} {name}")
    shown, rest = list(COMMANDS), words
    if words and any(name.startswith(f"{words[0]} ") for name in COMMANDS):
        shown, rest = [name for name in COMMANDS if name.startswith(f"{words[0]} ")], words[1:]
    if not rest or rest[0] in HELP:
        show(overview(shown), PROGRAM)
        return 0
    given = one_line(" ".join(words[: 1 + len(words) - len(rest)]))
    print(f"{PROGRAM}: no command {given!r}, one of {', '.join(shown)} expected", file=sys.stderr)
    return 2


def overview(names: Iterable[str]) -> str:
    """Return the help of several commands, a line for each."""
    lines = (f"  {name:<16}{COMMANDS[name].summary}" for name in names)
    return "\n".join(
        (
            f"usage: {PROGRAM} COMMAND ...",
            "",
            "Panoptic segmentation with searchable flows between tasks, on Detectron2.",
            "",
            "commands:",
            *lines,
            "",
            f"`{PROGRAM} COMMAND --help` shows the arguments of a command.",
            "SPATIALFLOW_TRACEBACK=1 in the environment adds a stack trace to an error.",
        )
    )


def run(name: str, words: Sequence[str], program: str) -> int:
    """Run one command.

    Args:
        name: One of :data:`~spatialflow_cli.commands.COMMANDS`.
        words: Its arguments.
        program: Name of the program in messages.

    Returns:
        The exit status.
    """
    # Names of files and classes are printed on every console, also one that knows ASCII only.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for logger in OF_OTHERS:
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release")
    command = COMMANDS[name]
    arguments = parser_of(command, program).parse_args(words)
    # Errors name the program by this, also in the processes that a run starts.
    sys.argv[0] = program
    try:
        status: int = load(command.module, program).main(arguments)
    except KeyboardInterrupt:  # while PyTorch is imported, or in the doctor
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


def load(module: str, program: str) -> Any:
    """Import the module of a command; end in one line where an installed package is to blame."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if not is_of_environment(error) or os.environ.get("SPATIALFLOW_TRACEBACK", "0") != "0":
            raise
        text = " ".join(str(error).split())
        sys.exit(f"{program}: {text}" if DOCTOR in text else f"{program}: {text}; {DOCTOR}")


def is_of_environment(error: ImportError) -> bool:
    """Return whether an import failed because of what is installed, not because of a bug here."""
    package = (error.name or "").partition(".")[0]
    return isinstance(error, ModuleNotFoundError) or package not in OWN_PACKAGES
