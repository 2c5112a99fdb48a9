"""Signals that stop a program: the first one sets a flag, and the second one ends the process at once.

Greenlets run only while the hub runs, and Python calls signal handlers only between two instructions of Python code.
While a handler waits in C code, neither is possible.  So a native thread waits for the signals: Python's C-level signal
handler writes the number of each signal to a pipe (``signal.set_wakeup_fd``), and the thread reads the pipe.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

from ngi_gevent.core.threads import Flag, start_new_thread

__all__ = ["catch_stop"]

#: Descriptors of the pipe and earlier signal handlers, in the process that called ``catch_stop``.
_caught: tuple[int, int, dict[int, Any]] | None = None


def catch_stop(*numbers: int) -> Flag:
    """Return a flag that the first of these signals sets.

    Call it in the main thread.  Never blocks.  The second signal ends the process at once, without any cleanup, even if
    a handler never lets other greenlets run.  The exit code is 128 plus the signal's number.  While C code computes
    with the GIL held, the process ends only after that code returns.  If an asyncio loop in the main thread adds a
    signal handler later, this is true for all C code, because Python notifies only one of them.

    Blocked signals (``env --block-signal``) are unblocked, so a signal that was sent before this call counts, too.  In
    a forked child, the signals have the effect that they had before this call.

    The flag has three methods.  ``wait(timeout=None)`` blocks only the calling greenlet, and returns whether the flag
    is set.  ``is_set()`` never blocks.  ``set()`` sets the flag without a signal, on any thread.

    :param numbers: the signals; by default, SIGTERM and SIGINT.
    :raises ValueError: the call is not in the main thread, or a number does not belong to a signal.
    :raises OSError: a signal, such as SIGKILL, cannot be caught.
    :raises RuntimeError: an earlier call or an asyncio loop already waits for signals, or no thread can be started.
    """
    global _caught
    wanted = numbers or (signal.SIGTERM, signal.SIGINT)
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    before: dict[int, Any] = {}
    stop = Flag()
    try:
        in_use = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        if in_use != -1:
            signal.set_wakeup_fd(in_use)
            raise RuntimeError("signal.set_wakeup_fd is in use; call catch_stop once in a process")
        try:
            for number in wanted:
                before[number] = signal.signal(number, _caught_in_python)
            start_new_thread(_watch, (readable, frozenset(wanted), stop))
        except BaseException:
            _restore(before)
            raise
    except BaseException:
        os.close(readable)
        os.close(writable)
        raise
    _caught = readable, writable, before
    signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
    return stop


def _caught_in_python(number: int, frame: object) -> None:
    """Write *number* to the pipe, unless Python has written it.

    Python writes to one descriptor only, and other code, such as an asyncio loop, can have set another descriptor.
    """
    if _caught is None:  # The signal came during catch_stop, so Python has written it.
        return
    _, writable, _ = _caught
    in_use = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    if in_use == writable:
        return
    with suppress(BlockingIOError):  # The pipe is full of signals.
        os.write(writable, bytes([number]))
    if in_use != -1:
        with suppress(OSError, ValueError):  # A closing asyncio loop has closed it.
            signal.set_wakeup_fd(in_use)


def _watch(readable: int, wanted: frozenset[int], stop: Flag) -> None:
    # The numbers of other signals that have handlers in Python are written to the pipe, too.
    while caught := os.read(readable, 1):
        if caught[0] in wanted:
            if stop.is_set():
                os._exit(128 + caught[0])
            stop.set()


def _restore(before: dict[int, Any]) -> None:
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _leave_to_parent() -> None:
    """Restore the signal handlers in a forked child, because the pipe leads to the parent's thread."""
    global _caught
    if _caught is not None:
        readable, writable, before = _caught
        _caught = None
        _restore(before)
        os.close(readable)
        os.close(writable)


os.register_at_fork(after_in_child=_leave_to_parent)
