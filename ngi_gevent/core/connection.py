"""The methods of a connection that the application calls, on sockets or in memory.

The callbacks are in ``Callbacks``, the state in ``Lifecycle``, pending output in ``OutputQueue``.  Each implementation
adds how input arrives, how output leaves, and which greenlet runs the callbacks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ngi_gevent.core import logs
from ngi_gevent.core.callbacks import Callbacks, ConnectionOwner, Delivering, check_start_tls_of, name_of_handler
from ngi_gevent.core.checks import as_timeout, check_count, check_handler, check_reason
from ngi_gevent.core.lifecycle import (
    ABORT,
    BREAK,
    CLOSE,
    CLOSED,
    CLOSING,
    END_OF_INPUT,
    FAIL,
    HALF_CLOSED,
    OPEN,
    WRITE_EOF,
)
from ngi_gevent.core.output import LOW_WATER, Lines, OutputQueue
from ngi_gevent.core.threads import WAITS_FOR_ITSELF, Flag
from ngi_gevent.core.while_open import WhileOpen
from ngi_gevent.errors import ConnectionClosed, Deadlock, LimitExceeded, Timeout
from ngi_gevent.interfaces import IConnection, documented_by

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data, IConnectionHandler, IListener, Reason

__all__ = ["HANDSHAKE_TIMEOUT", "BaseConnection"]

#: Seconds for a TLS handshake, which takes two round trips.  This is enough for a slow line that loses packets.  It is
#: short enough that clients that connect and send nothing do not pile up.
HANDSHAKE_TIMEOUT = 10.0


@documented_by(IConnection)
class BaseConnection(Callbacks):
    """A connection, as the application uses it.  See ``IConnection`` for the contract."""

    __slots__ = ("_blocks", "_output", "_upgrade", "control", "data", "local_address")

    def __init__(
        self,
        owner: ConnectionOwner,
        control: IListener | None,
        local_address: Any,
        peer_address: Any,
        output: OutputQueue,
    ) -> None:
        super().__init__(owner, peer_address)
        self.control: Any = control
        self.data: Any = None
        self.local_address = local_address
        self._output = output
        self._upgrade: Any = None  # the change to TLS, after start_tls was called
        self._blocks: tuple[WhileOpen, ...] = ()  # those that the end of the connection interrupts

    def __bool__(self) -> bool:
        return self._lifecycle.is_open()

    def __repr__(self) -> str:
        shown = f"{self.local_address!r} to {self.peer_address!r}, {self._lifecycle.state}"
        if not self._lifecycle.is_gone():
            handler = "no handler" if self._handler is None else f"handler: {name_of_handler(self._handler)}"
            shown += f", {handler}, bytes pending: {self._output.size}"
        return f"<{type(self).__name__} {shown}>"

    @property
    def ssl_object(self) -> Any:
        return None

    @property
    def peer_credentials(self) -> tuple[int, int, int] | None:
        return None

    # The application's side.

    def start_tls(
        self,
        ssl_context: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        timeout: float | None = HANDSHAKE_TIMEOUT,
    ) -> None:
        make = self._tls_maker(ssl_context, server_side, server_hostname)
        self._start_tls(make, as_timeout(timeout))

    def _check_start_tls(self) -> None:
        if not self._lifecycle.takes_output() or self.input_ended:
            raise self.closed_error(END_OF_INPUT if self.input_ended else None)
        if self.ssl_object is not None or self._upgrade is not None:
            raise RuntimeError("the connection already has TLS, or start_tls was called before")
        if self._output.has_iterables():
            raise RuntimeError("an iterable given to writelines is not exhausted; call drain(below=1) first")
        check_start_tls_of(self._handler)

    def set_handler(self, handler: IConnectionHandler) -> None:
        check_handler(handler)
        self._make_call(self._take_handler, handler)

    def _take_handler(self, handler: IConnectionHandler) -> None:
        first = self._handler is None
        self._handler = handler
        if first:
            self._handler_set()

    def setHandler(self, handler: IConnectionHandler) -> None:  # noqa: N802 (NGI 1's spelling)
        """Deprecated: ``set_handler`` as NGI 1 spelled it."""
        warnings.warn("setHandler is deprecated: use set_handler", DeprecationWarning, stacklevel=2)
        self.set_handler(handler)

    def deliver_for(self, adapter: Delivering, records: Iterator[Any]) -> None:
        """Deliver *records* of *adapter* after this callback, each in a separate callback.

        Records are pulled one at a time.  Further input, and its end, wait for the last record.  If this side ends the
        connection, the rest is dropped.
        """
        self._make_call(self._take_records, adapter, records)

    @property
    def input_ended(self) -> bool:
        return self._lifecycle.input_is_over

    def writelines(self, data: Iterable[Data]) -> None:
        lines = Lines(data)
        if not self._lifecycle.takes_output():
            raise self.closed_error()
        if not self._output_handed_over(self._take_lines, lines, lines.size):
            self._take_lines(lines)

    def _take_lines(self, lines: Lines) -> None:
        if self._lifecycle.state is OPEN and not self._over_limit():
            self._output.add_lines(lines)
            self._queue_lines(lines)
        else:
            self._drop(lines)

    def _drop(self, output: object) -> None:
        """Note that *output*, which was accepted, will not be delivered."""
        self._output.is_dropped = True
        if isinstance(output, Lines):
            self._close_later(output)

    def close_lines(self, lines: Lines) -> None:
        """Close *lines*, which were dropped.  Called on a greenlet that may block."""
        try:
            lines.close()
        except BaseException as error:
            self.iterator_raised(error)

    @property
    def output_pending(self) -> int:
        return self._output.pending

    def drain(self, timeout: float | None = None, *, below: int = LOW_WATER) -> None:
        timeout = as_timeout(timeout)
        check_count("below", below, least=1)
        if not (self._is_elsewhere() or self._output.is_dropped) and self._output.is_below(below):
            return  # the usual case: handlers call this after each write
        flag = Flag()
        self._make_call(self._add_drain, flag, below)
        try:
            drained = flag.is_set() or self._wait_for_drain(flag, timeout)
        finally:
            self._make_call(self._remove_drain, flag)
        if self._output.is_dropped:
            raise self.closed_error() from self._lifecycle.output_error
        if not drained and not (self.output_pending < below and self._output.is_below(below)):
            raise Timeout(f"{self.output_pending} bytes of output are pending after {timeout} seconds")

    # Another thread calls these, and not the methods of the output, because the output can be replaced.

    def _add_drain(self, flag: Flag, below: int) -> None:
        self._output.add_drain(flag, below)

    def _remove_drain(self, flag: Flag) -> None:
        self._output.remove_drain(flag)

    def write_eof(self) -> None:
        if self._lifecycle.takes_output():
            self._lifecycle.eof_from_other_thread = self._is_elsewhere()
            self._make_call(self.handle, WRITE_EOF)

    def close(self) -> None:
        self._end(CLOSE)

    def fail(self, reason: Reason) -> None:
        check_reason(reason)
        self._make_call(self.handle, FAIL, reason)

    def abort(self) -> None:
        self._end(ABORT)

    def _end(self, event: str) -> None:
        # This comes first, so that no callback begins after this call has returned.
        self._lifecycle.closing_from_other_thread = self._is_elsewhere()
        self._make_call(self.handle, event)

    def pause_reading(self) -> None:
        self._make_call(self._set_paused, True)

    def resume_reading(self) -> None:
        self._make_call(self._set_paused, False)

    def _set_paused(self, paused: bool) -> None:
        if self._is_paused is not paused and self._lifecycle.is_established():
            self._is_paused = paused
            self.wake()

    def while_open(self) -> WhileOpen:
        return WhileOpen(self)

    def enter_block(self, block: WhileOpen) -> None:
        """Interrupt *block* when this connection ends."""
        if not self:
            raise self.closed_error()
        if self._is_elsewhere():
            raise RuntimeError("while_open must be called on the thread of the connection's hub; got another thread")
        self._blocks = (*self._blocks, block)

    def leave_block(self, block: WhileOpen) -> None:
        """Forget *block*."""
        self._blocks = tuple(other for other in self._blocks if other is not block)

    def when_closed(self, callback: Callable[[], object]) -> None:
        if not callable(callback):
            raise TypeError(f"the callback of when_closed must be callable; got {callback!r:.100}")
        if self._lifecycle.is_gone() or not self._handed_over(self._take_when_closed, callback):
            self._take_when_closed(callback)

    def _take_when_closed(self, callback: Callable[[], object]) -> None:
        if self._lifecycle.is_gone():
            self._call_when_closed(callback)
        else:
            self._when_closed = (*self._when_closed, callback)

    # For callers that wait for the connection.

    def is_live(self) -> bool:
        """Return whether input is delivered, or will be after the handshake."""
        return self._lifecycle.is_live()

    def delivers_input(self) -> bool:
        """Return whether input is delivered: this side has neither ended the connection nor received its end.

        If sending has failed, the connection is false, but input that had arrived before is delivered.
        """
        return self._lifecycle.delivers_input()

    def unsent_size(self) -> int | None:
        """Return how many bytes of output the peer has not taken; None if the connection is closed."""
        return None if self._lifecycle.state is CLOSED else self._output.size

    def is_full(self) -> bool:
        """Return whether more input must wait until the peer takes output.

        Callers that deliver several records of one piece of input call this before each record, and not at other times.
        So the same bound applies between two records as between two pieces.
        """
        return False

    def wait_for(self, flag: Flag, timeout: float | None) -> bool:
        """Wait until something on this connection sets *flag*, or for *timeout* seconds.  Return True if it was set.

        :raises Deadlock: called in a callback, or nothing is left that can set it.
        """
        if self.is_in_callback():
            raise Deadlock(WAITS_FOR_ITSELF)
        return flag.wait(timeout, alone=not self._is_elsewhere())

    # The state.

    def handle(self, event: str, reason: Reason | None = None) -> None:
        """Pass *event* to the lifecycle, and act on a new state."""
        lifecycle = self._lifecycle
        before = lifecycle.state
        if lifecycle.handle(event, reason) and lifecycle.state is not before:
            if self._blocks and not lifecycle.is_open():
                self.interrupt_blocks()
            try:
                self._enter(lifecycle.state)
            finally:
                if lifecycle.finishes():
                    self._finish()

    def end_callbacks(self) -> None:
        """Note that all callbacks are over."""
        self._lifecycle.callbacks_are_over = True
        if self._lifecycle.finishes():
            self._finish()

    def closed_error(self, reason: Reason | None = None) -> ConnectionClosed:
        """Return the exception for use of an ended connection, for *reason* if no other one is recorded."""
        lifecycle = self._lifecycle
        state = lifecycle.state
        if state is OPEN:
            state = HALF_CLOSED if lifecycle.eof_from_other_thread else CLOSING
        known = lifecycle.output_error or reason
        if known is not None:
            state = f"broken ({logs.format_reason(known)})"
        return ConnectionClosed(f"the connection to {self.peer_address!r} is {state}", self, reason)

    def has_blocks(self) -> bool:
        """Return whether there are blocks that the end of the connection interrupts."""
        return bool(self._blocks)

    def interrupt_blocks(self, reason: Reason | None = None) -> None:
        """Interrupt all blocks of ``while_open``."""
        for block in self._blocks:
            block.interrupt(reason)

    def _make_call(self, call: Callable[..., object], *arguments: Any) -> None:
        """Make *call* on the connection's thread; at once if the caller is on that thread, or if the hub has gone."""
        if not self._handed_over(call, *arguments):
            call(*arguments)

    def _over_limit(self) -> bool:
        """End the connection if its peer leaves too much output waiting.  Return whether it is no longer open."""
        waiting = self._waiting_for_peer()
        if waiting > self._output.limit:
            message = f"the peer left {waiting} bytes of output unread (output_limit={self._output.limit})"
            self.handle(BREAK, LimitExceeded(message))
        return self._lifecycle.state is not OPEN

    # Overridden by implementations.

    def _tls_maker(self, ssl_context: Any, server_side: bool, server_hostname: str | None) -> Any:
        """Return the function that makes a TLS object, or raise if the arguments of ``start_tls`` are wrong."""
        raise NotImplementedError

    def _start_tls(self, make: Any, timeout: float | None) -> None:
        """Do the handshake within *timeout* seconds, with the TLS object that *make* returns."""
        raise NotImplementedError

    def _is_elsewhere(self) -> bool:
        """Return whether the caller is on another native thread than the connection's."""
        return False

    def _handed_over(self, call: Callable[..., object], *arguments: Any) -> bool:
        """Return whether the caller is on another native thread.  If so, make *call* on the connection's, in order."""
        return False

    def _output_handed_over(self, take: Callable[[Any], None], output: Any, size: int) -> bool:
        """Return whether the caller is on another native thread.  If so, take *output*, of *size* bytes, later."""
        return self._handed_over(take, output)

    def _wait_for_drain(self, flag: Flag, timeout: float | None) -> bool:
        """Wait for *flag*, which the output sets, for *timeout* seconds.  Return True if it was set."""
        return self.wait_for(flag, timeout)

    def write(self, data: Data) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """End the connection now with the reason ``'stopped'``: send output without waiting, and drop the rest."""
        raise NotImplementedError

    def limit_delivery(self) -> None:
        """Limit the wait for iterables, because the listener or implementation is closed, and only output is left."""

    def hold(self, flag: Flag) -> bool:
        """Wait in ``handle_input`` for *flag*, which the end of the connection also sets.  Return whether it waited."""
        raise NotImplementedError

    def is_in_callback(self) -> bool:
        """Return whether the caller is in a callback of this connection, which handles nothing else during it."""
        raise NotImplementedError

    def has_unfinished_output(self) -> bool:
        """Return whether the connection is open, or output is pending."""
        raise NotImplementedError

    def _handler_set(self) -> None:
        """Deliver the input and events that were held for the first handler."""
        raise NotImplementedError

    def _queue_lines(self, lines: Lines) -> None:
        """Send the items of *lines* after all output that was queued before."""
        raise NotImplementedError

    def _close_later(self, lines: Lines) -> None:
        """Call ``close_lines`` with *lines*, soon, on a greenlet that may block."""
        raise NotImplementedError

    def _waiting_for_peer(self) -> int:
        """Return how many bytes of output the network has not taken, after offering them if they are too many."""
        raise NotImplementedError

    def _enter(self, state: str) -> None:
        """Act on *state*, which is new."""
        raise NotImplementedError
