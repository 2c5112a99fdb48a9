"""The feeder: the greenlet that pulls from iterables given to ``writelines``, no faster than the peer takes output.

A connection has a feeder only while such an iterable is not exhausted.  All output that is written in this time waits
behind the iterable, in order.  The feeder passes it to the connection: bytes as they are, iterables item by item.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from gevent import sleep
from greenlet import GreenletExit

from ngi_gevent.core import forks
from ngi_gevent.core.output import Lines, Piece

if TYPE_CHECKING:
    from ngi_gevent.sockets.dispatcher import Dispatcher

__all__ = ["Feeder"]

#: Bytes to pull before the feeder waits until all of them are sent.  Sending some large pieces together costs a quarter
#: less.  This is little memory, compared with the megabytes that the kernel takes for a peer.
AHEAD = 256 * 1024

#: Bytes that each item of an iterable counts as, at least, so that many tiny items do not delay other connections.
LEAST_AHEAD = 256


class Fed(Protocol):
    """The members of a sender that its feeder uses."""

    pieces: list[Piece]
    size: int

    def queue(self, data: bytes) -> None:
        """Send *data*, which is already counted, at the end of the batch, or after output that waits for the peer."""

    def is_waiting_for_peer(self) -> bool:
        """Return whether output waits until the kernel takes more."""

    def remove_lines(self, lines: Lines) -> None:
        """Do not count *lines* any more."""

    def check_pause(self) -> None:
        """Resume input and waiting callers if little enough output is pending."""

    def feeder_is_done(self, feeder: Feeder) -> None:
        """Release *feeder*, unless it was dropped before."""

    def iterator_raised(self, error: BaseException) -> None:
        """Report *error* to the handler, after any callback that is running."""


class Feeder:
    """The feeder of one connection, on the hub's thread."""

    __slots__ = (
        "_ahead",
        "_behind",
        "_dispatcher",
        "_dropped",
        "_greenlet",
        "_is_pulling",
        "_output",
        "is_waiting",
        "pulled",
    )

    def __init__(self, output: Fed, connection: Any, dispatcher: Dispatcher, lines: Lines) -> None:
        self._output = output
        self._dispatcher = dispatcher
        self._behind: deque[bytes | Lines] = deque([lines])  # the feeder pulls from the first
        self._dropped: list[bytes | Lines] = []
        self._ahead = 0  # bytes that were pulled since everything was last sent
        self._is_pulling = False  # whether it pulls now, so that drop must interrupt it
        #: How many items have come from iterables.
        self.pulled = 0
        #: Whether it waits until everything is sent.
        self.is_waiting = False
        self._greenlet = dispatcher.spawn(self._run, connection, is_callback=False)

    def __bool__(self) -> bool:
        """Return whether there is more to come."""
        return bool(self._behind)

    def append(self, output: bytes | Lines) -> None:
        """Pass *output* to the connection after everything before it."""
        self._behind.append(output)

    def on_drained(self) -> None:
        """Pull again soon, because everything is sent."""
        self._dispatcher.loop.run_callback(self._resume)

    def drop(self) -> None:
        """Close all remaining iterables soon, even if the feeder waits for an iterable or for the peer."""
        self._dropped.extend(self._behind)
        self._behind.clear()
        self._dispatcher.loop.run_callback(self._interrupt)

    def leave_to_parent(self) -> None:
        """Stop, in a forked child, without closing iterables."""
        forks.keep(*self._behind, *self._dropped)
        self._behind.clear()
        self._dropped.clear()
        self.is_waiting = self._is_pulling = False

    def _interrupt(self) -> None:
        if self._is_pulling:  # otherwise, it has not begun, or is closing dropped iterables
            self._greenlet.throw(GreenletExit)

    def _run(self) -> None:
        """The body of the feeder's greenlet."""
        self._is_pulling = True
        try:
            if self._output.is_waiting_for_peer():
                # Otherwise, the feeder would pull from many short iterables although the peer does not take output.
                self._ahead = AHEAD
            while self._behind:
                head = self._behind[0]
                try:
                    if self._ahead >= AHEAD:
                        self._ahead = 0
                        self._wait_for_room()
                    else:
                        self._pull(head)
                except BaseException as error:
                    self._failed(head, error)
        finally:
            self._is_pulling = False
            self._output.feeder_is_done(self)
            self._close_dropped()

    def _close_dropped(self) -> None:
        """Close the remaining iterables, on this greenlet, because closing may block."""
        while self._dropped:
            lines = self._dropped.pop(0)
            if isinstance(lines, Lines):
                try:
                    lines.close()
                except BaseException as error:
                    self._output.iterator_raised(error)

    def _pull(self, head: bytes | Lines) -> None:
        """Queue the next output.  Raises the exceptions of the iterable."""
        if isinstance(head, bytes):
            data: bytes | None = head
            self._behind.popleft()
        else:
            data = head.pull()
            if not self._behind:
                return  # dropped while the iterable blocked
            if data is None:
                self._remove(head)
            elif data:
                self.pulled += 1
                size = len(data) - head.note_pulled(len(data))
                self._output.size += size  # no call in between: a signal handler that writes may run in any call
            else:
                self._wait_for_all_before()
        if data:
            self._output.queue(data)
            self._ahead += max(len(data), LEAST_AHEAD)

    def _failed(self, head: bytes | Lines, error: BaseException) -> None:
        """Handle *error*: the iterable raised it, or it is a ``gevent.Timeout`` that the iterable has not cancelled."""
        self.is_waiting = False
        if self._behind:
            if self._behind[0] is head and isinstance(head, Lines):
                self._remove(head)
                self._dropped.append(head)
            self._output.iterator_raised(error)
        elif not isinstance(error, GreenletExit):
            self._output.iterator_raised(error)

    def _resume(self) -> None:
        if self.is_waiting:
            self.is_waiting = False
            self._greenlet.switch()

    def _wait_for_room(self) -> None:
        """Wait until everything that was pulled is sent."""
        self.is_waiting = True
        self._dispatcher.hub.switch()

    def _wait_for_all_before(self) -> None:
        """Wait until everything that was pulled is sent, and for at least one turn, so that other greenlets run."""
        if self._output.pieces:
            self._wait_for_room()
        else:
            sleep(0)

    def _remove(self, lines: Lines) -> None:
        """Remove *lines*, the first entry, which will not yield more."""
        self._behind.popleft()
        self._output.remove_lines(lines)
        self._output.check_pause()
