"""Listeners on sockets: each accepted socket becomes a connection."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from gevent import get_hub, spawn_raw

from ngi_gevent.core import forks, logs
from ngi_gevent.core.listening import BaseListener, ListenerOwner
from ngi_gevent.core.threads import Flag
from ngi_gevent.errors import ImplementationClosed
from ngi_gevent.interfaces import IListener, documented_by
from ngi_gevent.sockets.acceptor import Acceptor
from ngi_gevent.sockets.binding import Binding
from ngi_gevent.sockets.dispatcher import Dispatcher, current_connection

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ngi_gevent.core.connection import BaseConnection
    from ngi_gevent.interfaces import ConnectOptions, IClientConnectHandler, IServer, KeepAlive
    from ngi_gevent.sockets.network import Network, Socket
    from ngi_gevent.sockets.stream import StreamConnection
    from ngi_gevent.sockets.transport import MakeConnection

__all__ = ["BACKLOG", "StreamListener"]

#: How many connections the kernel queues for the listener, by default.  Linux limits it to ``net.core.somaxconn``.
BACKLOG = 1024


@documented_by(IListener)
class StreamListener(BaseListener):
    """A listener on a socket."""

    def __init__(
        self,
        network: Network,
        owner: ListenerOwner,
        connect: Callable[..., None],
        address: Any,
        server: IServer,
        *,
        backlog: int,
        max_connections: int,
        reuse_port: bool,
        keep_alive: KeepAlive,
        make_connection: MakeConnection,
    ) -> None:
        super().__init__(owner, server)
        self._network = network
        self._connect = connect
        self._hub = get_hub()
        self._mailbox = Dispatcher.current().mailbox
        self._context = copy_context()
        self._make_connection = make_connection
        self._binding = Binding(network, address, socket.SOCK_STREAM, reuse_port=reuse_port)
        sock = self._binding.socket
        try:
            # Accepted sockets inherit these options, which saves two system calls for each.
            network.send_at_once(sock)
            network.keep_alive(sock, keep_alive)
            sock.listen(backlog)
            self.address = sock.getsockname()
            self._log_opened()
            self._acceptor = Acceptor(
                *(network, sock, self._accepted, self._connections, max_connections, self._stop_listening),
                is_own=self._binding.is_own,
            )
            self._acceptor.start()
        except BaseException:
            sock.close()
            self._binding.remove_file()
            raise
        self._accepting = True

    def connect(self, handler: IClientConnectHandler, **options: Unpack[ConnectOptions]) -> None:
        self._mailbox.call(lambda: self._connect(self.address, handler, **options))

    def close(self, handler: Callable[[Any], object] | None = None) -> None:
        self._call(super().close, handler)

    def close_wait(self, timeout: float | None = None) -> int:
        return self._call(super().close_wait, timeout)  # type: ignore[no-any-return]

    def _call(self, close: Callable[..., Any], argument: Any) -> Any:
        """Close on this listener's thread; if that has ended, there must be nothing left to close."""
        try:
            return self._mailbox.call(close, argument)
        except ImplementationClosed:
            if self._accepting or self._connections:
                raise
            return close(argument)

    def leave_to_parent(self) -> None:
        """Count as closed, in a forked child.  Closes the descriptors, and nothing else."""
        self._accepting = False
        connections: list[Any] = list(self._connections)
        forks.leave(connections)
        forks.keep(*self._when_empty)
        self._connections.clear()
        self._when_empty.clear()
        self._network.close(self._binding.socket)
        self._acceptor.close()

    def connection_gone(self, connection: BaseConnection) -> None:
        super().connection_gone(connection)
        self._acceptor.connection_gone()

    def _accepted(self, sock: Socket, peer_address: Any) -> None:
        """Serve an accepted connection.  The acceptor calls this on the hub."""
        connection = self._connection(sock, peer_address)
        if connection is not None:
            self._run(connection)

    def _connection(self, sock: Socket, peer_address: Any) -> StreamConnection | None:
        """Return a connection on *sock*, or None if the peer is already gone."""
        try:
            connection = self._make_connection(self._network, sock, peer_address, self, self)
        except OSError:
            sock.close()
            return None
        except BaseException:
            sock.close()
            raise
        self._connections[connection] = None
        return connection

    def _run(self, connection: StreamConnection) -> None:
        """Run *connection*, on the hub.  Its server is not called if the connection was stopped before."""
        connection.start(self._begin if connection.is_live() else _ignore, "the server", self._context)

    def _begin(self, connection: StreamConnection) -> object:
        logs.connections.debug("connection with %r accepted, on %r", connection.peer_address, connection.local_address)
        result = self._server(connection)
        if connection and connection._handler is None:
            logs.connections.debug("connection with %r has no handler yet, and is not read", connection.peer_address)
        return result

    def _stop_accepting(self, *, serve_queued: bool = False) -> None:
        self._binding.remove_file()  # first: no client can connect without it
        if not serve_queued:
            self._acceptor.close()
            return
        for sock, peer_address in self._acceptor.close_taking_queued():
            connection = self._connection(sock, peer_address)
            if connection is not None:
                self._hub.loop.run_callback(self._run, connection)

    def _current_connection(self) -> Any:
        return current_connection()

    def _wait_until_empty(self, timeout: float | None) -> None:
        if self._connections:
            empty = Flag()
            self._when_empty.append(empty.set)
            empty.wait(timeout)
            if empty.set in self._when_empty:
                self._when_empty.remove(empty.set)

    def _call_soon(self, callback: Callable[[], object]) -> None:
        spawn_raw(callback)


def _ignore(connection: StreamConnection) -> None:
    """A server that does nothing."""
