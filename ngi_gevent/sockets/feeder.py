"""The pump: the greenlet that pulls from the iterators given to ``writelines``, no faster than the peer takes it.

A connection has one only while such an iterator is not exhausted.  Meanwhile, whatever is written goes behind it, in
order, and the pump hands one after the other to the connection: bytes as they are, iterators as they yield.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from gevent import sleep
from greenlet import GreenletExit

if TYPE_CHECKING:
    from ngi_gevent.core.connection import PendingLines
    from ngi_gevent.sockets.dispatcher import Dispatcher
    from ngi_gevent.sockets.stream import StreamConnection

__all__ = ["Pump"]

#: Bytes to pull before all of them are sent: some large pieces, since to send them together costs a quarter less, and
#: little beside the megabytes that the kernel takes for a peer.
AHEAD = 256 * 1024

#: Bytes that each piece of an iterator counts for at least, so that tiny ones do not keep everybody else waiting.
LEAST_AHEAD = 256


class Pump:
    """The pump of one connection, on the hub's thread."""

    __slots__ = ("_ahead", "_connection", "_dispatcher", "_greenlet", "_later", "_pulling", "pulled", "waits")

    def __init__(self, connection: StreamConnection, dispatcher: Dispatcher, lines: PendingLines) -> None:
        self._connection = connection
        self._dispatcher = dispatcher
        self._later: deque[bytes | PendingLines] = deque([lines])
        self._pulling: PendingLines | None = None  # what was pulled from last
        self._ahead = 0  # bytes that were pulled since all were sent
        #: How many pieces have come from iterables.
        self.pulled = 0
        #: Whether it is to be told when everything is sent.
        self.waits = False
        self._greenlet = dispatcher.spawn(self._run, connection)

    def __bool__(self) -> bool:
        """Whether there is more to come."""
        return bool(self._later)

    def append(self, output: bytes | PendingLines) -> None:
        self._later.append(output)

    def everything_is_sent(self) -> None:
        self._dispatcher.loop.run_callback(self._resume)

    def drop(self) -> None:
        """Nobody wants what is left, nor what the pump waits for, be it an iterator or the peer."""
        dropped = list(self._later)
        self._later.clear()
        self._dispatcher.spawn(lambda: self._clean_up(dropped), self._connection)

    def _clean_up(self, dropped: list[bytes | PendingLines]) -> None:
        """On a greenlet of its own: generators that are dropped clean up after themselves, and may block in it."""
        self._dispatcher.loop.run_callback(self._greenlet.throw, GreenletExit)
        dropped.clear()

    def _run(self) -> None:
        """The body of the pump's greenlet."""
        try:
            while self._later:
                try:
                    self._pull()
                except BaseException as error:
                    self._failed(error)
        finally:
            self._connection.pump_is_done(self)

    def _pull(self) -> None:
        """Queue the next output, then wait if there is enough of it.  Raises what the iterator does."""
        head = self._later[0]
        if isinstance(head, bytes):
            data: bytes | None = head
            self._later.popleft()
        else:
            self._pulling = head
            data = head.pull()
            if not self._later:
                return  # it was dropped while it blocked
            if data is None:
                self._exhausted(head)
            elif data:
                self.pulled += 1
                self._connection.count(len(data))
            else:
                self._wait_for_all_before()
        if data:
            self._connection.queue(data)
            self._ahead += max(len(data), LEAST_AHEAD)
            if self._ahead >= AHEAD and self._connection.has_unsent():
                self._ahead = 0
                self._wait_for_room()

    def _failed(self, error: BaseException) -> None:
        """The iterator raised *error*; or a timeout of its own, which it left running, did so where the pump waits."""
        self.waits = False
        if self._later:
            if self._later[0] is self._pulling:
                self._exhausted(self._pulling)
            self._connection.iterator_raised(error)
        elif not isinstance(error, GreenletExit):
            self._connection.iterator_raised(error)

    def _resume(self) -> None:
        if self.waits:
            self.waits = False
            self._greenlet.switch()

    def _wait_for_room(self) -> None:
        """Wait until all that was pulled is sent."""
        self.waits = True
        self._dispatcher.hub.switch()

    def _wait_for_all_before(self) -> None:
        """Wait until all that was pulled is sent, and at least for a turn: other greenlets must go on meanwhile."""
        if self._connection.has_unsent():
            self._wait_for_room()
        else:
            sleep(0)

    def _exhausted(self, lines: PendingLines) -> None:
        """*lines*, which come first, will not yield more."""
        self._later.popleft()
        self._connection.count(-lines.size)
