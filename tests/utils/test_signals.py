"""Signals that end work, at once or later."""

import multiprocessing
import os
import signal
import subprocess
import time
from multiprocessing import resource_tracker

import pytest

from spatialflow.utils import signals
from spatialflow.utils.signals import (
    Stopped,
    StopSignals,
    insistent,
    outlive_signals,
    signals_for_children,
)


def send(number, process=None):
    os.kill(process or os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_work_at_once(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as stopped, StopSignals():
        send(number)
    assert stopped.value.status == 128 + number
    assert str(stopped.value) == f"stopped by {number.name}"
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals():
            send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_signal_may_wait_and_the_second_does_not(monkeypatch):
    with StopSignals(wait=True) as stop:
        send(signal.SIGTERM)
        send(signal.SIGINT)  # a parent, or a batch system, has sent both
        assert stop.received == signal.SIGTERM
        monkeypatch.setattr(signals, "SAME_SECONDS", 0.0)
        with pytest.raises(Stopped):
            send(signal.SIGINT)
        stop.ignore()
        send(signal.SIGINT)


def test_what_may_be_interrupted_is_interrupted_at_once():
    with StopSignals(wait=True) as stop:
        assert stop.interrupting(lambda: 3)() == 3
        with pytest.raises(Stopped) as stopped:
            stop.interrupting(lambda: send(signal.SIGINT))()
        assert stopped.value.between_steps
        with pytest.raises(Stopped):
            stop.interrupting(lambda: pytest.fail("began"))()


def _work(ready):
    outlive_signals()
    ready.put(True)
    while True:
        time.sleep(0.05)


def test_a_worker_outlives_the_signals_of_its_group_and_not_its_parents():
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    with StopSignals(wait=True):
        worker = context.Process(target=_work, args=(ready,), daemon=True)
        worker.start()
        ready.get(timeout=60)
        for name in ("INT", "TERM"):
            subprocess.run(["/bin/kill", f"-{name}", str(worker.pid)], check=True)
        send(signal.SIGINT, worker.pid)
        worker.join(0.5)
        assert worker.is_alive()
        worker.terminate()
        worker.join(60)
    assert worker.exitcode == 0


def _child(ready):
    """Tell by the exit status which signal has come."""
    try:
        with StopSignals():
            ready.put(True)
            while True:  # a pause() would not notice a signal just before it
                time.sleep(0.05)
    except Stopped as stop:
        os._exit(stop.signum)


def test_signals_are_passed_on_to_children():
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    with signals_for_children():
        child = context.Process(target=_child, args=(ready,))
        child.start()
        ready.get(timeout=60)
        send(signal.SIGTERM)
        child.join(60)
    assert child.exitcode == signal.SIGTERM


def _starting(ready):
    """Start as a spawned process does, and wait where Python's handlers are not called."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ready.put(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    while True:
        time.sleep(1)


def test_a_second_signal_ends_a_child_that_has_not_begun(monkeypatch):
    """SIGINT waits in it, also where the first child has started Python's tracker."""
    monkeypatch.setattr(signals, "SAME_SECONDS", 0.0)
    tracker = resource_tracker.ResourceTracker()
    monkeypatch.setattr(resource_tracker, "ensure_running", tracker.ensure_running)
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    with signals_for_children() as passed_on:
        tracker.ensure_running()  # as a spawned child does
        child = context.Process(target=_starting, args=(ready,))
        child.start()
        assert ready.get(timeout=60) == {signal.SIGINT}
        assert not passed_on.event.is_set()
        send(signal.SIGINT)
        child.join(0.3)
        assert child.is_alive()
        send(signal.SIGINT)
        child.join(60)
    assert child.exitcode == -signal.SIGTERM
    assert passed_on.number == signal.SIGINT
    assert passed_on.event.is_set()


def test_signals_to_a_child_become_more_urgent():
    sent = [insistent(signal.SIGINT, count) for count in (1, 2, 3, 4)]
    assert sent == [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]


def _deaf():
    """Live on through every signal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(0.05)


@pytest.mark.timeout(60)
def test_a_forked_child_that_lives_on_holds_nobody_up():
    child = multiprocessing.get_context("fork").Process(target=_deaf)
    try:
        with signals_for_children():
            child.start()
        assert child.is_alive()
    finally:
        child.kill()
        child.join()
