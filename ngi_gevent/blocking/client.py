"""Blocking calls for clients: ``request``, ``connect`` and ``open``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

import ngi_gevent
from ngi_gevent.adapters.base import Base, Within, bottom
from ngi_gevent.blocking.handler import Handler
from ngi_gevent.blocking.input import Input
from ngi_gevent.blocking.output import Output
from ngi_gevent.core.callbacks import is_end_of
from ngi_gevent.core.checks import as_timeout, check_returned
from ngi_gevent.core.threads import Flag, get_ident
from ngi_gevent.errors import ConnectionFailed, ConnectionTimeout, Timeout

if TYPE_CHECKING:
    from ngi_gevent.interfaces import (
        IClientConnectHandler,
        IConnection,
        IConnectionHandler,
        IServer,
        PeerAddress,
        Reason,
    )

__all__ = ["AnyAddress", "connect", "open", "request"]

#: The type of addresses for an implementation's ``connect``.
AnyAddress = TypeVar("AnyAddress")


def request(
    connect: Callable[[AnyAddress, IClientConnectHandler], object],
    address: AnyAddress,
    handler: IClientConnectHandler | type[IClientConnectHandler] | IServer | IConnectionHandler,
    timeout: float | None = None,
) -> Reason | None:
    """Connect, let *handler* use the connection, and return when the connection has ended.

    Blocks the calling greenlet.  *handler* runs on the connection's greenlet, on the hub that *connect* uses.  The
    connection is always closed at the end.

    :param connect: an implementation's method, such as ``ngi_gevent.connect``.  Pass options with
        ``functools.partial``, for example ``partial(ngi_gevent.connect, ssl_context=context)``.
    :param handler: a client connect handler, a server, or a connection handler; or a class of client connect handlers,
        which this instantiates.  ``failed_connect`` is not called, because this raises the exception instead.
    :param timeout: seconds for the whole request; None for no limit.
    :returns: None if *handler* closed the connection; otherwise the reason why it ended.
    :raises TypeError: *handler* has another type.
    :raises ConnectionFailed: the connection could not be made.
    :raises ConnectionTimeout: the connection was not made in time.
    :raises Timeout: the connection was made, but did not end in time.
    :raises BaseException: an exception that *handler* raised.  It is not logged.
    """
    _check_connect(connect)
    timeout = as_timeout(timeout)
    attempt = _Request(_connected_method(handler))
    try:
        connect(address, attempt)
        ended = attempt.wait(timeout)
    finally:
        attempt.give_up()
    if attempt.error is not None:
        raise attempt.error
    if ended:
        return attempt.reason
    if attempt.connection is None:
        raise _no_connection(address, timeout)
    raise Timeout(f"the connection to {address!r} did not end within {timeout} seconds")


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
    """Connect, and return the connection, which holds its input until you set a handler.

    Blocks the calling greenlet.  You must close the connection.

    :param connect: an implementation's method; ``ngi_gevent.connect`` by default.
    :param timeout: seconds to wait at most; None for no limit.
    :raises ConnectionFailed: the connection could not be made.
    :raises ConnectionTimeout: the connection was not made in time.
    """
    _check_connect(connect)
    timeout = as_timeout(timeout)
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


_connect = connect  # for open, whose parameter has the same name


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
    """Return a connection as two binary files: :class:`Output` and :class:`Input`.

    For a connection, never blocks; for an address, connects as :func:`connect` does.  After the end of input, the
    connection stays open for output.  It closes when you close the output, or drop both files.

    Note the order: this returns ``(output, input)``, but :func:`server` passes ``(input, output)`` to its function, as
    in NGI.

    :param address_or_connection: an address; or a connection, which is an object that has ``set_handler`` (or NGI 1's
        ``setHandler``).  The files become its handler.
    :param connect: an implementation's method; ``ngi_gevent.connect`` by default.
    :param timeout: seconds to wait for the connection; None for no limit.
    :raises ConnectionFailed: the connection could not be made.
    :raises ConnectionTimeout: the connection was not made in time.
    """
    connection = address_or_connection
    if hasattr(connection, "set_handler") or hasattr(connection, "setHandler"):
        as_timeout(timeout)
    else:
        connection = _connect(address_or_connection, connect, timeout)
    handler = Handler(connection)
    return Output(handler), Input(handler)


def _check_connect(connect: Any) -> None:
    if not callable(connect):
        raise TypeError(f"connect must be a callable, such as ngi_gevent.connect; got {connect!r:.100}")


def _no_connection(address: Any, timeout: float | None) -> ConnectionTimeout:
    return ConnectionTimeout(f"no connection to {address!r} within {timeout} seconds")


def _connected_method(handler: Any) -> Callable[[Any], object]:
    """Return the function to call with the connection, for any kind of *handler*."""
    if callable(getattr(handler, "connected", None)):
        return (handler() if isinstance(handler, type) else handler).connected  # type: ignore[no-any-return]
    if callable(getattr(handler, "handle_input", None)) and not isinstance(handler, type):
        return lambda connection: connection.set_handler(handler)
    if callable(handler):
        return handler  # type: ignore[no-any-return]
    raise TypeError(f"handler must be a client connect handler, a server or a connection handler; got {handler!r:.100}")


class _Attempt:
    """The client connect handler that waits for a connection."""

    #: Set for implementations that can detect a wait on this greenlet that would never end.
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
        """Keep *give_up*, which ends the connection attempt.  Called when the attempt begins."""
        self._stop_connecting = give_up
        self._alone = get_ident() == self._thread

    def wait(self, timeout: float | None) -> bool:
        """Wait for the end, for *timeout* seconds at most.  Return whether it came."""
        return self.ended.wait(timeout, alone=self._alone)

    def connected(self, connection: Any) -> None:
        if self._given_up:
            connection.abort()
            return
        self.connection = connection
        self.begin(connection)

    def begin(self, connection: Any) -> None:
        """Begin to use the new *connection*."""
        self.ended.set()

    def failed_connect(self, reason: Any) -> None:
        self.error = ConnectionFailed.because(reason)
        self.ended.set()

    def give_up(self) -> None:
        """Stop waiting, and close the connection."""
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
            check_returned(self._connected(watched), "the handler of the request")
        except BaseException as error:
            watched.handler_raised(error)


class _WatchedConnection(Base):
    """The connection of a request, which passes the handler's exceptions to the caller instead of the log."""

    def __init__(self, connection: Any, attempt: _Request) -> None:
        super().__init__(connection)
        self._attempt = attempt

    def handle_input(self, connection: Any, data: bytes) -> None:
        self._call(super().handle_input, connection, data)

    def deliver_for(self, adapter: Any, records: Iterator[Any]) -> None:
        super().deliver_for(Within(adapter, self._call), self._pulled(records))

    def _pulled(self, records: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from records
        except Exception as error:
            self.handler_raised(error)

    def handle_eof(self, connection: Any) -> None:
        self._call(super().handle_eof, connection)

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        self._call(super().handle_exception, connection, exception)

    def _call(self, callback: Callable[..., object], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except BaseException as error:
            self.handler_raised(error)

    def handle_close(self, connection: Any, reason: Reason) -> None:
        self._attempt.reason = reason
        try:
            super().handle_close(connection, reason)
        except BaseException as error:
            self._attempt.error = error

    def _application_ended(self, connection: Any) -> None:
        try:
            super()._application_ended(connection)
        except BaseException as error:
            self._attempt.error = error

    def handler_raised(self, error: BaseException) -> None:
        """End the connection because the handler raised *error*, as the implementation would."""
        if is_end_of(bottom(self), error):
            return
        self._attempt.error = error
        if self.connection:
            self.connection.close()
            super().handle_close(self.connection, error)
