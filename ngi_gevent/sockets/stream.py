"""A connection on a gevent socket: one greenlet that reads and calls the handler, and output that it never waits for.

Three things act on a connection.  They share one native thread, so each runs until it blocks:

* its **greenlet** (``run``) receives and calls the handler.  In between it waits in one single place, where only the
  dispatcher and ``wake`` resume it.  ``_events_pending`` says that there is something else to handle than input;
* the **sender** sends pending output, on the hub, without ever blocking;
* the **feeder** of the sender, a second greenlet that exists only while an iterable given to ``writelines`` is not
  exhausted, pulls from it, and holds what was written behind it.

The lifecycle says how a connection ends.  On CLOSING, a linger discards input, since closing a socket with unread input
in it resets the connection and may cost the peer the answer.  Once everything is sent, the sender half-closes the
socket, and the linger waits a moment for the peer to do so too.  On CLOSED, the socket is closed.  Meanwhile, the
greenlet reports the end to the handler.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from ngi_gevent.core.checks import check_returned
from ngi_gevent.core.connection import ConnectionOwner
from ngi_gevent.core.lifecycle import (
    CLOSED,
    CLOSING,
    HANDSHAKE,
    HANDSHAKE_BEGUN,
    INPUT_ENDED,
    LOSE,
    STOPPED,
)
from ngi_gevent.core.output import HIGH_WATER, OUTPUT_LIMIT, OutputQueue
from ngi_gevent.interfaces import IConnection, documented_by
from ngi_gevent.sockets.dispatcher import ConnectionGreenlet, Dispatcher
from ngi_gevent.sockets.hub_connection import HubConnection
from ngi_gevent.sockets.idle import IdleTimer
from ngi_gevent.sockets.plain import RECEIVE_SIZE, Transport
from ngi_gevent.sockets.sender import Sender

if TYPE_CHECKING:
    from contextvars import Context

    from ngi_gevent.interfaces import IListener, Reason
    from ngi_gevent.sockets.handshake import Handshake

__all__ = ["StreamConnection"]

READ = 1  # what gevent's io watchers watch for

#: Bytes of output from which on it is sent when the callback returns, and not at the end of the batch.
SENT_AT_ONCE = 16 * 1024


@documented_by(IConnection)
class StreamConnection(HubConnection):
    """A connection on a gevent socket.  Everything in it runs on the thread of its hub."""

    __slots__ = ("_events_pending", "_handshake", "_read_watcher", "_transport", "resume", "waiting")

    #: Switches to the greenlet.
    resume: Callable[[], object]

    def __init__(
        self,
        transport: Transport,
        peer_address: Any,
        owner: ConnectionOwner,
        control: IListener | None = None,
        output_limit: int = OUTPUT_LIMIT,
    ) -> None:
        dispatcher = Dispatcher.current()
        output = Sender(self, transport, dispatcher, output_limit)
        super().__init__(dispatcher, owner, control, transport.getsockname(), peer_address, output)
        self._transport = transport
        self._handshake: Handshake | None = None  # until it is done
        self._read_watcher = dispatcher.loop.io(transport.fileno(), READ)
        #: Whether the greenlet may be switched to.
        self.waiting = False
        self._events_pending = True  # whether the greenlet has to handle something else than input

    @property
    def ssl_object(self) -> Any:
        return self._transport.ssl_object

    # The greenlet.

    def start(self, begin: Callable[[Any], object], where: str, context: Context) -> None:
        """Run the connection on a greenlet of its own, beginning now with ``begin(connection)``.  Called on the hub.

        If there is no memory for a greenlet, aborts the connection and raises.
        """
        if self._handshake is not None:
            begin = partial(self._handshake.with_client, begin=begin)
        try:
            greenlet = ConnectionGreenlet(self.run, self._dispatcher.hub, self, context)
        except BaseException:
            self.end_callbacks()  # there is nothing to call them on
            self.abort()
            raise
        greenlet.switch(begin, where)

    def run(self, begin: Callable[[Any], object], where: str) -> None:
        """The body of the connection's greenlet: every callback is called in here."""
        self.resume = getcurrent().switch
        try:
            try:
                check_returned(begin(self), where)
                where = "handle_input"
                self._serve()
            except BaseException as error:
                self.waiting = False  # the greenlet may have been killed where it waits
                self._failed(where, error)
        finally:  # it may be killed, or interrupted, while the log blocks
            self._report_to_handler()

    def _serve(self) -> None:
        """Receive and call ``handle_input`` until the connection is not open any more: the hot path."""
        batch = self._dispatcher.batch
        switch_to_hub = self._dispatcher.switch_to_hub
        lifecycle, output, transport = self._lifecycle, self._output, self._transport
        receive = transport.recv
        while not self._events_pending or self._handle_events():
            self.waiting = True
            while batch:
                following = batch.pop()
                if following.waiting:
                    following.resume()
                    break
                following.stop_reading()
            else:
                switch_to_hub()
            self.waiting = False
            if self._events_pending:
                continue
            try:
                data = receive(RECEIVE_SIZE)
            except OSError as error:
                self._receive_failed(error)
                continue
            if transport.has_events:
                self.handle_transport_events()
            if not data:
                self.handle(INPUT_ENDED, lifecycle.output_error or transport.end_reason)
                continue
            if output.size > HIGH_WATER:
                output.limit_answers()
            if not lifecycle.closing_from_other_thread:
                self._handler.handle_input(self, data)  # type: ignore[union-attr]
            if output.size >= SENT_AT_ONCE:
                # While it is in the processor's cache; and what is freed now is what the next receive gets.
                data = b""
                output.send_pending()

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
        self._events_pending = False
        if self._handler is not None:
            while self._exceptions and self:
                self._report_exception(self._take_exception())
        lifecycle = self._lifecycle
        if not lifecycle.is_established():
            return False
        if self._handler is None or self._output.is_pausing:
            self.stop_reading()
            return True
        if not self._read_watcher.active:
            self._read_watcher.start(self._dispatcher.has_input, self)
        if self._transport.has_buffered_input():
            self._dispatcher.wake(self)
        if lifecycle.output_error is not None:
            # Nothing more may come to wake the greenlet, so it looks again after each piece.
            self._events_pending = True
            self._receive_rest()
            self._dispatcher.wake(self)  # not before: a handler that blocks would use that up
        return lifecycle.is_established()

    def _receive_rest(self) -> None:
        """Deliver the next piece of input that had arrived before sending failed, or the end."""
        try:
            data = self._transport.recv(RECEIVE_SIZE)
        except OSError as error:
            self._receive_failed(error)
            return
        if not data:
            self.handle(INPUT_ENDED, self._lifecycle.output_error)
        elif not self._lifecycle.closing_from_other_thread:
            self._handler.handle_input(self, data)  # type: ignore[union-attr]

    def handle_transport_events(self) -> None:
        """Send messages of TLS itself, and look at input that the socket does not become readable for."""
        self._events_pending = True
        if self._transport.take_events() and not self._lifecycle.output_is_over:
            if self._output.pieces:
                self._output.send_later()
            else:
                self._output.queue(b"")

    def wake(self) -> None:
        """Let the greenlet handle events, at once or when it is back from the handler."""
        self._events_pending = True
        if self.waiting:
            self._dispatcher.wake(self)
        elif not (self._lifecycle.is_open() or self._lifecycle.is_gone()) and self._output.held is not None:
            self._output.held.set()

    def stop_reading(self) -> None:
        """Do not let input wake the greenlet until it has handled events.  The linger may still discard some."""
        self._events_pending = True
        if self._lifecycle.state is not CLOSING:
            self._read_watcher.stop()

    def _report_to_handler(self) -> None:
        """Report the end to the handler; if there is none, once it is set."""
        try:
            self._log_end()
        finally:
            try:
                if self._handler is not None:
                    self._report_end()
            finally:
                self.end_callbacks()

    # The handshake.

    def shake_hands_first(self, handshake: Handshake) -> None:
        """Begin with *handshake*.  Called once, before the connection runs."""
        self._handshake = handshake
        self.handle(HANDSHAKE_BEGUN)

    def shake_hands(self) -> None:
        """Agree with the peer on TLS, if that is to be done, on the greenlet that becomes the connection's.

        :raises OSError: the handshake failed, or the connection ended.
        """
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            self.resume = getcurrent().switch
            handshake.run(self)

    def wait_for_input(self) -> None:
        """Wait, in the handshake, until there is input.

        :raises OSError: the connection was stopped.
        """
        if self._lifecycle.state is HANDSHAKE:  # it may have been stopped before it began
            if not self._read_watcher.active:
                self._read_watcher.start(self._dispatcher.has_input, self)
            self.waiting = True
            try:
                self._dispatcher.hub.switch()
            finally:
                self.waiting = False
        if self._lifecycle.state is not HANDSHAKE:
            raise ConnectionAbortedError(errno.ECONNABORTED, STOPPED)

    # Waiting.

    def unsent_size(self) -> int | None:
        return None if self._lifecycle.state is CLOSED else self._output.size + self._transport.queued_output()

    def end_when_idle(self, seconds: float) -> None:
        """End it when nothing was received or sent for *seconds*.  Called once, before it runs."""
        timer = IdleTimer(self._dispatcher.loop, seconds, self, self._output, self._transport)
        self.when_closed(timer.close)

    def is_reading(self) -> bool:
        """Return whether input would be received at once."""
        return bool(self._read_watcher.active)

    # The end.

    def handle(self, event: str, reason: Reason | None = None) -> None:
        if not self._lifecycle.is_gone():  # after which the hub may have gone, too
            if self._calls:
                self._dispatcher.mailbox.make_calls()
            if self._lifecycle.resets(event):
                self._transport.reset()
        super().handle(event, reason)

    def _enter(self, state: str) -> None:
        lifecycle = self._lifecycle
        if state is CLOSING and lifecycle.input_is_over and self._output.is_drained():
            self._output.end()  # most connections end so: the peer has finished, and has everything
        if state is CLOSING and lifecycle.state is CLOSING:
            self._output.begin_to_end()
            self.wake()
            self._read_watcher.stop()
            if not lifecycle.input_is_over:
                # A peer that is still sending may not take our output before we take its.
                self.start_discarding()
        elif state is CLOSED:
            try:
                self._output.close()
            finally:  # there may be no memory
                self._read_watcher.close()
                self._transport.close()
                self.wake()

    def leave_to_parent(self) -> None:
        super().leave_to_parent()
        self._read_watcher.close()

    # What the linger does with the connection.

    def receive(self) -> bytes:
        """Return some input, as ``recv`` of a non-blocking socket."""
        try:
            return self._transport.recv(RECEIVE_SIZE)
        finally:
            if self._transport.has_events:
                self.handle_transport_events()

    def start_discarding(self) -> None:
        """Let the linger discard input when there is some."""
        if self._output.linger is not None:
            self._read_watcher.start(self._output.linger.discard_input)

    def stop_discarding(self) -> None:
        """Leave input to the kernel."""
        self._read_watcher.stop()

    def _finish(self) -> None:
        self._dispatcher.release()
        # These hold the connection: it would be freed only by the next full garbage collection.
        if not self._lifecycle.owes_reason():
            self._handler = None
        self.resume = _is_gone
        self._lifecycle.output_error = None
        self._output = OutputQueue(self._output.limit)  # type: ignore[assignment]
        super()._finish()


def _is_gone() -> None:
    """Take the place of the switch to a greenlet that has ended."""
