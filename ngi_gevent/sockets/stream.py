"""A connection on a gevent socket: a greenlet that reads and calls the handler, and output that it does not wait for.

Three parts act on a connection.  They share one native thread, so each runs until it blocks:

* its **greenlet** (``run``) receives and calls the handler;
* the **sender** sends pending output, on the hub, and never blocks;
* the **feeder** is a second greenlet, which pulls from iterables given to ``writelines``, and holds the output behind
  them.  It exists only while one of them is not exhausted.

The lifecycle controls the end of a connection.  On CLOSING, a linger discards input, because closing a socket with
unread input resets the connection, and the peer may lose the answer.  Once everything is sent, the sender half-closes
the socket, and the linger waits for a short time until the peer does so, too.  On CLOSED, the socket is closed.  During
this, the greenlet reports the end to the handler.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from ngi_gevent.core.callbacks import ConnectionOwner, take_undelivered_of
from ngi_gevent.core.checks import check_returned
from ngi_gevent.core.lifecycle import (
    CLOSED,
    CLOSING,
    HALF_CLOSED,
    HANDSHAKE_BEGUN,
    STOPPED,
)
from ngi_gevent.core.output import HIGH_WATER, OutputQueue
from ngi_gevent.errors import ImplementationClosed
from ngi_gevent.interfaces import IConnection, documented_by
from ngi_gevent.sockets.dispatcher import ConnectionGreenlet, Dispatcher
from ngi_gevent.sockets.idle import IdleTimer
from ngi_gevent.sockets.plain import RECEIVE_SIZE, Transport
from ngi_gevent.sockets.receiving import ReceivingConnection
from ngi_gevent.sockets.sender import Sender

if TYPE_CHECKING:
    from contextvars import Context

    from ngi_gevent.core.options import ConnectionOptions
    from ngi_gevent.interfaces import IListener, Reason
    from ngi_gevent.sockets.handshake import Handshake
    from ngi_gevent.sockets.tls import MakeSSLObject, TLSTransport
    from ngi_gevent.sockets.upgrade import Upgrade

__all__ = ["StreamConnection"]

#: Bytes of output that are sent when the callback returns, and not at the end of the batch.
SENT_AT_ONCE = 16 * 1024


@documented_by(IConnection)
class StreamConnection(ReceivingConnection):
    """A connection on a gevent socket: its greenlet, its handshakes, and its end."""

    __slots__ = ("_handshake",)

    _upgrade: Upgrade | None

    def __init__(
        self,
        transport: Transport,
        options: ConnectionOptions,
        peer_address: Any,
        owner: ConnectionOwner,
        control: IListener | None = None,
    ) -> None:
        dispatcher = Dispatcher.current()
        output = Sender(self, transport, dispatcher, options)
        super().__init__(dispatcher, transport, owner, control, transport.getsockname(), peer_address, output)
        self._handshake: Handshake | None = None  # None once it has begun
        if options.idle_timeout is not None:
            timer = IdleTimer(dispatcher.loop, options.idle_timeout, self, output, transport)
            self.when_closed(timer.close)

    @property
    def ssl_object(self) -> Any:
        return self._transport.ssl_object

    # The greenlet.

    def start(self, begin: Callable[[Any], object], where: str, context: Context) -> None:
        """Run the connection on its own greenlet, which begins at once, with ``begin(connection)``.  Called on the hub.

        If memory for the greenlet is missing, aborts the connection, and raises.
        """
        if self._handshake is not None:
            begin = partial(self._handshake.with_client, begin=begin)
        try:
            greenlet = ConnectionGreenlet(self.run, self._dispatcher.hub, self, context)
        except BaseException:
            self.end_callbacks()  # they have no greenlet
            self.abort()
            raise
        greenlet.switch(begin, where)

    def run(self, begin: Callable[[Any], object], where: str) -> None:
        """The body of the connection's greenlet, which makes all callbacks."""
        self.resume = getcurrent().switch
        try:
            try:
                check_returned(begin(self), where)
                where = "handle_input"
                self._serve()
                while self._has_new_transport:
                    self._has_new_transport = False
                    self._serve()
            except BaseException as error:
                self.waiting = False  # the greenlet may have been killed during a wait
                self._failed(where, error)
        finally:  # the greenlet may be killed, or interrupted, while the log blocks
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
                self._input_ended(transport.end_reason)
                continue
            if output.size > HIGH_WATER:
                output.limit_answers()
            if not lifecycle.closing_from_other_thread:
                self._handler.handle_input(self, data)  # type: ignore[union-attr]
            if output.size >= SENT_AT_ONCE and not output.is_waiting_for_peer():
                # The output is still in the processor's cache, and the next receive reuses its memory.
                data = b""
                output.send_now()

    def _report_to_handler(self) -> None:
        """Report the end to the handler.  If no handler is set, wait for that first."""
        try:
            self._log_end()
        finally:
            try:
                if self._handler is not None:
                    self._report_end()
            finally:
                self.end_callbacks()

    # TLS on an open connection.

    def _tls_maker(self, ssl_context: Any, server_side: bool, server_hostname: str | None) -> Any:
        # Not earlier, because programs may import the package, and patch ssl afterwards.
        from ngi_gevent.sockets import contexts

        return contexts.for_side(ssl_context, server_side, server_hostname)

    def _start_tls(self, make: MakeSSLObject, timeout: float | None) -> None:
        mailbox = self._dispatcher.mailbox
        if self._is_elsewhere():
            try:
                mailbox.call(self._start_tls, make, timeout)
            except ImplementationClosed:
                self._hub_gone()
                raise self.closed_error() from None
            return
        if self._calls:
            mailbox.make_calls()  # earlier output of other threads is plaintext
        self._check_start_tls()
        from ngi_gevent.sockets.upgrade import Upgrade

        upgrade = Upgrade(self, self._transport, make, timeout)  # type: ignore[arg-type]
        self._upgrade = upgrade
        self._transport = upgrade.transport
        self._has_new_transport = self._events_pending = True
        if self.is_in_callback():
            upgrade.shake_hands(self)
        else:
            self.when_closed(upgrade.done.set)
            self.wake()
            if self._output.held is not None:
                self._output.held.set()
            self.wait_for(upgrade.done, None)
        if upgrade.error is not None or not self._lifecycle.is_live():
            raise self.closed_error(upgrade.error)

    def _run_upgrade(self) -> None:
        if self._upgrade is not None and not self._upgrade.has_begun:
            self._upgrade.shake_hands(self)

    def is_shaking_hands(self) -> bool:
        """Return whether a TLS handshake is pending on the open connection."""
        return self._upgrade is not None and not self._upgrade.done.is_set()

    def is_to_start_tls(self) -> bool:
        return self._upgrade is not None and not self._upgrade.has_begun

    def take_undelivered(self) -> bytes:
        """Remove and return the input that adapters or files have not delivered.

        :raises RuntimeError: an adapter cannot return it.
        """
        return take_undelivered_of(self._handler)

    def send_with(self, transport: TLSTransport) -> bytes:
        """Send with *transport* from now on.  Return the pending plaintext, which goes first."""
        return self._output.change_transport(transport)

    def send_and_drop(self) -> None:
        """Send as much as the kernel takes now, such as a TLS alert, and drop the rest."""
        self._output.send_now()
        self._output.drop()

    def handshake_is_over(self) -> None:
        """End the output if the application has called ``write_eof`` in the meantime."""
        if self._lifecycle.state is HALF_CLOSED:
            self._output.finish()

    def drop_records(self) -> None:
        """Drop the records that adapters have not delivered."""
        self._close_records()

    # The handshake.

    def shake_hands_first(self, handshake: Handshake) -> None:
        """Begin with *handshake*.  Called once, before the connection runs."""
        self._handshake = handshake
        self.handle(HANDSHAKE_BEGUN)

    def shake_hands(self) -> None:
        """Do the handshake if the connection begins with one, on the greenlet that becomes the connection's.

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
        if self.is_live():  # the connection may have been stopped before this
            if not self._read_watcher.active:
                self._read_watcher.start(self._dispatcher.ready.append, self)
            self.waiting = True
            try:
                self._dispatcher.hub.switch()
            finally:
                self.waiting = False
        if not self.is_live():
            raise ConnectionAbortedError(errno.ECONNABORTED, STOPPED)

    # Waiting.

    def unsent_size(self) -> int | None:
        return None if self._lifecycle.state is CLOSED else self._output.size + self._transport.queued_output()

    def traffic(self) -> tuple[int, int]:
        """Return how many bytes were received and sent over TCP; 0 if they are not counted, or in CLOSED.

        After a reset, one byte may be missing; ``last_traffic`` includes it.
        """
        lifecycle = self._lifecycle
        if lifecycle.state is CLOSED:
            return 0, 0
        return self._transport.traffic(lifecycle.input_is_over or lifecycle.output_is_over)

    def last_traffic(self) -> tuple[int, int]:
        """Return the numbers of ``traffic`` in CLOSED, until the socket is closed."""
        return self._transport.traffic(self._lifecycle.input_is_over)

    # The end.

    def handle(self, event: str, reason: Reason | None = None) -> None:
        if self._calls and not self._lifecycle.is_gone():  # otherwise, the hub may have gone, too
            self._dispatcher.mailbox.make_calls()
        if self._lifecycle.resets(event):
            self._transport.reset()
        super().handle(event, reason)

    def _enter(self, state: str) -> None:
        lifecycle = self._lifecycle
        if state is HALF_CLOSED:
            self._output.finish()
        if state is CLOSING and lifecycle.input_is_over and self._output.is_drained():
            self._output.end()  # the usual end: the peer has finished, and has everything
        if state is CLOSING and lifecycle.state is CLOSING:
            self._output.begin_to_end()
            self.wake()
            self._read_watcher.stop()
            if not lifecycle.input_is_over:
                # A peer that is still sending may not take output before its own is taken.
                self.start_discarding()
        elif state is CLOSED:
            try:
                self._output.close()
            finally:  # memory may be exhausted
                self._read_watcher.close()
                if self._probe is not None:
                    self._probe.close()
                    self._probe = None
                if self.control is not None:
                    self.control.add_traffic(self)
                self._transport.close()
                self.wake()

    def _finish(self) -> None:
        self._dispatcher.release()
        # These refer to the connection, and would keep it until the next full garbage collection.
        if not self._lifecycle.owes_reason():
            self._handler = None
        self.resume = _is_gone
        self._lifecycle.output_error = self._upgrade = None
        is_dropped = self._output.is_dropped
        self._output = OutputQueue(self._output.limit)  # type: ignore[assignment]
        self._output.is_dropped = is_dropped
        super()._finish()


def _is_gone() -> None:
    """Do nothing, in place of the switch to a greenlet that has ended."""
