"""Native threads: locks, and flags that any thread can set and wait for.

Under monkey-patching, the functions of ``threading`` and ``_thread`` apply to greenlets.  This module uses the original
ones, in every program.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from gevent import sleep
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event
from gevent.exceptions import LoopExit
from gevent.monkey import get_original
from greenlet import getcurrent

from ngi_gevent.core import clock
from ngi_gevent.errors import Deadlock

__all__ = [
    "Flag",
    "allocate_lock",
    "cpu_clock",
    "get_hub_if_exists",
    "get_ident",
    "is_only_thread",
    "let_others_run",
    "make_lock",
    "seconds_of",
    "start_new_thread",
]

#: The message of the error for a wait that nothing can end.
NOTHING_LEFT = (
    "this wait can never end: perhaps the peer has no handler (set_handler); "
    "no greenlet, timer or thread is left to send input or to close"
)

#: The message of the error for a callback that waits for its own connection.
WAITS_FOR_ITSELF = (
    "a callback cannot wait for its own connection, where nothing happens until the callback returns; "
    "wait in another greenlet"
)

#: Seconds after which a wait that only other threads can end checks whether there are any.
CHECK_INTERVAL = 1.0

get_ident: Callable[[], int] = get_original("_thread", "get_ident")
allocate_lock: Callable[[], Any] = get_original("_thread", "allocate_lock")
_new_lock: Callable[[], Any] = get_original("_thread", "RLock")

_locks: WeakSet[Any] = WeakSet()


def make_lock() -> Any:
    """Return a lock for a few lines of code, for use in a ``with`` statement.

    A thread can acquire it again, because Python may run a signal handler in between.  In a forked child it is free if
    another thread held it, because that thread does not exist there.
    """
    lock = _new_lock()
    _locks.add(lock)
    return lock


def _free_locks() -> None:
    for lock in list(_locks):
        if not lock._is_owned():  # owned by this thread if a signal handler has forked in between
            lock._at_fork_reinit()  # no public method does this; the standard library calls it, too


os.register_at_fork(after_in_child=_free_locks)


def start_new_thread(function: Callable[..., object], arguments: tuple[Any, ...]) -> int:
    """Call *function* on a new native thread, and return that thread's id once it runs.

    Python 3.10 can crash if the program ends while a thread begins.
    """
    has_begun = allocate_lock()
    has_begun.acquire()

    def run() -> None:
        has_begun.release()
        function(*arguments)

    # Looked up at each call, because a simulation replaces the original.
    ident: int = get_original("_thread", "start_new_thread")(run, ())
    has_begun.acquire()
    return ident


def cpu_clock() -> int | None:
    """Return the id of the clock for the processor time of the calling thread; None if the system has none."""
    get = getattr(time, "pthread_getcpuclockid", None)  # missing on macOS
    return None if get is None else get(get_ident())


def seconds_of(clock_id: int | None) -> float | None:
    """Return the seconds of a thread's processor time; None without a clock, or if the thread has ended."""
    try:
        return None if clock_id is None else time.clock_gettime(clock_id)
    except OSError:
        return None


def is_only_thread() -> bool:
    """Return whether no other native thread exists, except in gevent's pool, whose threads have a waiting greenlet."""
    hub = get_hub_if_exists()
    return len(sys._current_frames()) == 1 + (0 if hub is None else hub.threadpool.size)


def let_others_run() -> None:
    """Let the other greenlets of the calling thread run, if it has a hub and the caller is not on the hub itself."""
    hub = get_hub_if_exists()
    if hub is not None and getcurrent() is not hub:
        sleep(0)


class Flag:
    """An event that any thread can set, once, and that any thread can wait for.

    If the waiting thread has a hub, its other greenlets run during the wait.  If it has none, no hub is made, because a
    thread that does not use gevent would never destroy it.  The private ``get_hub_if_exists`` is needed for this.
    """

    def __init__(self) -> None:
        self._lock = make_lock()
        self._set = False
        self._wakers: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._set

    def set(self) -> None:
        """Set it, and end all waits.  Never blocks.  Can be called on any thread, and again."""
        with self._lock:
            if not self._set:
                self._set = True
                # With the lock held, so that no waker is called after its wait is over.
                for wake in self._wakers:
                    wake()

    def wait(self, timeout: float | None = None, *, alone: bool = False) -> bool:
        """Wait until it is set.  Return True if it is set.

        Blocks the greenlet, or a thread that has no hub.

        :param timeout: seconds to wait at most; None for no limit.
        :param alone: whether only this thread can set the flag.  If nothing on this thread can set it any more, and no
            other thread exists, *timeout* counts as expired at once, except in virtual time.
        :raises Deadlock: with *alone* and without *timeout*, nothing can set the flag any more.
        """
        switch_out = getattr(getcurrent(), "switch_out", None)
        if switch_out is not None and not self._set:
            switch_out()  # raises in a callback that cannot wait; gevent calls it, too
        hub = get_hub_if_exists()
        if hub is None:
            if not alone or self._set or not is_only_thread():
                self._wait_natively(timeout)
            elif timeout is None:
                raise Deadlock(NOTHING_LEFT)
        elif alone and (timeout is None or (is_only_thread() and not clock.is_virtual())):
            while not self._wait_on_this_hub(hub, timeout):
                self._wait_for_any_thread(hub, CHECK_INTERVAL)
        else:
            self._wait_for_any_thread(hub, timeout)
        return self._set

    def _wait_natively(self, timeout: float | None) -> None:
        locked = allocate_lock()
        locked.acquire()
        if self._add_waker(locked.release):
            locked.acquire(timeout=-1 if timeout is None else timeout)
            self._remove_waker(locked.release)

    def _wait_for_any_thread(self, hub: Any, timeout: float | None) -> None:
        event = Event()
        # Other threads can use only this kind of a loop's watchers.  It also keeps the loop running.
        watcher = hub.loop.async_()
        watcher.start(event.set)
        # A gevent.Timeout that expires at the moment of a Ctrl-C would be raised later, anywhere in the program.
        timer = None if timeout is None else hub.loop.timer(timeout)
        try:
            if timer is not None:
                timer.start(event.set, update=True)
            if self._add_waker(watcher.send):
                try:
                    event.wait()
                finally:
                    self._remove_waker(watcher.send)
        finally:
            watcher.close()
            if timer is not None:
                timer.close()

    def _wait_on_this_hub(self, hub: Any, timeout: float | None) -> bool:
        """Wait for this thread to set it.  Return False if only another thread can, because this one is idle."""
        event = Event()
        # A loop without anything else to do raises LoopExit in the main greenlet, and there only.
        timer = None if timeout is None else hub.loop.timer(timeout, ref=getcurrent() is not hub.parent)
        try:
            if timer is not None:
                timer.start(event.set, update=True)
            if self._add_waker(event.set):
                try:
                    event.wait()
                except LoopExit:
                    if timeout is None:
                        if not is_only_thread():
                            return False
                        if not self._set:  # another thread may have set it, and ended, a moment ago
                            raise Deadlock(NOTHING_LEFT) from None
                finally:
                    self._remove_waker(event.set)
        finally:
            if timer is not None:
                timer.close()
        return True

    def _add_waker(self, wake: Callable[[], object]) -> bool:
        """Call *wake* when the flag is set.  Return True if it is not set yet; otherwise *wake* is not called."""
        with self._lock:
            if not self._set:
                self._wakers.append(wake)
            return not self._set

    def _remove_waker(self, wake: Callable[[], object]) -> None:
        with self._lock:
            self._wakers.remove(wake)
