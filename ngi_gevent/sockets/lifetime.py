"""Ending connections at the limit of their lifetime, also while they are closing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ngi_gevent.core import logs
from ngi_gevent.core.lifecycle import BREAK, CLOSED, FAIL, HANDSHAKE, Lifecycle
from ngi_gevent.errors import Timeout
from ngi_gevent.sockets.linger import CHECK_INTERVAL, SEND_TIMEOUT

if TYPE_CHECKING:
    from ngi_gevent.core.counters import Counters
    from ngi_gevent.interfaces import Reason

__all__ = ["Lifetimes"]

#: Connections of one listener whose reset is logged in ``logs.RATE_PERIOD`` seconds.
MOST_LOGGED = 10


class Living(Protocol):
    """The methods that the end of a lifetime calls on its connection."""

    _lifecycle: Lifecycle
    peer_address: Any

    def handle(self, event: str, reason: Reason | None = None) -> None:
        """Pass *event* to the lifecycle, and act on a new state."""

    def when_closed(self, callback: Callable[[], object]) -> None:
        """Call *callback* when the connection is gone."""


class Lifetimes:
    """The lifetimes of one listener's connections, *seconds* at most.

    At the end, a connection is closed, and its output is delivered.  A peer that takes a little from time to time could
    keep it in CLOSING for hours, so it is reset ``SEND_TIMEOUT`` seconds later.  This limit also applies to connections
    that the application or the peer has closed before.
    """

    def __init__(self, seconds: float, counters: Counters) -> None:
        self._seconds = seconds
        self._counters = counters
        self._limit = logs.RateLimit(MOST_LOGGED)

    def begin(self, connection: Living, loop: Any) -> None:
        """Begin the life of *connection*.  Called on the hub that has *loop*."""
        _Life(connection, loop).start(self._seconds, self._end)

    def _end(self, life: _Life) -> None:
        if life.connection._lifecycle.state is HANDSHAKE:
            # A handshake has its own limit, which is not longer than a lifetime.  It lasts longer only after a stall.
            life.start(min(self._seconds, CHECK_INTERVAL), self._end)
            return
        life.start(SEND_TIMEOUT, self._reset)
        if life.connection._lifecycle.state is not CLOSED:
            self._counters.limited["max_lifetime"] += 1
        reason = Timeout(f"the connection was open for {self._seconds} seconds (max_lifetime)")
        life.connection.handle(FAIL, reason)

    def _reset(self, life: _Life) -> None:
        connection = life.connection
        if connection._lifecycle.state is not CLOSED:
            connection.handle(BREAK)
            logs.connections.info(
                "connection with %r reset: still closing %s seconds after its max_lifetime of %s",
                *(connection.peer_address, SEND_TIMEOUT, self._seconds),
                limit=self._limit,
            )


class _Life:
    """The timer of one connection's life."""

    __slots__ = ("_loop", "_timer", "connection")

    def __init__(self, connection: Living, loop: Any) -> None:
        self.connection = connection
        self._loop = loop
        self._timer: Any = None
        connection.when_closed(self.close)

    def start(self, seconds: float, callback: Callable[[_Life], None]) -> None:
        """Call *callback* with this object after *seconds*."""
        self.close()
        self._timer = self._loop.timer(seconds)
        # Updates the loop's time first, which may be from before a handler that computed for long.
        self._timer.start(callback, self, update=True)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None
