"""The sender: the output of one connection on its way to the transport.

It sends on the hub, and never blocks: at the end of a batch, and when the kernel takes more.  It has a feeder while an
iterable given to ``writelines`` is not exhausted, and a linger once the connection is closing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from greenlet import getcurrent

from ngi_gevent.core.lifecycle import BREAK, BROKEN, CLOSED, HALF_CLOSED, LOSE, OUTPUT_ENDED, OUTPUT_FAILED
from ngi_gevent.core.output import Lines, OutputQueue
from ngi_gevent.sockets.feeder import Feeder
from ngi_gevent.sockets.linger import Linger, Lingering
from ngi_gevent.sockets.plain import NO_SIGNAL

if TYPE_CHECKING:
    from ngi_gevent.core.options import ConnectionOptions
    from ngi_gevent.core.threads import Flag
    from ngi_gevent.sockets.dispatcher import Dispatcher
    from ngi_gevent.sockets.plain import Transport

__all__ = ["Sender"]

WRITE = 2  # the event for gevent's io watchers

#: Bytes of pending output above which it is sent during the callback.  An answer as long as a piece of input is better
#: sent after the callback, because the next receive then reuses its memory.
GATHERED = 64 * 1024


class Sending(Lingering, Protocol):
    """The methods of a connection that its sender calls."""

    def wake(self) -> None:
        """Make the greenlet handle events."""

    def stop_reading(self) -> None:
        """Stop waking the greenlet for input until it has handled events."""

    def iterator_raised(self, error: BaseException) -> None:
        """Report *error* to the handler, after any callback that is running."""

    def is_shaking_hands(self) -> bool:
        """Return whether a TLS handshake is pending on the open connection."""


class Sender(OutputQueue):
    """The output of one connection, on the thread of its hub."""

    __slots__ = (
        "_connection",
        "_dispatcher",
        "_is_sending",
        "_transport",
        "_write_watcher",
        "feeder",
        "held",
        "linger",
        "linger_timeout",
    )

    def __init__(
        self, connection: Sending, transport: Transport, dispatcher: Dispatcher, options: ConnectionOptions
    ) -> None:
        super().__init__(options.output_limit)
        self._connection = connection
        self._transport = transport
        self._dispatcher = dispatcher
        self._write_watcher: Any = None  # while output waits until the kernel takes more
        self._is_sending = False  # whether a greenlet is in send_now
        #: Pulls from iterables, while one is not exhausted.
        self.feeder: Feeder | None = None
        #: The flag of a callback that waits while input is held back; None if there is none.  It is set when input goes
        #: on, or the connection has an end to handle.
        self.held: Flag | None = None
        self.linger_timeout = options.linger_timeout
        #: The end of the connection, from CLOSING on.
        self.linger: Linger | None = None

    # Taking output.

    def take(self, data: bytes) -> None:
        """Send *data* after all earlier output, soon, or now if there is much."""
        size = len(data)
        self.size += size  # no call in between: a signal handler that writes may run in any call
        if self.feeder is None:
            self.queue(data)
        else:
            self.feeder.append(data)
        if self.size > GATHERED and self._write_watcher is None:
            self.send_now()
        if self.pause_threshold is not None:
            self._pause_if_answered()

    def take_lines(self, lines: Lines) -> None:
        """Send the items of *lines*, which are already counted, after all earlier output."""
        if self.feeder is None:
            self.feeder = Feeder(self, self._connection, self._dispatcher, lines)
            self.is_watched = True
        else:
            self.feeder.append(lines)
        self._pause_if_answered()

    def queue(self, data: bytes) -> None:
        """Send *data*, which is already counted, at the end of the batch, or after output that waits for the peer."""
        if not self.pieces:
            self._dispatcher.send_later(self)
        self.pieces.append(data)

    def _pause_if_answered(self) -> None:
        """Stop reading if the answers to input that was read while much output was pending are too long."""
        if self.exceeds_threshold():
            self.is_pausing = True
            if self._connection._lifecycle.is_established():
                self._connection.stop_reading()

    def send_later(self) -> None:
        """Send output, or handle an end, at the end of the batch."""
        self._dispatcher.send_later(self)

    def check_pause(self) -> None:
        """Resume input and waiting callers if little enough output is pending."""
        if self.pause_threshold is not None or self.drains:
            self._dispatcher.send_later(self)

    def change_transport(self, transport: Transport) -> bytes:
        """Send with *transport* from now on.  Return the output that stays pending, joined."""
        self._transport = transport
        unsent = b"".join(self.pieces)
        if unsent:
            self.pieces[:] = [unsent]
        return unsent

    # Sending.

    def send_now(self) -> None:
        """Send as much as the kernel takes, in a callback of the application.

        On the hub, this does nothing, because a signal handler may have interrupted ``send_pending``.
        """
        if not self._is_sending and getcurrent() is not self._dispatcher.hub:
            self._is_sending = True
            try:
                self.send_pending()
            finally:
                self._is_sending = False

    def send_pending(self) -> None:
        """Send as much as the kernel takes.  Called on the hub, once in each batch, and when the socket is writable."""
        pieces, transport = self.pieces, self._transport
        try:
            try:
                if len(pieces) != 1:
                    self.flush(lambda piece: transport.send(piece, NO_SIGNAL), transport.sendmsg)
                else:  # the usual case
                    sent = transport.send(pieces[0], NO_SIGNAL)
                    if sent == self.size:
                        del pieces[0]  # no call in between: a signal handler that writes may run in any call
                        self.size = 0
                    else:
                        self.remove(sent, pieces.copy())
            except BlockingIOError:
                pass
            except OSError as error:
                self.fail(error)
            if pieces or self.is_watched:
                self._after_send()
        except BaseException as error:  # such as Ctrl-C; the number of sent bytes is unknown
            self._connection.handle(BREAK, error)
            raise

    def _after_send(self) -> None:
        """Start or end the waits that depend on how much output is left."""
        if self.pieces:
            self._wait_for_peer()
        else:
            if self._write_watcher is not None:
                self._stop_waiting_for_peer()
                if self.linger is not None:
                    self.linger.output_is_taken()
            if self.feeder is not None and self.feeder.is_waiting:
                self.feeder.on_drained()
        if self.is_low():
            if self.end_pause():
                self._connection.wake()
            if self.held is not None:
                self.held.set()
        if self.drains:
            self.wake_drains()
        if self._is_ending() and not self.pieces:
            if not self.feeder:
                self.end()
            elif self.linger is not None and self._connection._lifecycle.input_is_over:
                self.linger.check_for_break()
        self.is_watched = (
            self._write_watcher is not None
            or self.feeder is not None
            or self.pause_threshold is not None
            or self._is_ending()
            or bool(self.drains)
        )

    def _is_ending(self) -> bool:
        """Return whether the output ends once everything is sent."""
        return self.linger is not None or self._connection._lifecycle.state is HALF_CLOSED

    def _wait_for_peer(self) -> None:
        """Send again when the kernel takes more.  Limit the time for this if the connection is closing."""
        if self._transport.waits_for_input():
            # The peer has requested another handshake first.  The kernel would take more, and reading must go on.
            self._stop_waiting_for_peer()
            if self.is_pausing:
                self.is_pausing = False
                self._connection.wake()
        elif self._write_watcher is None:
            self._write_watcher = self._dispatcher.loop.io(self._transport.fileno(), WRITE)
            self._write_watcher.start(self.send_pending)
        if self.linger is not None:
            self.linger.expect_progress()

    def _stop_waiting_for_peer(self) -> None:
        if self._write_watcher is not None:
            self._write_watcher.close()
            self._write_watcher = None

    def is_drained(self) -> bool:
        """Return whether the kernel has all output, and all iterables are exhausted."""
        return not self.pieces and self.feeder is None

    def is_waiting_for_peer(self) -> bool:
        """Return whether output waits until the kernel takes more."""
        return self._write_watcher is not None

    # Called by the feeder.

    def feeder_is_done(self, feeder: Feeder) -> None:
        """Release *feeder*.  If it was dropped before, do nothing, because there may be another one."""
        if self.feeder is feeder:
            self.feeder = None
            self._dispatcher.send_later(self)

    def iterator_raised(self, error: BaseException) -> None:
        """Report *error* of an iterable to the handler, after any callback that is running."""
        self._connection.iterator_raised(error)

    def has_iterables(self) -> bool:
        return self.feeder is not None

    def is_pulling(self) -> bool:
        """Return whether an iterable is working on its next item."""
        return self.feeder is not None and not self.feeder.is_waiting

    # The end.

    def fail(self, error: OSError) -> None:
        """Drop output, because sending has failed.  Input that had arrived before is still read, and so is its end."""
        self.drop()
        if self._connection._lifecycle.output_error is None:
            self.is_pausing = False
            self._connection.handle(OUTPUT_FAILED, error)
            self._connection.wake()

    def drop(self) -> None:
        self._transport.drop_output(self.size > 0)
        super().drop()
        if self.feeder is not None:
            self.feeder.drop()
            # Its greenlet ends later.  Output that is written before then must not go to it, because it drops output.
            self.feeder = None

    def finish(self) -> None:
        """Send the remaining output, then end the output for the peer."""
        self.is_watched = True
        self.send_later()

    def begin_to_end(self) -> None:
        """Finish within the limits of a linger, because the connection is closing."""
        self.linger = Linger(self._connection, self, self._dispatcher.loop, self._transport)
        if self._connection._lifecycle.output_is_over:
            self.linger.wait_for_peer()
        else:
            self.finish()

    def end(self) -> None:
        """End the output for the peer after everything is sent, and wait for the peer's end for a short time."""
        lifecycle = self._connection._lifecycle
        if lifecycle.output_is_over or lifecycle.state in (BROKEN, CLOSED):
            return
        if lifecycle.state is HALF_CLOSED and self._connection.is_shaking_hands():
            return  # TLS could not begin
        if self._transport.make_end_message():
            self.pieces.append(b"")
            self.send_pending()  # calls this method again once that is sent
            if self._transport.has_buffered_input():
                self._connection.wake()
            return
        try:
            self._transport.end_output(closes=lifecycle.input_is_over)
        except OSError as error:
            if lifecycle.state is HALF_CLOSED:
                self.fail(error)
            else:
                self._connection.handle(LOSE)
            return
        self._connection.handle(OUTPUT_ENDED)
        if self.linger is not None:
            self.linger.wait_for_peer()

    def end_now(self) -> None:
        """Send as much as the kernel takes now, drop the rest, and end the output for the peer."""
        self.send_pending()
        self.drop()
        self.end()

    def leave_to_parent(self) -> None:
        """Stop sending, and close the descriptor, in a forked child."""
        self._transport.leave_to_parent()
        super().leave_to_parent()
        if self.feeder is not None:
            self.feeder.leave_to_parent()
        if self.linger is not None:
            self.linger.close()
        self._stop_waiting_for_peer()

    def close(self) -> None:
        """Drop all output, because the connection is closed."""
        if self.linger is not None:
            self.linger.close()
            self.linger = None
        self.end_pause()  # without resuming input
        try:
            self.drop()
        finally:  # memory may be exhausted
            self._stop_waiting_for_peer()
