"""Listeners in memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from ngi_gevent.connection import BaseConnection
from ngi_gevent.errors import ConnectionFailed
from ngi_gevent.listening import BaseListener
from ngi_gevent.testing.connection import Connection, unconnected
from ngi_gevent.testing.printing import PrintingClient

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IClientConnectHandler, IServer
    from ngi_gevent.testing.implementation import Implementation
    from ngi_gevent.testing.turns import MemoryOutstanding

__all__ = ["Listener"]


class Listener(BaseListener):
    """A listener in memory."""

    _owner: MemoryOutstanding

    def __init__(
        self,
        implementation: Implementation,
        owner: MemoryOutstanding,
        address: Hashable,
        server: IServer,
        output_limit: int,
    ) -> None:
        super().__init__(owner, server)
        self.address = address
        self._implementation = implementation
        self._output_limit = output_limit
        self._accepting = True

    def connect(
        self, handler: IClientConnectHandler | None = None, client_address: Any = None, **options: Any
    ) -> Connection | None:
        """Connect *handler* to this listener; without one, return a client connection that prints what it receives.

        The options are those of the implementation's ``connect``.
        """
        self._implementation.check_options(**options)
        if handler is not None:
            self._implementation.connect_to(self, self.address, handler, client_address)
            return None
        client = PrintingClient()
        self._implementation.connect_to(self, self.address, client, client_address)
        if client.connection is None:
            raise ConnectionFailed(client.failed)
        return client.connection

    def accept(self, handler: IClientConnectHandler, client_address: Any) -> bool:
        """Make a connection between the server and *handler*; whether this listener still does."""
        if self._accepting:
            server, client = unconnected(), unconnected()
            turns = self._owner.turns
            server._set_up(turns, self, client, self.address, client_address, self, self._output_limit)
            client._set_up(turns, self._owner, server, client_address, self.address)
            self._connections[server] = None
            self._owner.add(client)
            server.start(self._server, "the server")
            client.start(handler.connected, "connected")
        return self._accepting

    def _stop_accepting(self) -> None:
        self._implementation.free(self.address)

    def _current_connection(self) -> BaseConnection | None:
        current = self._owner.turns.current
        return current if isinstance(current, BaseConnection) else None

    def _wait_until_empty(self, timeout: float | None) -> None:
        """Nothing waits here, and nothing would come of it."""

    def _call_soon(self, callback: Callable[[], object]) -> None:
        self._owner.turns.queue(callback)
