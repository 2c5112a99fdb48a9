"""The callbacks of a connection, on sockets or in memory: one at a time, in order, and none after the end.

Implementations call these methods on the greenlet, or in the turn, of the connection's callbacks.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ngi_gevent.core import logs
from ngi_gevent.core.checks import close_iterator
from ngi_gevent.core.lifecycle import END_OF_INPUT, EOF_HANDLED, EOF_RECEIVED, FAIL, INPUT_ENDED, Lifecycle
from ngi_gevent.errors import ConnectionClosed, Timeout

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IConnectionHandler, Reason

__all__ = [
    "Callbacks",
    "ConnectionOwner",
    "Delivering",
    "check_start_tls_of",
    "give_handler",
    "handles_eof",
    "is_end_of",
    "name_of_handler",
    "take_undelivered_of",
]

#: Places where exceptions come from, for the log.
ITERABLE = "an iterable given to writelines"
RECORDS = "an iterable given to deliver"


def is_end_of(connection: object, error: BaseException) -> bool:
    """Return whether *error* only says that *connection* had ended when the application wrote to it."""
    return isinstance(error, ConnectionClosed) and error.connection is connection


def handles_eof(handler: object) -> bool:
    """Return whether *handler* has ``handle_eof``.  For an adapter, the handler behind it counts."""
    of_adapter: Callable[[], bool] | None = getattr(handler, "has_eof_handler", None)
    return hasattr(handler, "handle_eof") if of_adapter is None else of_adapter()


def give_handler(connection: Any, handler: IConnectionHandler) -> None:
    """Set *handler* on *connection*, which can be a class of the application that has only NGI 1's ``setHandler``."""
    if hasattr(connection, "set_handler") or not hasattr(connection, "setHandler"):
        connection.set_handler(handler)
    else:
        warnings.warn(
            f"setHandler is deprecated: name the method of {type(connection).__qualname__} set_handler",
            DeprecationWarning,
            stacklevel=3,
        )
        connection.setHandler(handler)


def name_of_handler(handler: object) -> str:
    """Return the name of *handler* for logs: for an adapter, its handler's name; for a generator, its function's."""
    named: Callable[[], str] | None = getattr(handler, "handler_name", None)
    return type(handler).__name__ if named is None else named()


def check_start_tls_of(handler: object) -> None:
    """Raise ``RuntimeError`` if *handler* is an adapter that cannot return the input that it has."""
    check: Callable[[], None] | None = getattr(handler, "check_start_tls", None)
    if check is not None:
        check()


def take_undelivered_of(handler: object) -> bytes:
    """Remove and return the input that *handler*, such as an adapter or a file, has not delivered."""
    take: Callable[[], bytes] | None = getattr(handler, "take_undelivered", None)
    return b"" if take is None else take()


class Delivering(Protocol):
    """The methods of an adapter that a connection calls to deliver its records."""

    def pass_on(self, record: Any) -> None:
        """Call the adapter's handler with *record*."""


class ConnectionOwner(Protocol):
    """The methods that a connection calls on its owner, which is an implementation or a listener."""

    def handler_raised(self, peer: Any, where: str, error: BaseException) -> None:
        """Report an exception in a callback of the application, on the connection with *peer*."""

    def connection_ended(self, reason: Reason) -> None:
        """Count a connection that is no longer open, for *reason*, or ``'closed'`` or ``'aborted'``."""

    def connection_gone(self, connection: Any) -> None:
        """Forget *connection*: it is closed, and its last callback is over."""


class Callbacks:
    """The handler of a connection, and the events that it has not received yet."""

    __slots__ = (
        "__weakref__",
        "_exceptions",
        "_handler",
        "_is_paused",
        "_lifecycle",
        "_owner",
        "_records",
        "_when_closed",
        "peer_address",
        "proxy_address",
    )

    def __init__(self, owner: ConnectionOwner, peer_address: Any) -> None:
        self._owner = owner
        self.peer_address = peer_address
        self.proxy_address: Any = None
        self._lifecycle = Lifecycle()
        self._handler: IConnectionHandler | None = None
        # Tuples, because nearly all connections have no entries, and lists would cost each connection 112 bytes.
        self._exceptions: tuple[BaseException, ...] = ()  # of iterables, for handle_exception
        self._when_closed: tuple[Callable[[], object], ...] = ()
        #: Records of adapters for their handlers.  The last entry is delivered first: its records are parts of earlier
        #: ones.
        self._records: tuple[tuple[Delivering, Iterator[Any]], ...] = ()
        self._is_paused = False  # whether the application holds input back

    # Overridden by connections.

    def handle(self, event: str, reason: Reason | None = None) -> None:
        """Pass *event* to the lifecycle, and act on a new state."""
        raise NotImplementedError

    def wake(self) -> None:
        """Make the connection check soon for events that are not input."""
        raise NotImplementedError

    def has_eof_handler(self) -> bool:
        """Return whether the handler, behind all adapters, has ``handle_eof``."""
        return handles_eof(self._handler)

    # The PROXY protocol.

    def name_client(self, address: Any) -> None:
        """Note that the peer is a proxy for the client at *address*; None if the proxy did not name the client."""
        self.proxy_address = self.peer_address
        if address is not None:
            self.peer_address = address

    # Records.

    def goes_on(self) -> bool:
        """Return whether the callback that runs can deliver another record, since nothing has to be handled first.

        False is always safe: the record is then given to ``deliver``.
        """
        return False

    def _take_records(self, adapter: Delivering, records: Iterator[Any]) -> None:
        if not self._lifecycle.callbacks_are_over:
            self._records = (*self._records, (adapter, records))
            self.wake()

    def _deliver_record(self) -> None:
        """Deliver the next record, if there is one."""
        entry = self._records[-1]
        adapter, records = entry
        for record in records:
            if self._is_paused:  # paused while the record was made, which can block
                self._records = (*self._records, (adapter, iter((record,))))
            elif self._lifecycle.delivers_input():
                adapter.pass_on(record)
            return
        self._records = tuple(other for other in self._records if other is not entry)

    def _close_records(self) -> None:
        """Drop the remaining records, and close their generators.  Called on a greenlet that may block."""
        dropped, self._records = self._records, ()
        for _, records in reversed(dropped):
            try:
                close_iterator(records)
            except BaseException as error:
                self._report(RECORDS, error)

    # The handler's callbacks, called one at a time, on the greenlet or in the turn for callbacks.

    def _failed(self, where: str, error: BaseException) -> None:
        """Report that the application raised *error* in *where*, and end this connection.

        A callback that only wrote to an ended connection ends it, too.  The rest of the piece of input is lost with
        that callback, and an adapter in the middle of a record must not treat the next piece as the beginning of one.
        """
        reason: Reason | None = None
        if isinstance(error, ConnectionClosed) and is_end_of(self, error):
            reason = self._lifecycle.output_error or error.reason
        self.handle(FAIL, reason or error)
        self._log_end(logging.DEBUG)  # because the exception has its own log entry
        self._report(where, error)

    def _report(self, where: str, error: BaseException) -> None:
        """Report that the application raised *error* in *where*."""
        if not is_end_of(self, error):
            self._owner.handler_raised(self.peer_address, where, error)
        elif not self._lifecycle.is_gone():  # gone: the callback goes on in a forked child
            logs.connections.debug("connection with %r: %s wrote to it after its end", self.peer_address, where)

    def _input_ended(self, reason: Reason) -> None:
        """Handle the end of input: call ``handle_eof`` if the handler has it; otherwise end the connection."""
        lifecycle = self._lifecycle
        handle_eof = None if lifecycle.output_error is not None else getattr(self._handler, "handle_eof", None)
        if handle_eof is None or reason != END_OF_INPUT:
            self.handle(INPUT_ENDED, lifecycle.output_error or reason)
            return
        self.handle(EOF_RECEIVED)
        if not lifecycle.closing_from_other_thread:
            try:
                handle_eof(self)
            except BaseException as error:
                self._failed("handle_eof", error)
        if lifecycle.output_is_over:
            self.handle(EOF_HANDLED)

    def _report_exception(self, exception: BaseException) -> None:
        """Call ``handle_exception`` with the exception of an iterable.  Without that method, end the connection."""
        handle_exception = getattr(self._handler, "handle_exception", None)
        if handle_exception is None:
            self._failed(ITERABLE, exception)
            return
        try:
            handle_exception(self, exception)
        except BaseException as error:
            self._failed("handle_exception", error)

    def _take_exception(self) -> BaseException:
        """Remove and return the first exception for ``handle_exception``."""
        exception, *others = self._exceptions
        self._exceptions = tuple(others)
        return exception

    def iterator_raised(self, error: BaseException) -> None:
        """Report *error*, which an iterable raised, after any callback that is running."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._failed(ITERABLE, error)  # meant for the program, not for the handler
        elif self._lifecycle.delivers_input():
            self._exceptions = (*self._exceptions, error)
            self.wake()
        else:
            self._report(ITERABLE, error)

    def _log_end(self, level: int | None = None) -> None:
        """Log once why the connection ended: at INFO if this side ended it because of an error, otherwise at DEBUG."""
        reason = self._lifecycle.take_log_reason()
        if reason is not None:
            self._owner.connection_ended(reason)
            has_broken = isinstance(reason, (str, OSError)) and not isinstance(reason, Timeout)
            level = level or (logging.DEBUG if has_broken else logging.INFO)
            if logs.connections.is_enabled_for(level):
                logs.connections.log(
                    level, "connection with %r ended: %s", self.peer_address, logs.format_reason(reason)
                )

    def _report_end(self) -> None:
        """Report the remaining events to the handler, once the connection is no longer open."""
        while self._exceptions:
            exception = self._take_exception()
            if self._lifecycle.owes_reason():
                self._report_exception(exception)
            else:  # the application ended the connection, so no callback is called
                self._owner.handler_raised(self.peer_address, ITERABLE, exception)
        self._report_close()
        self._close_records()

    def _report_close(self) -> None:
        """Call ``handle_close`` if the handler is owed a reason.

        Otherwise the application ended the connection.  The contract has no callback for that, but a generator has to
        be closed then, on a greenlet that may block.
        """
        reason = self._lifecycle.take_close_reason()
        own_end = reason is None
        callback = getattr(self._handler, "_application_ended" if own_end else "handle_close", None)
        if callback is None:
            return
        try:
            callback(self) if own_end else callback(self, reason)
        except BaseException as error:
            self._report("a generator that was closed" if own_end else "handle_close", error)

    def _finish(self) -> None:
        """Release the connection, which is closed, and whose last callback is over."""
        self._owner.connection_gone(self)
        callbacks, self._when_closed = self._when_closed, ()
        for callback in callbacks:
            self._call_when_closed(callback)

    def _call_when_closed(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException as error:
            self._owner.handler_raised(self.peer_address, "what was given to when_closed", error)
