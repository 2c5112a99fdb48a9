"""Records that end in a delimiter, such as lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ngi_gevent.adapters.base import Records
from ngi_gevent.adapters.length_prefixed import MAX_SIZE
from ngi_gevent.core.checks import as_bytes, check_count, check_flag
from ngi_gevent.errors import LimitExceeded

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IConnection

__all__ = ["MAX_LINE", "Delimited", "Lines"]

#: Bytes of the longest line, without its end.  A longer one ends the connection, so that no peer fills the memory.
MAX_LINE = 1024 * 1024


#: Bytes that are split into records at a time.  A list of short records takes up to 40 times their size.
SPLIT_SIZE = 8 * 1024


class Delimited(Records):
    r"""An adapter that delivers records, each of which ends in *delimiter*.

    Output is not changed, so the handler writes its own delimiters.  When the connection ends, input after the last
    delimiter is not delivered.

    :param connection: the connection below.
    :param delimiter: bytes that end each record, such as ``b"\0"``.
    :param strip: whether records are delivered without the delimiter; True by default.
    :param max_size: bytes of the longest record, without the delimiter; 1 MiB by default.  A longer record ends the
        connection, with :class:`~ngi_gevent.LimitExceeded` as the reason.
    :raises TypeError: an argument has the wrong type.
    :raises ValueError: *delimiter* is empty, or *max_size* is negative.
    """

    _noun, _limit = "record", "max_size"

    #: Whether a carriage return before the delimiter belongs to it.
    _crlf = False

    def __init__(self, connection: IConnection, delimiter: bytes, strip: bool = True, max_size: int = MAX_LINE) -> None:
        super().__init__(connection)
        check_count(self._limit, max_size)
        check_flag("strip", strip)
        if not isinstance(delimiter, (bytes, bytearray, memoryview)):
            raise TypeError(f"delimiter must be bytes; got {delimiter!r:.100}")
        self._delimiter = as_bytes(delimiter)
        if not self._delimiter:
            raise ValueError(f"delimiter must not be empty; got {delimiter!r}")
        self._width = len(self._delimiter)
        self._strip = strip
        self._max_size = max_size
        self._slack = self._width - 1 + self._crlf  # bytes of an unfinished delimiter
        self._is_plain = strip and not self._crlf
        self._exactly: int | None = None  # bytes of the next record, if the handler has asked for so many
        self._is_delivering = False

    def exactly(self, size: int) -> None:
        """Deliver the next *size* bytes as one record, and go on with delimiters after them.

        Never blocks.  Call it in a callback, on the greenlet of the connection, when a record has announced a body of
        so many bytes.  For a long body, call it again in each callback, for as much as is worth keeping in memory.

        :param size: the number of bytes; at most ``MAX_SIZE``, 16 MiB.  Check the number that a peer announces.
        :raises TypeError: *size* is not an int.
        :raises ValueError: *size* is negative, or more than ``MAX_SIZE``.
        :raises RuntimeError: the adapter was detached.
        """
        check_count("size", size)
        if size > MAX_SIZE:
            raise ValueError(f"size must be at most {MAX_SIZE}, adapters.MAX_SIZE; got {size}")
        self.check_attached()
        self._exactly = size
        if not self._is_delivering and len(self._begun) >= size:
            self._deliver_begun()

    def cut(self, connection: Any, data: bytes) -> None:
        begun = self._begun
        if begun or self._exactly is not None:
            self._add(data)
            return
        end = data.find(self._delimiter)
        if 0 <= end <= self._max_size and end + self._width == len(data) and self._is_plain:
            # As most requests arrive.
            if self._handler is None:
                self.check_attached()
            self.pass_on(data[:end])
        else:
            self._deliver_from(data)

    def _add(self, data: bytes) -> None:
        """Deliver the records that *data* completes, of which the first has begun, or has a given size."""
        begun = self._begun
        searched = max(0, len(begun) - self._width + 1)
        begun += data
        if self._exactly is not None:
            if len(begun) >= self._exactly:
                self._deliver_begun()
        elif begun.find(self._delimiter, searched) >= 0:
            self._deliver_begun()
        elif len(begun) > self._max_size + self._slack:
            self._fail()

    def _deliver_begun(self) -> None:
        data = bytes(self._begun)
        self._begun.clear()
        self._deliver_from(data)

    def _deliver_from(self, data: bytes) -> None:
        self.check_attached()
        self._piece = data
        self._is_delivering = True
        self.deliver(self._records())

    def _records(self) -> Iterator[bytes]:
        # The handler can call exactly or detach at each yield.
        split_size = SPLIT_SIZE
        while True:
            if self._exactly is None:
                yield from self._delimited(split_size)
                if self._exactly is None:
                    break
                split_size = 0  # since the next record probably announces a size, too
            start, end = self._start, self._start + self._exactly
            if end > len(self._piece):
                break
            self._exactly, self._start = None, end
            yield self._piece[start:end]
        self._begun += memoryview(self._piece)[self._start :]
        self._piece, self._start = b"", 0
        self._is_delivering = False
        if self._exactly is None and len(self._begun) > self._max_size + self._slack:
            self._fail()

    def _delimited(self, split_size: int) -> Iterator[bytes]:
        """Cut records off the piece, up to its last delimiter, or until the handler asks for something else."""
        piece, start, width, max_size = self._piece, self._start, self._width, self._max_size
        crlf, strip = self._crlf, self._strip
        while True:
            *records, _ = piece[start : start + split_size].split(self._delimiter)
            if not records:
                end = piece.find(self._delimiter, start)
                if end < 0:
                    return
                records = [piece[start:end]]
            for record in records:
                self._start = start = start + len(record) + width
                if crlf:
                    record = record.removesuffix(b"\r")
                if len(record) > max_size:
                    self._fail()
                    return
                yield record if strip else record + self._delimiter
                if self._exactly is not None or self._piece is not piece:
                    return

    def detach(self) -> tuple[Any, bytes]:
        self._exactly = None
        return super().detach()

    def take_undelivered(self) -> bytes:
        self._exactly, self._is_delivering = None, False
        return super().take_undelivered()

    def _fail(self) -> None:
        self._begun.clear()
        self._piece, self._start = b"", 0
        self.fail(LimitExceeded(f"the peer sent a {self._noun} of more than {self._limit}, {self._max_size} bytes"))


class Lines(Delimited):
    r"""An adapter that delivers lines, each without the ``\n`` that ends it.

    Output is not changed, so the handler writes its own line ends.  When the connection ends, input after the last
    ``\n`` is not delivered.

    :param connection: the connection below.
    :param max_line: bytes of the longest line, without its end; 1 MiB by default.  A longer line ends the connection,
        with :class:`~ngi_gevent.LimitExceeded` as the reason.
    :param crlf: whether ``\r\n`` ends a line, too; False by default, when lines keep their ``\r``.
    :raises TypeError: *max_line* is not an int, or *crlf* is not a bool.
    :raises ValueError: *max_line* is negative.
    """

    _noun, _limit = "line", "max_line"

    def __init__(self, connection: IConnection, max_line: int = MAX_LINE, *, crlf: bool = False) -> None:
        check_flag("crlf", crlf)
        self._crlf = crlf
        super().__init__(connection, b"\n", max_size=max_line)
