"""The connection handler behind a pair of files, and the parts that both files share.

**Input is held until a reader needs it.**  The callback that delivers input returns when the reader needs more than has
arrived.  So the handler holds at most one piece more than the reader needs.  The end of the connection is handled after
all input that arrived before it, so a peer that sends a request and finishes still gets its answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import ref

from ngi_gevent.adapters import bottom
from ngi_gevent.core import clock
from ngi_gevent.core.callbacks import give_handler
from ngi_gevent.core.checks import as_timeout
from ngi_gevent.core.threads import Flag
from ngi_gevent.errors import ConnectionClosed, Timeout

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason

__all__ = ["File", "Handler", "deadline_after"]


def deadline_after(timeout: float | None) -> float | None:
    """Return the time at which *timeout*, in seconds, expires; None for no limit.

    :raises TypeError: *timeout* is not a number.
    :raises ValueError: *timeout* is negative.
    """
    return clock.deadline_after(as_timeout(timeout))


class Changes:
    """Changes that several callers can wait for, each with its own flag."""

    def __init__(self) -> None:
        self._flags: dict[Flag, None] = {}  # flags of waiting callers

    def announce(self) -> None:
        """Wake all waiting callers, so that they check their conditions.  Never blocks."""
        while self._flags:
            with suppress(KeyError):  # another thread may have taken the last one
                self._flags.popitem()[0].set()

    def wait(self, condition: Callable[[], bool], wait_for: Callable[[Flag], bool]) -> bool:
        """Wait until *condition* is true.  Return False if *wait_for* gave up first.

        :param condition: checked at once, and after each change.
        :param wait_for: waits for a flag, which the next change sets, and returns False to give up.
        """
        while True:
            flag = Flag()
            self._flags[flag] = None
            try:
                if condition():
                    return True
                if not wait_for(flag):
                    return False
            finally:
                self._flags.pop(flag, None)


class Lease:
    """A reference that both files hold.  When both files are dropped, it calls their handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def __del__(self) -> None:
        self._handler.files_are_dropped()


class Handler:
    """The connection handler behind a pair of files.  Sets itself as the handler of *connection*.

    The callbacks and the files can run on different threads.  This does not need a lock, because only one side sets
    each attribute, and a waiting caller adds its flag before it checks its condition.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        #: Input that the reader has not taken yet.
        self.arrived: deque[bytes] = deque()
        #: Bytes that the reader has taken, but not returned yet.
        self.unread = bytearray()
        #: Whether no more input will arrive.
        self.ended = False
        #: Whether the peer has finished sending, and all input has arrived.
        self.finished = False
        #: Whether the application closed the output file.
        self.output_closed = False
        #: Why the connection ended, if the application did not end it.
        self.reason: Reason | None = None
        self._received = 0  # pieces of input
        self._requested = 0  # pieces that the reader had taken when it last needed more
        self._discards = False  # whether the input file is closed
        self._changes = Changes()
        self._lease: ref[Lease] | None = None  # set with the first file
        give_handler(connection, self)
        connection.when_closed(self.end)
        if connection.input_ended and connection:  # an earlier handler has received the end of input
            self.handle_eof(connection)

    @property
    def _bottom(self) -> Any:
        return bottom(self.connection)

    def handler_name(self) -> str:
        """Return the name for logs."""
        return "blocking.open"

    # The callbacks.

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Pass *data* to the reader.  Block until the reader needs more."""
        if self._discards:
            return
        self._received += 1
        self.arrived.append(data)
        self._changes.announce()
        # The connection decides whether its callback can wait.  It cannot wait in memory, because it may run on the
        # reader's greenlet, and it must not wait after the end of the connection.  In these cases, input simply queues
        # up.
        self._changes.wait(lambda: self.ended or self._discards or self._requested >= self._received, self._bottom.hold)

    def take_undelivered(self) -> bytes:
        """Remove and return all unread input, because TLS begins on the connection."""
        data = bytes(self.unread) + b"".join(self.arrived)
        self._received -= len(self.arrived)
        self.arrived.clear()
        self.unread.clear()
        return data

    def handle_eof(self, connection: Any) -> None:
        """End the input.  The connection stays open for output until that is closed, or both files are dropped."""
        self.finished = True
        self.end()
        if self._lease is not None and self._lease() is None:
            connection.close()

    def handle_close(self, connection: Any, reason: Reason) -> None:
        self.reason = reason
        self.end()

    def _application_ended(self, connection: Any) -> None:
        """End the input, although output may still be pending: an iterable that reads it would wait forever."""
        self.end()

    def lease(self) -> Lease:
        """Return the object that each file holds as long as it is used."""
        lease = None if self._lease is None else self._lease()
        if lease is None:
            lease = Lease(self)
            self._lease = ref(lease)
        return lease

    def files_are_dropped(self) -> None:
        """Close a connection that was kept open only for its output.  Called on any thread."""
        if self.finished and getattr(self.connection, "_handler", None) is self:
            self.connection.close()

    # For the input file.

    def request_more(self, taken: int) -> None:
        """Make the connection deliver another piece if the reader has taken *taken* pieces.  Never blocks."""
        if self._requested != taken:
            self._requested = taken
            self._changes.announce()

    def discard(self) -> None:
        """Drop all input, now and later.  Never blocks."""
        self._discards = True
        self.arrived.clear()
        self._stop_holding()

    def end(self) -> None:
        """End the input: no more will arrive.  Never blocks."""
        self.ended = True
        self._stop_holding()

    def _stop_holding(self) -> None:
        self._changes.announce()

    def wait_for_room(self, deadline: float | None) -> bool:
        """Wait while too much output is pending to read more input.  Return False after *deadline*.

        The connection counts each read as another record of its input.
        """
        if self._bottom.is_full():
            try:
                self._bottom.drain(clock.left_until(deadline))
            except Timeout:
                return False
            except ConnectionClosed:
                pass
        return True

    # For both files.

    def is_in_callback(self) -> bool:
        """Return whether the caller is in a callback of the connection."""
        return self._bottom.is_in_callback()  # type: ignore[no-any-return]

    def wait_until(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        """Wait until *condition* is true.  Return False after *deadline*.

        :raises Deadlock: the caller is in a callback of the connection, or nothing can make *condition* true.
        """

        def wait_for(flag: Flag) -> bool:
            return self._bottom.wait_for(flag, clock.left_until(deadline))  # type: ignore[no-any-return]

        return condition() or self._changes.wait(condition, wait_for)


class File:
    """The base of both files."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._lease = handler.lease()
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} of {self._handler.connection!r}, {state}>"

    @property
    def closed(self) -> bool:
        """Whether this file was closed.  The end of the connection does not close it."""
        return self._closed

    @property
    def connection(self) -> Any:
        """The connection that the file belongs to, for its ``peer_address``, ``start_tls`` and the like."""
        return self._handler.connection

    def seekable(self) -> bool:
        """Return False, because a connection cannot go back."""
        return False

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("I/O operation on closed file")
