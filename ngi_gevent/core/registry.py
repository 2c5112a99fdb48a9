"""Everything that keeps ``wait`` waiting, and the reports of exceptions in handlers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from ngi_gevent.core import logs
from ngi_gevent.core.connection import BaseConnection
from ngi_gevent.core.output import unsent_size_of
from ngi_gevent.errors import ImplementationClosed

__all__ = ["OnError", "Registry", "log_attempt", "log_error"]


class _Item(Protocol):
    """A connection attempt, a client connection, or a listener of either kind."""

    def stop(self) -> None:
        """End without waiting."""

    def unsent_size(self) -> int | None:
        """Return how many bytes of output the peers have not taken; None if no connection is left."""


#: Called with the registry, the peer, the name of the callback, the exception, and the function that logs it.
OnError: TypeAlias = Callable[[Any, Any, str, BaseException, logs.LogRaised], None]


def log_raised(peer: Any, where: str, error: BaseException, level: int = logging.ERROR) -> None:
    """Log an exception in a handler of the connection with *peer*."""
    logs.connections.log(level, "connection with %r: %s raised an exception", peer, where, exc_info=error)


def log_attempt(address: Any, where: str, error: BaseException, level: int = logging.ERROR) -> None:
    """Log an exception in the handler of a connection attempt to *address*."""
    logs.attempts.log(level, "connection attempt to %r: %s raised an exception", address, where, exc_info=error)


def log_error(registry: Any, peer: Any, where: str, error: BaseException, log: logs.LogRaised) -> None:
    """Log an exception in a handler."""
    log(peer, where, error)


class Registry:
    """Everything that ``wait`` waits for: connection attempts, client connections, and listeners of both kinds.

    The registry is the owner of these.  A server connection belongs to its listener, which stays in the registry as
    long as the connection exists.
    """

    def __init__(self, on_error: OnError = log_error) -> None:
        self._items: dict[_Item, None] = {}
        self._on_error = on_error
        self._wakers: list[Callable[[], object]] = []  # of waiting callers
        self._stops = False  # whether stop has been called, or will be, by another thread

    def __bool__(self) -> bool:
        return bool(self._items)

    def __str__(self) -> str:
        return ", ".join(map(repr, list(self._items))) or "nothing"

    def add(self, item: _Item) -> None:
        self._items[item] = None

    def forget(self, item: Any) -> None:
        self._items.pop(item, None)
        if not self._items:
            self.wake()

    def wake(self) -> None:
        """Make waiting callers check their conditions."""
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def includes(self, item: Any) -> bool:
        """Return whether *item* is in the registry, or is a connection whose listener is; False for None."""
        return item in self._items or getattr(item, "control", None) in self._items

    def unsent_size(self) -> int | None:
        """Return how many bytes of output the peers have not taken; None if no connection is left."""
        return unsent_size_of(list(self._items))

    def expect_stop(self) -> None:
        """Note that ``stop`` will be called soon.  Can be called on any thread, before handlers run into the close."""
        self._stops = True

    def stop(self) -> None:
        """End everything without waiting, except closed connections, which finish delivering."""
        self._stops = True
        for item in list(self._items):
            if not isinstance(item, BaseConnection) or item.delivers_input():
                item.stop()
            else:
                item.limit_delivery()

    # Called by the items.

    def connection_ended(self, reason: Any) -> None:
        """Do nothing, because ends of client connections are not counted."""

    def connection_gone(self, connection: Any) -> None:
        self.forget(connection)

    def handler_raised(self, peer: Any, where: str, error: BaseException, log: logs.LogRaised = log_raised) -> None:
        # A handler that reconnects cannot distinguish the end of the program from another end of its connection.
        if self._stops and isinstance(error, ImplementationClosed):
            log(peer, where, error, logging.DEBUG)
        else:
            self._on_error(self, peer, where, error, log)
