"""Adapters: connections on top of connections, that change what is read and written on its way."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ngi_gevent.core import logs
from ngi_gevent.core.connection import as_bytes, as_iterator, check_count, check_handler
from ngi_gevent.errors import LimitExceeded
from ngi_gevent.generator import Handler
from ngi_gevent.interfaces import IConnection, IConnectionHandler, documented_by

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, Reason

__all__ = ["MAX_LINE", "MAX_SIZE", "Base", "Lines", "Sized", "bottom"]

#: Bytes of a line, without its end, over which a connection is ended: more than anybody means to send in one.
MAX_LINE = 1024 * 1024

#: Bytes of a sized record over which a connection is ended: more than anybody means to send in one.
MAX_SIZE = 16 * 1024 * 1024

#: Bytes that are split into lines at a time: a list of short lines takes up to forty times their size.
SPLIT_SIZE = 8 * 1024

Adapter = TypeVar("Adapter", bound="Base")

_LENGTH = struct.Struct(">I")

#: The length that stands for no record at all, but for a sign of life.
_HEARTBEAT = 2**32 - 1


def bottom(connection: Any) -> Any:
    """The connection below all adapters; *connection* itself, if it is no adapter.  Never blocks."""
    while (below := getattr(connection, "connection", None)) is not None:
        connection = below
    return connection


@documented_by(IConnectionHandler)
@documented_by(IConnection)
class Base:
    """Passes everything through: the adapter to build others from.

    To its handler it is the connection, in every callback; to the connection below, it is the handler.  It has all that
    a connection has, and needs no optional method of its handler.  Its callbacks run where those of that connection do,
    on its greenlet.

    :param connection: the connection below, which may be an adapter, too.
    :ivar connection: the same.

    To change something, override what it passes by::

        class Upper(Base):
            def handle_input(self, connection, data):
                super().handle_input(connection, data.upper())  # on to the handler

            def write(self, data):
                super().write(data.upper())  # on to the connection
    """

    def __init__(self, connection: IConnection) -> None:
        self.connection: Any = connection
        self._handler: Any = None
        below = bottom(connection)
        # Whether to deliver another record of the same piece of input.  A connection of another implementation cannot
        # make its callbacks wait for room.
        self._is_ready_for_more: Callable[[], bool] = getattr(below, "is_ready_for_more", partial(bool, below))

    @classmethod
    def handler(
        cls: type[Adapter],
        function: Callable[[Adapter], Generator[None, bytes, object]]
        | Callable[[Any, Adapter], Generator[None, bytes, object]],
    ) -> Handler:
        """Make a generator handler whose connection is this adapter over the real one: a decorator."""
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

    @property
    def ssl_object(self) -> Any:
        return self.connection.ssl_object

    # The connection, to the handler.

    def set_handler(self, handler: IConnectionHandler) -> None:
        check_handler(handler)
        first = self._handler is None
        self._handler = handler
        if first:
            self.connection.set_handler(self)

    def setHandler(self, handler: IConnectionHandler) -> None:  # noqa: N802 (NGI 1's spelling)
        """Deprecated: ``set_handler`` as NGI 1 spelled it."""
        warnings.warn("setHandler is deprecated: use set_handler", DeprecationWarning, stacklevel=2)
        self.set_handler(handler)

    def write(self, data: Data) -> None:
        self.connection.write(data)

    def writelines(self, data: Iterable[Data]) -> None:
        self.connection.writelines(data)

    def close(self) -> None:
        self.connection.close()

    def abort(self) -> None:
        self.connection.abort()

    def when_closed(self, callback: Callable[[], object]) -> None:
        self.connection.when_closed(callback)

    # The handler, to the connection.

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Hand *data* on to the handler.  As the other callbacks, it is called by the connection below."""
        self._handler.handle_input(self, data)

    def handle_close(self, connection: Any, reason: Reason) -> None:
        """Tell the handler that the connection ended, if it has a ``handle_close``."""
        handle_close = getattr(self._handler, "handle_close", None)
        if handle_close is not None:
            handle_close(self, reason)

    def _application_ended(self, connection: Any) -> None:
        """Pass on that the application ended the connection, which generators need to know."""
        application_ended = getattr(self._handler, "_application_ended", None)
        if application_ended is not None:
            application_ended(self)

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        """Tell the handler; without its ``handle_exception``, raise *exception*, which closes the connection."""
        handle_exception = getattr(self._handler, "handle_exception", None)
        if handle_exception is None:
            raise exception
        handle_exception(self, exception)

    def end(self, reason: Reason) -> None:
        """End the connection because the peer broke the rules, for *reason*, and tell the handler and the log.

        For adapters to call in ``handle_input``.  What was written is delivered.  ``handle_close`` is called for all
        adapters of the connection, from the lowest up.  If the connection has ended already, this does nothing.
        """
        if self.connection:
            self.connection.close()
            logs.connections.info("connection with %r ended: %s", self.peer_address, logs.shown(reason))
            lowest = self
            while isinstance(lowest.connection, Base):
                lowest = lowest.connection
            lowest.handle_close(lowest.connection, reason)


class Lines(Base):
    r"""Delivers lines: what the peer sends up to each ``\n``, without it.

    Writing is left as it is, so the handler writes its own line ends.  What comes after the last ``\n`` is not
    delivered when the connection ends.

    :param connection: the connection below.
    :param max_line: bytes of a line, without its end; a longer one ends the connection, with
        :class:`~ngi_gevent.LimitExceeded` as the reason.  Raises ``TypeError`` or ``ValueError`` for what can be none.
    """

    def __init__(self, connection: IConnection, max_line: int = MAX_LINE) -> None:
        super().__init__(connection)
        check_count("max_line", max_line)
        self._max_line = max_line
        self._begun = bytearray()  # a line whose end has not come yet

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Deliver the lines that *data* completes."""
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
                self._handler.handle_input(self, line)
                if not self._is_ready_for_more():
                    return
            begun += rest
            if len(begun) > max_line:
                self._too_long()
                return

    def _too_long(self) -> None:
        self._begun.clear()
        self.end(LimitExceeded(f"the peer sent a line of more than max_line, {self._max_line} bytes"))


class Sized(Base):
    """Sends and delivers records, each preceded by its length: 4 bytes, big-endian, unsigned.

    ``write(None)`` sends a heartbeat, the length 2**32-1 with no data, which the receiver drops.  A record
    that is not complete when the connection ends is not delivered.

    :param connection: the connection below.
    :param max_size: bytes of a record that the peer sends; one that is announced with more ends the connection at once,
        with :class:`~ngi_gevent.LimitExceeded` as the reason.  Raises ``TypeError`` or ``ValueError`` for what can be
        none.
    """

    def __init__(self, connection: IConnection, max_size: int = MAX_SIZE) -> None:
        super().__init__(connection)
        check_count("max_size", max_size)
        self._max_size = max_size
        self._begun = bytearray()  # what is not complete yet
        self._wanted = _LENGTH.size  # how many bytes of it there have to be before looking at it again is worth it

    def write(self, data: Data | None) -> None:
        """Send *data* as one record, or a heartbeat for None, in one piece whoever else writes.  Never blocks.

        Raises ``TypeError`` for what is no bytes, ``ValueError`` for what is too long for its length to be sent, and
        :class:`~ngi_gevent.ConnectionClosed` once the connection is closing.
        """
        self.connection.write(_framed(data))

    def writelines(self, data: Iterable[Data | None]) -> None:
        """Send each of what *data* yields as one record, as ``writelines`` of a connection does."""
        iterator = as_iterator(data)
        self.connection.writelines(_framed(record) for record in iterator)

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Deliver the records that *data* completes."""
        if self._begun:
            self._begun += data
            if len(self._begun) < self._wanted:
                return
            data = bytes(self._begun)
            self._begun.clear()
        self._begun += data[self._deliver(data) :]

    def _deliver(self, data: bytes) -> int:
        """Deliver what is complete in *data*; how many bytes that took."""
        done = 0
        while len(data) - done >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(data, done)
            start = done + _LENGTH.size
            if size == _HEARTBEAT:
                done = start
                continue
            if size > self._max_size:
                self.end(
                    LimitExceeded(f"the peer announced a record of {size} bytes, and max_size is {self._max_size}")
                )
                return len(data)
            if len(data) - start < size:
                self._wanted = _LENGTH.size + size
                return done
            done = start + size
            self._handler.handle_input(self, data[start:done])
            if not self._is_ready_for_more():
                return len(data)
        self._wanted = _LENGTH.size
        return done


def _framed(data: Any) -> bytes:
    """A record as it is sent; raises ``TypeError`` for what is no bytes, ``ValueError`` for what is too long."""
    if data is None:
        return _LENGTH.pack(_HEARTBEAT)
    record = as_bytes(data)
    if len(record) >= _HEARTBEAT:
        raise ValueError(f"a record is shorter than {_HEARTBEAT} bytes; got one of {len(record)}")
    return _LENGTH.pack(len(record)) + record
