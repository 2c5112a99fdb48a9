"""A connection that belongs to a hub: output and calls from its greenlets, and from other native threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from ngi_gevent.core.checks import as_bytes
from ngi_gevent.core.connection import BaseConnection
from ngi_gevent.core.lifecycle import BREAK, CLOSING, OPEN, STOP, STOPPED
from ngi_gevent.core.output import Lines
from ngi_gevent.core.threads import Flag
from ngi_gevent.errors import ConnectionClosed, LimitExceeded
from ngi_gevent.interfaces import IConnection, documented_by
from ngi_gevent.sockets.dispatcher import ConnectionGreenlet, Dispatcher
from ngi_gevent.sockets.mailbox import this_thread
from ngi_gevent.sockets.sender import GATHERED, Sender

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, Reason
    from ngi_gevent.sockets.plain import Transport

__all__ = ["HubConnection"]


@documented_by(IConnection)
class HubConnection(BaseConnection):
    """Output and calls of a connection.  Calls on other native threads go through the hub's mailbox."""

    __slots__ = ("_calls", "_dispatcher")

    _output: Sender
    _transport: Transport  # assigned by the class that receives

    def __init__(self, dispatcher: Dispatcher, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._dispatcher = dispatcher
        self._calls = dispatcher.mailbox.calls  # from other threads, for all connections of this hub
        dispatcher.acquire()

    @property
    def peer_credentials(self) -> tuple[int, int, int] | None:
        return self._transport.peer_credentials

    def write(self, data: Data) -> None:
        if type(data) is not bytes:
            data = as_bytes(data)
        calls = self._calls
        if this_thread.calls is not calls:
            self._write_elsewhere(data)
            return
        if calls:
            self._dispatcher.mailbox.make_calls()
        if self._lifecycle.state is not OPEN:
            raise self.closed_error()
        output, size = self._output, len(data)
        if output.size or size > GATHERED:
            # The code of _take, because each call costs, and answers to pipelined requests come here.
            if output.size <= output.limit or not self._over_limit():
                output.take(data)
        elif size:  # the usual case: nothing else waits, so limits and order hold
            output.size += size  # no call in between, because a signal handler that writes can run in any call
            output.pieces.append(data)
            dispatcher = self._dispatcher
            if dispatcher.is_dispatching:
                dispatcher.unsent.append(output)
            else:
                dispatcher.send_later(output)

    def _take(self, data: bytes) -> None:
        if not (self._output.is_over_limit() and self._over_limit()):
            self._output.take(data)

    def _queue_lines(self, lines: Lines) -> None:
        self._output.take_lines(lines)

    def _close_later(self, lines: Lines) -> None:
        if self._is_elsewhere():
            self._dispatcher.mailbox.post(self._close_later, lines)  # without effect if the hub has gone
        else:
            self._dispatcher.spawn(partial(self.close_lines, lines), self, is_callback=False)

    def _waiting_for_peer(self) -> int:
        if self._output.is_over_limit():
            self._output.send_now()
        return self._output.size

    # Waiting.

    @property
    def output_pending(self) -> int:
        return self._output.pending + self._dispatcher.mailbox.queued_output(self)

    def _wait_for_drain(self, flag: Flag, timeout: float | None) -> bool:
        if not self._is_elsewhere():
            return flag.wait(timeout, alone=True)
        return self._dispatcher.mailbox.wait_for(flag, timeout)

    def _handler_set(self) -> None:
        if not self._lifecycle.callbacks_are_over:
            self.wake()
        elif self._lifecycle.owes_reason():
            self._dispatcher.spawn(self._report_end, self)

    def has_unfinished_output(self) -> bool:
        lifecycle = self._lifecycle
        return lifecycle.is_established() or (lifecycle.state is CLOSING and not lifecycle.output_is_over)

    def is_full(self) -> bool:
        elsewhere = self._dispatcher.mailbox.queued_output(self)
        return self._lifecycle.output_error is None and self._output.is_full(elsewhere)

    def hold(self, flag: Flag) -> bool:
        if not self._lifecycle.is_open() or not self.is_in_callback() or self.is_to_start_tls():
            return False
        self._output.held = flag
        try:
            flag.wait()
        finally:
            self._output.held = None
        return True

    def is_to_start_tls(self) -> bool:
        """Return whether TLS will start once the callback has returned."""
        return False

    def is_in_callback(self) -> bool:
        greenlet = getcurrent()
        return isinstance(greenlet, ConnectionGreenlet) and greenlet.is_callback and greenlet.connection is self

    # The end.

    def stop(self) -> None:
        self.handle(STOP, STOPPED)
        if self._lifecycle.state is CLOSING and not self._lifecycle.output_is_over:
            self._output.end_now()

    def limit_delivery(self) -> None:
        # A call from another thread may have closed the connection since the caller checked its state.
        if self._lifecycle.state is CLOSING and self._output.linger is not None:
            self._output.linger.limit_iterables()

    # Forked children.

    def is_of_parent(self) -> bool:
        """Return whether the connection belongs to the parent of this forked process."""
        return self._dispatcher.mailbox.is_of_parent

    def leave_to_parent(self) -> None:
        """Count as closed, in a forked child.  Only closes the descriptor."""
        self._lifecycle.abandon()
        self._output.leave_to_parent()

    def _report_end(self) -> None:
        if not self.is_of_parent():
            super()._report_end()

    def wait_for(self, flag: Flag, timeout: float | None) -> bool:
        if self.is_of_parent():
            raise self.closed_error()
        return super().wait_for(flag, timeout)

    def closed_error(self, reason: Reason | None = None) -> ConnectionClosed:
        if self.is_of_parent():
            message = f"the connection to {self.peer_address!r} belongs to {self._dispatcher.mailbox.owner}"
            return ConnectionClosed(message, self)
        return super().closed_error(reason)

    # Other threads.

    def _is_elsewhere(self) -> bool:
        return this_thread.calls is not self._calls

    def _handed_over(self, call: Callable[..., object], *arguments: Any) -> bool:
        mailbox = self._dispatcher.mailbox
        if not self._is_elsewhere():
            if self._calls:
                mailbox.make_calls()
            return False
        posted = mailbox.post(call, *arguments)
        if not posted:
            self._hub_gone()
        return posted

    def _write_elsewhere(self, data: bytes) -> None:
        if not self._lifecycle.takes_output():
            raise self.closed_error()
        if data:
            self._output_handed_over(self._take, data, len(data))

    def _output_handed_over(self, take: Callable[[Any], None], output: Any, size: int) -> bool:
        """Count the output at once, so that another thread cannot fill the memory while the hub is busy."""
        if not self._is_elsewhere():
            return self._handed_over(take, output)
        mailbox, lifecycle = self._dispatcher.mailbox, self._lifecycle
        with mailbox.lock:
            queued = mailbox.queued_output(self)
            waiting, limit = self._output.size + queued, self._output.limit
            if waiting > limit and lifecycle.output_error is None:
                lifecycle.output_error = LimitExceeded(
                    f"{waiting} bytes of output are pending, {queued} of them from other threads (output_limit={limit})"
                    "; the peer does not read, or the hub is busy"
                )
                if isinstance(output, Lines):
                    self._close_later(output)
                return self._handed_over(self.handle, BREAK, lifecycle.output_error)
            if not mailbox.post_output(self, size, self._take_handed, take, output):
                self._hub_gone()
                raise self.closed_error()
        return True

    def _take_handed(self, take: Callable[[Any], None], output: Any) -> None:
        if self._lifecycle.state is OPEN and self._lifecycle.output_error is None:
            take(output)
        else:
            self._drop(output)

    def _hub_gone(self) -> None:
        """Count as closed, because the hub has gone.  Called on any thread."""
        mailbox = self._dispatcher.mailbox
        with mailbox.lock:
            self._lifecycle.abandon()
            left = self._output.size + mailbox.queued_output(self)
            self._output.is_dropped = self._output.is_dropped or left > 0
            self._output.wake_drains()
            callbacks, self._when_closed = self._when_closed, ()
        for callback in callbacks:
            self._call_when_closed(callback)
