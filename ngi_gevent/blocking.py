"""Waiting for connections, imperatively: on the hub of the calling thread, so that greenlets go on meanwhile.

A thread that has no hub, since it knows nothing of gevent, simply waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

import ngi_gevent
from ngi_gevent.adapters import Base, bottom
from ngi_gevent.core.connection import check_returned, check_timeout, is_end_of
from ngi_gevent.core.threads import Flag, get_ident
from ngi_gevent.errors import ConnectionFailed, ConnectionTimeout, Timeout
from ngi_gevent.files import Input, Output, files, server

if TYPE_CHECKING:
    from ngi_gevent.interfaces import (
        IClientConnectHandler,
        IConnection,
        IConnectionHandler,
        IServer,
        PeerAddress,
        Reason,
    )

__all__ = ["Input", "Output", "connect", "open", "request", "server"]

#: What an implementation's ``connect`` takes as an address.
AnyAddress = TypeVar("AnyAddress")


def request(
    connect: Callable[[AnyAddress, IClientConnectHandler], object],
    address: AnyAddress,
    handler: IClientConnectHandler | type[IClientConnectHandler] | IServer | IConnectionHandler,
    timeout: float | None = None,
) -> Reason | None:
    """Connect, have *handler* talk, and return when the connection has ended: None if the handler closed it, or why.

    *connect* is that of an implementation, such as ``ngi_gevent.connect``; options go to it by ``functools.partial``,
    such as ``partial(ngi_gevent.connect, ssl_context=context)``.  *handler* is a client connect handler, a class of
    such (which is instantiated), a server, or a connection handler.  Blocks the calling greenlet, for up to
    *timeout* seconds in all; the handler is called on the connection's greenlet, on the hub that *connect* connects on.
    The handler's ``failed_connect`` is not called: its caller gets the exception instead.

    Raises ``TypeError`` for what is no handler; :class:`~ngi_gevent.ConnectionFailed`;
    :class:`~ngi_gevent.ConnectionTimeout` if there is no connection in time; :class:`~ngi_gevent.Timeout` if there is
    one and it has not ended in time; and whatever the handler raised, which is not logged then.  However this ends, it
    leaves no connection behind.
    """
    _check_connect(connect)
    check_timeout(timeout)
    asked = _Request(_connected_method(handler))
    try:
        connect(address, asked)
        ended = asked.wait(timeout)
    finally:
        asked.give_up()
    if asked.error is not None:
        raise asked.error
    if ended:
        return asked.reason
    if asked.connection is None:
        raise _no_connection(address, timeout)
    raise Timeout(f"the connection to {address!r} had not ended after {timeout} seconds")


@overload
def connect(address: PeerAddress, *, timeout: float | None = None) -> IConnection: ...
@overload
def connect(
    address: AnyAddress,
    connect: Callable[[AnyAddress, IClientConnectHandler], object],
    timeout: float | None = None,
) -> IConnection: ...
def connect(
    address: Any, connect: Callable[[Any, Any], object] = ngi_gevent.connect, timeout: float | None = None
) -> IConnection:
    """Connect, and return the connection, which holds its input until it is given a handler.

    It is the caller's to close.  *connect* is that of an implementation; ``ngi_gevent.connect`` by default.  Blocks the
    calling greenlet, for up to *timeout* seconds.  Raises :class:`~ngi_gevent.ConnectionFailed`, or
    :class:`~ngi_gevent.ConnectionTimeout` if there is no connection in time.
    """
    _check_connect(connect)
    check_timeout(timeout)
    attempt = _Attempt()
    try:
        connect(address, attempt)
        ended = attempt.wait(timeout)
    except BaseException:
        attempt.give_up()
        raise
    if not ended:
        attempt.give_up()
        raise _no_connection(address, timeout)
    if attempt.error is not None:
        raise attempt.error
    return attempt.connection  # type: ignore[no-any-return]


_connect = connect  # for open, whose argument has the same name


@overload
def open(address_or_connection: PeerAddress | IConnection, *, timeout: float | None = None) -> tuple[Output, Input]: ...
@overload
def open(
    address_or_connection: AnyAddress | IConnection,
    connect: Callable[[AnyAddress, IClientConnectHandler], object],
    timeout: float | None = None,
) -> tuple[Output, Input]: ...
def open(
    address_or_connection: Any,
    connect: Callable[[Any, Any], object] = ngi_gevent.connect,
    timeout: float | None = None,
) -> tuple[Output, Input]:
    """Make binary files of a connection, or of a new one to an address: what is written to the peer, what it sends.

    A connection is anything that has ``set_handler``; the files become its handler.  Otherwise this connects, as
    :func:`connect` does, waits for up to *timeout* seconds, and raises the same.  Closing the output closes the
    connection.  See :class:`Output` and :class:`Input`.
    """
    if hasattr(address_or_connection, "set_handler"):
        check_timeout(timeout)
        return files(address_or_connection)
    return files(_connect(address_or_connection, connect, timeout))


def _check_connect(connect: Any) -> None:
    if not callable(connect):
        raise TypeError(f"connect is that of an implementation, such as ngi_gevent.connect; got {connect!r:.100}")


def _no_connection(address: Any, timeout: float | None) -> ConnectionTimeout:
    return ConnectionTimeout(f"there was no connection to {address!r} after {timeout} seconds")


def _connected_method(handler: Any) -> Callable[[Any], object]:
    """What to call with the connection, whichever kind of handler *handler* is."""
    if callable(getattr(handler, "connected", None)):
        return (handler() if isinstance(handler, type) else handler).connected  # type: ignore[no-any-return]
    if callable(getattr(handler, "handle_input", None)) and not isinstance(handler, type):
        return lambda connection: connection.set_handler(handler)
    if callable(handler):
        return handler  # type: ignore[no-any-return]
    raise TypeError(f"a request takes a client connect handler, a server or a connection handler; got {handler!r:.100}")


class _Attempt:
    """The client connect handler that waits for a connection."""

    #: For implementations that can tell that waiting on this greenlet would be for ever.
    waits = True

    def __init__(self) -> None:
        self.ended = Flag()
        self._alone = True  # whether only this thread can end the wait
        self._thread = get_ident()
        self.connection: Any = None
        self.error: BaseException | None = None
        self._given_up = False
        self._stop_connecting: Callable[[], object] = lambda: None

    def connecting(self, give_up: Callable[[], object]) -> None:
        self._stop_connecting = give_up
        self._alone = get_ident() == self._thread

    def wait(self, timeout: float | None) -> bool:
        return self.ended.wait(timeout, alone=self._alone)

    def connected(self, connection: Any) -> None:
        if self._given_up:
            connection.abort()
            return
        self.connection = connection
        self.begin(connection)

    def begin(self, connection: Any) -> None:
        self.ended.set()

    def failed_connect(self, reason: Any) -> None:
        self.error = ConnectionFailed.because(reason)
        self.ended.set()

    def give_up(self) -> None:
        """Nobody waits any more: leave no connection behind."""
        self._given_up = True
        if self.connection is None:
            self._stop_connecting()
        else:
            self.connection.abort()


class _Request(_Attempt):
    """The client connect handler that waits for the end of a connection."""

    def __init__(self, connected: Callable[[Any], object]) -> None:
        super().__init__()
        self.reason: Reason | None = None
        self._connected = connected

    def begin(self, connection: Any) -> None:
        connection.when_closed(self.ended.set)
        watched = _WatchedConnection(connection, self)
        try:
            check_returned(self._connected(watched), "what was to make the request")
        except BaseException as error:
            watched.fail(error)


class _WatchedConnection(Base):
    """The connection of a request, which takes what the handler raises to the caller instead of a log."""

    def __init__(self, connection: Any, asked: _Request) -> None:
        super().__init__(connection)
        self._asked = asked

    def handle_input(self, connection: Any, data: bytes) -> None:
        try:
            super().handle_input(connection, data)
        except BaseException as error:
            self.fail(error)

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        try:
            super().handle_exception(connection, exception)
        except BaseException as error:
            self.fail(error)

    def handle_close(self, connection: Any, reason: Reason) -> None:
        self._asked.reason = reason
        try:
            super().handle_close(connection, reason)
        except BaseException as error:
            self._asked.error = error

    def _application_ended(self, connection: Any) -> None:
        try:
            super()._application_ended(connection)
        except BaseException as error:
            self._asked.error = error

    def fail(self, error: BaseException) -> None:
        """The handler raised *error*: end the connection, as the implementation would have done."""
        if is_end_of(bottom(self), error):
            return
        self._asked.error = error
        if self.connection:
            self.connection.close()
            super().handle_close(self.connection, error)
