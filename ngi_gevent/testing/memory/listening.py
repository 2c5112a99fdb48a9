"""Listeners in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, overload

from ngi_gevent.core.connection import BaseConnection
from ngi_gevent.core.listening import BaseListener
from ngi_gevent.errors import ConnectionFailed
from ngi_gevent.proxy_protocol import source_of
from ngi_gevent.testing.memory.connection import Connection, unconnected
from ngi_gevent.testing.memory.printing import PrintingClient

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ngi_gevent.interfaces import ConnectOptions, IClientConnectHandler, IServer
    from ngi_gevent.testing.memory.turns import MemoryRegistry

__all__ = ["Listener"]


class Listener(BaseListener):
    """A listener in memory.  Made by ``listener``.

    Except for ``connect``, see :class:`ngi_gevent.interfaces.IListener`.
    """

    _owner: MemoryRegistry

    def __init__(
        self,
        listeners: dict[Hashable, Listener],
        connect: Callable[..., None],
        owner: MemoryRegistry,
        addresses: tuple[Any, ...],
        server: IServer,
        max_connections: int | None,
        output_limit: int,
        *,
        takes_headers: bool,
    ) -> None:
        super().__init__(owner, server)
        self.addresses = addresses
        self._listeners = listeners  # the listeners of its implementation, by address
        self._connect = connect  # connects a client to a listener of its implementation
        self._max_connections = max_connections
        self._queue: deque[Connection] = deque()  # server connections that wait to be accepted
        self._output_limit = output_limit
        self._takes_headers = takes_headers  # whether connections can begin with a header of the PROXY protocol
        self._accepting = True
        self._log_opened()

    @overload
    def connect(
        self, handler: None = None, client_address: Any = None, **options: Unpack[ConnectOptions]
    ) -> Connection: ...
    @overload
    def connect(
        self, handler: IClientConnectHandler, client_address: Any = None, **options: Unpack[ConnectOptions]
    ) -> None: ...
    def connect(
        self,
        handler: IClientConnectHandler | None = None,
        client_address: Any = None,
        **options: Unpack[ConnectOptions],
    ) -> Connection | None:
        """Connect *handler* to this listener.  Without *handler*, return a client connection that prints its input.

        The options are the same as for the implementation's ``connect``.

        :raises ConnectionFailed: there is no *handler*, and either the listener is closed or this is called in a
            callback.
        """
        if handler is not None:
            self._connect(self, self.address, handler, client_address, **options)
            return None
        client = PrintingClient()
        self._connect(self, self.address, client, client_address, **options)
        if client.connection is None:
            raise ConnectionFailed(client.failed)
        return client.connection  # type: ignore[no-any-return]

    def accept(
        self,
        handler: IClientConnectHandler,
        address: Any,
        client_address: Any,
        output_limit: int,
        proxy_header: bytes | None,
    ) -> bool:
        """Connect *handler* to the server on *address*.  Return whether this listener still accepts connections.

        The client's side is connected at once, as with a kernel, even if the server's side still waits to be accepted.
        """
        if self._accepting:
            server, client = unconnected(), unconnected()
            turns = self._owner.turns
            server._set_up(turns, self, client, address, client_address, self, self._output_limit)
            client._set_up(turns, self._owner, server, client_address, address, output_limit=output_limit)
            if proxy_header is not None and self._takes_headers:
                server.name_client(source_of(proxy_header))
            elif proxy_header is not None:
                client.write(proxy_header)
            self._queue.append(server)
            self._accept_queued()
            self._owner.add(client)
            client.start(handler.connected, "connected")
        return self._accepting

    def connection_gone(self, connection: BaseConnection) -> None:
        super().connection_gone(connection)
        self._accept_queued()

    def _accept_queued(self) -> None:
        """Accept connections in the queue, up to ``max_connections``."""
        while self._queue and (self._max_connections is None or len(self._connections) < self._max_connections):
            server = self._queue.popleft()
            self._connections[server] = None
            self._counters.accepted += 1
            server.start(self._server, "the server")

    def _stop_accepting(self, *, serve_queued: bool) -> None:
        """Reset the queued connections, even if the others stay open: they are queued because ``max_connections`` is
        reached.
        """
        for address in self.addresses:
            del self._listeners[address]
        queue, self._queue = self._queue, deque()
        for server in queue:
            self._connections[server] = None
            server.abort()

    def _current_connection(self) -> BaseConnection | None:
        current = self._owner.turns.current
        return current if isinstance(current, BaseConnection) else None

    def _wait_until_empty(self, timeout: float | None) -> None:
        """Return at once, since waiting does not change anything in memory."""

    def _call_soon(self, callback: Callable[[], object]) -> None:
        self._owner.turns.queue(callback)
