"""Making connections: looking up a name, connecting a socket, and telling the handler what came of it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gevent import Timeout, sleep
from gevent import socket as gevent_socket
from greenlet import GreenletExit

from ngi_gevent.core import logs
from ngi_gevent.core.address import naming, unix_path
from ngi_gevent.core.connection import STOPPED
from ngi_gevent.errors import ConnectionTimeout
from ngi_gevent.sockets.binding import addresses_of
from ngi_gevent.sockets.dispatcher import ConnectionGreenlet, Dispatcher
from ngi_gevent.sockets.event_loop import for_timer
from ngi_gevent.sockets.socket_options import send_at_once
from ngi_gevent.sockets.stream import StreamConnection

if TYPE_CHECKING:
    from ngi_gevent.core.registry import Outstanding
    from ngi_gevent.interfaces import IClientConnectHandler, Reason
    from ngi_gevent.sockets.transport import MakeConnection

__all__ = ["Connector"]

#: Seconds after the timeout in which a connection that was made in time can be noticed.
GRACE = 0.01


class Connector:
    """One connect under way, on a greenlet that becomes the connection's."""

    def __init__(
        self,
        owner: Outstanding,
        hub: Any,
        address: Any,
        handler: IClientConnectHandler,
        timeout: float | None,
        make_connection: MakeConnection,
    ) -> None:
        self._owner = owner
        self._address = address
        self._handler = handler
        self._timeout = timeout
        self._make_connection = make_connection
        self._greenlet = ConnectionGreenlet(self._run, hub, self)
        self._connecting = True
        self._stopped = False
        self._mailbox = Dispatcher.current().mailbox
        self._loop = hub.loop
        self._loop.run_callback(self._greenlet.switch)
        connecting = getattr(handler, "connecting", None)
        if connecting is not None:
            connecting(self.stop)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self._address!r}>"

    def stop(self) -> None:
        """Give up: the handler is told that the connect failed."""
        self._stopped = True
        self._mailbox.call_soon(self._give_up)

    def _give_up(self) -> None:
        if self._connecting:
            self._greenlet.throw(GreenletExit)

    def _run(self) -> None:
        try:
            with self._limited():
                connection = self._connected()
        except GreenletExit:
            self._fail(STOPPED)
        except Timeout:
            self._fail(ConnectionTimeout(f"there was no connection to {self._address!r} after {self._timeout} seconds"))
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):  # not for the handler alone: Ctrl-C, for instance
                self._owner.handler_raised(self._address, "connecting", error)
        else:
            self._connecting = False
            self._greenlet.connection = connection
            self._owner.forget(self)
            connection.run(self._begin, "connected")

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Throw a ``gevent.Timeout`` into the greenlet if it takes too long.

        gevent would throw it at once.  Here that happens a moment later, because after a stall of the whole process,
        the name may have been found or the socket have connected in time, which greenlets learn only now.
        """
        if self._timeout is None:
            yield
            return
        timer = self._loop.timer(for_timer(self._loop, self._timeout))
        closeables = [timer]

        def expire() -> None:
            timeout, grace = Timeout(self._timeout), self._loop.timer(GRACE)
            closeables.extend((timeout, grace))
            grace.start(self._greenlet.throw, timeout, update=True)

        timer.start(expire)
        try:
            yield
        finally:
            for closeable in closeables:
                closeable.close()

    def _begin(self, connection: StreamConnection) -> object:
        logs.connections.debug("connection with %r made", connection.peer_address)
        return self._handler.connected(connection)

    def _connected(self) -> StreamConnection:
        """The connection, ready.  Blocks the greenlet; raises why there is none, ``GreenletExit`` if given up."""
        try:
            sock = _connected_socket(self._address)
        except OSError as error:
            raise naming(error, self._address) from None
        try:
            connection = self._make_connection(sock, _peer_address(sock, self._address), self._owner)
        except BaseException:  # most likely, the peer is gone already
            sock.close()
            raise
        self._owner.add(connection)
        connection.shake_hands()
        if self._stopped:
            connection.run(StreamConnection.abort, "giving up")
            raise GreenletExit
        return connection

    def _fail(self, reason: Reason) -> None:
        self._connecting = False
        try:
            self._handler.failed_connect(reason)
        except BaseException as error:
            self._owner.handler_raised(self._address, "failed_connect", error)
        self._owner.forget(self)
        logs.connections.debug("connecting to %r failed: %s", self._address, logs.shown(reason))


def _connected_socket(address: Any) -> Any:
    """A gevent socket connected to *address*; blocks the greenlet, raises ``OSError``."""
    path = unix_path(address)
    if path is None:
        host, port = address[:2]
        if len(address) == 4 and address[3]:
            host = f"{host}%{address[3]}"
        return _connected_to_host(host, port)
    sock = gevent_socket.socket(gevent_socket.AF_UNIX, gevent_socket.SOCK_STREAM)
    sock.setblocking(False)
    pause = 0.001
    try:
        while (error := sock.connect_ex(path)) == errno.EAGAIN:
            # Its queue is full, and Unix sockets have no way to tell when there is room.
            sleep(pause)
            pause = min(2 * pause, 0.1)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock


def _connected_to_host(host: str, port: int) -> Any:
    """A gevent socket connected to the first of the addresses of *host* that takes it; raises as the last refused."""
    candidates = addresses_of(host, port, socket.SOCK_STREAM)
    for candidate in candidates:
        try:
            return _connected_to_candidate(*candidate)
        except OSError:
            if candidate is candidates[-1]:
                raise
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _connected_to_candidate(family: int, kind: int, protocol: int, _: str, address: Any) -> Any:
    sock = gevent_socket.socket(family, kind, protocol)
    try:
        sock.connect(address)
        send_at_once(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _peer_address(sock: Any, address: Any) -> Any:
    try:
        return sock.getpeername()
    except OSError:  # it is gone already, which the connection will find out
        return address
