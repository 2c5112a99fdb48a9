"""Native threads: calling into the one that a hub belongs to, and waiting for what happens there.

A hub belongs to one native thread, and so does everything on it: connections, listeners, watchers.  What another thread
asks of them is handed over to the hub's own thread.  Under monkey-patching, the functions of ``threading`` and
``_thread`` are about greenlets; here the original ones are used, in every kind of program.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

from gevent._hub_local import get_hub_if_exists
from gevent.event import Event
from gevent.exceptions import LoopExit
from gevent.monkey import get_original
from greenlet import greenlet

from ngi_gevent.core import forks
from ngi_gevent.errors import Deadlock, ImplementationClosed
from ngi_gevent.sockets.event_loop import for_timer, run_callback_threadsafe

__all__ = ["Flag", "allocate_lock", "call_on", "get_hub_if_exists", "get_ident", "is_only_thread", "start_new_thread"]

Result = TypeVar("Result")

#: Seconds after which a caller looks whether the thread that is to answer still exists: it may end in that moment.
LOOK_AFTER = 1.0

#: What somebody is told who waits for what can not come.
NOTHING_LEFT = (
    "nothing could ever end this wait: all that was begun has happened, and no greenlet, timer or other thread is left "
    "that could begin more"
)

get_ident: Callable[[], int] = get_original("_thread", "get_ident")
allocate_lock: Callable[[], Any] = get_original("_thread", "allocate_lock")
start_new_thread: Callable[..., int] = get_original("_thread", "start_new_thread")


def is_only_thread() -> bool:
    """Whether the program has no other native thread than this one."""
    return len(sys._current_frames()) == 1


class Flag:
    """An event that is set once, by any thread, and waited for on any thread, with greenlets or without.

    Where the waiting thread has a hub, its greenlets go on meanwhile.  Where it has none, none is made for it (that is
    what the private ``get_hub_if_exists`` is for): a thread that knows nothing of gevent would never clean it up.
    """

    def __init__(self) -> None:
        self._lock = allocate_lock()
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
        """Wait until it is set, or for *timeout* seconds; whether it is set.

        Where the caller knows that only this thread can set it (*alone*) and nothing on its hub ever could, this
        raises :class:`~ngi_gevent.Deadlock`.
        """
        hub = get_hub_if_exists()
        if hub is None:
            if alone and not self._set and is_only_thread():
                raise Deadlock(NOTHING_LEFT)
            self._wait_natively(timeout)
            return self._set
        if timeout is not None:
            timeout = for_timer(hub.loop, timeout)
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


def _has_thread(hub: Any) -> bool:
    """Return whether the thread of *hub* exists: it may have ended, or be in the process that this was forked from."""
    return hub.thread_ident in sys._current_frames()


def call_on(hub: Any, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call *function* on the thread of *hub*, which is running, and return what it returns or raise what it raises.

    Elsewhere than on that thread, it is called on a greenlet of its own, in the caller's context, and waited for.
    Raises :class:`~ngi_gevent.ImplementationClosed` where that thread has ended.
    """
    if get_ident() == hub.thread_ident:
        return function(*arguments)
    done = Flag()
    results: list[Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function(*arguments))
        except BaseException as error:
            errors.append(error)
        done.set()

    context = copy_context()

    def start() -> None:
        caller = greenlet(call, hub)
        caller.gr_context = context
        caller.switch()

    loop = hub.loop
    # A thread that exists may have no frame for a moment, so only a process that was forked looks before it waits.
    if loop is not None and (not forks.generation() or _has_thread(hub)):
        run_callback_threadsafe(loop, start)
        while not done.wait(LOOK_AFTER) and hub.loop is not None and _has_thread(hub):
            pass
    if not done.is_set():
        raise ImplementationClosed("the thread that was to do this has ended with its implementation")
    if errors:
        raise errors[0]
    return results[0]
