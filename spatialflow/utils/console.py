"""The console of a program: what a person needs, in short. A run's ``log.txt`` has everything.

Libraries log, and a program decides what its console shows: :func:`start_logging`. Progress is
logged, too, below the level of any file, so that other programs and their handlers see none of it.
"""

from __future__ import annotations

import datetime
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger
from tqdm import tqdm

PROGRESS = 5
"""Level of a record of progress, below ``logging.DEBUG``."""
OWN = ("spatialflow", "darts")
LOGGERS = ("detectron2", "fvcore", *OWN, "py.warnings")
"""Loggers that a run writes to its file; the last is that of Python's warnings."""
KNOWN_WARNINGS = (
    "torch.jit.script",
    "torch.meshgrid: in an upcoming release",
    "pkg_resources is deprecated",
    "lr_scheduler.step()",
    "The 'warn' method is deprecated",
    "is_fx_tracing will return true",
)
"""Parts of warnings of Detectron2 and PyTorch about their own code, which only the file gets."""
TOLD_ONCE = "spatialflow.data.dataset"
"""Logger whose lines the console shows once: an evaluation loads its data again."""
STEPS = 10
"""Number of lines of a progress that is neither quick nor slow."""
SHORTEST, LONGEST = 1.0, 30.0
"""Least and most seconds between two lines of a progress."""

progress_logger = logging.getLogger("spatialflow.progress")
_added: list[tuple[logging.Logger, logging.Handler]] = []


@dataclass(frozen=True)
class Progress:
    """How far a work is.

    Attributes:
        what: Name of the work.
        done: Number of its parts that are done.
        total: Number of all parts.
        text: What else a person wants to know, such as the loss.
        ended: Whether no report follows.
    """

    what: str
    done: int
    total: int
    text: str = ""
    ended: bool = False


def report_progress(
    what: str, done: int, total: int, text: str = "", *, ended: bool = False
) -> None:
    """Report progress to the console, if the program has one.

    Args:
        what: Name of the work. Its first report tells where it starts.
        done: Number of its parts that are done.
        total: Number of all parts.
        text: What else a person wants to know, such as the loss.
        ended: Whether no report follows, also because the work failed.
    """
    if progress_logger.isEnabledFor(PROGRESS):
        progress = Progress(what, done, total, text, ended)
        extra = {"progress": progress}
        progress_logger.log(PROGRESS, "%s %d of %d", what, done, total, extra=extra)


def start_logging(
    folder: str | Path | None = None, *, rank: int = 0, everything: bool = False
) -> None:
    """Log to a folder's ``log.txt``, and show on the console of process 0 what a person needs.

    The file gets all that Detectron2 would show. A second call replaces the handlers of the first.

    Args:
        folder: Folder of the file, which is made; None for no file.
        rank: Number of this process; the file of another one than 0 is ``log.txt.rank<rank>``.
        everything: Whether the console shows all that the file gets, as Detectron2 does.
    """
    while _added:
        logger, handler = _added.pop()
        logger.removeHandler(handler)
    setup_logger.cache_clear()
    console = Console()
    output = () if folder is None else (str(folder),)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        before = list(logger.handlers)
        # As Detectron2's default_setup calls it, which then adds no handlers of its own.
        named = {} if name == "detectron2" else {"name": name}
        setup_logger(*output, distributed_rank=rank, **named)
        for handler in [handler for handler in logger.handlers if handler not in before]:
            if getattr(handler, "stream", None) is sys.stdout and not everything:
                logger.removeHandler(handler)
            else:
                _added.append((logger, handler))
        if rank == 0 and not everything:
            logger.addHandler(console)
            _added.append((logger, console))
    progress_logger.setLevel(PROGRESS if rank == 0 and not everything else logging.NOTSET)
    # Detectron2 lists the environment, and PyTorch warns of a missing compiler meanwhile.
    for name in ("torch.fx._symbolic_trace", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Anew: what caught warnings for a while has put the hook of an earlier call aside.
    logging.captureWarnings(False)
    logging.captureWarnings(True)


class Console(logging.Handler):
    """Shows our own lines, warnings of others in one line, and progress.

    Progress is a bar where standard output and error are a terminal, and plain lines elsewhere: at
    the start, at the end, and now and then.
    """

    def __init__(
        self, *, bars: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep the parts.

        Args:
            bars: Whether to draw bars; None finds out whether this is a terminal.
            clock: Function that returns seconds.
        """
        super().__init__(PROGRESS)
        self.stream = sys.stdout  # evaluators may redirect it for a while
        self.draws_bars = _is_terminal() if bars is None else bars
        self.clock = clock
        self._bars: dict[str, tqdm[Any]] = {}
        self._lines: dict[str, _Lines] = {}
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, if it is for a person."""
        try:
            progress = getattr(record, "progress", None)
            if isinstance(progress, Progress):
                self._show(progress)
                return
            text = _text(record)
            once = record.levelno >= logging.WARNING or record.name == TOLD_ONCE
            if text is None or (once and text in self._told):
                return
            self._told.add(text)
            self._write(text)
        except Exception:
            self.handleError(record)

    def _write(self, text: str) -> None:
        """Write a line above the bars, with escapes for what the console cannot show."""
        encoding = self.stream.encoding or "utf-8"
        tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=self.stream)
        self.stream.flush()

    def _show(self, progress: Progress) -> None:
        if self.draws_bars:
            self._draw(progress)
            return
        lines = self._lines.setdefault(progress.what, _Lines(progress, self.clock()))
        line = lines.next(progress, self.clock())
        if line is not None:
            self._write(line)
        if progress.ended:
            del self._lines[progress.what]

    def _draw(self, progress: Progress) -> None:
        bar = self._bars.get(progress.what)
        if bar is None:
            bar = self._bars[progress.what] = tqdm(
                desc=progress.what,
                total=progress.total,
                initial=progress.done,
                leave=not self._bars,  # what is a part of another work leaves no bar
                dynamic_ncols=True,
                file=sys.stderr,
            )
        if progress.text:
            bar.set_postfix_str(progress.text, refresh=False)
        bar.update(progress.done - bar.n)
        if progress.ended:
            self._bars.pop(progress.what).close()


class _Lines:
    """The plain lines of one work."""

    def __init__(self, first: Progress, now: float) -> None:
        self.first, self.began = first.done, now
        self.shown, self.shown_at = first.done, -1e9

    def next(self, progress: Progress, now: float) -> str | None:
        """Return the line of a report; None if it is not due."""
        since = now - self.shown_at
        step = progress.done - self.shown >= progress.total / STEPS
        end = progress.done >= progress.total
        due = end or since >= LONGEST or (step and since >= SHORTEST)
        if progress.done == self.shown or not due:
            return None
        self.shown, self.shown_at = progress.done, now
        elapsed = now - self.began
        left = elapsed / (progress.done - self.first) * (progress.total - progress.done)
        times = f"{_clock(elapsed)}, about {_clock(left)} left" if left else _clock(elapsed)
        text = f": {progress.text}" if progress.text else ""
        return f"{progress.what} {progress.done} of {progress.total}{text} ({times})"


def _is_terminal() -> bool:
    """Return whether the standard streams are a terminal with a size."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return False
    return os.get_terminal_size(sys.stderr.fileno()).columns > 0


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _text(record: logging.LogRecord) -> str | None:
    """Return what the console shows of a record; None for nothing."""
    own = record.name.startswith(OWN)
    if record.levelno < (logging.INFO if own else logging.WARNING):
        return None
    message = record.getMessage()
    if record.name == "py.warnings" and any(known in message for known in KNOWN_WARNINGS):
        return None
    if record.name == "detectron2.engine.train_loop":
        return None  # The error itself follows.
    if not own:
        first, *others = message.strip().splitlines() or [""]
        message = f"{first} ({len(others)} more lines in the log)" if others[1:] else first
    prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
    return prefix + message
