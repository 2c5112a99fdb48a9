"""Native threads: locks, and waiting for what happens on any thread.

Under monkey-patching, the functions of ``threading`` and ``_thread`` are about greenlets.  Here the original ones are
used, in every kind of program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from gevent._hub_local import get_hub_if_exists
from gevent.event import Event
from gevent.exceptions import LoopExit
from gevent.monkey import get_original

from ngi_gevent.errors import Deadlock

__all__ = ["Flag", "allocate_lock", "get_hub_if_exists", "get_ident", "is_only_thread", "make_lock", "start_new_thread"]

#: The message of an error for a wait that nothing can end.
NOTHING_LEFT = "nothing can end this wait: no greenlet, timer or other thread is left; pass a timeout"

get_ident: Callable[[], int] = get_original("_thread", "get_ident")
allocate_lock: Callable[[], Any] = get_original("_thread", "allocate_lock")
start_new_thread: Callable[..., int] = get_original("_thread", "start_new_thread")
_new_lock: Callable[[], Any] = get_original("_thread", "RLock")

_locks: WeakSet[Any] = WeakSet()


def make_lock() -> Any:
    """Return a lock for a few lines of code, for use in a ``with`` statement.

    A thread can acquire it again, since Python may run a signal handler in between.  In a forked child it is free: the
    thread that held it does not exist there.
    """
    lock = _new_lock()
    _locks.add(lock)
    return lock


def _free_locks() -> None:
    for lock in list(_locks):
        lock._at_fork_reinit()  # as the standard library does it: there is no public method


os.register_at_fork(after_in_child=_free_locks)


def is_only_thread() -> bool:
    """Whether the program has no other native thread than this one."""
    return len(sys._current_frames()) == 1


class Flag:
    """An event that is set once, by any thread, and waited for on any thread, with greenlets or without.

    Where the waiting thread has a hub, its greenlets go on meanwhile.  Where it has none, none is made for it (that is
    what the private ``get_hub_if_exists`` is for): a thread that knows nothing of gevent would never clean it up.
    """

    def __init__(self) -> None:
        self._lock = make_lock()
        self._set = False
        self._wakers: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        with self._lock:
            self._set = True
            # Called with the lock held, so that none is called after its wait is over.
            for wake in self._wakers:
                wake()

    def wait(self, timeout: float | None = None, *, alone: bool = False) -> bool:
        """Wait until it is set, or for *timeout* seconds.  Return True if it is set.

        :param alone: whether only this thread can set it.
        :raises Deadlock: *alone*, there is no *timeout*, and nothing in this thread could set it any more.
        """
        hub = get_hub_if_exists()
        if hub is None:
            if alone and timeout is None and not self._set and is_only_thread():
                raise Deadlock(NOTHING_LEFT)
            self._wait_natively(timeout)
            return self._set
        if alone:
            self._wait_greenly(Event(), timeout)
        else:
            self._wait_for_thread(hub, timeout)
        return self._set

    def _wait_natively(self, timeout: float | None) -> None:
        locked = allocate_lock()
        locked.acquire()
        if self._wake_by(locked.release):
            locked.acquire(timeout=-1 if timeout is None else timeout)
            self._forget(locked.release)

    def _wait_for_thread(self, hub: Any, timeout: float | None) -> None:
        event = Event()
        # Sending to it is the one thing that another thread may do to a loop; and it keeps the loop going meanwhile.
        watcher = hub.loop.async_()
        watcher.start(event.set)
        # No gevent.Timeout: one that expires in the moment of a Ctrl-C is raised in whatever the program does then.
        timer = None if timeout is None else hub.loop.timer(timeout)
        try:
            if timer is not None:
                timer.start(event.set, update=True)
            if self._wake_by(watcher.send):
                try:
                    event.wait()
                finally:
                    self._forget(watcher.send)
        finally:
            watcher.close()
            if timer is not None:
                timer.close()

    def _wait_greenly(self, event: Event, timeout: float | None) -> None:
        if self._wake_by(event.set):
            try:
                event.wait(timeout)
            except LoopExit:
                raise Deadlock(NOTHING_LEFT) from None
            finally:
                self._forget(event.set)

    def _wake_by(self, wake: Callable[[], object]) -> bool:
        """Have *wake* called when this is set; whether it is not set yet."""
        with self._lock:
            if not self._set:
                self._wakers.append(wake)
            return not self._set

    def _forget(self, wake: Callable[[], object]) -> None:
        with self._lock:
            self._wakers.remove(wake)
