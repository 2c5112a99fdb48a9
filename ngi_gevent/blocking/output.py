"""The output of a connection, as a binary file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ngi_gevent.blocking.handler import File, Handler, Mark, deadline_after
from ngi_gevent.core.checks import as_bytes, as_iterator, as_timeout
from ngi_gevent.core.output import LOW_WATER
from ngi_gevent.errors import ConnectionClosed, Timeout

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data

__all__ = ["Output"]

#: Bytes that ``writelines`` lets the peer take before it goes on.  So few bytes alone never stop a connection from
#: reading.  More could make two sides wait for each other, if both write here and read in another greenlet.
PART_SIZE = LOW_WATER


class Output(File):
    """The bytes that are sent to the peer, as a binary file.

    After the connection has ended, writing and flushing raise :class:`~ngi_gevent.ConnectionClosed`, which is a
    ``ValueError``.

    ``writelines`` and ``flush`` block the calling greenlet until the peer has taken output.  With a *timeout*, they
    raise :class:`~ngi_gevent.Timeout` after that many seconds; everything written stays written.  In a callback of the
    connection, waiting raises :class:`~ngi_gevent.Deadlock`.
    """

    def __init__(self, handler: Handler) -> None:
        super().__init__(handler)
        self._flushed = True
        self._mark: Mark | None = None  # after the last write, if a caller has waited for it

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
        self._note_write()
        return len(data)

    def writelines(self, data: Iterable[Data], timeout: float | None = None) -> None:
        """Write the pieces that *data* yields, pulling from it only as the peer takes them.

        Blocks while the peer takes output.  *data* runs in the calling greenlet, and its exceptions are raised here;
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
            ahead += self._queue(as_bytes(item))
            if ahead >= PART_SIZE:
                ahead = 0
                self._wait_until_taken(deadline)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the kernel has all output, or, in memory, the peer.

        :param timeout: seconds to wait at most; None for no limit.
        :raises ConnectionClosed: the connection ended first.
        :raises Timeout: the peer did not take the output in time.
        """
        self._check_open()
        self._wait_until_taken(deadline_after(timeout))

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

    def _queue(self, data: bytes) -> int:
        """Queue *data*, in parts if it is large.  Return how many bytes that is."""
        connection = self._handler.connection
        if len(data) > PART_SIZE and not self._handler.is_adapted:  # an adapter may make a record of each part
            connection.writelines(_parts(data))
        else:
            connection.write(data)
        self._note_write()
        return len(data)

    def _note_write(self) -> None:
        self._flushed = False
        self._mark = None

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
    """Yield *data* in parts.  The empty piece before each part makes the connection pull it only when all is sent."""
    for start in range(0, len(data), PART_SIZE):
        yield b""
        yield data[start : start + PART_SIZE]
