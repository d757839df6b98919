"""End work on SIGINT and SIGTERM: at once, or at the next point from which it can go on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SECONDS = 1.0
"""Time in which a second signal is the first one again: a terminal, ``timeout``, a batch system or
a parent sends it to a group of processes and to each of them."""


class Stopped(KeyboardInterrupt):
    """A signal has ended the work.

    Attributes:
        signum: Number of the signal.
        between_steps: Whether a training was interrupted between two steps.
        agreed: Whether all processes of the training have stopped at this point.
        status: Exit status of a program that ends by it, as of a shell.
    """

    def __init__(
        self,
        signum: int,
        message: str = "",
        *,
        between_steps: bool = False,
        agreed: bool = False,
    ) -> None:
        self.signum = signum
        self.name = signal.Signals(signum).name
        self.between_steps = between_steps
        self.agreed = agreed
        self.status = 128 + signum
        super().__init__(message or f"stopped by {self.name}")


class StopSignals:
    """A context in which SIGINT and SIGTERM raise :class:`Stopped`, at once or later.

    The handlers before are put back at its end. Outside the main thread, and for a signal that is
    ignored (``nohup``), the context changes nothing. Processes that are forked inside, such as
    those of a loader, ignore SIGINT.

    Attributes:
        received: Number of the signal that waits for :class:`Stopped` to be raised; None for none.
    """

    def __init__(self, *, wait: bool = False) -> None:
        """Keep the way to stop.

        Args:
            wait: Whether the first signal only sets ``received``; a second one raises at once.
        """
        self.received: int | None = None
        self._waits = wait
        self._at_once = False
        self._since = 0.0
        self._process = -1
        self._ignores = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self.received, self._ignores, self._process = None, False, os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._handle)
            # What started this process may have held them back until here.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def interrupting(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Return a function that does work between two steps, which the first signal interrupts."""

        def interruptible() -> Result:
            if self.received is not None:
                raise Stopped(self.received, between_steps=True)
            self._at_once = True
            try:
                return work()
            finally:
                self._at_once = False

        return interruptible

    def ignore(self) -> None:
        """Ignore further signals until the end of the context."""
        self._ignores = True

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._ignores or os.getpid() != self._process:
            return
        first, now = self.received is None, time.monotonic()
        if first:
            self.received, self._since = number, now
        elif now - self._since < SAME_SECONDS:
            return
        if self._at_once or not (self._waits and first):
            raise Stopped(number, between_steps=self._at_once)


class PassedOn:
    """What a parent passes on to its child processes: each signal is more urgent than the last.

    Attributes:
        number: Number of the first signal; None for none.
        event: Set once there is one, in the children, too.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self.number: int | None = None
        self.event: Event = multiprocessing.get_context("spawn").Event()
        self._count = 0
        self._since = 0.0

    def note(self, number: int) -> int | None:
        """Return what to send to the children for a signal, None where it is the last one again."""
        now = time.monotonic()
        if self._count and now - self._since < SAME_SECONDS:
            return None
        self.number = self.number or number
        self.event.set()
        self._since, self._count = now, self._count + 1
        return insistent(number, self._count)


def insistent(number: int, count: int) -> int:
    """Return what to send to a process for the first, second, … signal to its parent.

    SIGTERM ends a process in its start, which holds SIGINT back; one that hangs outside of Python,
    such as in a collective, heeds SIGKILL only.
    """
    return (number, signal.SIGTERM, signal.SIGKILL)[min(count, 3) - 1]


_END = b"\0"
"""What is sent after the last signal, whose numbers begin with 1."""


@contextlib.contextmanager
def signals_for_children() -> Iterator[PassedOn]:
    """Pass SIGINT and SIGTERM on to the child processes, for whose end this process waits.

    Children inherit that SIGINT is held back, until they enter :class:`StopSignals`. Since the main
    thread waits, another one passes the signals on; Python wakes it by a socket.
    """
    passed_on = PassedOn()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    thread = threading.Thread(target=_pass_on, args=(receiver, passed_on), daemon=True)
    thread.start()
    handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    wakeup = signal.set_wakeup_fd(sender.fileno())
    # It starts with the first child otherwise, and lets the signals through again.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield passed_on
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # A forked child that lives on has a copy of the sender, so closing it ends nothing.
        with contextlib.suppress(BlockingIOError):
            sender.send(_END)
        sender.close()
        thread.join()
        receiver.close()


def _pass_on(receiver: socket.socket, passed_on: PassedOn) -> None:
    """Send the signals whose numbers are received to all children, until the end is sent."""
    while (numbers := receiver.recv(1)) not in (b"", _END):
        number = passed_on.note(numbers[0]) if numbers[0] in STOP_SIGNALS else None
        for child in multiprocessing.active_children():
            if child.pid and number is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)


def outlive_signals(_: int = 0) -> None:
    """Let a worker of a loader outlive the signals that stop its group; its parent ends it.

    A training that finishes its step after such a signal needs its workers. SIGTERM of the parent
    still ends the worker. This is a ``worker_init_fn`` of PyTorch's ``DataLoader``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
