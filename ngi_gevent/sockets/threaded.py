"""The implementation with a hub in its own thread."""

from __future__ import annotations

import atexit
import ctypes
import threading
from collections.abc import Callable
from itertools import count
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, TypeVar

from gevent import get_hub
from gevent.event import Event
from gevent.monkey import is_module_patched

from ngi_gevent.core import clock, forks
from ngi_gevent.core.checks import as_timeout
from ngi_gevent.core.options import LINGER_TIMEOUT
from ngi_gevent.core.registry import log_error
from ngi_gevent.core.threads import Flag, get_ident, make_lock, start_new_thread
from ngi_gevent.errors import Deadlock, ImplementationClosed, Timeout
from ngi_gevent.interfaces import documented_by
from ngi_gevent.sockets.hub_registry import HubRegistry
from ngi_gevent.sockets.implementation import Implementation

if TYPE_CHECKING:
    from ngi_gevent.core.logs import LogRaised

__all__ = ["Threaded"]

#: Seconds that the end of the program waits for the thread.  This is longer than the wait for a peer that does not
#: close its side, because an interpreter that ends at the same moment as a thread may crash.
EXIT_TIMEOUT = LINGER_TIMEOUT + 1.0

#: Seconds in which the thread answers if it does not run a handler.
IDLE_TIMEOUT = 0.1

Result = TypeVar("Result")

_numbers = count(1)  # for the names of threads


def log_or_exit(registry: HubRegistry, peer: Any, where: str, error: BaseException, log: LogRaised) -> None:
    """Log *error*.  If it is ``SystemExit`` in a child that was forked in a handler, end the child's only thread."""
    if registry.mailbox.is_of_parent and isinstance(error, SystemExit):
        get_hub().handle_system_error(type(error), error, error.__traceback__)  # in the main greenlet of the thread
    log_error(registry, peer, where, error, log)


@documented_by(Implementation)
class Threaded(Implementation):
    """An implementation with a hub in its own daemon thread, for programs that do not use gevent otherwise.

    Otherwise like :class:`Implementation`.  The thread starts on first use, and ends after ``close()``, when the last
    connection has ended.  It does not wait for greenlets that handlers have spawned.  It is a native thread in every
    program, monkey-patched or not.  Handlers run on that thread; their exceptions are logged.  You can call every
    method from any thread.  It blocks until the implementation's thread has made the call, so a handler that computes,
    or blocks that thread, also blocks callers.

    :param name: the name of the thread and of its hub; by default ``'ngi_gevent.Threaded-'`` and a number.  In a
        monkey-patched program, only the hub has this name, because ``threading`` applies to greenlets there.
    :raises TypeError: *name* is not text.
    """

    _on_error = staticmethod(log_or_exit)

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__()
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str, or None; got {name!r:.100}")
        self._name = f"ngi_gevent.Threaded-{next(_numbers)}" if name is None else name
        self._starting = make_lock()
        self._start: _Start | None = None  # pending or done
        self._stop = Event()
        self._delivered = Flag()  # set once this is closed, and has delivered all output that peers take
        self._ended = Flag()

    def _call(self, function: Callable[[], Result]) -> Result:
        return self._running_registry().mailbox.call(function)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until no connection attempt, connection or listener is left.

        Blocks the calling greenlet or thread.  After ``close()``, returns when everything is delivered.

        :param timeout: seconds to wait; None for no limit.
        :raises Timeout: one of these is still left after *timeout* seconds.
        :raises Deadlock: called in a callback of a connection that it would wait for.
        """
        timeout = as_timeout(timeout)
        if self._is_on_its_thread():
            super().wait(timeout)
            return
        try:
            registry = self._running_registry()
        except ImplementationClosed:
            if not self._closed:
                raise
            self.join(timeout)
            return
        deadline = clock.deadline_after(timeout)
        empty = Flag()
        while registry.mailbox.call_soon(registry.set_when_empty, empty):
            if not empty.wait(clock.left_until(deadline)):
                registry.mailbox.call_soon(registry.forget_waker, empty.set)
                if registry:  # the thread may not have set the flag yet
                    raise Timeout(f"still pending after {timeout} seconds: {registry}")
            if not registry:
                return
            empty = Flag()  # the end of one connection has begun the next

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended: after ``close()``, when all output is delivered and all callbacks are over.

        Blocks the calling greenlet or thread.  Returns at once if the thread was never started.

        :param timeout: seconds to wait; None for no limit.
        :raises Timeout: the thread still runs after *timeout* seconds.
        :raises Deadlock: called on that thread.
        """
        timeout = as_timeout(timeout)
        if self._is_on_its_thread():
            raise Deadlock("join cannot end on the thread that it waits for; call it on another thread")
        start = self._start
        if start is not None and self._has_thread() and not self._ended.wait(timeout):
            raise Timeout(f"the thread still runs after {timeout} seconds; pending: {start.registry}")

    def close(self) -> None:
        registry = self._closes()
        if registry is not None:
            registry.mailbox.call_soon(self._stop_all, registry)

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._has_thread() and not self._is_on_its_thread():
            self._delivered.wait()

    def end_at_exit(self) -> None:
        """Close, and wait for the thread, because an interpreter that ends at the same moment may crash."""
        self.close()
        if self._has_thread() and not self._ended.wait(EXIT_TIMEOUT):
            self._interrupt()

    def _interrupt(self) -> None:
        """Raise ``SystemExit`` in a handler that computes, so that it does not run while the interpreter ends.

        CPython 3.13 ends such a thread in a way that crashes the process, because greenlets have their own stacks.
        """
        start = self._start
        assert start is not None
        idle = Flag()
        if start.registry is not None and start.registry.mailbox.post(idle.set) and not idle.wait(IDLE_TIMEOUT):
            # Only this function does it, and it does not have a Python interface.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(start.ident), ctypes.py_object(SystemExit))
            self._ended.wait(EXIT_TIMEOUT)

    def _has_thread(self) -> bool:
        """Return whether this was started in this process.  A forked child does not have its parent's threads."""
        start = self._start
        return start is not None and start.generation == forks.generation()

    def _is_on_its_thread(self) -> bool:
        start = self._start
        return start is not None and start.registry is not None and start.registry.mailbox.is_here()

    def _closes(self) -> HubRegistry | None:
        """Refuse new calls.  Return the registry to stop; None if another caller stops it, or nothing has started."""
        with self._starting:
            start = self._start
            if start is not None and start.registry is not None:
                start.registry.expect_stop()
            closed, self._closed = self._closed, True
        if closed or start is None or not self._has_thread():
            return None
        start.over.wait()
        return start.registry

    def _stop_all(self, registry: HubRegistry) -> None:
        registry.stop()
        self._stop.set()

    def _running_registry(self) -> HubRegistry:
        """Start the thread if necessary, and return its registry."""
        # Callers do not wait while they hold the lock; otherwise greenlets of one thread would wait for each other
        # forever.
        with self._starting:
            self._check_open()
            begun = self._start is not None
            start = self._start = self._start or _Start()
        if start.generation != forks.generation():
            raise ImplementationClosed(
                "this Threaded was started before a fork, so its thread is in the parent process; create another here"
            )
        if not begun:
            self._start_thread(start)
        start.over.wait()
        if start.registry is None:
            assert start.error is not None
            raise start.error
        return start.registry

    def _start_thread(self, start: _Start) -> None:
        _running.add(self)
        try:
            # libev opens up to three descriptors.  Without them, it would retry forever in a busy loop.
            self._network.check_room(4)
            if is_module_patched("threading"):
                # A hub made in a new thread waits for import locks, and only a hub of this thread can release them.
                get_hub()
                start_new_thread(self._serve, (start,))
            else:
                threading.Thread(target=self._serve, args=[start], name=self._name, daemon=True).start()
        except Exception as error:
            self._start_failed(start, error)

    def _start_failed(self, start: _Start, error: BaseException) -> None:
        """Raise *error* in all callers that wait for this start.  The next call tries again."""
        with self._starting:
            _running.discard(self)
            self._start = None
        start.error = error
        start.over.set()

    def _serve(self, start: _Start) -> None:
        """The body of the thread, which runs the hub until this is closed and everything has ended."""
        hub = None
        start.ident = get_ident()
        try:
            hub = get_hub()
            hub.name = self._name
            keep_running = hub.loop.async_()  # otherwise, an idle loop would end
            keep_running.start(lambda: None)
            registry = self._on_hub[hub] = self._make_registry()
        except BaseException as error:
            if hub is not None:
                hub.destroy(destroy_loop=True)
                hub = None
            # The frames keep the failed hub in a cycle, and the hub has the last reference to this thread's main
            # greenlet.  greenlet 3.5 crashes if the collector finds the cycle while greenlet cleans up after it.
            clear_frames(error.__traceback__)
            self._start_failed(start, error)
            return
        # Without this, a greenlet that raises SystemExit or KeyboardInterrupt would end this thread, but not the
        # program.
        hub.SYSTEM_ERROR = (SystemError,)
        start.registry = registry
        start.over.set()
        self._stop.wait()
        registry.wait_for_delivery()
        self._delivered.set()
        registry.wait(None)
        registry.mailbox.close()
        keep_running.close()
        hub.destroy(destroy_loop=True)
        self._ended.set()
        _running.discard(self)


class _Start:
    """One start of the thread of a :class:`Threaded`.

    :ivar generation: ``forks.generation()`` of the thread's process.
    :ivar ident: the thread's ident, once it runs.
    :ivar over: set once the hub runs, or the start has failed.
    :ivar error: the error if the start has failed.
    :ivar registry: the registry of the hub, once it runs.
    """

    def __init__(self) -> None:
        self.generation = forks.generation()
        self.ident = 0
        self.over = Flag()
        self.error: BaseException | None = None
        self.registry: HubRegistry | None = None


# Implementations whose thread may run.  Not a WeakSet, because threads can begin and end during an iteration.
_running: set[Threaded] = set()


@atexit.register
def _end_running_threads() -> None:
    for implementation in list(_running):
        implementation.end_at_exit()
