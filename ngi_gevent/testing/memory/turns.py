"""Callbacks in memory take turns: those of one implementation, or of one pair of connections made by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from ngi_gevent.core.registry import Registry, log_error
from ngi_gevent.core.threads import allocate_lock

if TYPE_CHECKING:
    from ngi_gevent.core.connection import BaseConnection
    from ngi_gevent.core.datagram import BaseDatagramListener
    from ngi_gevent.core.logs import Seldom
    from ngi_gevent.core.registry import OnError

__all__ = ["MemoryRegistry", "Turns"]


class Turns:
    """Callbacks waiting for their turn, one at a time."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], object]] = deque()
        self._lock = allocate_lock()
        #: Whether callbacks are being called.
        self.running = False
        #: The connection, or the listener for datagrams, in one of whose callbacks we are.
        self.current: BaseConnection | BaseDatagramListener | None = None
        #: What a callback wants the caller of the outermost call to learn.
        self.error: BaseException | None = None
        #: The greenlet that callbacks are being called on.
        self.greenlet: Any = None

    def queue(self, callback: Callable[[], object]) -> None:
        self._queue.append(callback)

    def _begins(self) -> bool:
        """Whether there is something to run and nobody who does; then it is the caller."""
        with self._lock:
            begins = bool(self._queue) and not self.running
            self.running = self.running or begins
        return begins

    def run(self) -> None:
        """Run what is queued, and what that causes, unless that is being done already: here, or on another thread."""
        while self._begins():
            self.greenlet = getcurrent()
            try:
                while self._queue:
                    self.current = None
                    self._queue.popleft()()
            finally:
                self.current = self.greenlet = None
                self.running = False
            error, self.error = self.error, None
            if error is not None:
                raise error


class MemoryRegistry(Registry):
    """What is outstanding in memory."""

    def __init__(self, turns: Turns, on_error: OnError | None = None) -> None:
        super().__init__(on_error or raise_interrupts)
        self.turns = turns


def raise_interrupts(
    registry: MemoryRegistry, peer: Any, where: str, error: BaseException, seldom: Seldom | None = None
) -> None:
    """Log *error*.  One that must end the program leaves the outermost call."""
    log_error(registry, peer, where, error, seldom)
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        registry.turns.error = error
