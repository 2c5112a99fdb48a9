"""The turns of callbacks in memory: in one implementation, or in one pair of connections made by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from ngi_gevent.core.registry import Registry
from ngi_gevent.core.threads import make_lock
from ngi_gevent.errors import WouldWait

if TYPE_CHECKING:
    from ngi_gevent.core.connection import BaseConnection
    from ngi_gevent.core.datagram import BaseDatagramListener
    from ngi_gevent.core.logs import LogRaised
    from ngi_gevent.core.registry import OnError

__all__ = ["CANNOT_WAIT", "MemoryRegistry", "Turns", "raise_interrupts"]

#: The message of the error for a callback that waits.
CANNOT_WAIT = "a callback in memory cannot wait; test it in ngi_gevent.testing.simulation, or on sockets"


def _refuse_to_wait() -> None:
    """A replacement for ``switch_out`` of a greenlet, which gevent calls before it switches to the hub."""
    raise WouldWait(CANNOT_WAIT)


class Turns:
    """A queue of callbacks, which are called one at a time."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], object]] = deque()
        self._lock = make_lock()
        #: Whether callbacks are being called.
        self.running = False
        #: The connection or UDP listener whose callback is running.
        self.current: BaseConnection | BaseDatagramListener | None = None
        #: An exception for the outermost call to raise.
        self.error: BaseException | None = None
        #: The greenlet on which callbacks are being called.
        self.greenlet: Any = None

    def queue(self, callback: Callable[[], object]) -> None:
        self._queue.append(callback)

    def is_due(self) -> bool:
        """Return whether a callback is waiting for its turn."""
        return bool(self._queue)

    def _start(self) -> bool:
        """If the queue is not empty and not running, make the caller run it, and return True."""
        with self._lock:
            starts = bool(self._queue) and not self.running
            self.running = self.running or starts
        return starts

    def run(self) -> None:
        """Run the queue until it is empty, unless an outer call or another thread is already running it."""
        while self._start():
            greenlet: Any = getcurrent()
            switch_out = greenlet.__dict__.get("switch_out")
            self.greenlet, greenlet.switch_out = greenlet, _refuse_to_wait
            try:
                while self._queue:
                    self.current = None
                    self._queue.popleft()()
            finally:
                self.current = self.greenlet = None
                self.running = False
                if switch_out is None:
                    del greenlet.switch_out
                else:  # this is a callback of another implementation, or another pair
                    greenlet.switch_out = switch_out
            error, self.error = self.error, None
            if error is not None:
                raise error


class MemoryRegistry(Registry):
    """The number of pending connections, listeners and attempts in memory."""

    def __init__(self, turns: Turns, on_error: OnError) -> None:
        super().__init__(on_error)
        self.turns = turns


def raise_interrupts(registry: MemoryRegistry, peer: Any, where: str, error: BaseException, log: LogRaised) -> None:
    """Log *error*.  If it must end the program, the outermost call raises it."""
    log(peer, where, error)
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        registry.turns.error = error
