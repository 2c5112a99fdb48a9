"""The time between closing and closed: discarding input, ending this side, and giving up on a slow peer.

Closing a socket with unread input resets the connection, and the peer may lose the answer.  So a connection in CLOSING
discards its input while output is pending.  Then it ends its own side, and waits until the peer ends its side.

All of this is bounded:

* ``DISCARD_SIZE`` bytes of input are discarded every ``DISCARD_PAUSE`` seconds, so that a peer that keeps sending
  cannot keep the processor busy.
* Output stays pending as long as the peer takes some of it every ``SEND_TIMEOUT`` seconds.
* An iterable can take any time.  But once the listener or the implementation of the connection is closed, the iterable
  must yield something every ``SEND_TIMEOUT`` seconds.
* After the peer has taken all output from the kernel, the connection waits until nothing has arrived for
  ``linger_timeout`` seconds (an option), and for ``DISCARD_TIMEOUT`` seconds at most.
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

#: Seconds without progress in taking output after which a closing connection is reset.
SEND_TIMEOUT = 30.0

#: Seconds that a closed connection waits for its peer after the kernel has delivered the last output.
DISCARD_TIMEOUT = 30.0

#: Bytes of input to discard before each pause, and the seconds that a pause takes.  These 16 MiB/s are enough for a
#: large upload that was answered early, and cost less than 1% of a processor.
DISCARD_SIZE, DISCARD_PAUSE = 1024 * 1024, 1 / 16

#: Seconds between two checks for a break while a connection waits for an iterable.  Watchers do not report it then.
CHECK_INTERVAL = 1.0


class Lingering(Protocol):
    """The members of a connection that a linger uses."""

    _lifecycle: Lifecycle
    peer_address: Any

    def handle(self, event: str, reason: Reason | None = None) -> None:
        """Pass *event* to the lifecycle, and act on a new state."""

    def receive(self) -> bytes:
        """Return some input, as ``recv`` of a non-blocking socket."""

    def start_discarding(self) -> None:
        """Call ``discard_input`` when there is input."""

    def stop_discarding(self) -> None:
        """Leave input to the kernel."""


class LastOutput(Protocol):
    """The members of a connection's sender that a linger uses."""

    pieces: list[Piece]
    size: int
    feeder: Feeder | None
    linger_timeout: float | None

    def send_later(self) -> None:
        """Send output, or handle an end, at the end of the batch."""


class Linger:
    """The end of one connection, on its hub, from CLOSING to CLOSED."""

    __slots__ = (
        "_arrived_at",
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
        self._pulled: int | None = 0  # items that had come from iterables when that timer last expired
        self._queued = 0  # bytes of output that the kernel had not delivered at the last check
        self._arrived_at = 0.0  # when input last arrived; 0 if none has arrived since the last check
        self._discarded = 0  # bytes since the last pause
        self._until = 0.0  # when waiting for the peer ends, even if it is still sending

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
        """Receive some input, and drop it.  Called when the socket is readable."""
        connection = self._connection
        try:
            data = connection.receive()
        except BlockingIOError:
            return
        except OSError:
            connection.handle(LOSE)
            return
        except BaseException:  # out of memory, for example, which every turn would repeat
            connection.handle(LOSE)
            raise
        if not data:
            self._input_has_ended()
            return
        self._arrived_at = clock.now()
        self._discarded += len(data)
        if self._discarded >= DISCARD_SIZE:
            connection.stop_discarding()
            self._pause = self._loop.timer(DISCARD_PAUSE)
            self._pause.start(self._go_on)

    def _input_has_ended(self) -> None:
        self._connection.stop_discarding()
        self._connection.handle(INPUT_ENDED)
        self._output.send_later()  # handles events that no watcher reports now

    def _go_on(self) -> None:
        self._pause.close()
        self._pause = None
        self._discarded = 0
        self._connection.start_discarding()

    # Output.

    def expect_progress(self) -> None:
        """Give up once the peer has not taken output, from here or the kernel, for ``SEND_TIMEOUT`` seconds."""
        self._queued = self._transport.queued_output()
        self._start_timer(SEND_TIMEOUT, self._check_progress)

    def _check_progress(self) -> None:
        if self._transport.queued_output() < self._queued:
            self.expect_progress()
        else:
            self._give_up(f"the peer took nothing for {SEND_TIMEOUT} seconds")

    def output_is_taken(self) -> None:
        """Stop expecting progress, because the kernel has taken everything, and iterables may yield more."""
        if not self._connection._lifecycle.output_is_over:
            self._stop_timer()

    def _give_up(self, reason: str) -> None:
        """Reset the connection, because the peer or an iterable makes no progress."""
        peer, left = self._connection.peer_address, self._output.size
        self._connection.handle(BREAK)
        logs.connections.info("connection with %r reset: %s; %d bytes were not delivered", peer, reason, left)

    # Waiting for an iterable, with nothing to send and nothing to receive.

    def check_for_break(self) -> None:
        """Check every second whether the connection has broken, unless another timer runs."""
        if self._timer is None:
            self._start_timer(CHECK_INTERVAL, self._check_for_break)

    def _check_for_break(self) -> None:
        self._stop_timer()
        if self._transport.is_broken():
            self._connection.handle(LOSE)
        else:
            self.check_for_break()

    def limit_iterables(self) -> None:
        """Give up once all output is sent, and the iterable has not yielded anything for ``SEND_TIMEOUT`` seconds.

        Called only after the listener or the implementation is closed.  Until then, an iterable can take any time.
        """
        if self._limit is None:
            self._pulled = self._count_pulled()
            self._limit = self._loop.timer(SEND_TIMEOUT, SEND_TIMEOUT)
            self._limit.start(self._check_iterables, update=True)

    def _count_pulled(self) -> int | None:
        """Return how many items have come from iterables; None if all iterables are exhausted."""
        return None if self._output.feeder is None else self._output.feeder.pulled

    def _check_iterables(self) -> None:
        before, self._pulled = self._pulled, self._count_pulled()
        if self._pulled is not None and self._pulled == before and not self._output.pieces:
            self._give_up(f"an iterable given to writelines yielded nothing for {SEND_TIMEOUT} seconds")

    # The end.

    def wait_for_peer(self) -> None:
        """Wait for the end of input: this side has ended, and the kernel has all output."""
        self._until = clock.now() + DISCARD_TIMEOUT
        self._wait_on()

    def _wait_on(self) -> None:
        self._queued = self._transport.queued_output()
        self._arrived_at = 0.0
        left, timeout = self._until - clock.now(), self._output.linger_timeout
        self._start_timer(left if timeout is None else min(timeout, left), self._check_for_end)

    def _check_for_end(self) -> None:
        if not self._arrived_at and self._pause is None:
            self.discard_input()  # after a stall, input that arrived in time may still be in the kernel
        if self._timer is None:
            return  # discard_input has ended it
        now, left = clock.now(), self._transport.queued_output()
        is_taking = left < self._queued
        if is_taking:
            self._until = now + DISCARD_TIMEOUT
        # After a close, the kernel continues to deliver.  But if the peer then sends something, the kernel answers with
        # a reset, and drops the output that it still has.  So this waits as long as the kernel delivers.
        is_delivering = left > 0 and (is_taking or not self._connection._lifecycle.is_stopped)
        if now < self._until and (is_delivering or self._arrived_at):
            self._wait_on()
            return
        is_sending = self._arrived_at > 0 and now - self._arrived_at < CHECK_INTERVAL
        peer = self._connection.peer_address
        self._connection.handle(LOSE)
        if is_sending:
            logs.connections.info(
                "connection with %r reset: still sending %g seconds after the end of the output, which may be lost",
                peer,
                DISCARD_TIMEOUT,
            )

    def _start_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self._loop.timer(seconds)
        # Updates the loop's time first, which may be from before a handler that computed for long.
        self._timer.start(callback, update=True)
