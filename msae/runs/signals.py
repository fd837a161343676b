"""SIGINT and SIGTERM: a run saves where it is, says how to resume it, and ends with exit status 130 or 143.

While training is `deferred`, a signal only sets `received`: training saves at its next step and ends by itself.
Anywhere else, at a second signal, or when saving takes longer than `GRACE`, it raises KeyboardInterrupt at once. Half-
imported packages drop exceptions, or crash: within an import the process ends there, or once it has trained, after it.

This module imports nothing heavy: a command calls `early` before its other imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

GRACE = 20.0
"""Seconds in which training may come to a place where it saves."""
TWICE = 0.5
"""Seconds in which further signals are the same wish: a terminal and a parent process may both send one."""
POLL = 0.05
"""Seconds after which an import is looked at again."""


class _State:
    """What has happened in this process."""

    received = 0
    at = 0.0
    deferred = False
    parent = 0
    busy = False
    begun = False


def early() -> None:
    """End the process in one line at a signal while modules are being imported, without a traceback."""
    _install(_end)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Handle signals for the length of a command."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _State.received, _State.deferred, _State.parent, _State.begun = 0, False, 0, False
    watch()
    try:
        yield
    finally:
        _alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def watch() -> None:
    """Handle signals from here on, also where a library has put its own handlers."""
    if threading.current_thread() is threading.main_thread():
        _install(_handle)


@contextlib.contextmanager
def in_worker() -> Iterator[None]:
    """Handle signals during a run in a process that a sweep started, which ends when the sweep does, or is killed."""
    if not _is_worker():
        yield
        return
    watch()
    if not _State.parent:
        _State.parent = os.getppid()
        threading.Thread(target=_follow, args=(_State.parent,), daemon=True).start()
    _State.busy = True
    try:
        yield
    finally:
        _State.busy = False


def received() -> int:
    """The signal that this process has received, or 0; SIGTERM in a worker whose sweep was killed."""
    if _State.parent and os.getppid() != _State.parent:
        _State.received = _State.received or signal.SIGTERM
    return _State.received


def code() -> int:
    """The exit status of an interrupted command."""
    return 128 + (_State.received or signal.SIGINT)


def defer() -> None:
    """Let training react to a signal by itself from here on."""
    _State.deferred = _State.begun = True


def release() -> None:
    """React to signals at once from here on; SystemExit where one was received before."""
    _State.deferred = False
    _alarm(0)
    if received():
        raise SystemExit(code())


def again() -> None:
    """Take the next signal for a new one."""
    _State.at = 0.0


def ended() -> None:
    """Ignore signals from here on, where a command has ended and its process is about to."""
    _install(signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    first = not _State.received
    if not first and time.monotonic() - _State.at < TWICE:
        return
    _State.at = time.monotonic()
    if first:
        _State.received = number
        _pass_on()
        if _State.deferred:
            _alarm(GRACE)
            return
    if _State.busy or not _State.parent:  # a worker between two runs waits for the sweep, which ends it
        _interrupt(number, frame)


def _interrupt(_: int, frame: FrameType | None) -> None:
    importing = _importing(frame)
    if importing and not _State.begun:
        _end(_State.received, frame)
    if importing and time.monotonic() < _State.at + GRACE and hasattr(signal, "setitimer"):
        _alarm(POLL)
    else:
        raise KeyboardInterrupt


def _end(number: int, _: FrameType | None) -> NoReturn:
    if not _is_worker():
        with contextlib.suppress(OSError):
            os.write(1, b"\ninterrupted: nothing was kept; the same command starts again\n")
    os._exit(128 + number)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and "importlib._bootstrap" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def _install(handler: Any) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # of a job in the background of a shell
        signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def _alarm(seconds: float) -> None:
    """Interrupt after so many seconds; 0 for never."""
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():  # Windows lacks it
        if seconds:
            signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _is_worker() -> bool:
    current = getattr(sys.modules.get("multiprocessing"), "current_process", None)  # which may be half imported
    return current is not None and current().name != "MainProcess"


def _follow(parent: int) -> None:
    """End this worker once its sweep was killed, and the run that it is training has saved."""
    while os.getppid() == parent or _State.busy:
        time.sleep(1)
    os._exit(128 + signal.SIGTERM)


def _pass_on() -> None:
    """Tell the workers of a sweep."""
    children = getattr(sys.modules.get("multiprocessing"), "active_children", list)
    for child in children():
        with contextlib.suppress(OSError, TypeError):
            os.kill(child.pid, signal.SIGTERM)
