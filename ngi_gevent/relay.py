"""``relay``, which passes on everything between two connections, as proxies do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gevent import sleep

from ngi_gevent.adapters import bottom
from ngi_gevent.core import clock
from ngi_gevent.core.checks import as_timeout
from ngi_gevent.core.output import HIGH_WATER
from ngi_gevent.core.threads import Flag
from ngi_gevent.errors import ConnectionClosed, Timeout, WouldWait

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IConnection, Reason

__all__ = ["Relay", "relay"]

#: Seconds in which the peer of one connection must take some of the remaining output after the other connection broke.
#: The same limit applies to the peer of a closing connection.
LAST_DELIVERY = 30.0

#: Seconds between two checks of this.
CHECK_INTERVAL = 0.05

#: The reason if the program itself closed or aborted one of the connections.
CLOSED = "closed"


def relay(a: IConnection, b: IConnection) -> Relay:
    """Pass everything that *a* receives on to *b*, and the other way round, until both have ended.

    Never blocks.  Sets the handlers of both connections.  Input that has already arrived is passed on, too.

    * If one peer takes output more slowly than the other one sends, the relay stops reading from the other one.
    * If one peer finishes sending, the other one sees the end of its input after all data.  The other direction goes
      on.  Once both directions have ended, both connections close.
    * If one connection breaks, or its ``idle_timeout`` expires, the other one is aborted once its peer has received all
      output, or has not taken output for 30 seconds.  A graceful end would mean that the data is complete.
    * If the listener or the implementation of one connection is closed, the other one ends, too, and delivers its
      output first.
    * If the program closes or aborts one connection, or if one has ended already, the other one closes once it has
      delivered its output.

    Time in which the relay does not read from a connection does not count for its ``idle_timeout``.

    :returns: an object that waits for the end.
    :raises TypeError: *a* or *b* is not a connection.
    :raises ValueError: *a* and *b* are the same connection, or adapters on the same one.
    """
    for name, connection in ("a", a), ("b", b):
        if isinstance(connection, type) or not callable(getattr(connection, "pause_reading", None)):
            raise TypeError(f"{name} must be a connection; got {connection!r:.100}")
    if bottom(a) is bottom(b):
        raise ValueError(f"a and b must be different connections; got {a!r:.100} twice")
    return Relay(a, b)


class Relay:
    """Two connections whose input is passed on to each other.  Made by :func:`relay`."""

    def __init__(self, a: IConnection, b: IConnection) -> None:
        self._reason: Reason | None = None
        self._directions = directions = (_Direction(self, a, b), _Direction(self, b, a))
        for direction in directions:
            direction.begin()

    def wait(self, timeout: float | None = None) -> Reason | None:
        """Wait until both connections have ended and have delivered their output.

        Blocks the calling greenlet or native thread.

        :param timeout: seconds to wait; None for no limit.
        :returns: None if both peers finished sending, and everything was delivered.  Otherwise, the reason why the
            first connection ended; ``'closed'`` if the program closed or aborted it.
        :raises Timeout: a connection had not ended after *timeout* seconds.  The relay goes on.
        :raises Deadlock: called in a callback of one of the connections.
        """
        timeout = as_timeout(timeout)
        deadline = clock.deadline_after(timeout)
        # If this is called in a callback, the wait for that connection fails at once.
        for direction in sorted(self._directions, key=lambda direction: not direction.is_in_callback()):
            if not direction.wait(clock.left_until(deadline)):
                raise Timeout(f"the relay did not end within {timeout} seconds")
        return self._reason

    def note(self, reason: Reason) -> None:
        """Note that a connection ended for *reason*.  The first one is the reason for the end of the relay."""
        # With CLOSED, there was no callback.  It may follow if the connection ended before it had a handler.
        if self._reason is None or self._reason is CLOSED:
            self._reason = reason

    def has_ended_in_order(self) -> bool:
        """Return whether the relay ended only because both peers have finished sending."""
        return self._reason is None and all(direction.has_ended for direction in self._directions)


class _Direction:
    """The handler of *source*, which passes everything on to *target*."""

    def __init__(self, relay: Relay, source: Any, target: Any) -> None:
        self._relay = relay
        self._source = source
        self._target = target
        self._gone = Flag()
        #: Whether the peer of the source has finished sending, and the target will see that after all output.
        self.has_ended = False

    def handler_name(self) -> str:
        """Return the name for logs."""
        return "relay"

    def begin(self) -> None:
        """Begin to receive."""
        if self._source.input_ended:  # an earlier handler had ``handle_eof``, which is called only once
            self.handle_eof(self._source)
        self._source.set_handler(self)
        self._source.when_closed(self._source_gone)

    def handle_input(self, connection: Any, data: bytes) -> None:
        target = self._target
        try:
            target.write(data)
        except ConnectionClosed as error:
            connection.pause_reading()
            if target:  # if it is false, its end is reported, and ends the source
                connection.fail(error)
            return
        if target.output_pending > HIGH_WATER:
            # Don't wait in ``drain``: other callbacks would wait, too, so the end of this connection would not be
            # passed on.  In memory, callbacks cannot wait.  This bypasses adapters, because for them, each piece may be
            # a record.
            connection.pause_reading()
            bottom(target).writelines(self._resume_when_taken())

    def _resume_when_taken(self) -> Iterator[bytes]:
        """Go on reading once the target has sent all output."""
        yield b""  # the next pull follows only when the target has sent all output
        self._source.resume_reading()

    def handle_eof(self, connection: Any) -> None:
        self.has_ended = True
        self._target.write_eof()

    def handle_close(self, connection: Any, reason: Reason) -> None:
        self._relay.note(reason)
        target = self._target
        if not target:
            return
        if isinstance(reason, str):
            target.fail(reason)
            return
        # The target's peer must not mistake a part of the data for everything.
        self._deliver_all()
        if target:
            target.abort()

    def _deliver_all(self) -> None:
        """Wait until the target's peer has received all output, which the kernel drops at an abort."""
        target = bottom(self._target)
        size, since = target.unsent_size(), clock.now()
        with suppress(WouldWait):  # in memory
            while size and target and clock.now() < since + LAST_DELIVERY:
                sleep(CHECK_INTERVAL)
                before, size = size, target.unsent_size()
                if size != before:
                    since = clock.now()

    def _source_gone(self) -> None:
        if not self._relay.has_ended_in_order():
            self._relay.note(CLOSED)
            self._target.close()
        self._gone.set()

    def is_in_callback(self) -> bool:
        """Return whether the caller is in a callback of the source."""
        return bool(bottom(self._source).is_in_callback())

    def wait(self, timeout: float | None) -> bool:
        """Wait until the source is closed, and return True; False after *timeout* seconds."""
        return self._gone.is_set() or bool(bottom(self._source).wait_for(self._gone, timeout))
