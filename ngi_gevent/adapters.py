"""Adapters: connections on top of other connections, which change input and output on the way."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from ngi_gevent.core.callbacks import give_handler, handles_eof, name_of_handler
from ngi_gevent.core.checks import as_bytes, as_iterator, check_count, check_handler, close_iterator
from ngi_gevent.core.lifecycle import END_OF_INPUT
from ngi_gevent.core.output import LOW_WATER
from ngi_gevent.errors import LimitExceeded
from ngi_gevent.generator import Handler
from ngi_gevent.interfaces import IConnection, IConnectionHandler, documented_by

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, Reason

__all__ = ["MAX_LINE", "MAX_SIZE", "Base", "Lines", "Sized", "bottom"]

#: Bytes of the longest line, without its end.  A longer one ends the connection, so that no peer fills the memory.
MAX_LINE = 1024 * 1024

#: Bytes of the longest sized record.  A longer one ends the connection, for the same reason.
MAX_SIZE = 16 * 1024 * 1024

#: Bytes that are split into lines at a time.  A list of short lines takes up to 40 times their size.
SPLIT_SIZE = 8 * 1024

Adapter = TypeVar("Adapter", bound="Base")

_LENGTH = struct.Struct(">I")

#: The length that marks a heartbeat: no record follows.
_HEARTBEAT = 2**32 - 1


def bottom(connection: Any) -> Any:
    """Return the connection below all adapters, or *connection* itself if it is not an adapter.  Never blocks."""
    while (below := getattr(connection, "connection", None)) is not None:
        connection = below
    return connection


@documented_by(IConnectionHandler)
@documented_by(IConnection)
class Base:
    """An adapter that changes nothing, to derive other adapters from.

    For its handler, it is the connection, in every callback; for the connection below, it is the handler.  It has all
    attributes and methods of a connection, and its handler needs no optional methods.  Its callbacks run on the
    greenlet of the connection below.

    :param connection: the connection below, which can be an adapter, too.
    :ivar connection: the same.

    To change input or output, override the methods that pass it on::

        class Upper(Base):
            def handle_input(self, connection, data):
                super().handle_input(connection, data.upper())  # on to the handler

            def write(self, data):
                super().write(data.upper())  # on to the connection
    """

    def __init__(self, connection: IConnection) -> None:
        self.connection: Any = connection
        self._handler: Any = None

    @classmethod
    def handler(
        cls: type[Adapter],
        function: Callable[[Adapter], Generator[None, bytes, object]]
        | Callable[[Any, Adapter], Generator[None, bytes, object]],
    ) -> Handler:
        """Make a generator handler that gets its connection through this adapter.  A decorator."""
        return Handler(function, cls)

    def __bool__(self) -> bool:
        return bool(self.connection)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.connection!r}>"

    @property
    def control(self) -> Any:
        return self.connection.control

    @property
    def peer_address(self) -> Any:
        return self.connection.peer_address

    @property
    def local_address(self) -> Any:
        return self.connection.local_address

    def start_tls(self, ssl_context: Any, **options: Any) -> None:
        self.connection.start_tls(ssl_context, **options)

    def take_records(self, records: Iterator[Any]) -> bytes:
        """Return the input that *records*, which were not delivered, were made of: TLS begins in it.

        This adapter does not know it, so it is dropped.
        """
        close_iterator(records)
        return b""

    def take_undelivered(self) -> bytes:
        """Remove the input that this adapter, or the handler, has and has not delivered, and return it."""
        take = getattr(self._handler, "take_undelivered", None)
        return b"" if take is None else take()

    @property
    def data(self) -> Any:
        return self.connection.data

    @data.setter
    def data(self, value: Any) -> None:
        self.connection.data = value

    @property
    def ssl_object(self) -> Any:
        return self.connection.ssl_object

    @property
    def peer_credentials(self) -> tuple[int, int, int] | None:
        return self.connection.peer_credentials  # type: ignore[no-any-return]

    @property
    def input_ended(self) -> bool:
        return self.connection.input_ended  # type: ignore[no-any-return]

    # The connection, to the handler.

    def set_handler(self, handler: IConnectionHandler) -> None:
        check_handler(handler)
        first = self._handler is None
        self._handler = handler
        if first:
            give_handler(self.connection, self)

    def setHandler(self, handler: IConnectionHandler) -> None:  # noqa: N802 (NGI 1's spelling)
        """Deprecated: ``set_handler`` as NGI 1 spelled it."""
        warnings.warn("setHandler is deprecated: use set_handler", DeprecationWarning, stacklevel=2)
        self.set_handler(handler)

    def write(self, data: Data) -> None:
        self.connection.write(data)

    def writelines(self, data: Iterable[Data]) -> None:
        self.connection.writelines(data)

    def write_eof(self) -> None:
        self.connection.write_eof()

    @property
    def output_pending(self) -> int:
        return self.connection.output_pending  # type: ignore[no-any-return]

    def drain(self, timeout: float | None = None, *, below: int = LOW_WATER) -> None:
        self.connection.drain(timeout, below=below)

    def pause_reading(self) -> None:
        self.connection.pause_reading()

    def resume_reading(self) -> None:
        self.connection.resume_reading()

    def while_open(self) -> AbstractContextManager[None]:
        return self.connection.while_open()  # type: ignore[no-any-return]

    def close(self) -> None:
        self.connection.close()

    def fail(self, reason: Reason) -> None:
        self.connection.fail(reason)

    def abort(self) -> None:
        self.connection.abort()

    def when_closed(self, callback: Callable[[], object]) -> None:
        self.connection.when_closed(callback)

    # The handler, to the connection.

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Pass *data* on to the handler.  The connection below calls this, as it calls the other callbacks."""
        self._handler.handle_input(self, data)

    def deliver(self, records: Iterable[Any]) -> None:
        """Pass *records* on to the handler, each in its own callback, after this callback.

        Adapters call this as the last statement of ``handle_input``, with a generator of the records in the input, for
        example.  Never blocks.  The connection pulls one record at a time, on its own greenlet, and delivers it to the
        handler that is set then.  It stops while reading is paused or too much output is pending, and lets other
        connections run in between.  Further input, and its end, come after the last record.  When this side ends the
        connection, the rest is dropped, and *records* is closed if it has a ``close`` method.

        :param records: an iterable, which can block.  Exceptions that it raises count as those of ``handle_input``.
        :raises TypeError: *records* is not an iterable.
        """
        self.deliver_for(self, iter(records))

    def deliver_for(self, adapter: Any, records: Iterator[Any]) -> None:
        """Deliver *records* for *adapter*, which is this one or one above."""
        self.connection.deliver_for(adapter, records)

    def pass_on(self, record: Any) -> None:
        """Call the handler with *record*, one of those given to ``deliver``."""
        self._handler.handle_input(self, record)

    def has_eof_handler(self) -> bool:
        """Return whether the handler, behind all adapters, has ``handle_eof``."""
        return handles_eof(self._handler)

    def handler_name(self) -> str:
        """Return the name of the handler, behind all adapters, for showing."""
        return name_of_handler(self._handler)

    def handle_eof(self, connection: Any) -> None:
        """Call the handler's ``handle_eof``.  If it has none, end the connection."""
        handle_eof = getattr(self._handler, "handle_eof", None)
        if handle_eof is None:
            self.fail(END_OF_INPUT)
        else:
            handle_eof(self)

    def handle_close(self, connection: Any, reason: Reason) -> None:
        """Call the handler's ``handle_close``, if it has one."""
        handle_close = getattr(self._handler, "handle_close", None)
        if handle_close is not None:
            handle_close(self, reason)

    def _application_ended(self, connection: Any) -> None:
        """Pass on that the application ended the connection, so that generators are closed."""
        application_ended = getattr(self._handler, "_application_ended", None)
        if application_ended is not None:
            application_ended(self)

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        """Call the handler's ``handle_exception``.  If it has none, raise *exception*, which closes the connection."""
        handle_exception = getattr(self._handler, "handle_exception", None)
        if handle_exception is None:
            raise exception
        handle_exception(self, exception)


class Within:
    """Delivers the records of *adapter* within *call*, which calls a function with its arguments."""

    def __init__(self, adapter: Any, call: Callable[..., object]) -> None:
        self._adapter = adapter
        self._call = call

    def take_records(self, records: Iterator[Any]) -> bytes:
        """Return the input that *records* were made of."""
        return self._adapter.take_records(records)  # type: ignore[no-any-return]

    def pass_on(self, record: Any) -> None:
        """Call the adapter's handler with *record*."""
        self._call(self._adapter.pass_on, record)


class Lines(Base):
    r"""An adapter that delivers lines, each without the ``\n`` that ends it.

    Output is not changed, so the handler writes its own line ends.  When the connection ends, input after the last
    ``\n`` is not delivered.

    :param connection: the connection below.
    :param max_line: bytes of the longest line, without its end; 1 MiB by default.  A longer line ends the connection,
        with :class:`~ngi_gevent.LimitExceeded` as the reason.
    :raises TypeError: *max_line* is not an int.
    :raises ValueError: *max_line* is negative.
    """

    def __init__(self, connection: IConnection, max_line: int = MAX_LINE) -> None:
        super().__init__(connection)
        check_count("max_line", max_line)
        self._max_line = max_line
        self._begun = bytearray()  # a line whose end has not arrived

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Deliver the lines that *data* completes."""
        end = data.find(b"\n")
        if end < 0:
            self._begun += data
            if len(self._begun) > self._max_line:
                self._too_long()
        elif end == len(data) - 1 and len(self._begun) + end <= self._max_line:
            # As most requests arrive.
            line = bytes(self._begun) + data[:-1]
            self._begun.clear()
            self.pass_on(line)
        else:
            self.deliver(self._lines(data))

    def take_records(self, records: Iterator[Any]) -> bytes:
        return b"".join([line + b"\n" for line in records])

    def take_undelivered(self) -> bytes:
        begun = bytes(self._begun)
        self._begun.clear()
        return begun + super().take_undelivered()

    def _lines(self, data: bytes) -> Iterator[bytes]:
        begun, max_line = self._begun, self._max_line
        for start in range(0, len(data), SPLIT_SIZE):
            *lines, rest = data[start : start + SPLIT_SIZE].split(b"\n")
            if lines and begun:
                begun += lines[0]
                lines[0] = bytes(begun)
                begun.clear()
            for line in lines:
                if len(line) > max_line:
                    self._too_long()
                    return
                yield line
            begun += rest
            if len(begun) > max_line:
                self._too_long()
                return

    def _too_long(self) -> None:
        self._begun.clear()
        self.fail(LimitExceeded(f"the peer sent a line of more than max_line, {self._max_line} bytes"))


class Sized(Base):
    """An adapter that sends and delivers records, each preceded by its length: 4 bytes, big-endian, unsigned.

    ``write(None)`` sends a heartbeat, the length 2**32-1 with no data, which the receiver drops.  A record that is
    incomplete when the connection ends is not delivered.

    :param connection: the connection below.
    :param max_size: bytes of the longest record that the peer can send; 16 MiB by default.  The length of a longer one
        ends the connection at once, with :class:`~ngi_gevent.LimitExceeded` as the reason.
    :raises TypeError: *max_size* is not an int.
    :raises ValueError: *max_size* is negative.
    """

    def __init__(self, connection: IConnection, max_size: int = MAX_SIZE) -> None:
        super().__init__(connection)
        check_count("max_size", max_size)
        self._max_size = max_size
        self._begun = bytearray()  # an incomplete record
        self._wanted = _LENGTH.size  # bytes of it that must have arrived before it is worth another look

    def write(self, data: Data | None) -> None:
        """Send *data* as one record, or a heartbeat for None.  Never blocks.

        The record is sent in one piece, also if other threads write at the same time.

        :raises TypeError: *data* is not bytes, a bytearray, a memoryview or None.
        :raises ValueError: *data* is too long for its length to be sent.
        :raises ConnectionClosed: the connection is closing or closed.
        """
        self.connection.write(_framed(data))

    def writelines(self, data: Iterable[Data | None]) -> None:
        """Send each item that *data* yields as one record, as ``writelines`` of a connection does."""
        self.connection.writelines(_Framing(data))

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Deliver the records that *data* completes."""
        if self._begun:
            self._begun += data
            if len(self._begun) < self._wanted:
                return
            data = bytes(self._begun)
            self._begun.clear()
        if len(data) >= _LENGTH.size and _LENGTH.unpack_from(data)[0] == len(data) - _LENGTH.size <= self._max_size:
            # As most requests arrive.
            self._wanted = _LENGTH.size
            self.pass_on(data[_LENGTH.size :])
        else:
            self.deliver(self._records(data))

    def take_records(self, records: Iterator[Any]) -> bytes:
        return b"".join(map(_framed, records))

    def take_undelivered(self) -> bytes:
        begun = bytes(self._begun)
        self._begun.clear()
        self._wanted = _LENGTH.size
        return begun + super().take_undelivered()

    def _records(self, data: bytes) -> Iterator[bytes]:
        done = 0
        self._wanted = _LENGTH.size
        while len(data) - done >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(data, done)
            start = done + _LENGTH.size
            if size == _HEARTBEAT:
                done = start
                continue
            if size > self._max_size:
                self.fail(
                    LimitExceeded(f"the peer announced a record of {size} bytes, and max_size is {self._max_size}")
                )
                return
            if len(data) - start < size:
                self._wanted = _LENGTH.size + size
                break
            done = start + size
            yield data[start:done]
        self._begun += data[done:]


class _Framing:
    """The records of an iterable, each with its length before it.

    Not a generator: closing one that has not begun would not close the iterable.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._iterator = as_iterator(data)

    def __iter__(self) -> _Framing:
        return self

    def __next__(self) -> bytes:
        return _framed(next(self._iterator))

    def close(self) -> None:
        close_iterator(self._iterator)


def _framed(data: Any) -> bytes:
    """Return *data* with its length before it, or a heartbeat for None.

    :raises TypeError: *data* is not bytes, a bytearray, a memoryview or None.
    :raises ValueError: *data* is too long for its length to be sent.
    """
    if data is None:
        return _LENGTH.pack(_HEARTBEAT)
    record = as_bytes(data)
    if len(record) >= _HEARTBEAT:
        raise ValueError(f"a record is shorter than {_HEARTBEAT} bytes; got one of {len(record)}")
    return _LENGTH.pack(len(record)) + record
