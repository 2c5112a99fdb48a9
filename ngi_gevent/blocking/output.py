"""The output of a connection, as a binary file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ngi_gevent.blocking.handler import File, Handler, deadline_after
from ngi_gevent.core import clock
from ngi_gevent.core.checks import as_bytes, as_iterator, as_timeout
from ngi_gevent.core.output import LOW_WATER
from ngi_gevent.errors import ConnectionClosed, Timeout

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data

__all__ = ["Output"]

#: Bytes that ``writelines`` writes before it waits until the peer has taken them.  This is so little that it never
#: stops the connection from reading.  With more, two sides could wait for each other, if both write here and read in
#: another greenlet.
PART_SIZE = LOW_WATER


class Output(File):
    """The bytes that are sent to the peer, as a binary file.

    After the connection has ended, writing and flushing raise :class:`~ngi_gevent.ConnectionClosed`, which is a
    ``ValueError``.

    ``writelines`` and ``flush`` block the calling greenlet until the peer has taken output.  With a *timeout*, they
    raise :class:`~ngi_gevent.Timeout` after that many seconds; everything that was written is still sent.  In a
    callback of the connection, they also hold up its input, and in memory, they raise :class:`~ngi_gevent.WouldWait`.
    """

    def __init__(self, handler: Handler) -> None:
        super().__init__(handler)

    def __enter__(self) -> Output:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def readable(self) -> bool:
        """Return False."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Data, timeout: float | None = None) -> int:
        """Queue *data* for sending.

        Never blocks.  For large output, use ``writelines``, or call ``flush`` now and then: if more than the
        connection's ``output_limit`` is waiting, the next write ends the connection.

        :param timeout: has no effect.
        :returns: the number of bytes.
        :raises ConnectionClosed: the connection has ended.
        :raises TypeError: *data* is not bytes, a bytearray or a memoryview.
        """
        self._check_open()
        as_timeout(timeout)
        data = as_bytes(data)
        self._handler.connection.write(data)
        return len(data)

    def writelines(self, data: Iterable[Data], timeout: float | None = None) -> None:
        """Write the pieces that *data* yields, pulling from it only as the peer takes them.

        Blocks while the peer takes output.  *data* runs in the calling greenlet.  Its exceptions are raised here, after
        the pieces before them are written.

        :param timeout: seconds to wait for the peer, in all; None for no limit.
        :raises ConnectionClosed: the connection has ended.
        :raises Timeout: the peer did not take the output in time.  All pieces pulled from *data* are written, so you
            can call this again with the same iterator.
        :raises TypeError: *data* is not an iterable of bytes, bytearrays or memoryviews.
        """
        self._check_open()
        deadline = deadline_after(timeout)
        ahead = 0
        for item in as_iterator(data):
            ahead += self.write(item)
            if ahead >= PART_SIZE:
                ahead = 0
                self._drain(deadline, timeout)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the kernel has all output.  In memory, wait for the peer instead.

        Blocks as ``drain(below=1)`` of a connection does.

        :param timeout: seconds to wait at most; None for no limit.
        :raises ConnectionClosed: output was dropped, because the connection broke or was aborted, for example.
        :raises Timeout: the peer did not take the output in time.
        """
        self._check_open()
        self._drain(deadline_after(timeout), timeout)

    def write_eof(self) -> None:
        """End the output.  After all of it, the peer sees the end of its input.

        Never blocks.  Input can still be read.  After this, writing raises :class:`~ngi_gevent.ConnectionClosed`.
        Calling this again, or after the connection has ended, is harmless.
        """
        self._check_open()
        self._handler.connection.write_eof()

    def close(self) -> None:
        """Close the connection once all output has been delivered.

        Never blocks.  Calling this again is harmless.  No more input arrives after this, but you can still read the
        input that has arrived.
        """
        if not self._closed:
            self._closed = True
            self._handler.output_closed = True
            self._handler.connection.close()
            self._handler.end()

    def _drain(self, deadline: float | None, timeout: float | None) -> None:
        handler = self._handler
        try:
            handler.connection.drain(clock.left_until(deadline), below=1)
        except Timeout:
            left = handler.connection.output_pending
            raise Timeout(f"the peer did not take all output within {timeout} seconds; {left} bytes left") from None
        except ConnectionClosed as error:
            reason = handler.reason
            cause = reason if isinstance(reason, BaseException) else error.__cause__
            raise ConnectionClosed("the connection ended before the peer took all output") from cause
