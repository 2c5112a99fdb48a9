"""The mailbox of a hub, in which other native threads leave calls for the hub's thread.

A hub belongs to one native thread, and so do its connections and listeners, which have no locks.  Another thread leaves
a call in the hub's mailbox.  The hub's thread makes these calls in their order, before its own calls on a connection.
The loop is woken once for a burst of calls.

Once the hub has gone, the mailbox refuses calls.  A hub can go in three ways: it is destroyed, its thread ends, or it
belongs to the parent of this process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from math import inf
from typing import Any, TypeVar
from weakref import ref

from gevent import sleep
from gevent.event import Event
from gevent.monkey import get_original
from greenlet import getcurrent, greenlet

from ngi_gevent.core import clock, forks
from ngi_gevent.core.threads import Flag, make_lock
from ngi_gevent.errors import ImplementationClosed

__all__ = ["Mailbox", "this_thread"]

Result = TypeVar("Result")

#: Seconds after which a waiting caller checks whether the hub still exists.
CHECK_AFTER = 1.0


class _Life:
    """An object that exists as long as the native thread that made it.  Idents are not enough: they are reused."""

    __slots__ = ("__weakref__",)


# The original class, because the patched threading.local is local to greenlets.
class _ThisThread(get_original("_thread", "_local")):  # type: ignore[misc]
    """The dispatcher of the calling native thread's hub, and the calls in its mailbox, if it has a hub."""

    dispatcher: Any = None
    calls: Any = None
    life: _Life | None = None


this_thread = _ThisThread()


class Mailbox:
    """The calls for one hub.  Made on the hub's thread.

    :ivar calls: the calls that are left to make.  On the hub's thread, ``this_thread.calls`` is this object.
    :ivar lock: held for several calls that must happen in one step.  A thread can acquire it again.
    :ivar is_of_parent: whether the hub, and everything on it, belongs to the parent of this forked process.
    """

    __slots__ = (
        "_hub",
        "_inside",
        "_life",
        "_making",
        "_open",
        "_output",
        "_returned",
        "_woken",
        "calls",
        "is_of_parent",
        "lock",
    )

    #: The name of the owner, for messages, if ``is_of_parent``.
    owner = "the process that this one was forked from"

    def __init__(self, hub: Any) -> None:
        self.calls: deque[tuple[Context, Callable[..., object], tuple[Any, ...]]] = deque()
        self.lock = make_lock()
        self._hub = ref(hub)  # weak, so that a mailbox does not keep a hub that its thread has given up
        self.is_of_parent = False
        life = this_thread.life = this_thread.life or _Life()
        self._life = ref(life)
        self._open = True
        self._making: Any = None  # the greenlet that makes calls
        self._woken = False  # whether the loop will make the calls soon
        self._output: dict[Any, int] = {}  # bytes of output in the calls for each connection
        self._inside = 0  # callers that wait for results
        self._returned = Event()
        this_thread.calls = self.calls

    def is_here(self) -> bool:
        """Return whether the caller is on the hub's thread."""
        return this_thread.calls is self.calls

    def post(self, call: Callable[..., object], *arguments: Any) -> bool:
        """Leave a call to be made on the hub's thread soon.  Return False, and do not make it, if the hub has gone.

        Never blocks.  The call is made in the caller's context, on any greenlet of the hub's thread, so it must not
        switch to another.
        """
        with self.lock:
            loop = self._loop()
            if loop is None or not self._open:
                return False
            if not self._woken:
                try:
                    loop.run_callback_threadsafe(self._deliver)
                except ValueError:  # the loop is being destroyed
                    return False
                self._woken = True
            self.calls.append((copy_context(), call, arguments))
            return True

    def post_output(self, connection: Any, size: int, call: Callable[..., object], *arguments: Any) -> bool:
        """Leave a call with *size* bytes of output for *connection*.  See ``post``."""
        with self.lock:
            posted = self.post(self._take_output, connection, size, call, arguments)
            if posted:
                self._output[connection] = self.queued_output(connection) + size
            return posted

    def queued_output(self, connection: Any) -> int:
        """Return how many bytes of output for *connection* are in the calls that are left to make."""
        return self._output.get(connection, 0)

    def call_soon(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Make the hub itself call *function* soon.  Called on any thread.  Return False if the hub has gone."""
        return self.post(self._run_callback, function, *arguments)

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call *function* on the hub's thread, and return its result or raise its exception.

        On another thread, this blocks the calling greenlet or thread, and *function* runs on its own greenlet, in the
        caller's context.

        :raises ImplementationClosed: the hub has gone.
        """
        if self.is_here():
            return function(*arguments)
        done = Flag()
        results: list[Result] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function(*arguments))
            except BaseException as error:
                errors.append(error)
            with self.lock:
                self._inside -= 1
            self._returned.set()
            done.set()

        with self.lock:
            posted = self.post(self._start, run)
            self._inside += posted
        if posted:
            self.wait_for(done)
        if errors:
            raise errors[0]
        if not results:
            if self.is_of_parent:
                raise ImplementationClosed(
                    "this belongs to the parent process; create another implementation after the fork"
                )
            raise ImplementationClosed("the thread of this hub has ended; create another implementation")
        return results[0]

    def wait_for(self, flag: Flag, timeout: float | None = None) -> bool:
        """Wait on another thread until the hub's thread sets *flag*.  Return False if it did not.

        False means that the time is up, or the hub has gone.

        :param timeout: seconds to wait at most; None for no limit.
        """
        until = inf if timeout is None else clock.now() + timeout
        while not flag.wait(min(CHECK_AFTER, max(0.0, until - clock.now()))):
            if self._loop() is None or clock.now() >= until:
                return flag.is_set()
        return True

    def make_calls(self) -> None:
        """Make the calls that are there now.  Called on the hub's thread."""
        before, current = self._making, getcurrent()
        if before is current:
            return  # made in one of these calls, which the others follow
        self._making = current
        calls = self.calls
        try:
            for _ in range(len(calls)):
                if calls:  # otherwise, another greenlet has made them
                    context, call, arguments = calls.popleft()
                    context.run(call, *arguments)
        finally:
            self._making = before

    def close(self) -> None:
        """Refuse calls from now on, make the remaining calls, and wait until all callers have their results.

        Called on a greenlet of the hub, before the hub is destroyed.
        """
        with self.lock:
            self._open = False
        self.make_calls()
        sleep(0)  # until the hub has made the calls of call_soon
        while self._inside:
            self._returned.clear()
            self._returned.wait()

    def leave_to_parent(self) -> None:
        """Refuse calls from now on, and drop the remaining calls, in a forked child."""
        self.is_of_parent = True
        forks.keep(*self.calls)
        self.calls.clear()

    def _loop(self) -> Any:
        """Return the hub's loop; None if the hub has gone."""
        hub = self._hub()
        if hub is None or self._life() is None or self.is_of_parent:
            return None
        return hub.loop

    def _run_callback(self, function: Callable[..., object], *arguments: Any) -> None:
        loop = self._loop()
        if loop is not None:
            loop.run_callback(function, *arguments)

    def _deliver(self) -> None:
        with self.lock:
            self._woken = False
        try:
            self.make_calls()
        except BaseException:
            self._run_callback(self._deliver)  # the other calls must not wait for the next one
            raise

    def _take_output(self, connection: Any, size: int, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        with self.lock:
            left = self._output[connection] - size
            if left:
                self._output[connection] = left
            else:
                del self._output[connection]
        call(*arguments)

    def _start(self, run: Callable[[], None]) -> None:
        caller = greenlet(run, self._hub())
        caller.gr_context = copy_context()
        self._run_callback(caller.switch)
