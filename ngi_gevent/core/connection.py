"""A connection, on sockets or in memory: its handler, and the order of callbacks.

The state is in ``Lifecycle``, pending output in ``OutputQueue``.  Implementations add when input arrives, where output
goes, and on which greenlet callbacks run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from ngi_gevent.core import logs
from ngi_gevent.core.checks import check_handler
from ngi_gevent.core.lifecycle import (
    ABORT,
    BREAK,
    CLOSE,
    CLOSED,
    CLOSING,
    FAIL,
    OPEN,
    Lifecycle,
)
from ngi_gevent.core.output import Lines, OutputQueue
from ngi_gevent.errors import ConnectionClosed, Deadlock, LimitExceeded, Timeout
from ngi_gevent.interfaces import IConnection, documented_by

if TYPE_CHECKING:
    from ngi_gevent.core.threads import Flag
    from ngi_gevent.interfaces import Data, IConnectionHandler, IListener, Reason

__all__ = ["BaseConnection", "ConnectionOwner", "is_end_of", "unsent_size_of"]

#: The place where an exception came from, for the log.
ITERABLE = "an iterable given to writelines"


def is_end_of(connection: object, error: BaseException) -> bool:
    """Return whether *error* only says that *connection* had ended when the application wrote to it."""
    return isinstance(error, ConnectionClosed) and error.connection is connection


def unsent_size_of(items: Iterable[Any]) -> int | None:
    """Return how many bytes of output the peers of all *items* have not taken; None if no connection is left."""
    sizes = [size for item in items if (size := item.unsent_size()) is not None]
    return sum(sizes) if sizes else None


class ConnectionOwner(Protocol):
    """What a connection reports to its maker: the implementation, or the listener."""

    def handler_raised(self, peer: Any, where: str, error: BaseException) -> None:
        """Report an exception in a callback of the application, on the connection with *peer*."""

    def connection_gone(self, connection: BaseConnection) -> None:
        """Forget *connection*: it is closed, and its last callback is over."""


@documented_by(IConnection)
class BaseConnection:
    """The handler and the callbacks of a connection.  See ``IConnection`` for the contract."""

    __slots__ = (
        "__weakref__",
        "_exceptions",
        "_handler",
        "_lifecycle",
        "_output",
        "_owner",
        "_when_closed",
        "control",
        "local_address",
        "peer_address",
    )

    def __init__(
        self,
        owner: ConnectionOwner,
        control: IListener | None,
        local_address: Any,
        peer_address: Any,
        output: OutputQueue,
    ) -> None:
        self._owner = owner
        self.control: Any = control
        self.local_address = local_address
        self.peer_address = peer_address
        self._lifecycle = Lifecycle()
        self._output = output
        self._handler: IConnectionHandler | None = None
        # Tuples, since nearly all connections have none, and lists would cost each of them 112 bytes.
        self._exceptions: tuple[BaseException, ...] = ()  # of iterables, for handle_exception
        self._when_closed: tuple[Callable[[], object], ...] = ()

    def __bool__(self) -> bool:
        return self._lifecycle.is_open()

    def __repr__(self) -> str:
        told = f"{self.local_address!r} to {self.peer_address!r}, {self._lifecycle.state}"
        if not self._lifecycle.is_gone():
            handler = "no handler" if self._handler is None else f"handler: {type(self._handler).__name__}"
            told += f", {handler}, bytes pending: {self._output.size}"
        return f"<{type(self).__name__} {told}>"

    @property
    def ssl_object(self) -> Any:
        return None

    # The application's side.

    def set_handler(self, handler: IConnectionHandler) -> None:
        check_handler(handler)
        if not self._handed_over(self._take_handler, handler):
            self._take_handler(handler)

    def _take_handler(self, handler: IConnectionHandler) -> None:
        first = self._handler is None
        self._handler = handler
        if first:
            self._handler_set()

    def setHandler(self, handler: IConnectionHandler) -> None:  # noqa: N802 (NGI 1's spelling)
        """Deprecated: ``set_handler`` as NGI 1 spelled it."""
        warnings.warn("setHandler is deprecated: use set_handler", DeprecationWarning, stacklevel=2)
        self.set_handler(handler)

    def writelines(self, data: Iterable[Data]) -> None:
        lines = Lines(data)
        if not self:
            raise self._closed_error()
        if not self._output_handed_over(self._take_lines, lines, lines.size):
            self._take_lines(lines)

    def _take_lines(self, lines: Lines) -> None:
        if self._lifecycle.state is OPEN and not self._over_limit():
            self._output.size += lines.size
            self._queue_lines(lines)

    def close(self) -> None:
        self._end(CLOSE)

    def abort(self) -> None:
        self._end(ABORT)

    def _end(self, event: str) -> None:
        # First of all, so that no callback begins once this has returned.
        self._lifecycle.closing_from_other_thread = self._is_elsewhere()
        if not self._handed_over(self.handle, event):
            self.handle(event)

    def when_closed(self, callback: Callable[[], object]) -> None:
        if not callable(callback):
            raise TypeError(f"when_closed takes something to call; got {callback!r:.100}")
        if self._lifecycle.is_gone() or not self._handed_over(self._take_when_closed, callback):
            self._take_when_closed(callback)

    def _take_when_closed(self, callback: Callable[[], object]) -> None:
        if self._lifecycle.is_gone():
            self._call_when_closed(callback)
        else:
            self._when_closed = (*self._when_closed, callback)

    # For those who wait for the connection.

    def is_live(self) -> bool:
        """Return whether input is delivered, or will be after the handshake."""
        return self._lifecycle.is_live()

    def delivers_input(self) -> bool:
        """Return whether input is delivered: this side has not ended the connection, nor learned of an end.

        A connection on which sending has failed is false, but input that had arrived before is delivered.
        """
        return self._lifecycle.delivers_input()

    def unsent_size(self) -> int | None:
        """Return how many bytes of output the peer has not taken; None if the connection is closed."""
        return None if self._lifecycle.state is CLOSED else self._output.size

    def is_full(self) -> bool:
        """Return whether more input must wait until the peer takes output.

        For callers that deliver several records of one piece of input: to ask counts as delivering one more, so the
        same bound applies between two records as between two pieces.
        """
        return False

    def is_ready_for_more(self) -> bool:
        """Return whether to deliver another record of the same piece of input.

        Called in a callback, between two records.  Blocks while the connection is full.  In memory, where a callback
        cannot wait, it never is.
        """
        return self._lifecycle.delivers_input()

    def wait_for(self, flag: Flag, timeout: float | None) -> bool:
        """Wait until something on this connection sets *flag*, or for *timeout* seconds.  Return True if it was set.

        :raises Deadlock: called in a callback, or nothing is left that could ever set it.
        """
        if self.is_in_callback():
            raise Deadlock("waiting for a connection in its own callback, before whose return nothing more happens")
        return flag.wait(timeout, alone=not self._is_elsewhere())

    # The state.

    def handle(self, event: str, reason: Reason | None = None) -> None:
        """Feed the lifecycle an event, and do what a new state asks for."""
        lifecycle = self._lifecycle
        before = lifecycle.state
        if lifecycle.handle(event, reason) and lifecycle.state is not before:
            try:
                self._enter(lifecycle.state)
            finally:
                if lifecycle.finishes():
                    self._finish()

    def end_callbacks(self) -> None:
        """Note that no callback will run from now on."""
        self._lifecycle.callbacks_are_over = True
        if self._lifecycle.finishes():
            self._finish()

    def _closed_error(self) -> ConnectionClosed:
        lifecycle = self._lifecycle
        state = CLOSING if lifecycle.state is OPEN else lifecycle.state
        if lifecycle.output_error is not None:
            state = f"broken ({logs.format_reason(lifecycle.output_error)})"
        return ConnectionClosed(f"the connection to {self.peer_address!r} is {state}", self)

    def _over_limit(self) -> bool:
        """Return whether more output waits than is allowed.  That ends a connection whose peer does not take it."""
        waiting = self._waiting_for_peer()
        if waiting > self._output.limit:
            message = f"the peer left {waiting} bytes of output waiting, and output_limit is {self._output.limit}"
            self.handle(BREAK, LimitExceeded(message))
        return self._lifecycle.state is not OPEN

    # What an implementation adds.

    def _is_elsewhere(self) -> bool:
        """Return whether the caller is on another native thread than the connection's."""
        return False

    def _handed_over(self, call: Callable[..., object], *arguments: Any) -> bool:
        """Return whether the caller is on another native thread; *call* is then made on the connection's, in order."""
        return False

    def _output_handed_over(self, take: Callable[[Any], None], output: Any, size: int) -> bool:
        """Return whether the caller is on another native thread.  Then *output*, of *size* bytes, is taken later."""
        return self._handed_over(take, output)

    def write(self, data: Data) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """End it now: send what can be sent without waiting, drop the rest, and owe the handler ``'stopped'``."""
        raise NotImplementedError

    def limit_delivery(self) -> None:
        """Do not wait forever for an iterable: the owner is closed, and this connection finishes delivering."""

    def hold(self, flag: Flag) -> bool:
        """Wait, in ``handle_input``, for *flag*, or until the connection has an end to see to.  Return True if held."""
        raise NotImplementedError

    def is_in_callback(self) -> bool:
        """Return whether the caller is in a callback, before whose return nothing more happens on this connection."""
        raise NotImplementedError

    def has_unfinished_output(self) -> bool:
        """Return whether something is left to do for the peer: the connection is open, or output is pending."""
        raise NotImplementedError

    def _handler_set(self) -> None:
        """Deliver what was held for the first handler."""
        raise NotImplementedError

    def _queue_lines(self, lines: Lines) -> None:
        """Send the items of *lines* after all that was queued before."""
        raise NotImplementedError

    def _waiting_for_peer(self) -> int:
        """Return the bytes of output that the network did not take, if it can have them now."""
        raise NotImplementedError

    def wake(self) -> None:
        """Let the connection see to more than input, in its turn: the application has something to learn."""
        raise NotImplementedError

    def _enter(self, state: str) -> None:
        """Do what *state*, which is new, asks for."""
        raise NotImplementedError

    # The handler's callbacks.  Called where callbacks of this connection run, one at a time.

    def _failed(self, where: str, error: BaseException) -> None:
        """The application raised *error* in *where*: report it, and end this connection.

        A callback that only wrote in vain ends it, too.  The rest of the piece of input is lost with that callback, and
        an adapter in the middle of a record must not take the next piece for the beginning of one.
        """
        self.handle(FAIL, (is_end_of(self, error) and self._lifecycle.output_error) or error)
        self._report(where, error)

    def _report(self, where: str, error: BaseException) -> None:
        """Report that the application raised *error* in *where*."""
        if not is_end_of(self, error):
            self._owner.handler_raised(self.peer_address, where, error)
        elif not self._lifecycle.is_gone():  # it is gone in a callback that goes on in a forked child
            logs.connections.debug("connection with %r: %s wrote to it after its end", self.peer_address, where)

    def _report_exception(self, exception: BaseException) -> None:
        """Call ``handle_exception`` with the exception of an iterable.  A handler without it ends the connection."""
        handle_exception = getattr(self._handler, "handle_exception", None)
        if handle_exception is None:
            self._failed(ITERABLE, exception)
            return
        try:
            handle_exception(self, exception)
        except BaseException as error:
            self._failed("handle_exception", error)

    def _take_exception(self) -> BaseException:
        """Return the first exception that is to be reported, once."""
        exception, *others = self._exceptions
        self._exceptions = tuple(others)
        return exception

    def iterator_raised(self, error: BaseException) -> None:
        """Report *error*, which an iterable raised, perhaps while a callback is running, in its turn."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._failed(ITERABLE, error)  # meant for the program, not for the handler
        elif self._lifecycle.delivers_input():
            self._exceptions = (*self._exceptions, error)
            self.wake()
        else:
            self._report(ITERABLE, error)

    def _log_end(self) -> None:
        """Log why the connection is no longer open, once."""
        reason = self._lifecycle.take_log_reason()
        if reason is not None:
            level = logging.INFO if isinstance(reason, (Timeout, LimitExceeded)) else logging.DEBUG
            if logs.connections.is_enabled_for(level):
                logs.connections.tell(
                    level, "connection with %r ended: %s", self.peer_address, logs.format_reason(reason)
                )

    def _report_end(self) -> None:
        """Report everything that is left to the handler of a connection that is no longer open."""
        while self._exceptions:
            exception = self._take_exception()
            if self._lifecycle.owes_reason():
                self._report_exception(exception)
            else:  # the application ended the connection, so no callback is called
                self._owner.handler_raised(self.peer_address, ITERABLE, exception)
        self._report_close()

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
        """Let go of a connection that is closed, and whose last callback is over."""
        self._owner.connection_gone(self)
        callbacks, self._when_closed = self._when_closed, ()
        for callback in callbacks:
            self._call_when_closed(callback)

    def _call_when_closed(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException as error:
            self._owner.handler_raised(self.peer_address, "what was given to when_closed", error)
