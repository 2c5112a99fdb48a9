"""The crowd at one listener: connections from each host, pending handshakes, and the lifetimes of connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from ngi_gevent.core import logs
from ngi_gevent.core.counters import Counters
from ngi_gevent.core.limits import HostCount, Limits, format_host
from ngi_gevent.sockets.lifetime import Lifetimes, Living

__all__ = ["MOST_FAILED", "MOST_REFUSED", "MOST_WITHOUT_HANDLER", "Crowd"]

#: Log entries of one listener in ``logs.RATE_PERIOD`` seconds: for refused connections, and for failed handshakes.
MOST_REFUSED = MOST_FAILED = 10

#: The same, of connections without a handler.
MOST_WITHOUT_HANDLER = 1


class Crowd:
    """The clients of one listener, within its limits."""

    def __init__(self, limits: Limits, *, is_behind_proxies: bool = False) -> None:
        self._limits = limits
        self._is_behind_proxies = is_behind_proxies  # trusted peers, whose headers name the client later
        self.counters = Counters()
        #: Called when there is room for another handshake.
        self.has_room: Callable[[], object] = _do_nothing
        self._hosts = None if limits.max_per_host is None else HostCount(limits.max_per_host)
        self._lifetimes = None if limits.max_lifetime is None else Lifetimes(limits.max_lifetime, self.counters)
        self._refusals = logs.RateLimit(MOST_REFUSED)
        self._handshakes = 0  # pending
        #: The rate limit of log entries for failed handshakes.
        self.failures = logs.RateLimit(MOST_FAILED)
        #: The rate limit of log entries for connections without a handler.
        self.no_handler = logs.RateLimit(MOST_WITHOUT_HANDLER)

    def admits(self, peer_address: Any) -> bool:
        """Return whether one more connection from *peer_address* is allowed.

        Connections from proxies are always admitted.  Their clients count when ``admits_client`` is called.
        """
        return self._is_behind_proxies or self._hosts is None or self._hosts.has_room(peer_address)

    def admits_client(self, connection: Any, client: Any) -> bool:
        """Return whether *connection*, from a proxy, is allowed for the address *client*.

        Count it if it is allowed, otherwise note the refusal.
        """
        if self._hosts is None:
            return True
        if not self._hosts.has_room(client):
            self.note_refusal(client, connection.local_address)
            return False
        self._hosts.add(connection, client)
        return True

    def note_refusal(self, peer_address: Any, address: Any) -> None:
        """Count and log that the listener on *address* refused a connection from *peer_address*."""
        self.counters.limited["max_per_host"] += 1
        logs.listeners.warning(
            "listener on %r refused a connection from %r: %s has %d open (max_per_host)",
            *(address, peer_address, format_host(peer_address), self._limits.max_per_host),
            limit=self._refusals,
        )

    def add(self, connection: Living, peer_address: Any, loop: Any) -> None:
        """Count *connection*, and begin its life.  Called on the hub that has *loop*."""
        if self._hosts is not None and not self._is_behind_proxies:
            self._hosts.add(connection, peer_address)
        if self._lifetimes is not None:
            self._lifetimes.begin(connection, loop)

    def remove(self, connection: Any) -> None:
        """Stop counting *connection*, which is gone."""
        if self._hosts is not None:
            self._hosts.remove(connection)

    # Handshakes.

    def within_lifetime(self, seconds: float | None) -> float | None:
        """Return *seconds*, or the lifetime of connections if that is less."""
        allowed = [most for most in (seconds, self._limits.max_lifetime) if most is not None]
        return min(allowed, default=None)

    @contextmanager
    def handshake(self) -> Iterator[None]:
        """Count the block as a handshake with a client."""
        self._handshakes += 1
        try:
            yield
        finally:
            was_full = self.room() < 1
            self._handshakes -= 1
            if was_full:
                self.has_room()

    def full_reason(self) -> str:
        """Return why the listener must not accept until a handshake is over."""
        return f"max_handshakes={self._limits.max_handshakes} reached"

    def room(self) -> float:
        """Return how many more handshakes can begin now."""
        most = self._limits.max_handshakes
        return inf if most is None else most - self._handshakes


def _do_nothing() -> None:
    """The default for ``has_room``."""
