"""Records that come after their length."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ngi_gevent.adapters.base import Converted, Records
from ngi_gevent.core.checks import as_bytes, check_count, check_flag
from ngi_gevent.errors import LimitExceeded

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, IConnection

__all__ = ["MAX_SIZE", "LengthPrefixed", "Sized"]

#: Bytes of the longest record.  A longer one ends the connection, so that no peer fills the memory.
MAX_SIZE = 16 * 1024 * 1024


class LengthPrefixed(Records):
    """An adapter that sends and delivers records, each preceded by its length.

    A record that is incomplete when the connection ends is not delivered.

    :param connection: the connection below.
    :param format: the format of the length, as the module ``struct`` has it: one unsigned integer, such as ``">H"``.
    :param max_size: bytes of the longest record that the peer can send; 16 MiB by default.  The length of a longer one
        ends the connection at once, with :class:`~ngi_gevent.LimitExceeded` as the reason.
    :param include_length: whether the length counts its own bytes, too; False by default.  A length that is then
        shorter than itself ends the connection, with a ``ValueError`` as the reason.
    :raises TypeError: an argument has the wrong type.
    :raises ValueError: *format* does not describe one unsigned integer, or *max_size* is negative.
    """

    #: The length that marks a heartbeat, which no record follows.
    _heartbeat: int | None = None

    def __init__(
        self, connection: IConnection, format: str, max_size: int = MAX_SIZE, include_length: bool = False
    ) -> None:
        super().__init__(connection)
        check_count("max_size", max_size)
        check_flag("include_length", include_length)
        self._length = _length_of(format)
        self._counted = self._length.size if include_length else 0  # bytes of the length that the length counts
        self._max_size = max_size
        self._wanted = self._length.size  # bytes of the record that must have arrived before it is worth another look

    def write(self, data: Data) -> None:
        """Send *data* as one record.  Never blocks.

        The record is sent in one piece, also if other threads write at the same time.

        :raises TypeError: *data* is not bytes, a bytearray or a memoryview.
        :raises ValueError: *data* is too long for its length to be sent.
        :raises ConnectionClosed: the connection is closing or closed.
        """
        self.connection.write(self._framed(data))

    def writelines(self, data: Iterable[Data]) -> None:
        """Send each item that *data* yields as one record, as ``writelines`` of a connection does."""
        self.connection.writelines(Converted(data, self._framed))

    def _framed(self, data: Any) -> bytes:
        """Return *data* with its length before it."""
        record = as_bytes(data)
        length = len(record) + self._counted
        if length >> (8 * self._length.size) or length == self._heartbeat:
            most = 2 ** (8 * self._length.size) - 1 - self._counted - (self._heartbeat is not None)
            raise ValueError(f"a record must have at most {most} bytes; got one of {len(record)}")
        return self._length.pack(length) + record

    def cut(self, connection: Any, data: bytes) -> None:
        if self._handler is None:
            self.check_attached()
        if self._begun:
            self._begun += data
            if len(self._begun) < self._wanted:
                return
            data = bytes(self._begun)
            self._begun.clear()
        width = self._length.size
        self._wanted = width
        if (
            len(data) >= width
            and self._length.unpack_from(data)[0] - self._counted == len(data) - width <= self._max_size
        ):
            # As most requests arrive.
            self.pass_on(data[width:])
        else:
            self._piece = data
            self.deliver(self._records())

    def take_undelivered(self) -> bytes:
        self._wanted = self._length.size
        return super().take_undelivered()

    def _records(self) -> Iterator[bytes]:
        width, counted, unpack_from = self._length.size, self._counted, self._length.unpack_from
        heartbeat, max_size = self._heartbeat, self._max_size
        piece, start = self._piece, 0
        last = len(piece) - width  # where a length can begin
        while start <= last:
            (length,) = unpack_from(piece, start)
            start += width
            if length == heartbeat:
                self._start = start
                continue
            size = length - counted
            if size > max_size or size < 0:
                self._fail(size)
                return
            end = start + size
            if end > len(piece):
                self._wanted = width + size
                break
            self._start = end
            yield piece[start:end]
            if self._piece is not piece:  # the handler has called detach
                return
            start = end
        self._begun += memoryview(piece)[self._start :]
        self._piece, self._start = b"", 0

    def _fail(self, size: int) -> None:
        self._piece, self._start = b"", 0
        if size < 0:
            self.fail(ValueError(f"the peer announced a record of {size + self._counted} bytes, less than its length"))
        else:
            self.fail(LimitExceeded(f"the peer announced a record of {size} bytes (max_size={self._max_size})"))


class Sized(LengthPrefixed):
    """An adapter that sends and delivers records, each preceded by its length: 4 bytes, big-endian, unsigned.

    ``write(None)`` sends a heartbeat, the length 2**32-1 with no data, which the receiver drops.  A record that is
    incomplete when the connection ends is not delivered.

    :param connection: the connection below.
    :param max_size: bytes of the longest record that the peer can send; 16 MiB by default.  The length of a longer one
        ends the connection at once, with :class:`~ngi_gevent.LimitExceeded` as the reason.
    :raises TypeError: *max_size* is not an int.
    :raises ValueError: *max_size* is negative.
    """

    _heartbeat = 2**32 - 1

    def __init__(self, connection: IConnection, max_size: int = MAX_SIZE) -> None:
        super().__init__(connection, ">I", max_size)

    def write(self, data: Data | None) -> None:
        """Send *data* as one record, or a heartbeat for None.  Never blocks.

        The record is sent in one piece, also if other threads write at the same time.

        :raises TypeError: *data* is not bytes, a bytearray, a memoryview or None.
        :raises ValueError: *data* is too long for its length to be sent.
        :raises ConnectionClosed: the connection is closing or closed.
        """
        self.connection.write(self._framed(data))

    def writelines(self, data: Iterable[Data | None]) -> None:
        """Send each item that *data* yields as one record, as ``writelines`` of a connection does."""
        self.connection.writelines(Converted(data, self._framed))

    def _framed(self, data: Any) -> bytes:
        return self._length.pack(self._heartbeat) if data is None else super()._framed(data)


#: The formats of lengths that were checked.
_LENGTHS: dict[str, struct.Struct] = {}


def _length_of(format: str) -> struct.Struct:
    """Return the length of *format*.

    :raises TypeError: *format* is not a str.
    :raises ValueError: *format* does not describe one unsigned integer.
    """
    if not isinstance(format, str):
        raise TypeError(f"format must be a str, such as '>I'; got {format!r:.100}")
    length = _LENGTHS.get(format)
    if length is None:
        try:
            length = struct.Struct(format)
            values = length.unpack(b"\xff" * length.size)
        except (struct.error, UnicodeError):
            length, values = None, ()
        if length is None or len(values) != 1 or type(values[0]) is not int or values[0] != 2 ** (8 * length.size) - 1:
            raise ValueError(f"format must be for one unsigned int, such as '>I'; got {format!r:.100}")
        _LENGTHS[format] = length
    return length
