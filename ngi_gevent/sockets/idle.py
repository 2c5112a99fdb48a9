"""Ending connections over which nothing goes, at the cost of reading the clock once for each system call."""

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
    """What an idle timer asks of its connection."""

    _lifecycle: Lifecycle
    waiting: bool

    def is_reading(self) -> bool:
        """Return whether input would be received at once."""

    def wants_input(self) -> bool:
        """Return whether more input is to be received now."""

    def handle(self, event: str, reason: Reason | None = None) -> None:
        """Feed the lifecycle an event, and do what a new state asks for."""


class TimedOutput(Protocol):
    """What an idle timer asks of the connection's sender."""

    is_pausing: bool

    def is_pulling(self) -> bool:
        """Return whether an iterable takes its time."""

    def is_waiting_for_peer(self) -> bool:
        """Return whether the kernel takes no more output."""


class IdleTimer:
    """Ends a connection, on the hub, when nothing was received or sent for *seconds*.

    Only time counts in which the peer owes something: input that is wanted, or taking output.  There is one timer for a
    connection, which system calls do not touch: when it is due, it checks how long ago the last was.
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
        """Return a call that notes when it received or sent: that is, when it did not raise."""

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
            # At least two looks, because only a difference shows that the peer takes what the kernel has.
            self._start(min(left, self._seconds / 2))
        else:
            self._expire()

    def _is_busy(self) -> bool:
        """Return whether the peer owes nothing, takes output that was sent long ago, or has sent something in time.

        After a stall of the whole process, input that came in time may not have been received.
        """
        before, self._queued = self._queued, self._transport.queued_output()
        if not self._peer_owes() or self._queued < before:
            return True
        return self._connection.is_reading() and self._transport.has_input()

    def _peer_owes(self) -> bool:
        """Return whether the peer is to take output, or to send input.

        It is to send input unless a callback or an iterable takes its time, input has ended, or the application holds
        it back or has set no handler.  A handshake has its own limit.
        """
        connection, output = self._connection, self._output
        if connection._lifecycle.state is HANDSHAKE:
            return False
        if output.is_waiting_for_peer() or self._queued:
            return True
        return connection.waiting and not output.is_pulling() and connection.wants_input()

    def _expire(self) -> None:
        if not self._connection._lifecycle.is_established():
            return  # it is closing, and the linger has its own limits
        reason = Timeout(f"nothing was received or sent for {self._seconds} seconds, the idle_timeout")
        # A peer that takes nothing must not take what it has for everything.
        breaks = self._output.is_waiting_for_peer() or self._output.is_pausing
        self._connection.handle(BREAK if breaks else FAIL, reason)
