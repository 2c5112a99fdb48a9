"""Listening on a socket: binding it to an address, and the gevent ``StreamServer`` that accepts on it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from gevent import get_hub, spawn_raw
from gevent import socket as gevent_socket
from gevent.event import Event
from gevent.server import StreamServer

from ngi_gevent.address import LOOPBACK, is_socket, naming, unix_path
from ngi_gevent.dispatcher import current_connection
from ngi_gevent.interfaces import IListener, documented_by
from ngi_gevent.listening import BaseListener, ListenerOwner
from ngi_gevent.stream import StreamConnection
from ngi_gevent.threads import call_on

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IClientConnectHandler, IServer

__all__ = ["BACKLOG", "StreamListener"]

#: Connections that the kernel keeps until they are accepted.  It cuts this to its own maximum, 4,096 by default.
BACKLOG = 1024


@documented_by(IListener)
class StreamListener(BaseListener):
    """A listener on a socket."""

    def __init__(
        self,
        owner: ListenerOwner,
        connect: Callable[[Any, IClientConnectHandler], None],
        address: Any,
        server: IServer,
        *,
        backlog: int,
        output_limit: int,
        reuse_port: bool,
        keep_alive: bool,
    ) -> None:
        super().__init__(owner, server)
        self._connect = connect
        self._hub = get_hub()
        self._context = copy_context()
        self._output_limit = output_limit
        self._keep_alive = keep_alive
        self._bound_file: tuple[str, os.stat_result] | None = None
        sock = address if is_socket(address) else self._bound(address, reuse_port)
        try:
            sock.setblocking(False)
            sock.listen(backlog)
            self.address = sock.getsockname()
            self._acceptor = _Acceptor(sock, self._accepted)
            self._acceptor.start()
        except BaseException:
            sock.close()
            self._remove_file()
            raise
        self._accepting = True

    def connect(self, handler: IClientConnectHandler) -> None:
        call_on(self._hub, self._connect, self.address, handler)

    def close(self, handler: Callable[[Any], object] | None = None) -> None:
        self._call(super().close, handler)

    def close_wait(self, timeout: float | None = None) -> int:
        return self._call(super().close_wait, timeout)  # type: ignore[no-any-return]

    def _call(self, close: Callable[..., Any], argument: Any) -> Any:
        """Close on this listener's thread; on any, and even if that has ended, where there is nothing left to close."""
        if self._accepting or self._connections:
            return call_on(self._hub, close, argument)
        return close(argument)

    def _accepted(self, sock: Any, peer_address: Any) -> None:
        """A connection was accepted: run it.  Called by the acceptor, on the hub."""
        try:
            if self._keep_alive:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection = StreamConnection(sock, peer_address, self, self, self._output_limit)
        except OSError:  # it is gone before it could be served
            sock.close()
            return
        self._connections[connection] = None
        connection.start(self._server, "the server", self._context.copy())

    def _stop_accepting(self) -> None:
        self._acceptor.close()
        self._remove_file()

    def _current_connection(self) -> Any:
        return current_connection()

    def _wait_until_empty(self, timeout: float | None) -> None:
        if self._connections:
            empty = Event()
            self._when_empty.append(empty.set)
            empty.wait(timeout)
            if empty.set in self._when_empty:
                self._when_empty.remove(empty.set)

    def _call_soon(self, callback: Callable[[], object]) -> None:
        spawn_raw(callback)

    # The address.

    def _bound(self, address: Any, reuse_port: bool) -> Any:
        path = unix_path(address)
        if path is not None:
            sock = _bound_to_path(path)
            # The directory that a relative name is in may not be the current one when it is removed.
            self._bound_file = os.path.abspath(path), os.stat(path)
            return sock
        address = LOOPBACK if address is None else address
        try:
            return _bound_to_host(address, reuse_port)
        except OSError as error:
            raise naming(error, address) from error

    def _remove_file(self) -> None:
        """Remove the file of a Unix socket, unless somebody has put another one there."""
        if self._bound_file is None:
            return
        path, bound = self._bound_file
        self._bound_file = None
        try:
            if os.path.samestat(os.stat(path), bound):
                os.unlink(path)
        except OSError:
            pass  # it is gone already


class _Acceptor(StreamServer):
    """Accepts connections and hands them on, on the hub; whoever gets a socket closes it."""

    def __init__(self, sock: Any, accepted: Callable[[Any, Any], None]) -> None:
        super().__init__(sock, accepted, spawn=None)

    def do_close(self, *_: object) -> None:
        pass

    def do_read(self) -> Any:
        # A server may have closed its listener while gevent accepts more.
        return None if self.closed else super().do_read()


def _bound_to_host(address: Any, reuse_port: bool) -> Any:
    """A gevent socket bound to a host and port.  Of the addresses of a name, IPv4 ones are tried first."""
    host, port = address[0] or "0.0.0.0", address[1]
    candidates = gevent_socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    candidates.sort(key=lambda candidate: candidate[0] != socket.AF_INET)
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, kind, protocol, _, candidate in candidates:
        sock = gevent_socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # The scope of an IPv6 address is in none but the four-part form.
            sock.bind(address if family == socket.AF_INET6 and len(address) == 4 else candidate)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _bound_to_path(path: str) -> Any:
    """A gevent socket bound to the name of a Unix socket, in the place of a file that a dead server left there."""
    sock = gevent_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            os.unlink(path)
            sock.bind(path)
    except OSError as error:
        sock.close()
        raise naming(error, path) from error
    return sock


def _is_stale(path: str) -> bool:
    """Whether *path* is a Unix socket that nobody listens on."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED
