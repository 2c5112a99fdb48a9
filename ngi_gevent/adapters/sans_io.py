"""``SansIO``: an adapter for a parser that does no input or output, such as the parsers of h11, wsproto and hiredis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ngi_gevent.adapters.base import DETACHED, Base

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IConnection

__all__ = ["SansIO"]

_NONE = object()

#: Events that one piece of input delivers in one callback.  A request of HTTP with a short body has three.  The events
#: behind them are delivered as records, which costs more, but lets other connections run in between.
AT_ONCE = 4


class SansIO(Base):
    """An adapter that feeds a parser with input, and delivers the parser's events.

    The parser comes from a library, or is your own.  It does no input or output, and the adapter calls only the
    functions that you pass.  Output is not changed: the handler writes the bytes that the parser makes of its answer.

    The adapter takes an event from the parser only after the handler has returned from the event before.  So the
    handler can instruct the parser in between.  While reading is paused, or too much output is pending, no event is
    taken.

    Call ``detach`` once the parser is no longer needed.  It returns no bytes: input without an event yet stays in
    the parser.

    :param connection: the connection below.
    :param receive: called with each piece of input, and with ``b""`` at the end of input.
    :param events: called after ``receive``; returns an iterable of the events that the parser has now.
    :param to_send: called after ``receive`` and after each event; returns bytes to write, for parsers that answer some
        input themselves, such as a ping.
    :param errors: exceptions with which the parser reports a mistake of the peer.  Such an exception is the last event.
        If the handler does not end the connection, it ends with the exception as the reason.  Other exceptions count as
        raised by ``handle_input``.
    :raises TypeError: *receive*, *events* or *to_send* is not callable.
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
                raise TypeError(f"{name} must be callable; got {function!r:.100}")
        if to_send is not None and not callable(to_send):
            raise TypeError(f"to_send must be callable, or None; got {to_send!r:.100}")
        super().__init__(connection)
        self._receive = receive
        self._new_events = events
        self._to_send = to_send
        self._errors = errors

    def flush(self) -> None:
        """Write the bytes that the parser has to send.  Never blocks.

        :raises ConnectionClosed: the connection is closing or closed, and there is something to send.
        """
        if self._to_send is not None:
            data = self._to_send()
            if data:
                self.connection.write(data)

    def resume(self) -> None:
        """Deliver events that the parser has without new input, for example after the handler has sent a response.

        Never blocks.  The events come after the current callback.
        """
        self.deliver(self._events(_NONE))

    def check_start_tls(self) -> None:
        """Refuse TLS, since the parser may have plaintext, which would count as input from TLS.

        :raises RuntimeError: the adapter was not detached.
        """
        if self.connection is not DETACHED:
            raise RuntimeError("a SansIO may hold input; call start_tls of the connection that detach returns")

    def take_undelivered(self) -> bytes:
        self.check_start_tls()
        return super().take_undelivered()

    def handle_input(self, connection: Any, data: bytes) -> None:
        """Deliver the events that *data* completes."""
        events = self._events(data)
        left = AT_ONCE
        for event in events:
            # The same as pass_on.  Two calls fewer are 3% of a small request.
            self._handler.handle_input(self, event)
            if self._to_send is not None and self:
                self.flush()
            left -= 1
            if not left or not self.connection.goes_on():
                if self:
                    self.deliver(events)
                return
        if left == AT_ONCE:
            self.flush()

    def handle_eof(self, connection: Any) -> None:
        """Deliver the events that the end of input completes, and then pass the end on."""
        self.deliver(self._last_events(connection))

    def pass_on(self, record: Any) -> None:
        """Call the handler with an event, and write the bytes that the parser then has to send."""
        Base.pass_on(self, record)  # faster than with super(), for each event
        if self._to_send is not None and self:
            self.flush()

    def _last_events(self, connection: Any) -> Iterator[Any]:
        yield from self._events(b"")
        if self:
            super().handle_eof(connection)

    def _events(self, data: Any) -> Iterator[Any]:
        if self.connection is DETACHED:  # since the events were asked for
            return
        try:
            if data is not _NONE:
                self._receive(data)
            for event in self._new_events():
                yield event
                if self.connection is DETACHED:  # the handler has called detach, and the parser keeps the rest
                    return
        except self._errors as error:
            yield error
            if self:
                self.fail(error)
