"""Connections as pairs of binary files, and servers written with them: for code that waits for its input.

``ngi_gevent.blocking`` has the functions that make them: ``open`` and ``server``.

**Input comes when it is asked for.**  A callback that brings input returns when the reader wants more than there is.
So no more is held than one piece, besides what somebody is waiting for; and the end of the connection is not noticed
before everything that came ahead of it was dealt with: a peer that sends a request and finishes still gets its answer.

**Output is waited for with marks.**  A mark is an iterator, given to ``writelines`` of the connection, that yields an
empty piece and is asked for another when all before it is taken.
"""

from __future__ import annotations

import functools
import io
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, overload

from gevent import spawn_raw
from gevent.exceptions import ConcurrentObjectUseError

from ngi_gevent.adapters import MAX_LINE, bottom
from ngi_gevent.core import logs
from ngi_gevent.core.connection import END_OF_INPUT, LOW_WATER, as_bytes, as_iterator, check_returned, check_timeout
from ngi_gevent.core.registry import Registry
from ngi_gevent.core.threads import Flag
from ngi_gevent.errors import ConnectionClosed, LimitExceeded, Timeout

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, IConnection, Reason

__all__ = ["Input", "Output", "files", "server"]

#: Bytes that ``writelines`` lets the peer take before it goes on: so few that they alone never keep a connection from
#: reading, which would have two sides that only write, and read elsewhere, wait for each other.
PART_SIZE = LOW_WATER

Instance = TypeVar("Instance")

#: How many of the unread bytes a read takes; None if there are not enough of them yet.
_Count = Callable[[bytearray], "int | None"]

_FUNCTION = "a function given to blocking.server"


def files(connection: IConnection) -> tuple[Output, Input]:
    """The two files of *connection*, whose handler they become.  Never blocks."""
    handler = _Handler(connection)
    connection.set_handler(handler)
    connection.when_closed(handler.connection_gone)
    return Output(handler), Input(handler)


@overload
def server(function: Callable[[Input, Output], object]) -> Callable[[Any], None]: ...
@overload
def server(function: Callable[[Instance, Input, Output], object]) -> Callable[[Instance, Any], None]: ...
def server(function: Callable[..., object]) -> Callable[..., None]:
    """Make a server of *function*, a function or method that is called with the input and output of a connection.

    It runs on a greenlet of its own for each connection, on the hub of the thread that the connection is on, and may
    wait there for what it likes.  When it returns or raises, the connection is closed, and what was written delivered.
    What it raises is logged, with its traceback unless it is no more than the connection's own end, or a line that is
    too long, met while reading or writing.

    The end of input closes a connection, so answer what asks for it, line by line for instance: after ``read()`` for
    everything up to the end, there is nobody left to write to.

    In memory, it runs while the caller waits on gevent; and as nothing can hold input back there, a client that closes
    at once may get no answer.
    """
    if not callable(function):
        raise TypeError(f"a server is made of a function that takes input and output; got {function!r:.100}")

    @functools.wraps(function)
    def serve(*arguments: Any) -> None:
        *bound, connection = arguments  # a method's object comes first
        output, input = files(connection)
        greenlet = spawn_raw(_run, functools.partial(function, *bound, input, output), connection, input, output)
        greenlet.gr_context = copy_context()

    return serve


def _run(function: Callable[[], object], connection: Any, input: Input, output: Output) -> None:
    """The body of the greenlet on which a server's function runs."""
    try:
        check_returned(function(), _FUNCTION)
    except BaseException as error:
        _report(connection, error, input)
    finally:
        input.close()
        output.close()


def _report(connection: Any, error: BaseException, input: Input) -> None:
    """Log what a server's function raised on *connection*, whose input it read."""
    peer = connection.peer_address
    of_connection = isinstance(error, ConnectionClosed) and not connection
    if of_connection or error is input.reason or error is input.limit_met:
        reason = (of_connection and input.reason) or error
        logs.connections.info("connection with %r ended while %s was using it: %s", peer, _FUNCTION, logs.shown(reason))
        error.__traceback__ = None  # whose frames hold the files, and these the error
    else:
        # To whom a handler's exceptions go, too; a connection that no listener accepted has nobody but the log.
        (connection.control or Registry()).handler_raised(peer, _FUNCTION, error)


def _deadline(timeout: float | None) -> float | None:
    check_timeout(timeout)
    return None if timeout is None else time.monotonic() + timeout


class _Mark:
    """A place in the output, and whether the peer has been given everything before it."""

    reached = False


class _Handler:
    """The connection handler behind a pair of files.

    Its callbacks and its files may be on different threads, which need no lock: each attribute is set by one of them
    only, and whoever waits has its flag in place before it looks.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        #: Input that the reader has not taken yet.
        self.arrived: deque[bytes] = deque()
        #: Whether no more input will come.
        self.ended = False
        #: Whether that is because the application closed the output file.
        self.output_closed = False
        #: Why that is, if the application did not ask for it.
        self.reason: Reason | None = None
        #: Whether the connection is gone, and everything delivered that ever will be.
        self.gone = False
        self._bottom = bottom(connection)
        #: Whether the files are those of an adapter.
        self.adapted = self._bottom is not connection
        self._received = 0  # pieces of input
        self._asked = 0  # pieces of input that the reader had taken when it asked for more
        self._discards = False  # whether nobody will read what comes
        self._flows = False  # whether input comes without being asked for
        self._flags: dict[Flag, None] = {}  # of those who wait for a change

    # The callbacks.

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Hand *data* to the reader, and return when it asks for more."""
        if self._discards:
            return
        self._received += 1
        self.arrived.append(data)
        self._changed()
        self._hold()

    def _hold(self) -> None:
        """Wait until the reader asks for more.

        The connection decides whether it can be held.  In memory, where this runs on the greenlet of whoever sent the
        input, perhaps the reader itself, it cannot, and input is simply kept; and nothing must hold one that has ended.
        """
        self._wait(lambda: self._flows or self._asked >= self._received, self._bottom.hold)

    def handle_close(self, connection: Any, reason: Reason) -> None:
        self.reason = reason
        self.end()

    def connection_gone(self) -> None:
        """The connection is closed, whoever did it.  Called on the hub; does not block."""
        self.gone = True
        self.end()

    # For the files.

    def ask(self, taken: int) -> None:
        """The reader has taken so many pieces, and wants more."""
        if self._asked != taken:
            self._asked = taken
            self._changed()

    def discard(self) -> None:
        """Nobody will read any more: drop what there is, and what still comes."""
        self._discards = True
        self.arrived.clear()
        self._flow()

    def end(self) -> None:
        """No more input will come."""
        self.ended = True
        self._flow()

    def _flow(self) -> None:
        self._flows = True
        self._changed()

    def mark(self) -> _Mark:
        """Mark this place in the output.  Raises :class:`~ngi_gevent.ConnectionClosed`."""
        mark = _Mark()
        # Not through adapters, to which an empty piece may mean something.
        self._bottom.writelines(self._reaching(mark))
        return mark

    def wait_for_room(self, deadline: float | None) -> bool:
        """Wait, if so much output is pending that no more input may be taken; return whether that was in time.

        To the connection, each read is another record of its input.
        """
        bottom = self._bottom
        if not bottom.is_full():
            return True
        if bottom.is_in_callback():
            bottom.is_ready_for_more()  # which blocks
            return True
        try:
            mark = self.mark()
        except ConnectionClosed:
            return True
        return self.wait_until(lambda: mark.reached or self.ended, deadline)

    def wait_until(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        """Wait until *condition* is true; whether it was before *deadline*.  Raises :class:`~ngi_gevent.Deadlock`."""

        def wait(flag: Flag) -> bool:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            return self._bottom.wait_for(flag, left)  # type: ignore[no-any-return]

        return condition() or self._wait(condition, wait)

    def _wait(self, condition: Callable[[], bool], wait: Callable[[Flag], bool]) -> bool:
        """Do *wait* with a flag for the next change until *condition* is true; false if *wait* says that it is over."""
        while True:
            flag = Flag()
            self._flags[flag] = None
            try:
                if condition():
                    return True
                if not wait(flag):
                    return False
            finally:
                self._flags.pop(flag, None)

    def _changed(self) -> None:
        """Have all who wait look again."""
        while self._flags:
            with suppress(KeyError):  # another thread may have been faster
                self._flags.popitem()[0].set()

    def _reaching(self, mark: _Mark) -> Iterator[bytes]:
        """What the connection pulls from to reach *mark*."""
        yield b""
        mark.reached = True
        self._changed()


class _File:
    """What both files have."""

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} of {self._handler.connection!r}, {state}>"

    @property
    def closed(self) -> bool:
        """Whether this file was closed.  One whose connection has ended is not, on that account."""
        return self._closed

    def readable(self) -> bool:
        """Whether this is an input."""
        return isinstance(self, Input)

    def writable(self) -> bool:
        """Whether this is an output."""
        return isinstance(self, Output)

    def seekable(self) -> bool:
        """Return False: what was read or written is gone."""
        return False

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("I/O operation on closed file")


class Input(_File):
    r"""What the peer sends, as a binary file.  One greenlet reads from it at a time.

    What reads blocks the calling greenlet, for up to *timeout* seconds, forever if None, until it has what it was asked
    for or the input ends.  It raises :class:`~ngi_gevent.Timeout` when that takes longer, and what has come then is
    left for the next read.  In a callback of the connection, where nothing more could come, it raises
    :class:`~ngi_gevent.Deadlock`.

    When the peer has finished sending, or the output file was closed, reading gives ``b""``.  After any other end, what
    came before it is returned first.  Then reading raises the exception that ended the connection, or
    :class:`~ngi_gevent.ConnectionClosed` if it was stopped, or closed or aborted elsewhere in the program.  Reading *up
    to the end* raises at once and leaves what came before it to other reads, because half of the input must not pass
    for all of it.

    If so much output is pending that the connection takes no more input, reading also waits for the peer to take
    output, even if there is input to return.

    Lines end in ``\n``, which is kept.  Where no size is given, one of more than a megabyte raises
    :class:`~ngi_gevent.LimitExceeded`, so that no peer fills the memory; what is read up to the end has no limit.  Who
    will not read closes the input: what is left unread is held, and the peer with it, and its end is not noticed.
    """

    def __init__(self, handler: _Handler) -> None:
        super().__init__(handler)
        self._unread = bytearray()
        self._taken = 0  # pieces of input, from the handler
        self._reading = False
        #: What was raised because of a line that is too long, if anything was.
        self.limit_met: LimitExceeded | None = None

    def __enter__(self) -> Input:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def reason(self) -> Reason | None:
        """Why the connection ended, where it did and the application did not ask for it; None otherwise."""
        return self._handler.reason

    def read(self, size: int | None = -1, timeout: float | None = None) -> bytes:
        """Read *size* bytes, fewer only at the end; without *size*, or with a negative one, all up to the end."""
        if size is None or size < 0:
            return self._read_to_end(timeout)
        wanted = size
        return self._read(lambda unread: wanted if len(unread) >= wanted else None, timeout)

    def read1(self, size: int | None = -1, timeout: float | None = None) -> bytes:
        """Read what there is, up to *size* bytes if that is not negative.

        Blocks only until there is at least one byte, or the end: for parsers that take input as it comes.
        """
        most = -1 if size is None else size

        def count(unread: bytearray) -> int | None:
            available = len(unread) if most < 0 else min(len(unread), most)
            return available if available or not most else None

        return self._read(count, timeout)

    def readinto(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """Read what there is into *buffer*, as ``read1`` does; return how many bytes that are, 0 only at the end."""
        with memoryview(buffer) as view, view.cast("B") as room:
            data = self.read1(len(room), timeout)
            room[: len(data)] = data
        return len(data)

    def readline(self, size: int | None = -1, timeout: float | None = None) -> bytes:
        """Read a line, but no more than *size* bytes of it, if that is not negative.

        Without a *size*, a line of more than a megabyte raises :class:`~ngi_gevent.LimitExceeded`, and stays unread.
        """
        return self._read(_through_line_end(0, -1 if size is None else size), timeout)

    def readlines(self, hint: int | None = -1, timeout: float | None = None) -> list[bytes]:
        """Read lines up to the end; with a positive *hint*, only as many as make up that many bytes."""
        if hint is None or hint <= 0:
            data = self._read_to_end(timeout)
        else:
            data = self._read(_through_line_end(hint - 1, -1), timeout)
        return io.BytesIO(data).readlines()

    def __iter__(self) -> Iterator[bytes]:
        self._check_open()
        return self

    def __next__(self) -> bytes:
        """The next line, as ``readline()`` gives it; waits for it as long as it takes."""
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def flush(self) -> None:
        """Do nothing, as files do that are only read; ``io.TextIOWrapper`` calls this."""

    def close(self) -> None:
        """Read no more: what has come, and what still comes, is dropped.  Never blocks; twice is harmless.

        The output is left as it is, and the connection open.
        """
        self._closed = True
        self._unread.clear()
        self._handler.discard()

    def _read_to_end(self, timeout: float | None) -> bytes:
        return self._read(lambda unread: None, timeout, to_end=True)

    def _read(self, count: _Count, timeout: float | None, to_end: bool = False) -> bytes:
        """Wait until *count* tells how many bytes to take, or for the end, and take them."""
        self._check_open()
        deadline = _deadline(timeout)
        if not self._handler.wait_for_room(deadline):
            raise Timeout(f"the peer had not taken enough of the output after {timeout} seconds")
        in_time = self._wait_for(count, deadline)
        self._check_open()
        size = count(self._unread)
        if size is None:
            if not in_time:
                raise Timeout(f"the peer had not sent what was to be read after {timeout} seconds")
            if to_end or not self._unread:
                self._check_clean_end()
            size = len(self._unread)
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def _check_clean_end(self) -> None:
        """Raise unless the input ended because the peer had finished sending, or because the output was closed."""
        reason = self.reason
        if isinstance(reason, BaseException):
            raise reason
        if reason != END_OF_INPUT and not self._handler.output_closed:
            raise ConnectionClosed(f"the connection ended before the peer had finished sending: {reason or 'closed'}")

    def _wait_for(self, count: _Count, deadline: float | None) -> bool:
        if self._reading:
            raise ConcurrentObjectUseError("another greenlet is reading from this input")
        self._reading = True
        try:
            return self._handler.wait_until(lambda: self._has(count), deadline)
        except LimitExceeded as error:
            self.limit_met = error
            raise
        finally:
            self._reading = False

    def _has(self, count: _Count) -> bool:
        """Whether there is enough to read, or as much as there will be; asks for more if not."""
        ended = self._closed or self._handler.ended  # first, since what comes before the end belongs to it
        arrived = self._handler.arrived
        while arrived:
            self._unread += arrived.popleft()
            self._taken += 1
        if ended or count(self._unread) is not None:
            return True
        self._handler.ask(self._taken)
        return False


def _through_line_end(start: int, most: int) -> _Count:
    """Count the bytes through the first line end from *start* on, but up to *most*, if that is not negative.

    No byte is searched twice.  Raises :class:`~ngi_gevent.LimitExceeded` where a line gets too long and *most* is no
    help.
    """
    limit = start + MAX_LINE

    def count(unread: bytearray) -> int | None:
        nonlocal start
        end = unread.find(b"\n", start) + 1
        if not end:
            start = max(start, len(unread))
        if 0 <= most <= (end or len(unread)):
            return most
        if (end - 1 if end else len(unread)) > limit:
            raise LimitExceeded(f"the peer sent a line of more than {MAX_LINE} bytes, and readline was given no size")
        return end or None

    return count


class Output(_File):
    """What is sent to the peer, as a binary file.

    Where the connection has ended, writing and flushing raise :class:`~ngi_gevent.ConnectionClosed`, a ``ValueError``.
    What waits blocks the calling greenlet, for up to *timeout* seconds, forever if None, and raises
    :class:`~ngi_gevent.Timeout` when it takes longer; what was written stays written then.  In a callback of the
    connection, it raises :class:`~ngi_gevent.Deadlock`.
    """

    def __init__(self, handler: _Handler) -> None:
        super().__init__(handler)
        self._flushed = True
        self._mark: _Mark | None = None  # after the last that was written, if somebody has waited for that

    def __enter__(self) -> Output:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: Data, timeout: float | None = None) -> int:
        """Queue *data*, and return how many bytes that are.  Never waits, so that *timeout* has no effect.

        What is large is better written with ``writelines``, or followed by ``flush``: a peer that leaves more than the
        connection's ``output_limit`` waiting is cut off.
        """
        self._check_open()
        check_timeout(timeout)
        data = as_bytes(data)
        self._handler.connection.write(data)
        self._written()
        return len(data)

    def writelines(self, data: Iterable[Data], timeout: float | None = None) -> None:
        """Write what *data* yields, pulling from it here, and only as the peer takes it.

        What *data* raises is raised; what it yielded before is written.  *timeout* is how long to wait for the peer in
        all; after it, nothing that was pulled is lost, so that the rest may be tried again.
        """
        self._check_open()
        deadline = _deadline(timeout)
        ahead = 0
        for item in as_iterator(data):
            ahead += self._queue(as_bytes(item))
            if ahead >= PART_SIZE:
                ahead = 0
                self._wait_until_taken(deadline)

    def _queue(self, data: bytes) -> int:
        """Queue *data*, in parts if it is large; how many bytes that are."""
        connection = self._handler.connection
        if len(data) > PART_SIZE and not self._handler.adapted:  # a part may mean something else to an adapter
            connection.writelines(_parts(data))
        else:
            connection.write(data)
        self._written()
        return len(data)

    def _written(self) -> None:
        self._flushed = False
        self._mark = None

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything written is on its way: in the hands of the system, or, in memory, of the peer."""
        self._check_open()
        self._wait_until_taken(_deadline(timeout))

    def close(self) -> None:
        """Close the connection, delivering what was written.  Never blocks; twice is harmless.

        Nothing more comes in then, but what has come can still be read.
        """
        if not self._closed:
            self._closed = True
            self._handler.output_closed = True
            self._handler.connection.close()
            self._handler.end()

    def _wait_until_taken(self, deadline: float | None) -> None:
        if self._flushed:
            return
        handler = self._handler
        mark = self._mark = self._mark or handler.mark()
        if not handler.wait_until(lambda: mark.reached or handler.gone, deadline):
            raise Timeout("the peer had not taken all output in time")
        if not mark.reached:
            reason = handler.reason
            cause = reason if isinstance(reason, BaseException) else None
            raise ConnectionClosed("the connection ended before the peer had taken all output") from cause
        if self._mark is mark:
            self._flushed = True


def _parts(data: bytes) -> Iterator[bytes]:
    """*data* in parts, each with an empty piece before it, for which everything is taken before the part is pulled."""
    for start in range(0, len(data), PART_SIZE):
        yield b""
        yield data[start : start + PART_SIZE]
