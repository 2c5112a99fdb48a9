"""``SansIO``: an adapter over a parser that does no input or output, such as those of h11, wsproto and hiredis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from ngi_gevent.adapters.base import Base

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IConnection

__all__ = ["SansIO"]

_NONE = object()


class SansIO(Base):
    """An adapter that feeds a parser with input, and delivers the parser's events.

    The parser is one of a library, or of your own.  It does no input or output, and the adapter knows it only by the
    functions that it is given.  Output is not changed: the handler writes what the parser makes of its answer.

    An event is taken from the parser only once the handler has returned from the one before it.  So the handler can
    tell the parser something in between.  While reading is paused, or too much output is pending, none is taken.

    Take it off with ``detach`` once the parser is done.  What the parser has, and has made no event of, stays with it.

    :param connection: the connection below.
    :param receive: called with each piece of input, and with ``b""`` at the end of it.
    :param events: called after ``receive``; returns an iterable of the events that the parser has now.
    :param to_send: called after ``receive`` and after each event; returns bytes that the parser has to send, which are
        written.  Some parsers answer by themselves, to a ping for example.
    :param errors: exceptions of the parser that mean that the peer has made a mistake.  Such an exception is delivered
        to the handler as the last event.  If the handler does not end the connection, it ends with the exception as the
        reason.  Other exceptions count as those of ``handle_input``.
    """

    def __init__(
        self,
        connection: IConnection,
        receive: Callable[[bytes], object],
        events: Callable[[], Iterable[Any]],
        to_send: Callable[[], bytes | None] | None = None,
        errors: tuple[type[Exception], ...] = (),
    ) -> None:
        for name, function in {"receive": receive, "events": events}.items():
            if not callable(function):
                raise TypeError(f"{name} must be a function; got {function!r:.100}")
        if to_send is not None and not callable(to_send):
            raise TypeError(f"to_send must be a function or None; got {to_send!r:.100}")
        super().__init__(connection)
        self._receive = receive
        self._new_events = events
        self._to_send = to_send
        self._errors = errors

    def flush(self) -> None:
        """Write what the parser has to send.  Never blocks.

        :raises ConnectionClosed: the connection is closing or closed, and there is something to send.
        """
        if self._to_send is not None:
            data = self._to_send()
            if data:
                self.connection.write(data)

    def resume(self) -> None:
        """Deliver events that the parser has though nothing was received: the handler has told it to go on.

        Never blocks.  They come after the callback that runs.
        """
        self.deliver(self._events(_NONE))

    def take_undelivered(self) -> bytes:
        """Refuse TLS.

        :raises RuntimeError: always: the parser may have plaintext that it would take for input of TLS.
        """
        raise RuntimeError("the parser of a SansIO may have input; call detach, and start_tls of what it returns")

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Deliver the events that *data* completes."""
        events = self._events(data)
        event = next(events, _NONE)
        if event is _NONE:
            self.flush()
            return
        # As most requests arrive.
        self.pass_on(event)
        if self:
            event = next(events, _NONE)
            if event is not _NONE:
                self.deliver(chain((event,), events))

    def handle_eof(self, connection: Any) -> None:
        """Deliver the events that the end of input completes.  Then end the connection, unless the handler takes it."""
        self.deliver(self._last_events(connection))

    def pass_on(self, record: Any) -> None:
        """Call the handler with an event, and write what the parser has to send then."""
        Base.pass_on(self, record)  # faster than with super(), for each event
        if self._to_send is not None and self:
            self.flush()

    def _last_events(self, connection: Any) -> Iterator[Any]:
        yield from self._events(b"")
        if self:
            super().handle_eof(connection)

    def _events(self, data: Any) -> Iterator[Any]:
        try:
            if data is not _NONE:
                self._receive(data)
            yield from self._new_events()
        except self._errors as error:
            yield error
            if self:
                self.fail(error)
