"""The input of a connection, as a binary file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gevent.exceptions import ConcurrentObjectUseError

from ngi_gevent.adapters import MAX_LINE
from ngi_gevent.blocking.handler import File, Handler, deadline_after
from ngi_gevent.core import clock
from ngi_gevent.core.lifecycle import END_OF_INPUT
from ngi_gevent.core.threads import let_others_run
from ngi_gevent.errors import ConnectionClosed, LimitExceeded, Timeout

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason

__all__ = ["Input"]

#: Seconds for which a greenlet reads without waiting before other greenlets run.  Otherwise, a peer that sends many
#: short lines would delay other peers.
SLICE = 0.00025

#: Reads between two checks of the clock.
READS_PER_CHECK = 16

#: A function that returns how many of the unread bytes a read takes; None if it needs more bytes.
_Count = Callable[[bytearray], "int | None"]


class Input(File):
    r"""The bytes that the peer sends, as a binary file.

    Reading blocks the calling greenlet until the requested bytes have arrived or the input has ended.  With a
    *timeout*, it raises :class:`~ngi_gevent.Timeout` after that many seconds, and leaves the bytes that have arrived to
    the next read.  One greenlet can read at a time.

    **The end.**  When the peer has finished sending, or the output file was closed, reading returns ``b""``.  After any
    other end, reading first returns the input that arrived before it.  Then it raises the exception that ended the
    connection, or :class:`~ngi_gevent.ConnectionClosed` if the connection was stopped, closed or aborted.  Reading *up
    to the end* raises at once, so that a part of the input is not mistaken for all of it.  Other reads can still return
    the input.

    **Waiting for output.**  If too much output is pending, reading also waits until the peer has taken some of it, even
    if there is input to return.

    **Lines** end in ``\n``, which is kept.  A line of more than 1 MiB raises :class:`~ngi_gevent.LimitExceeded`, unless
    you give a size.  Reading up to the end has no limit.

    **Callbacks.**  In a callback of the connection, waiting raises :class:`~ngi_gevent.Deadlock`, because no input can
    arrive before the callback returns.

    Close the input if you will not read it.  Otherwise the peer has to wait, and the end of the connection is not
    noticed.
    """

    def __init__(self, handler: Handler) -> None:
        super().__init__(handler)
        self._unread = handler.unread
        self._taken = 0  # pieces of input, from the handler
        self._reading = False
        self._reads = 0  # reads that did not wait
        self._slice_ends = 0.0
        #: The exception for a line that is too long, if one was raised.
        self.limit_met: LimitExceeded | None = None

    def __enter__(self) -> Input:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def reason(self) -> Reason | None:
        """Why the connection ended; None if it is open, or if the application ended it."""
        return self._handler.reason

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return False."""
        return False

    def read(self, size: int | None = -1, timeout: float | None = None) -> bytes:
        """Read *size* bytes, or fewer at the end.

        :param size: number of bytes; if it is None or negative, everything up to the end.
        :param timeout: seconds to wait at most; None for no limit.
        :raises Timeout: the bytes did not arrive in time.
        """
        if size is None or size < 0:
            return self._read_to_end(timeout)
        wanted = size
        return self._read(lambda unread: wanted if len(unread) >= wanted else None, timeout)

    def read1(self, size: int | None = -1, timeout: float | None = None) -> bytes:
        """Read the bytes that have arrived, up to *size*, for parsers that take input as it arrives.

        Blocks only until there is at least one byte, or the end.

        :param size: number of bytes; if it is None or negative, all that have arrived.
        :param timeout: seconds to wait at most; None for no limit.
        :raises Timeout: nothing arrived in time.
        """
        most = -1 if size is None else size

        def count(unread: bytearray) -> int | None:
            available = len(unread) if most < 0 else min(len(unread), most)
            return available if available or not most else None

        return self._read(count, timeout)

    def readinto(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """Read the bytes that have arrived into *buffer*, as ``read1`` does.

        :returns: the number of bytes; 0 only at the end, or if *buffer* is empty.
        :raises Timeout: nothing arrived in time.
        """
        with memoryview(buffer) as view, view.cast("B") as room:
            data = self.read1(len(room), timeout)
            room[: len(data)] = data
        return len(data)

    def readline(self, size: int | None = -1, timeout: float | None = None) -> bytes:
        """Read a line, but at most *size* bytes of it.

        :param size: number of bytes; if it is None or negative, up to 1 MiB.
        :param timeout: seconds to wait at most; None for no limit.
        :raises LimitExceeded: the line has more than 1 MiB, and no size was given.  The line stays unread.
        :raises Timeout: the line did not arrive in time.
        """
        return self._read(_through_line_end(0, -1 if size is None else size), timeout)

    def readlines(self, hint: int | None = -1, timeout: float | None = None) -> list[bytes]:
        """Read all lines up to the end.

        :param hint: if it is positive, stop after the line in which the total reaches that many bytes.
        :param timeout: seconds to wait at most; None for no limit.
        :raises LimitExceeded: a line has more than 1 MiB, and *hint* was given.
        :raises Timeout: the lines did not arrive in time.
        """
        if hint is None or hint <= 0:
            data = self._read_to_end(timeout)
        else:
            data = self._read(_through_line_end(hint - 1, -1), timeout)
        return io.BytesIO(data).readlines()

    def __iter__(self) -> Iterator[bytes]:
        self._check_open()
        return self

    def __next__(self) -> bytes:
        """Return the next line, as ``readline()`` does.  Blocks without a time limit."""
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def flush(self) -> None:
        """Do nothing.  ``io.TextIOWrapper`` calls this on files that it reads, too."""

    def close(self) -> None:
        """Stop reading, and drop all unread input, now and later.

        Never blocks.  Calling this again is harmless.  The output and the connection stay open.
        """
        self._closed = True
        self._unread.clear()
        self._handler.discard()

    def _read_to_end(self, timeout: float | None) -> bytes:
        return self._read(lambda unread: None, timeout, to_end=True)

    def _read(self, count: _Count, timeout: float | None, to_end: bool = False) -> bytes:
        """Wait until *count* returns a number of bytes, or for the end.  Take and return the bytes."""
        self._check_open()
        deadline = deadline_after(timeout)
        if not self._handler.wait_for_room(deadline):
            raise Timeout(f"no input was read: the peer did not take enough output within {timeout} seconds")
        in_time = self._wait_for(count, deadline)
        self._check_open()
        size = count(self._unread)
        if size is None:
            if not in_time:
                raise Timeout(
                    f"the input to read did not arrive within {timeout} seconds; {len(self._unread)} bytes did"
                )
            if to_end or not self._unread:
                self._check_clean_end()
            size = len(self._unread)
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def _check_clean_end(self) -> None:
        """Raise unless the input ended because the peer finished sending, or because the output was closed."""
        reason = self.reason
        if self._handler.finished:
            return
        if isinstance(reason, BaseException):
            raise reason
        if reason != END_OF_INPUT and not self._handler.output_closed:
            raise ConnectionClosed(f"the connection ended before the end of the input: {reason or 'closed'}")

    def _wait_for(self, count: _Count, deadline: float | None) -> bool:
        if self._reading:
            raise ConcurrentObjectUseError("another greenlet is reading from this input; read in one greenlet")
        self._reading = True
        try:
            if self._has(count):
                self._let_others_run()
                return True
            in_time = self._handler.wait_until(lambda: self._has(count), deadline)
            self._slice_ends = clock.now() + SLICE
            return in_time
        except LimitExceeded as error:
            self.limit_met = error
            raise
        finally:
            self._reading = False

    def _let_others_run(self) -> None:
        """Let other greenlets run if this one has read for long without waiting."""
        self._reads += 1
        if not self._reads % READS_PER_CHECK and clock.now() > self._slice_ends:
            if not self._handler.is_in_callback():
                let_others_run()
            self._slice_ends = clock.now() + SLICE

    def _has(self, count: _Count) -> bool:
        """Return whether there is enough to read, or the input has ended.  Otherwise, request more input."""
        ended = self._closed or self._handler.ended  # checked first, so that all input before the end is included
        arrived = self._handler.arrived
        while arrived:
            self._unread += arrived.popleft()
            self._taken += 1
        if ended or count(self._unread) is not None:
            return True
        self._handler.request_more(self._taken)
        return False


def _through_line_end(start: int, most: int) -> _Count:
    """Count the bytes through the first line end at or after *start*, up to *most* if that is not negative.

    Each byte is searched only once.

    :raises LimitExceeded: a line is too long, and *most* does not cut it.
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
            raise LimitExceeded(f"the peer sent a line of more than {MAX_LINE} bytes; pass a size to readline")
        return end or None

    return count
