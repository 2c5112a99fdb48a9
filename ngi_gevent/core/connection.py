"""What every connection is, on sockets or in memory: its state, its handler, and the checks of what it is given.

The states, of which a connection has one at a time, in the attribute ``_state``:

=========  ===================================================================  ============
state      what it means                                                        goes on to
=========  ===================================================================  ============
HANDSHAKE  nothing yet: the two sides agree on TLS, and nobody has seen it       all others
OPEN       input is delivered, output is taken                                  both below
CLOSING    output that was taken is being delivered; nothing new is taken       CLOSED
CLOSED     nothing is sent or received any more; what was not sent is dropped   nothing
=========  ===================================================================  ============

Why it left OPEN stands in ``_reason``: None as long as nobody but the application's own ``close`` or ``abort`` did it.
A reason is owed to the handler, and ``_tell_close`` pays that debt once.  Implementations add the transport: when data
comes, where output goes, and on which greenlet callbacks run.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Protocol

from ngi_gevent.core import logs
from ngi_gevent.errors import ConnectionClosed, Deadlock, LimitExceeded, Timeout
from ngi_gevent.interfaces import IConnection, documented_by

if TYPE_CHECKING:
    from ngi_gevent.core.threads import Flag
    from ngi_gevent.interfaces import Data, IConnectionHandler, IListener, Reason

__all__ = [
    "CLOSED",
    "CLOSING",
    "END_OF_INPUT",
    "HANDSHAKE",
    "HIGH_WATER",
    "LOW_WATER",
    "OPEN",
    "OUTPUT_LIMIT",
    "STOPPED",
    "BaseConnection",
    "ConnectionOwner",
    "PendingLines",
    "as_bytes",
    "as_iterator",
    "check_count",
    "check_handler",
    "check_returned",
    "check_timeout",
    "is_end_of",
]

HANDSHAKE, OPEN, CLOSING, CLOSED = "handshake", "open", "closing", "closed"

#: The reasons in which nothing went wrong.
END_OF_INPUT, STOPPED = "end of input", "stopped"

#: Where an exception came from, for the log.
ITERABLE = "an iterable given to writelines"

#: Bytes of pending output from which on answers are limited: input is still read, but once it was answered with as much
#: again, no more is, until less than the low-water mark is pending.  What was written before, in answer to nothing,
#: does not keep a connection from reading: two that send much at once would wait for each other for ever.  The kernel
#: buffers some megabytes besides, so that this bounds memory and costs no throughput.
HIGH_WATER, LOW_WATER = 64 * 1024, 16 * 1024

#: Bytes of pending output at which one more write aborts the connection: enough for any answer that is better made in
#: one piece than given to ``writelines``, and little enough that a peer who does not read cannot fill the memory.
OUTPUT_LIMIT = 64 * 1024 * 1024


#: Marks the code of functions that make a generator or a coroutine when they are called, and do nothing else.
DOES_NOT_RUN = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def as_bytes(data: Any) -> bytes:
    """*data* as bytes of our own, since it is sent later; ``TypeError`` for what is no bytes."""
    if type(data) is bytes:
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"only bytes, a bytearray or a memoryview can be written; got {data!r:.100}")


def as_iterator(data: Any) -> Iterator[Any]:
    """The iterator over what ``writelines`` was given; ``TypeError`` for what is no iterable of bytes."""
    if isinstance(data, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"writelines takes an iterable of bytes objects, not a single one or text; got {data!r:.100}")
    try:
        return iter(data)
    except TypeError:
        raise TypeError(f"writelines takes an iterable of bytes objects; got {data!r:.100}") from None


def _size(data: object) -> int:
    """Return how many bytes *data* has; 0 if it cannot be written."""
    if isinstance(data, memoryview):
        return data.nbytes
    return len(data) if isinstance(data, (bytes, bytearray)) else 0


class PendingLines:
    """What ``writelines`` was given, waiting to be pulled from.

    It counts as pending output until it is exhausted, since a handler that answers everything with ``writelines`` must
    not fill the memory either: a list with the bytes in it, anything else with what an iterator may cost.
    """

    __slots__ = ("_iterator", "size")

    #: The bytes that an iterator counts for, whatever it will yield.
    ITERATOR_SIZE = 4096

    def __init__(self, data: Any) -> None:
        self._iterator = as_iterator(data)
        self.size = self.ITERATOR_SIZE
        if isinstance(data, (list, tuple)):
            self.size = max(self.size, sum(map(_size, data)))

    def pull(self) -> bytes | None:
        """The next bytes; None at the end.  Raises what the iterator does, or ``TypeError`` for what is no bytes."""
        item = next(self._iterator, self)
        return None if item is self else as_bytes(item)


def check_handler(handler: Any) -> None:
    """Raise ``TypeError``, naming *handler*, unless it can take input."""
    handle_input = getattr(handler, "handle_input", None)
    if isinstance(handler, type) or not callable(handle_input):
        raise TypeError(f"a connection handler is an object with a handle_input method; got {handler!r:.100}")
    code = getattr(handle_input, "__code__", None)
    if code is not None and code.co_flags & DOES_NOT_RUN:
        raise TypeError(
            f"handle_input is called, and a generator or coroutine function does nothing then; got {handler!r:.100}"
        )


def check_returned(result: object, where: str) -> None:
    """Raise ``TypeError`` if what was called to set a handler has only made a generator or a coroutine."""
    if isinstance(result, (GeneratorType, CoroutineType)):
        if isinstance(result, CoroutineType):
            result.close()  # or Python would warn that it was never awaited, which is not the mistake
        raise TypeError(
            f"{where} returned {result!r:.100} instead of running: is ngi_gevent.generator.handler missing?"
        )


def check_count(name: str, value: Any, least: int = 0) -> None:
    """Raise, saying that it is *name*, unless *value* is a whole number from *least*."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number; got {value!r}")
    if value < least:
        raise ValueError(f"{name} is a whole number from {least}; got {value!r}")


def check_timeout(timeout: Any, name: str = "a timeout") -> None:
    """Raise, saying that it is *name*, unless *timeout* is a number of seconds, or None for no limit."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{name} is a number of seconds, or None; got {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"{name} is a number of seconds from 0; got {timeout!r}")


def is_end_of(connection: object, error: BaseException) -> bool:
    """Return whether *error* only says that *connection* had ended when the application wrote to it."""
    return isinstance(error, ConnectionClosed) and error.connection is connection


class ConnectionOwner(Protocol):
    """What a connection tells to whoever made it: the implementation, or the listener."""

    def handler_raised(self, peer: Any, where: str, error: BaseException) -> None:
        """Report what a callback of the application raised, on the connection with *peer*."""

    def connection_gone(self, connection: BaseConnection) -> None:
        """Forget *connection*: it is closed, and its last callback is done."""


@documented_by(IConnection)
class BaseConnection:
    """State, handler and checks of a connection.  See the top of this file, and ``IConnection`` for the contract."""

    __slots__ = (
        "__weakref__",
        "_ended_elsewhere",
        "_ended_for",
        "_exceptions",
        "_gone",
        "_handler",
        "_output_error",
        "_output_limit",
        "_owner",
        "_pause_over",
        "_pending",
        "_reason",
        "_state",
        "_when_closed",
        "control",
        "local_address",
        "peer_address",
    )

    ssl_object: Any = None

    def __init__(
        self,
        owner: ConnectionOwner,
        control: IListener | None,
        local_address: Any,
        peer_address: Any,
        output_limit: int = OUTPUT_LIMIT,
    ) -> None:
        self._owner = owner
        self.control: Any = control
        self.local_address = local_address
        self.peer_address = peer_address
        self._output_limit = output_limit
        self._state = OPEN
        self._ended_elsewhere = False  # whether another thread has ended it, which this one will see to
        self._output_error: BaseException | None = None  # why output is dropped, until the handler learns of the end
        self._handler: IConnectionHandler | None = None
        self._reason: Reason | None = None
        self._ended_for: Reason | None = None  # what the log is to be told
        self._pending = 0  # bytes of output that were taken and not yet handed on
        self._pause_over: int | None = None  # more of them than this pause reading, as answers to what was read
        self._exceptions: list[BaseException] = []  # of iterators, that the handler is to be told of
        self._gone = False
        self._when_closed: list[Callable[[], object]] = []

    def __bool__(self) -> bool:
        return self._state is OPEN and not self._ended_elsewhere and self._output_error is None

    def __repr__(self) -> str:
        told = f"{self.local_address!r} to {self.peer_address!r}, {self._state}"
        if not self._gone:
            handler = "no handler" if self._handler is None else f"handler: {type(self._handler).__name__}"
            told += f", {handler}, bytes pending: {self._pending}"
        return f"<{type(self).__name__} {told}>"

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
        lines = PendingLines(data)
        if not self:
            raise self._closed_error()
        if not self._output_handed_over(self._take_lines, lines, lines.size):
            self._take_lines(lines)

    def _take_lines(self, lines: PendingLines) -> None:
        if self._state is OPEN and not self._over_limit():
            self._pending += lines.size
            self._queue_lines(lines)

    def close(self) -> None:
        self._end(self._close)

    def _close(self) -> None:
        if self._state is OPEN:
            self._leave_open(None)
        else:
            self._forgive_reason()

    def abort(self) -> None:
        self._end(self._abort)

    def _end(self, end: Callable[[], None]) -> None:
        self._ended_elsewhere = self._is_elsewhere()  # first, so that no callback begins once this has returned
        if not self._handed_over(end):
            end()

    def _abort(self) -> None:
        if self._state is OPEN:
            self._ended_for = "aborted"
        self._forgive_reason()
        self._break_off()

    def when_closed(self, callback: Callable[[], object]) -> None:
        if not callable(callback):
            raise TypeError(f"when_closed takes something to call; got {callback!r:.100}")
        if self._gone or not self._handed_over(self._take_when_closed, callback):
            self._take_when_closed(callback)

    def _take_when_closed(self, callback: Callable[[], object]) -> None:
        if self._gone:
            self._call_when_closed(callback)
        else:
            self._when_closed.append(callback)

    # For those who wait for the connection.

    def goes_on(self) -> bool:
        """Return whether it delivers input, or will do so after its handshake."""
        return self._state is HANDSHAKE or self.delivers()

    def delivers(self) -> bool:
        """Return whether it delivers input: this side has not ended it, and the handler has not learned of an end.

        A connection whose output can no longer be sent is false, but delivers what had arrived before.
        """
        return self._state is OPEN and not self._ended_elsewhere

    def unsent_size(self) -> int | None:
        """Return how many bytes of output the peer has not taken; None if the connection is closed."""
        return None if self._state is CLOSED else self._pending

    def is_full(self) -> bool:
        """Return whether more input must wait until the peer takes output.

        For callers that deliver several records of one piece of input: to ask counts as delivering one more, so the
        same bound applies between two records as between two pieces.
        """
        return False

    def is_ready_for_more(self) -> bool:
        """Return whether to deliver another record of the same piece of input.

        Called in a callback, between two records; blocks while the connection is full.  In memory, where a callback
        cannot wait, it never is.
        """
        return self.delivers()

    def wait_for(self, flag: Flag, timeout: float | None) -> bool:
        """Wait until something on this connection sets *flag*, or for *timeout* seconds; whether it is set.

        Raises :class:`~ngi_gevent.Deadlock` in a callback, and where nothing is left that could ever set it.
        """
        if self.is_in_callback():
            raise Deadlock("waiting for a connection in its own callback, before whose return nothing more happens")
        return flag.wait(timeout, alone=not self._is_elsewhere())

    def _forgive_reason(self) -> None:
        """The application ended the connection itself, too, before it was told that it had ended: no callback comes."""
        self._reason = None

    def _closed_error(self) -> ConnectionClosed:
        state = CLOSING if self._state is OPEN else self._state
        if self._output_error is not None:
            state = f"broken ({logs.shown(self._output_error)})"
        return ConnectionClosed(f"the connection to {self.peer_address!r} is {state}", self)

    def _limit_answers(self) -> None:
        """Input is handled although much output is pending already: from here on, only so much more may come."""
        if self._pause_over is None:
            self._pause_over = self._pending + HIGH_WATER

    def _over_limit(self) -> bool:
        """Whether more output is waiting than allowed, which ends a connection whose peer does not take it."""
        waiting = self._waiting_for_peer()
        if waiting > self._output_limit:
            self._break_off_because(
                LimitExceeded(
                    f"the peer left {waiting} bytes of output waiting, and output_limit is {self._output_limit}"
                )
            )
        return self._state is not OPEN

    def _break_off_because(self, reason: Reason) -> None:
        """Break it off, and owe the handler *reason*, unless it has ended for another one already."""
        if self._state is OPEN:
            self._owe(reason)
        self._break_off()

    def _owe(self, reason: Reason | None) -> None:
        """It is not to be open any more: owe the handler *reason*; None where the application has closed it."""
        self._reason = reason
        self._ended_for = "closed" if reason is None else reason

    # What a transport adds.

    def _is_elsewhere(self) -> bool:
        """Whether this is another thread than the connection's."""
        return False

    def _handed_over(self, call: Callable[..., object], *arguments: Any) -> bool:
        """Whether this is another thread than the connection's: then *call* is made there, in the order of calls."""
        return False

    def _output_handed_over(self, take: Callable[[Any], None], output: Any, size: int) -> bool:
        """Whether this is another thread than the connection's: then it takes *output* there, of *size* bytes."""
        return self._handed_over(take, output)

    def write(self, data: Data) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """End it now: send what can be sent without waiting, drop the rest, and owe the handler ``'stopped'``."""
        raise NotImplementedError

    def limit_delivery(self) -> None:
        """Do not wait forever for an iterable: the owner is closed, and this connection finishes delivering."""

    def hold(self, flag: Flag) -> bool:
        """Wait, in ``handle_input``, for *flag*, or until the connection has an end to see to; whether it was held."""
        raise NotImplementedError

    def is_in_callback(self) -> bool:
        """Whether the caller is in a callback that has to return before more happens on this connection."""
        raise NotImplementedError

    def undelivered(self) -> bool:
        """Whether something is left to do for the peer: it is open, or output is waiting."""
        raise NotImplementedError

    def _handler_set(self) -> None:
        """There is a first handler: deliver what was held for it."""
        raise NotImplementedError

    def _queue_lines(self, lines: PendingLines) -> None:
        """Send what *lines* yield after all that was queued before."""
        raise NotImplementedError

    def _waiting_for_peer(self) -> int:
        """Bytes of output that the transport did not take, if it can have them now."""
        raise NotImplementedError

    def _exception_queued(self) -> None:
        """Have the handler told of an exception, in its turn."""
        raise NotImplementedError

    def _leave_open(self, reason: Reason | None) -> None:
        """Go from OPEN to CLOSING, deliver what is queued, then to CLOSED; owe the handler *reason*."""
        raise NotImplementedError

    def _break_off(self) -> None:
        """Go to CLOSED now, dropping what was not sent, in a way that the peer does not take for an orderly end."""
        raise NotImplementedError

    # The handler's callbacks.  Called where callbacks of this connection run, one at a time.

    def _failed(self, where: str, error: BaseException) -> None:
        """The application raised *error* in *where*: report it, and end this connection.

        Also if it only wrote to this connection in vain.  The rest of the piece of input is lost with the callback, and
        an adapter that was in the middle of it must not take what comes next for the beginning of a record.
        """
        if self._state is OPEN:
            self._leave_open((is_end_of(self, error) and self._output_error) or error)
        self._report(where, error)

    def _report(self, where: str, error: BaseException) -> None:
        """Report that the application raised *error* in *where*."""
        if is_end_of(self, error):
            logs.connections.debug("connection with %r: %s wrote to it after its end", self.peer_address, where)
        else:
            self._owner.handler_raised(self.peer_address, where, error)

    def _tell_exception(self, exception: BaseException) -> None:
        """An iterator raised *exception*: tell the handler, or end the connection where it does not care."""
        handle_exception = getattr(self._handler, "handle_exception", None)
        if handle_exception is None:
            self._failed(ITERABLE, exception)
            return
        try:
            handle_exception(self, exception)
        except BaseException as error:
            self._failed("handle_exception", error)

    def iterator_raised(self, error: BaseException) -> None:
        """An iterator raised *error*, perhaps while a callback is running: tell the handler in its turn."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._failed(ITERABLE, error)  # not for the handler, but for who started the program
        elif self._state is OPEN:
            self._exceptions.append(error)
            self._exception_queued()
        else:
            self._owner.handler_raised(self.peer_address, ITERABLE, error)

    def _log_end(self) -> None:
        """The connection is not open any more: tell the log why, once, before the handler."""
        reason, self._ended_for = self._ended_for, None
        if reason is not None:
            level = logging.INFO if isinstance(reason, (Timeout, LimitExceeded)) else logging.DEBUG
            if logs.connections.is_enabled_for(level):
                logs.connections.tell(level, "connection with %r ended: %s", self.peer_address, logs.shown(reason))

    def _tell_end(self) -> None:
        """The connection is not open any more: tell the handler what it has not heard yet, and why."""
        while self._exceptions:
            exception = self._exceptions.pop(0)
            if self._reason is None or self._ended_elsewhere:  # it ended the connection itself: no callback comes
                self._owner.handler_raised(self.peer_address, ITERABLE, exception)
            else:
                self._tell_exception(exception)
        self._tell_close()

    def _tell_close(self) -> None:
        """Call ``handle_close`` if the handler is owed a reason.

        Otherwise the application ended the connection.  The contract does not have a callback for that; a generator
        must be closed then, though, on a greenlet that can block.
        """
        reason, self._reason = self._reason, None
        own_end = reason is None or self._ended_elsewhere
        callback = getattr(self._handler, "_application_ended" if own_end else "handle_close", None)
        if callback is None:
            return
        try:
            callback(self) if own_end else callback(self, reason)
        except BaseException as error:
            self._report("a generator that was closed" if own_end else "handle_close", error)

    def _is_gone(self) -> None:
        """It is closed and the last callback is done: let go of it."""
        if self._gone:
            return
        self._gone = True
        self._owner.connection_gone(self)
        callbacks, self._when_closed = self._when_closed, []
        for callback in callbacks:
            self._call_when_closed(callback)

    def _call_when_closed(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException as error:
            self._owner.handler_raised(self.peer_address, "what was given to when_closed", error)
