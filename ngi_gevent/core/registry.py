"""What an implementation has under way, and the log that learns what handlers raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ngi_gevent.core import logs
from ngi_gevent.core.connection import BaseConnection

__all__ = ["Outstanding"]


class _Stoppable(Protocol):
    def stop(self) -> None: ...


class Outstanding:
    """Listeners of both kinds, connects and client connections: everything that ``wait`` waits for.  It is their owner.

    Server connections belong to their listener, which is outstanding for as long as they are.
    """

    def __init__(self) -> None:
        self._items: dict[_Stoppable, None] = {}
        self._when_empty: list[Callable[[], object]] = []  # of those who wait

    def __bool__(self) -> bool:
        return bool(self._items)

    def __str__(self) -> str:
        return ", ".join(map(repr, self._items)) or "nothing"

    def add(self, item: _Stoppable) -> None:
        self._items[item] = None

    def forget(self, item: Any) -> None:
        self._items.pop(item, None)
        if not self._items:
            for callback in list(self._when_empty):
                callback()

    def includes(self, connection: Any) -> bool:
        """Whether *connection*, or connect, or listener for datagrams, or None, keeps this from being empty."""
        return connection in self._items or getattr(connection, "control", None) in self._items

    def unsent_size(self) -> int:
        """Return how many bytes of output the peers have not taken."""
        return sum(item.unsent_size() for item in list(self._items) if hasattr(item, "unsent_size"))

    def has_connections(self) -> bool:
        """Return whether there are connections that are not closed."""
        return any(item.has_connections() for item in list(self._items) if hasattr(item, "has_connections"))

    def stop(self) -> None:
        """End everything without waiting, but for connections that are closed already: they finish delivering."""
        for item in list(self._items):
            if not isinstance(item, BaseConnection) or item.delivers():
                item.stop()

    # What is owned tells this.

    def connection_gone(self, connection: Any) -> None:
        self.forget(connection)

    def handler_raised(self, peer: Any, where: str, error: BaseException, seldom: logs.Seldom | None = None) -> None:
        logs.connections.error("connection with %r: %s raised an exception", peer, where, error=error, seldom=seldom)
