"""Listeners on sockets: each accepted socket becomes a connection."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from gevent import get_hub, spawn_raw

from ngi_gevent.core import clock, forks, logs
from ngi_gevent.core.listening import BaseListener, ListenerOwner, log_refusal
from ngi_gevent.core.threads import Flag, cpu_clock, seconds_of
from ngi_gevent.errors import ImplementationClosed
from ngi_gevent.interfaces import IListener, documented_by
from ngi_gevent.sockets.acceptor import Acceptor, SharedAcceptor
from ngi_gevent.sockets.binding import BindOptions, bind_all
from ngi_gevent.sockets.dispatcher import Dispatcher, current_connection
from ngi_gevent.sockets.watchdog import Watchdog

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ngi_gevent.core.connection import BaseConnection
    from ngi_gevent.interfaces import ConnectOptions, IClientConnectHandler, IServer, KeepAlive
    from ngi_gevent.sockets.crowd import Crowd
    from ngi_gevent.sockets.network import Network, Socket
    from ngi_gevent.sockets.stream import StreamConnection
    from ngi_gevent.sockets.transport import MakeConnection

__all__ = ["BACKLOG", "StreamListener"]

#: The default number of connections that the kernel queues for a listener.  Linux limits it to ``net.core.somaxconn``.
BACKLOG = 1024

#: Seconds after which a connection without a handler is logged.  A proxy sets one once it has reached its upstream.
HANDLER_TIMEOUT = 5.0


@documented_by(IListener)
class StreamListener(BaseListener):
    """A listener on one socket or several."""

    def __init__(
        self,
        network: Network,
        registry: ListenerOwner,
        connect: Callable[..., None],
        addresses: list[Any],
        server: IServer,
        crowd: Crowd,
        slow_callback: float | None,
        *,
        backlog: int,
        max_connections: int,
        bind: tuple[bool, bool, int | None, tuple[int, int] | None],
        keep_alive: KeepAlive,
        make_connection: MakeConnection,
    ) -> None:
        super().__init__(registry, server, crowd.counters)
        self._network = network
        self._connect = connect
        self._hub = get_hub()
        self._mailbox = Dispatcher.current().mailbox
        self._context = copy_context()
        self._crowd = crowd
        crowd.has_room = self._handshake_over
        self._make_connection = make_connection
        self._acceptors: list[Acceptor] = []
        self._watchdog: Watchdog | None = None

        def listen(sock: Socket) -> None:
            # Accepted sockets inherit these options, which saves two system calls for each.
            network.send_at_once(sock)
            network.keep_alive(sock, keep_alive)
            sock.listen(backlog)

        options = BindOptions(socket.SOCK_STREAM, listen, *bind)
        with log_refusal(addresses if len(addresses) > 1 else addresses[0]):
            bindings = bind_all(network, addresses, options)
        try:
            self.addresses = tuple(binding.socket.getsockname() for binding in bindings)
            self._log_opened()
            turns: list[Acceptor] = []
            for binding in bindings:
                kind = Acceptor if binding.is_own else SharedAcceptor
                acceptor = kind(
                    *(network, binding, self._accepted, self._connections, max_connections, crowd),
                    *(self._stop_listening, turns),
                )
                self._acceptors.append(acceptor)
                acceptor.start()
            # A simulation does not have native threads, and computing takes no time in it.
            self._watchdog = None if slow_callback is None or clock.is_virtual() else Watchdog(slow_callback)
        except BaseException:
            for acceptor in self._acceptors:
                acceptor.close()
            for binding in bindings:
                binding.close()
            raise
        self._accepting = True
        self._cpu_clock = None if clock.is_virtual() else cpu_clock()

    def connect(self, handler: IClientConnectHandler, **options: Unpack[ConnectOptions]) -> None:
        self._mailbox.call(lambda: self._connect(self.address, handler, **options))

    def close(self, handler: Callable[[Any], object] | None = None) -> None:
        self._call(super().close, handler)

    def close_wait(self, timeout: float | None = None) -> int:
        return self._call(super().close_wait, timeout)  # type: ignore[no-any-return]

    def _call(self, close: Callable[..., Any], argument: Any) -> Any:
        """Call *close* on this listener's thread.  If that thread has ended, everything must be closed already."""
        try:
            return self._mailbox.call(close, argument)
        except ImplementationClosed:
            if self._accepting or self._connections:
                raise
            return close(argument)

    def add_traffic(self, connection: StreamConnection) -> None:
        """Count the bytes of *connection* before its socket is closed."""
        received, sent = connection.last_traffic()
        self._counters.received += received
        self._counters.sent += sent

    def _bytes(self, connections: list[Any]) -> tuple[int | None, int | None]:
        if not (self._network.counts_bytes and any(isinstance(address, tuple) for address in self.addresses)):
            return None, None
        return self._counters.bytes_with(connection.traffic() for connection in connections)

    def _times(self) -> tuple[float | None, float | None]:
        return seconds_of(self._cpu_clock), None if self._watchdog is None else self._watchdog.longest

    def _check_empty(self) -> None:
        if self._watchdog is not None and not (self._connections or self._accepting):
            self._watchdog.stop()
        super()._check_empty()

    def leave_to_parent(self) -> None:
        """Count as closed, in a forked child.  Only closes the descriptors."""
        self._accepting = False
        connections: list[Any] = list(self._connections)
        forks.leave(connections)
        forks.keep(*self._when_empty)
        self._connections.clear()
        self._when_empty.clear()
        for acceptor in self._acceptors:
            acceptor.leave_to_parent()

    def connection_gone(self, connection: BaseConnection) -> None:
        self._crowd.remove(connection)
        super().connection_gone(connection)
        for acceptor in self._acceptors:
            acceptor.connection_gone()

    def _handshake_over(self) -> None:
        for acceptor in self._acceptors:
            acceptor.handshake_over()

    def _accepted(self, sock: Socket, peer_address: Any) -> None:
        """Serve an accepted connection.  The acceptor calls this on the hub."""
        connection = self._connection(sock, peer_address)
        if connection is not None:
            self._run(connection)

    def _connection(self, sock: Socket, peer_address: Any) -> StreamConnection | None:
        """Return a connection on *sock*; None if it is refused, or the peer is already gone."""
        self._counters.accepted += 1
        if not self._crowd.admits(peer_address):
            self._crowd.note_refusal(peer_address, self._listening_address(sock.getsockname()))
            self._network.reset_on_close(sock)
            sock.close()
            return None
        try:
            connection = self._make_connection(self._network, sock, peer_address, self, self)
        except OSError:
            sock.close()
            return None
        except BaseException:
            sock.close()
            raise
        self._connections[connection] = None
        self._crowd.add(connection, peer_address, self._hub.loop)
        return connection

    def _listening_address(self, local: Any) -> Any:
        """Return the address of the listener that accepted a connection with the local address *local*.

        That is the same address, or the wildcard with the port and the family of *local*.
        """
        return min(self.addresses, key=lambda each: (each != local, each[1:2] != local[1:2], len(each) != len(local)))

    def _run(self, connection: StreamConnection) -> None:
        """Run *connection*, on the hub.  If the connection was stopped before, do not call its server."""
        connection.start(self._begin if connection.is_live() else _ignore, "the server", self._context)

    def _begin(self, connection: StreamConnection) -> object:
        logs.connections.debug("connection with %r accepted, on %r", connection.peer_address, connection.local_address)
        result = self._server(connection)
        if connection._handler is None and connection:
            timer = self._hub.loop.timer(HANDLER_TIMEOUT, ref=False)
            timer.start(self._check_handler, timer, connection)
        return result

    def _check_handler(self, timer: Any, connection: StreamConnection) -> None:
        timer.close()
        if connection and connection._handler is None:
            logs.connections.warning(
                "connection with %r has no handler, so nothing is read: %s must call connection.set_handler",
                *(connection.peer_address, getattr(self._server, "__qualname__", type(self._server).__name__)),
                limit=self._crowd.no_handler,
            )

    def _stop_accepting(self, *, serve_queued: bool = False) -> None:
        for acceptor in self._acceptors:
            acceptor.remove_file()  # first: no client can connect without it
        for acceptor in self._acceptors:
            if not serve_queued:
                acceptor.close()
                continue
            for sock, peer_address in acceptor.close_taking_queued():
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
