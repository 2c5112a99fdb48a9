"""Records that end in a delimiter, such as lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, repeat, takewhile
from operator import add
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
        self._split: Iterator[bytes] = iter(())  # records that were split off, and are not delivered yet

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
            raise ValueError(f"size must be at most {MAX_SIZE} (adapters.MAX_SIZE); got {size}")
        self.check_attached()
        self._take_back()
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
        self.deliver(chain.from_iterable(self._batches()))

    def _batches(self) -> Iterator[Iterable[bytes]]:
        """Cut the piece into records, and yield many at a time, so that each costs no Python code here.

        At each record, the handler can call exactly or detach, which take back the records that are left.
        """
        split_size = SPLIT_SIZE
        while True:
            if self._exactly is not None:
                start, end = self._start, self._start + self._exactly
                if end > len(self._piece):
                    break
                self._exactly, self._start = None, end
                split_size = 0  # since the next record probably announces a size, too
                yield (self._piece[start:end],)
                continue
            records = self._split_off(split_size)
            if not records:
                break
            fitting = records
            if max(map(len, records)) > self._max_size:
                fitting = list(takewhile(self._fits, records))
            self._start += self._size_of(fitting)
            self._split = iter(fitting)
            yield self._converted(self._split)
            if len(fitting) < len(records) and self._exactly is None and self._piece:
                self._fail()
                return
        self._begun += memoryview(self._piece)[self._start :]
        self._piece, self._start = b"", 0
        self._is_delivering = False
        if self._exactly is None and len(self._begun) > self._max_size + self._slack:
            self._fail()

    def _split_off(self, split_size: int) -> list[bytes]:
        """Return the next records, of *split_size* bytes at most, but one at least if its delimiter has arrived."""
        start = self._start
        *records, _ = self._piece[start : start + split_size].split(self._delimiter)
        if not records and (end := self._piece.find(self._delimiter, start)) >= 0:
            records = [self._piece[start:end]]
        return records

    def _fits(self, record: bytes) -> bool:
        return len(record.removesuffix(b"\r") if self._crlf else record) <= self._max_size

    def _converted(self, records: Iterator[bytes]) -> Iterator[bytes]:
        """Return *records* as they are delivered."""
        if self._crlf:
            return map(bytes.removesuffix, records, repeat(b"\r"))
        return records if self._strip else map(add, records, repeat(self._delimiter))

    def _size_of(self, records: list[bytes]) -> int:
        """Return the number of bytes that *records* take, with their delimiters."""
        return sum(map(len, records)) + len(records) * self._width

    def _take_back(self) -> None:
        """Make input again of the records that were split off and not delivered."""
        self._start -= self._size_of(list(self._split))

    def detach(self) -> tuple[Any, bytes]:
        self._exactly = None
        return super().detach()

    def take_undelivered(self) -> bytes:
        self._exactly, self._is_delivering = None, False
        return super().take_undelivered()

    def _take_rest(self) -> bytes:
        self._take_back()
        return super()._take_rest()

    def _fail(self) -> None:
        self._begun.clear()
        self._piece, self._start = b"", 0
        self.fail(LimitExceeded(f"the peer sent a {self._noun} of more than {self._max_size} bytes ({self._limit})"))


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
