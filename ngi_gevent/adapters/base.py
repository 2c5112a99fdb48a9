"""The adapter that changes nothing, and what all adapters have."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from ngi_gevent.core.callbacks import (
    check_start_tls_of,
    give_handler,
    handles_eof,
    name_of_handler,
    take_undelivered_of,
)
from ngi_gevent.core.checks import as_iterator, check_handler, close_iterator
from ngi_gevent.core.lifecycle import END_OF_INPUT
from ngi_gevent.core.output import LOW_WATER
from ngi_gevent.generator import Handler
from ngi_gevent.interfaces import IConnection, IConnectionHandler, documented_by

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, Reason

__all__ = ["DETACHED", "Base", "Converted", "Records", "Within", "bottom"]

Adapter = TypeVar("Adapter", bound="Base")


class _Detached:
    """The connection below an adapter that was detached: any use is an error."""

    #: There is nothing below: see ``bottom``.
    connection = None

    def __bool__(self) -> bool:
        return False

    def goes_on(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "nothing, since it was detached"

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"the adapter was detached; call {name} of the connection that detach returned")

    def __setattr__(self, name: str, value: object) -> None:
        self.__getattr__(name)


#: The only one.
DETACHED = _Detached()


def bottom(connection: Any) -> Any:
    """Return the connection below all adapters, or *connection* itself if it is not an adapter.  Never blocks."""
    while (below := getattr(connection, "connection", None)) is not None:
        connection = below
    return connection


@documented_by(IConnectionHandler)
@documented_by(IConnection)
class Base:
    """An adapter that changes nothing, to derive other adapters from.

    For its handler, the adapter is the connection, in every callback.  For the connection below, it is the handler.  It
    has all attributes and methods of a connection, and its handler needs no optional methods.  Its callbacks run on the
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

    @property
    def proxy_address(self) -> Any:
        return self.connection.proxy_address

    def start_tls(self, ssl_context: Any, **options: Any) -> None:
        self.connection.start_tls(ssl_context, **options)

    def check_start_tls(self) -> None:
        """Raise ``RuntimeError`` if this adapter, or one above it, cannot return the input that it has."""
        check_start_tls_of(self._handler)

    def take_undelivered(self) -> bytes:
        """Remove the input that this adapter, or the handler, has and has not delivered, and return it, for TLS.

        Override this, and ``detach``, in an adapter that keeps input.  Add that input after the handler's.
        """
        return take_undelivered_of(self._handler)

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
        self.check_attached()
        first = self._handler is None
        self._handler = handler
        if first:
            give_handler(self.connection, self._below())

    def _below(self) -> Any:
        """Return the handler for the connection below."""
        return self

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

    def detach(self) -> tuple[Any, bytes]:
        """Remove the adapter from its connection, and return the input that it has not delivered.

        Never blocks.  Call it in a callback, on the connection's greenlet.  Then set a handler on the connection below,
        and pass the bytes to its ``handle_input``, if there are any.  Later input goes to that handler.  The adapter is
        false afterwards, and any other use of it raises ``RuntimeError``.

        If your own adapter keeps input, override this and ``take_undelivered``, and add that input to the bytes.

        :returns: the connection below, and the input that was received and not delivered.
        :raises RuntimeError: the adapter was detached before.
        """
        self.check_attached()
        connection, self.connection, self._handler = self.connection, DETACHED, None
        return connection, b""

    def check_attached(self) -> None:
        """Raise ``RuntimeError`` if the adapter was detached."""
        if self.connection is DETACHED:
            raise RuntimeError("the adapter was detached; call set_handler of the connection that detach returned")

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

        :param records: an iterable, which can block.  Its exceptions count as exceptions of ``handle_input``.
        :raises TypeError: *records* is not an iterable.
        """
        self.deliver_for(self, iter(records))

    def deliver_for(self, adapter: Any, records: Iterator[Any]) -> None:
        """Deliver *records* for *adapter*, which is this one or one above."""
        self.connection.deliver_for(adapter, records)

    def goes_on(self) -> bool:
        """Return whether the callback that runs can call the handler with another record.

        If not, give the record to ``deliver``.
        """
        return self.connection.goes_on()  # type: ignore[no-any-return]

    def pass_on(self, record: Any) -> None:
        """Call the handler with *record*, one of those given to ``deliver``."""
        if self._handler is None and self.connection is DETACHED:
            raise RuntimeError(f"{type(self).__name__} was detached with records left; detach must return them")
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

    def pass_on(self, record: Any) -> None:
        """Call the adapter's handler with *record*."""
        self._call(self._adapter.pass_on, record)


class Incoming:
    """The handler that an adapter of records sets on the connection below.

    Input goes to ``cut``, and all else to the adapter.  So ``handle_input`` of a class that derives from the adapter
    gets records, as with other adapters.
    """

    __slots__ = ("_adapter", "handle_input")

    def __init__(self, adapter: Records) -> None:
        self._adapter = adapter
        self.handle_input = adapter.cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)


class Records(Base):
    """An adapter that cuts its input into records."""

    #: Whether a class that derives from the adapter gets each record, in ``handle_input``.
    _is_derived = False

    def __init__(self, connection: IConnection) -> None:
        super().__init__(connection)
        self._begun = bytearray()  # an incomplete record
        self._piece = b""  # input that is being delivered
        self._start = 0  # where in it the next record begins

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._is_derived = cls.handle_input is not Records.handle_input
        if cls._is_derived and cls.pass_on is Base.pass_on:
            # Not a question in pass_on, since it would cost time for each record.
            cls.pass_on = cls._pass_to_derived  # type: ignore[method-assign,assignment]

    def _below(self) -> Any:
        return Incoming(self)

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Deliver the records that *data* completes.

        In a class that derives from this one, ``handle_input`` gets each record, and calls this with
        the record for the handler.
        """
        if self._is_derived:
            self._handler.handle_input(self, data)
        else:
            self.cut(connection, data)

    def _pass_to_derived(self, record: Any) -> None:
        self.handle_input(self.connection, record)

    def cut(self, connection: Any, data: bytes) -> None:
        """Deliver the records that *data* completes."""
        raise NotImplementedError

    def detach(self) -> tuple[Any, bytes]:
        connection, _ = super().detach()
        return connection, self._take_rest()

    def take_undelivered(self) -> bytes:
        return super().take_undelivered() + self._take_rest()

    def _take_rest(self) -> bytes:
        rest = bytes(self._begun) + self._piece[self._start :]
        self._begun.clear()
        self._piece, self._start = b"", 0
        return rest


class Converted:
    """The items of an iterable, each converted.

    Not a generator: closing one that has not begun would not close the iterable.
    """

    def __init__(self, data: Iterable[Any], convert: Callable[[Any], bytes]) -> None:
        self._iterator = as_iterator(data)
        self._convert = convert

    def __iter__(self) -> Converted:
        return self

    def __next__(self) -> bytes:
        return self._convert(next(self._iterator))

    def close(self) -> None:
        close_iterator(self._iterator)
