"""The input of a connection on a gevent socket: receiving it, holding it back, and detecting its end.

Input is received, and delivered, on the connection's greenlet.  In between, the greenlet waits in a single place, and
only the dispatcher and ``wake`` resume it.  If ``_events_pending`` is true, the greenlet has to handle more than input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ngi_gevent.core.lifecycle import CLOSING, LOSE
from ngi_gevent.core.output import HIGH_WATER
from ngi_gevent.interfaces import IConnection, documented_by
from ngi_gevent.sockets.hub_connection import HubConnection
from ngi_gevent.sockets.plain import RECEIVE_SIZE, Transport
from ngi_gevent.sockets.probe import Probe

if TYPE_CHECKING:
    from ngi_gevent.core.while_open import WhileOpen
    from ngi_gevent.interfaces import Reason
    from ngi_gevent.sockets.dispatcher import Dispatcher

__all__ = ["ReceivingConnection"]

READ = 1  # the event for gevent's io watchers


@documented_by(IConnection)
class ReceivingConnection(HubConnection):
    """The input of a connection, except for the loop that receives it."""

    __slots__ = ("_events_pending", "_has_new_transport", "_probe", "_read_watcher", "_transport", "resume", "waiting")

    #: Switches to the greenlet.
    resume: Callable[[], object]

    def __init__(self, dispatcher: Dispatcher, transport: Transport, *arguments: Any) -> None:
        super().__init__(dispatcher, *arguments)
        self._transport = transport
        self._read_watcher = dispatcher.loop.io(transport.fileno(), READ)
        #: Whether the greenlet may be switched to.
        self.waiting = False
        self._events_pending = True  # whether the greenlet has to handle more than input
        self._probe: Probe | None = None  # while the connection may be unread
        self._has_new_transport = False  # whether the loop that receives must begin again with it

    def _input_ended(self, reason: Reason) -> None:
        self.stop_reading()  # the socket is readable from now on
        super()._input_ended(reason)
        self._start_probe()

    def _receive_failed(self, error: OSError) -> None:
        """Handle an exception of ``recv``: there is no input, or the connection broke."""
        if self._transport.has_events:
            self.handle_transport_events()
        output_error = self._lifecycle.output_error
        if not isinstance(error, BlockingIOError):
            self.handle(LOSE, error)
        elif output_error is not None:
            self.handle(LOSE, output_error)

    def _handle_events(self) -> bool:
        """Handle everything but input.  Return whether the connection still delivers input."""
        lifecycle = self._lifecycle
        while True:
            self._events_pending = False
            if self._upgrade is not None:
                self._run_upgrade()
            if self._has_new_transport:
                self._events_pending = True
                return False
            if self._handler is not None:
                while self._exceptions and self:
                    self._report_exception(self._take_exception())
            if not lifecycle.is_established():
                return False
            if lifecycle.output_error is not None and (self._is_paused or lifecycle.input_is_over):
                self.handle(LOSE, lifecycle.output_error)
                return False
            if self._records and self._can_deliver():
                if not self._deliver_records():
                    self._events_pending = True
                    self._dispatcher.postpone(self)
                    return True
            elif self.accepts_input():
                break
            else:
                self.stop_reading()
                if self._output.is_pausing:
                    self._start_probe()
                return True
        if not self._read_watcher.active:
            self._read_watcher.start(self._dispatcher.ready.append, self)
        if self._transport.has_buffered_input():
            self._dispatcher.wake(self)
        if lifecycle.output_error is not None:
            # There may be no further event that wakes the greenlet, so it checks again after each piece.
            self._events_pending = True
            self._receive_rest()
            # Not before: if a handler blocks in _receive_rest, the dispatcher would drop the wake-up, and not switch.
            self._dispatcher.wake(self)
        return lifecycle.is_established()

    def _run_upgrade(self) -> None:
        """Start TLS if another greenlet has called ``start_tls``."""

    def _can_deliver(self) -> bool:
        """Return whether input or records can be delivered now."""
        held = self._handler is None or self._output.is_pausing or self._is_paused
        return self._lifecycle.delivers_input() and not held

    def accepts_input(self) -> bool:
        """Return whether the connection accepts more input now."""
        return self._can_deliver() and not self._lifecycle.input_is_over

    def goes_on(self) -> bool:
        if self._events_pending or self._lifecycle.closing_from_other_thread or self._output.size > HIGH_WATER:
            return False
        return not self._dispatcher.time.is_over()

    def _deliver_records(self) -> bool:
        """Deliver records until there are events to handle.  Return False if the time is up."""
        lifecycle, output, dispatcher = self._lifecycle, self._output, self._dispatcher
        now, until = dispatcher.time.now, dispatcher.end_of_slice()
        # If this thread ends the connection, _events_pending is set.  If another thread does, only the flag is set.
        while self._records and not self._events_pending and not lifecycle.closing_from_other_thread:
            if now() >= until:
                return False
            self._deliver_record()
            if output.size > HIGH_WATER and self.is_full():
                output.send_now()
                output.is_pausing = self.is_full()
                break
        return True

    def _receive_rest(self) -> None:
        """Deliver the next piece of input that had arrived before sending failed, or the end."""
        try:
            data = self._transport.recv(RECEIVE_SIZE)
        except OSError as error:
            self._receive_failed(error)
            return
        if not data:
            self._input_ended(self._transport.end_reason)
        elif not self._lifecycle.closing_from_other_thread:
            self._handler.handle_input(self, data)  # type: ignore[union-attr]

    def handle_transport_events(self) -> None:
        """Send TLS's own messages, and handle input for which the socket does not become readable."""
        self._events_pending = True
        if self._transport.take_events() and not self._lifecycle.output_is_over:
            if self._output.pieces:
                self._output.send_later()
            else:
                self._output.queue(b"")

    def wake(self) -> None:
        """Make the greenlet handle events, at once or when it is back from the handler."""
        self._events_pending = True
        if self.waiting:
            self._dispatcher.wake(self)
        elif not (self._lifecycle.is_open() or self._lifecycle.is_gone()) and self._output.held is not None:
            self._output.held.set()

    def stop_reading(self) -> None:
        """Stop waking the greenlet for input until it has handled events.  A linger may still discard input."""
        self._events_pending = True
        if self._lifecycle.state is not CLOSING:
            self._read_watcher.stop()
        if self._blocks and self._probe is not None:
            self._probe.check()  # the end may have arrived while a callback runs

    def _set_paused(self, paused: bool) -> None:
        super()._set_paused(paused)
        if paused and self._lifecycle.is_established():
            self.stop_reading()
            self._start_probe()

    def enter_block(self, block: WhileOpen) -> None:
        super().enter_block(block)
        self._start_probe()

    def _start_probe(self) -> None:
        """Start the checks for the end of the connection while it is not read."""
        if self._lifecycle.is_established():
            if self._probe is None:
                self._probe = Probe(self, self._transport, self._dispatcher.loop)
            self._probe.start()

    def is_unread(self) -> bool:
        """Return whether nothing is received: the input has ended, it is paused, or too much output is pending."""
        return self._is_paused or self._output.is_pausing or self._lifecycle.input_is_over

    def note_broken(self, error: OSError) -> None:
        """Drop output, because the connection has broken.  Input that had arrived is still delivered if possible."""
        self._output.fail(error)

    def is_reading(self) -> bool:
        """Return whether input would be received at once."""
        return bool(self._read_watcher.active)

    def leave_to_parent(self) -> None:
        super().leave_to_parent()
        if self._probe is not None:
            self._probe.close()
        self._read_watcher.close()

    # Called by the linger.

    def receive(self) -> bytes:
        """Return some input, as ``recv`` of a non-blocking socket."""
        try:
            return self._transport.recv(RECEIVE_SIZE)
        finally:
            if self._transport.has_events:
                self.handle_transport_events()

    def start_discarding(self) -> None:
        """Make the linger discard input as it arrives."""
        if self._output.linger is not None:
            self._read_watcher.start(self._output.linger.discard_input)

    def stop_discarding(self) -> None:
        """Leave input to the kernel."""
        self._read_watcher.stop()
