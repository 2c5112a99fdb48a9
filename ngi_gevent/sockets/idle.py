"""Ending idle connections, at the cost of reading the clock once for each system call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ngi_gevent.core import clock
from ngi_gevent.core.lifecycle import BREAK, FAIL, HANDSHAKE, Lifecycle
from ngi_gevent.errors import Timeout

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason
    from ngi_gevent.sockets.plain import Transport

__all__ = ["IdleTimer"]

Result = TypeVar("Result")

#: Checks of the connection within the time allowed, while the application is busy.
CHECKS = 10


class Timed(Protocol):
    """The members of a connection that its idle timer uses."""

    _lifecycle: Lifecycle
    waiting: bool

    def is_reading(self) -> bool:
        """Return whether input would be received at once."""

    def accepts_input(self) -> bool:
        """Return whether the connection accepts more input now."""

    def handle(self, event: str, reason: Reason | None = None) -> None:
        """Pass *event* to the lifecycle, and act on a new state."""


class TimedOutput(Protocol):
    """The members of a connection's sender that an idle timer uses."""

    is_pausing: bool

    def is_pulling(self) -> bool:
        """Return whether an iterable is working on its next item."""

    def is_waiting_for_peer(self) -> bool:
        """Return whether output waits until the kernel takes more."""


class IdleTimer:
    """A timer, on the hub, that ends a connection over which nothing was received or sent for *seconds*.

    Time counts only while the peer must do something: send input that the connection accepts, or take output.  System
    calls do not touch the timer.  When it expires, it checks how long ago the last system call was.
    """

    __slots__ = ("_connection", "_latest", "_loop", "_output", "_queued", "_seconds", "_timer", "_transport")

    def __init__(self, loop: Any, seconds: float, connection: Timed, output: TimedOutput, transport: Transport) -> None:
        self._loop = loop
        self._seconds = seconds
        self._connection = connection
        self._output = output
        self._transport = transport
        self._queued = 0  # bytes of output that the kernel had at the last check
        self._latest = clock.now()
        transport.wrap_calls(self._noting)
        self._start(seconds / 2)

    def close(self) -> None:
        """Stop the timer."""
        self._timer.close()

    def _noting(self, call: Callable[..., Result]) -> Callable[..., Result]:
        """Return *call*, wrapped to record the time of each success."""

        def noted(*arguments: Any) -> Result:
            result = call(*arguments)
            self._latest = clock.now()
            return result

        return noted

    def _start(self, seconds: float) -> None:
        self._timer = self._loop.timer(seconds)
        self._timer.start(self._check)

    def _check(self) -> None:
        self._timer.close()
        if self._is_busy():
            self._latest = clock.now()
            self._start(self._seconds / CHECKS)
            return
        left = self._latest + self._seconds - clock.now()
        if left > 0:
            # At least two checks, because only a difference shows that the peer takes output that the kernel has.
            self._start(min(left, self._seconds / 2))
        else:
            self._expire()

    def _is_busy(self) -> bool:
        """Return whether the peer has nothing to do, takes output of earlier sends, or has sent something in time.

        After a stall of the whole process, input that came in time may not have been received.
        """
        before, self._queued = self._queued, self._transport.queued_output()
        if not self._peer_owes() or self._queued < before:
            return True
        return self._connection.is_reading() and self._transport.has_input()

    def _peer_owes(self) -> bool:
        """Return whether the connection waits for its peer to take output or to send input.

        The connection does not wait for input if a callback or an iterable runs, input has ended, reading is paused, or
        no handler is set.  A handshake has its own limit.
        """
        connection, output = self._connection, self._output
        if connection._lifecycle.state is HANDSHAKE:
            return False
        if output.is_waiting_for_peer() or self._queued:
            return True
        return connection.waiting and not output.is_pulling() and connection.accepts_input()

    def _expire(self) -> None:
        if not self._connection._lifecycle.is_established():
            return  # the connection is closing, and the linger has its own limits
        reason = Timeout(f"nothing was received or sent for {self._seconds} seconds (idle_timeout)")
        # A peer that does not take output must not mistake a part of it for everything.
        breaks = self._output.is_waiting_for_peer() or self._output.is_pausing
        self._connection.handle(BREAK if breaks else FAIL, reason)
