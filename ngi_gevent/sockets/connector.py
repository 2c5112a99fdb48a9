"""Connection attempts: connect a socket, make its connection, and call the handler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gevent import Timeout, sleep
from greenlet import GreenletExit

from ngi_gevent.core import logs
from ngi_gevent.core.checks import connect_delay_of
from ngi_gevent.core.lifecycle import STOPPED
from ngi_gevent.core.registry import log_attempt
from ngi_gevent.errors import ConnectionTimeout
from ngi_gevent.sockets.dispatcher import ConnectionGreenlet, Dispatcher
from ngi_gevent.sockets.stream import StreamConnection

if TYPE_CHECKING:
    from ngi_gevent.core.registry import Registry
    from ngi_gevent.interfaces import IClientConnectHandler, Reason
    from ngi_gevent.sockets.destination import Destination
    from ngi_gevent.sockets.transport import MakeConnection

__all__ = ["Connector"]

#: Seconds after the timeout in which a greenlet can still receive a connection that was made in time.
GRACE = 0.01


class Connector:
    """One connection attempt, on a greenlet that becomes the connection's."""

    def __init__(
        self,
        owner: Registry,
        hub: Any,
        destination: Destination,
        handler: IClientConnectHandler,
        timeout: float | None,
        make_connection: MakeConnection,
    ) -> None:
        self._owner = owner
        self._destination = destination
        self._handler = handler
        self._timeout = timeout
        self._delay = connect_delay_of(handler)
        self._make_connection = make_connection
        self._greenlet = ConnectionGreenlet(self._run, hub, self)
        self._connecting = True
        self._connected = False  # whether the TLS handshake has begun, if there is one
        self._stopped = False
        self._mailbox = Dispatcher.current().mailbox
        self._loop = hub.loop
        self._loop.run_callback(self._greenlet.switch)
        connecting = getattr(handler, "connecting", None)
        if connecting is not None:
            connecting(self.stop)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self._destination.address!r}>"

    def stop(self) -> None:
        """Give up, and call ``failed_connect`` with ``'stopped'``.  Can be called on any thread."""
        self._stopped = True
        self._mailbox.call_soon(self._give_up)

    def unsent_size(self) -> None:
        """Return None: there is no connection yet."""

    def leave_to_parent(self) -> None:
        """Give up in a forked child, without calling the handler."""
        self._loop.run_callback(self._give_up)

    def _give_up(self) -> None:
        if self._connecting:
            self._greenlet.throw(GreenletExit)

    def _run(self) -> None:
        try:
            if self._delay:
                sleep(self._delay)
            with self._time_limit():
                self._check_process()
                connection = self._connect()
        except GreenletExit:
            self._fail(STOPPED)
        except Timeout:
            address = self._destination.address
            what = "TLS handshake with" if self._connected else "connection to"
            hint = "; does the server use TLS?" if self._connected else ""
            self._fail(ConnectionTimeout(f"no {what} {address!r} within {self._timeout} seconds{hint}"))
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):  # such as Ctrl-C, which must also reach the main greenlet
                self._owner.handler_raised(self._destination.address, "connecting", error, log_attempt)
        else:
            self._connecting = False
            self._greenlet.connection = connection
            self._owner.forget(self)
            connection.run(self._begin, "connected")

    @contextmanager
    def _time_limit(self) -> Iterator[None]:
        """Raise ``gevent.Timeout`` in the greenlet if the attempt takes too long.

        gevent would raise it at once.  This raises it ``GRACE`` seconds later.  After a stall of the whole process, the
        name may have been found in time, or the socket connected, but greenlets receive the result only now.
        """
        if self._timeout is None:
            yield
            return
        timer = self._loop.timer(self._timeout)
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

    def _connect(self) -> StreamConnection:
        """Return the connection, after its handshake.  Blocks the greenlet.

        :raises GreenletExit: the attempt was stopped.
        :raises OSError: the attempt failed.
        """
        destination = self._destination
        sock = destination.connect()
        try:
            self._check_process()
            connection = self._make_connection(destination.network, sock, destination.peer_of(sock), self._owner)
        except BaseException:  # most likely, the peer is already gone
            sock.close()
            raise
        self._owner.add(connection)
        self._connected = True
        connection.shake_hands()
        if self._stopped:
            connection.run(StreamConnection.abort, "giving up")
            raise GreenletExit
        return connection

    def _check_process(self) -> None:
        if self._mailbox.is_of_parent:
            raise GreenletExit

    def _fail(self, reason: Reason) -> None:
        self._connecting = False
        if self._mailbox.is_of_parent:
            return
        try:
            self._handler.failed_connect(reason)
        except BaseException as error:
            self._owner.handler_raised(self._destination.address, "failed_connect", error, log_attempt)
        self._owner.forget(self)
        logs.attempts.debug(
            "connection attempt to %r failed: %s", self._destination.address, logs.format_reason(reason)
        )
