"""From closing to closed: discarding input, ending this side, and giving up on a peer that does neither.

Closing a socket with unread input in it resets the connection, and the peer may lose the answer.  So a connection that
leaves OPEN discards its input while output is pending, then ends its own side, and waits for the peer to end the other.

Each of these is bounded.  Input is discarded at ``DISCARD_SIZE`` bytes every ``DISCARD_PAUSE`` seconds, so that a peer
which sends on cannot keep the processor busy.  Output is pending for as long as the peer takes some of it within
``SEND_TIMEOUT`` seconds.  An iterable can take any time, but once the owner is closed, it must yield something within
``SEND_TIMEOUT`` seconds.  After the last of the output, which includes what the kernel has for the peer, the
connection waits until nothing has arrived for as many seconds as the option ``linger_timeout`` says, and
``DISCARD_TIMEOUT`` seconds at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ngi_gevent.core import clock, logs
from ngi_gevent.core.lifecycle import BREAK, INPUT_ENDED, LOSE, Lifecycle
from ngi_gevent.core.output import Piece

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason
    from ngi_gevent.sockets.feeder import Feeder
    from ngi_gevent.sockets.plain import Transport

__all__ = ["CHECK_INTERVAL", "SEND_TIMEOUT", "Linger"]

#: Seconds for which the peer of a closing connection may take nothing before the connection is reset.
SEND_TIMEOUT = 30.0

#: Seconds for which a closed connection, after the last output that the kernel has delivered, waits for the peer.
DISCARD_TIMEOUT = 30.0

#: Bytes that are discarded before the peer has to wait, and for how many seconds: 16 MiB/s, which a large upload that
#: was answered early can stand, and which costs less than a hundredth of a processor.
DISCARD_SIZE, DISCARD_PAUSE = 1024 * 1024, 1 / 16

#: Seconds between two looks whether a connection that waits for an iterable has broken: no watcher tells that.
CHECK_INTERVAL = 1.0


class Lingering(Protocol):
    """What a linger asks of its connection."""

    _lifecycle: Lifecycle
    peer_address: Any

    def handle(self, event: str, reason: Reason | None = None) -> None:
        """Feed the lifecycle an event, and do what a new state asks for."""

    def receive(self) -> bytes:
        """Return some input, as ``recv`` of a non-blocking socket."""

    def start_discarding(self) -> None:
        """Call ``discard_input`` when there is input."""

    def stop_discarding(self) -> None:
        """Leave input to the kernel."""


class LastOutput(Protocol):
    """What a linger asks of its connection's sender."""

    pieces: list[Piece]
    size: int
    feeder: Feeder | None
    linger_timeout: float | None

    def send_later(self) -> None:
        """Send, or see to what is to be done instead, at the end of the batch."""


class Linger:
    """The end of one connection, on its hub.  Made when the connection leaves OPEN."""

    __slots__ = (
        "_arrived",
        "_connection",
        "_discarded",
        "_limit",
        "_loop",
        "_output",
        "_pause",
        "_pulled",
        "_queued",
        "_timer",
        "_transport",
        "_until",
    )

    def __init__(self, connection: Lingering, output: LastOutput, loop: Any, transport: Transport) -> None:
        self._connection = connection
        self._output = output
        self._loop = loop
        self._transport = transport
        self._timer: Any = None
        self._pause: Any = None
        self._limit: Any = None  # the timer for iterables
        self._pulled: int | None = 0  # items that had come from iterables when it last expired
        self._queued = 0  # bytes of output that the kernel had not delivered at the last look
        self._arrived = False  # whether input has come since the last look
        self._discarded = 0  # bytes since the last pause
        self._until = 0.0

    def close(self) -> None:
        """Stop all timers: the connection is closed."""
        self._stop_timer()
        if self._pause is not None:
            self._pause.close()
            self._pause = None
        if self._limit is not None:
            self._limit.close()
            self._limit = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    # Input.

    def discard_input(self) -> None:
        """Receive some input and drop it.  Called when there is some."""
        connection = self._connection
        try:
            data = connection.receive()
        except BlockingIOError:
            return
        except OSError:
            connection.handle(LOSE)
            return
        except BaseException:  # out of memory, for example, which would come back with every turn of the loop
            connection.handle(LOSE)
            raise
        if not data:
            self._input_has_ended()
            return
        self._arrived = True
        self._discarded += len(data)
        if self._discarded >= DISCARD_SIZE:
            connection.stop_discarding()
            self._pause = self._loop.timer(DISCARD_PAUSE)
            self._pause.start(self._go_on)

    def _input_has_ended(self) -> None:
        self._connection.stop_discarding()
        self._connection.handle(INPUT_ENDED)
        self._output.send_later()  # which sees to what nothing watches now

    def _go_on(self) -> None:
        self._pause.close()
        self._pause = None
        self._discarded = 0
        self._connection.start_discarding()

    # Output.

    def expect_progress(self) -> None:
        """Give up once the peer takes nothing for ``SEND_TIMEOUT`` seconds: neither from here nor from the kernel."""
        self._queued = self._transport.queued_output()
        self._start_timer(SEND_TIMEOUT, self._check_progress)

    def _check_progress(self) -> None:
        if self._transport.queued_output() < self._queued:
            self.expect_progress()
        else:
            self._give_up()

    def output_is_taken(self) -> None:
        """Expect no progress: the kernel has taken everything, and more may come from iterables."""
        if not self._connection._lifecycle.output_is_over:
            self._stop_timer()

    def _give_up(self) -> None:
        """Reset the connection, because the peer or an iterable makes no progress."""
        peer, left = self._connection.peer_address, self._output.size
        self._connection.handle(BREAK)
        logs.connections.info("connection with %r broken off: %d bytes were left to send to it", peer, left)

    # Waiting for an iterable, with nothing to send and nothing to receive.

    def check_for_break(self) -> None:
        """Look every second whether the connection has broken, unless another timer runs."""
        if self._timer is None:
            self._start_timer(CHECK_INTERVAL, self._check_for_break)

    def _check_for_break(self) -> None:
        self._stop_timer()
        if self._transport.is_broken():
            self._connection.handle(LOSE)
        else:
            self.check_for_break()

    def limit_iterables(self) -> None:
        """Give up once an iterable has yielded nothing for ``SEND_TIMEOUT`` seconds, with nothing left to send.

        Not before the owner is closed: until then, an iterable can take any time.
        """
        if self._limit is None:
            self._pulled = self._count_pulled()
            self._limit = self._loop.timer(SEND_TIMEOUT, SEND_TIMEOUT)
            self._limit.start(self._check_iterables, update=True)

    def _count_pulled(self) -> int | None:
        """Return how many items have come from iterables; None if all of these are exhausted."""
        return None if self._output.feeder is None else self._output.feeder.pulled

    def _check_iterables(self) -> None:
        before, self._pulled = self._pulled, self._count_pulled()
        if self._pulled is not None and self._pulled == before and not self._output.pieces:
            self._give_up()

    # The end.

    def wait_for_peer(self) -> None:
        """Wait for the end of input: this side has ended, and all output is with the kernel."""
        self._until = clock.now() + DISCARD_TIMEOUT
        self._wait_on()

    def _wait_on(self) -> None:
        self._queued = self._transport.queued_output()
        self._arrived = False
        left, timeout = self._until - clock.now(), self._output.linger_timeout
        self._start_timer(left if timeout is None else min(timeout, left), self._check_for_end)

    def _check_for_end(self) -> None:
        if not self._arrived and self._pause is None:
            self.discard_input()  # after a stall, what arrived in time may not have been received
        if self._timer is None:
            return  # which has ended it
        now, left = clock.now(), self._transport.queued_output()
        is_taking = left < self._queued
        if is_taking:
            self._until = now + DISCARD_TIMEOUT
        # A peer that does not read for a while, and then sends something, would lose what is left.  The kernel goes on
        # trying to deliver it after the close.
        is_delivering = left > 0 and (is_taking or not self._connection._lifecycle.is_stopped)
        if now < self._until and (is_delivering or self._arrived):
            self._wait_on()
        else:
            self._connection.handle(LOSE)

    def _start_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self._loop.timer(seconds)
        # Not counted from when the loop last looked at the clock, which is before a handler that computed for long.
        self._timer.start(callback, update=True)
