"""Connections in memory, in pairs: each side receives the other side's output in its turn."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from ngi_gevent.core.callbacks import ConnectionOwner
from ngi_gevent.core.checks import as_bytes, check_returned
from ngi_gevent.core.connection import BaseConnection
from ngi_gevent.core.lifecycle import (
    CLOSED,
    CLOSING,
    END_OF_INPUT,
    HALF_CLOSED,
    LOSE,
    OUTPUT_ENDED,
    OUTPUT_FAILED,
    STOP,
    STOPPED,
)
from ngi_gevent.core.output import HIGH_WATER, LOW_WATER, OUTPUT_LIMIT, Lines, OutputQueue
from ngi_gevent.errors import WouldWait
from ngi_gevent.interfaces import IConnection, documented_by
from ngi_gevent.testing.memory.printing import PrintingHandler, TextPrintingHandler
from ngi_gevent.testing.memory.turns import CANNOT_WAIT, MemoryRegistry, Turns, raise_interrupts

if TYPE_CHECKING:
    from ngi_gevent.core.threads import Flag
    from ngi_gevent.interfaces import Data, IConnectionHandler, IListener, Reason

__all__ = ["Connection", "TextConnection", "unconnected"]

#: Bytes that the network accepts for a peer that does not read, as the buffers of a kernel do.
NETWORK_SIZE = 1024 * 1024


class _Arriving(bytes):
    """Input from ``test_input``, which the peer did not write."""


class _End:
    """The end of the output of one side, and the reason for the other side's ``handle_close``."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason


@documented_by(IConnection)
class Connection(BaseConnection):
    """One side of a connection in memory; ``peer`` is the other side.  Making one makes both.

    Pass it to the code under test.  *handler* is the connection handler of the peer.  By default, the peer prints its
    input.  *address* and *peer_address* are the addresses of the two sides.

    For all other methods, see :class:`ngi_gevent.interfaces.IConnection`.
    """

    # The wire holds the output of this side in order: bytes, iterables given to writelines, and finally an _End.
    # The peer takes output from there in its turn, unless it is pausing.
    __slots__ = ("_begin", "_is_receiving", "_turn_is_queued", "_turns", "_wire", "peer")

    #: The default handler of the peer.
    printing_handler: type[PrintingHandler] = PrintingHandler

    peer: Connection

    def __init__(
        self, handler: IConnectionHandler | None = None, address: Any = None, peer_address: Any = None
    ) -> None:
        turns = Turns()
        registry = MemoryRegistry(turns, raise_interrupts)
        peer = unconnected()
        self._set_up(turns, registry, peer, address, peer_address)
        peer._set_up(turns, registry, self, peer_address, address)
        peer.set_handler(self.printing_handler() if handler is None else handler)

    def _set_up(
        self,
        turns: Turns,
        owner: ConnectionOwner,
        peer: Connection,
        address: Any,
        peer_address: Any,
        control: IListener | None = None,
        output_limit: int = OUTPUT_LIMIT,
    ) -> None:
        super().__init__(owner, control, address, peer_address, OutputQueue(output_limit, room=NETWORK_SIZE))
        self._turns = turns
        self.peer = peer
        self._wire: deque[bytes | Lines | _End] = deque()
        self._begin: tuple[Callable[[Any], object], str] | None = None
        self._turn_is_queued = False
        self._is_receiving = True

    # The network's part, for tests.

    def test_input(self, data: Data) -> None:
        """Deliver *data*, as if the peer had written it."""
        data = as_bytes(data)
        if self._lifecycle.is_established():
            self.peer._wire.append(_Arriving(data))
            self._take_turn()

    def test_close(self, reason: Reason = END_OF_INPUT) -> None:
        """End the input for *reason*, as if the peer had finished sending, or the connection had been reset."""
        if self._lifecycle.is_established():
            self.peer._wire.append(_End(reason))
            self._take_turn()

    def test_stop_reading(self) -> None:
        """Stop receiving, as a peer that does not read.  The output for it stays in the network."""
        self._is_receiving = False

    def postpone(self, callback: Callable[[], object]) -> None:
        """Call *callback* in the next turn, before any other callback of this connection.  For use in a callback."""

        def go_on(_: Connection) -> None:
            self._queue_turn()  # for events that came in the meantime
            callback()

        self.start(go_on, "handle_input")

    def _tls_maker(self, ssl_context: Any, server_side: bool, server_hostname: str | None) -> Any:
        # Imported here, because a program can import the package first and patch ssl afterwards.  Then ssl must not be
        # in use.
        from ngi_gevent.sockets import contexts

        return contexts.for_side(ssl_context, server_side, server_hostname)

    def _start_tls(self, make: Any, timeout: float | None) -> None:
        """Continue without TLS."""
        self._check_start_tls()
        self._upgrade = make

    # Output.

    def write(self, data: Data, /) -> None:
        data = as_bytes(data)
        if not self._lifecycle.takes_output():
            raise self.closed_error()
        if data and not (self._output.is_over_limit() and self._over_limit()):
            size = len(data)
            self._output.size += size  # one operation, because a signal handler that writes can run during any call
            self._put(data)

    def _queue_lines(self, lines: Lines) -> None:
        self._put(lines)

    def _take_lines(self, lines: Lines) -> None:
        super()._take_lines(lines)
        self._turns.run()

    def _waiting_for_peer(self) -> int:
        return self._output.size - NETWORK_SIZE

    def _put(self, item: bytes | Lines | _End) -> None:
        self._wire.append(item)
        self.peer._take_turn()

    def _take_output(self) -> bytes | _End | None:
        """Remove the peer's next input from the wire, and return it; None if there is none.

        That is all data up to an iterable or the end, in one piece.  If nothing precedes the end, it is the end itself.
        """
        written = []
        while self._wire:
            head = self._wire[0]
            if isinstance(head, bytes):
                written.append(head)
                if not isinstance(head, _Arriving):
                    self._output.size -= len(head)
                self._wire.popleft()
            elif written:
                break
            elif isinstance(head, _End):
                self._wire.popleft()
                if self._lifecycle.state is HALF_CLOSED:
                    self.handle(OUTPUT_ENDED)
                return head
            else:
                pulled = self._pull(head)
                if pulled:
                    return pulled
        if self._waiting_for_peer() <= LOW_WATER:
            self._output.end_pause()
        self._output.wake_drains()
        return b"".join(written) or None

    def _pull(self, lines: Lines) -> bytes | None:
        try:
            data = lines.pull()
        except BaseException as error:
            data = None
            self.iterator_raised(error)
        if not self._wire or self._wire[0] is not lines:
            return None  # the peer aborted the connection, which dropped the iterable
        if data is None:
            self._wire.popleft()
            self._output.remove_lines(lines)
            self._output.wake_drains()
            self._queue_turn()  # little enough may be pending now that the peer receives again
        else:
            self._output.size -= lines.note_pulled(len(data))
        return data

    def wake(self) -> None:
        self._take_turn()

    # Callbacks.

    def _take_turn(self) -> None:
        self._queue_turn()
        self._turns.run()

    def _queue_turn(self) -> None:
        if not self._turn_is_queued:
            self._turn_is_queued = True
            self._turns.queue(self._turn)

    def _turn(self) -> None:
        """Handle the next event, and queue another turn if more events are possible."""
        self._turn_is_queued = False
        self._turns.current = self
        if self._begin is not None:
            (begin, where), self._begin = self._begin, None
            self._call(where, lambda: check_returned(begin(self), where))
        elif not self._lifecycle.is_established():
            self._conclude()
        elif self._handler is None:
            pass
        elif self._exceptions:
            self._report_exception(self._take_exception())
            self._queue_turn()
        elif self._is_paused:
            self._look_for_break()
        elif not self._is_receiving or self._output.exceeds_threshold():
            pass
        elif self._records:
            self._deliver_records()
        elif self._lifecycle.input_is_over:
            self._discard_input()
        else:
            self._take_input()

    def _deliver_records(self) -> None:
        """Deliver records, each as in a separate turn, until another turn is due."""
        self._limit_answers()
        while self._records and self._is_receiving:
            self._call("handle_input", self._deliver_record)
            if self._turns.is_due():  # also after each write, so answers stay limited
                break
        self._queue_turn()

    def _take_input(self) -> None:
        peer = self.peer
        taken = peer._take_output()
        if taken is not None and (self._wire or peer._records or not peer._lifecycle.is_established()):
            peer._queue_turn()  # the peer may receive again, or all its output may be delivered
        if not self._lifecycle.is_established():
            return  # an iterable of the peer has ended it
        if isinstance(taken, _End):
            self._input_ended(taken.reason)
        elif taken is not None:
            self._limit_answers()
            self._call("handle_input", self._handler.handle_input, self, taken)  # type: ignore[union-attr]

    def _look_for_break(self) -> None:
        """End the connection if the peer has aborted it, although it is paused."""
        if self.peer._wire:
            self._lose_if_broken(self.peer._wire[-1])

    def _discard_input(self) -> None:
        """Drop data that follows the end of input, but detect that the connection was reset."""
        self._lose_if_broken(self.peer._take_output())

    def _lose_if_broken(self, item: object) -> None:
        if isinstance(item, _End) and isinstance(item.reason, BaseException):
            self.handle(LOSE, item.reason)

    def _limit_answers(self) -> None:
        if self._waiting_for_peer() > HIGH_WATER:
            self._output.limit_answers()

    def _call(self, where: str, callback: Callable[..., object], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except BaseException as error:
            self._failed(where, error)
        if self.peer._wire:
            self._queue_turn()

    def _handler_set(self) -> None:
        self._take_turn()

    # The end.

    def start(self, begin: Callable[[Any], object], where: str) -> None:
        """Call ``begin(self)`` as the first callback."""
        self._begin = begin, where
        self._queue_turn()

    def stop(self) -> None:
        """End the connection now.  The network already has all written pieces.  Iterables are dropped."""
        self.handle(STOP, STOPPED)
        if self._lifecycle.state is CLOSING:
            self._close_iterables_later()
            self._wire = deque(item for item in self._wire if isinstance(item, (bytes, _End)))
            self.handle(LOSE)
            self._turns.run()

    def hold(self, flag: Flag) -> bool:
        return False  # no other callback could run during the wait

    def wait_for(self, flag: Flag, timeout: float | None) -> bool:
        if self.is_in_callback():
            raise WouldWait(CANNOT_WAIT)
        return super().wait_for(flag, timeout)

    def is_in_callback(self) -> bool:
        return self._turns.greenlet is getcurrent()

    def has_unfinished_output(self) -> bool:
        lifecycle = self._lifecycle
        return lifecycle.is_established() or (lifecycle.state is CLOSING and self._has_output())

    def _has_output(self) -> bool:
        return any(not isinstance(item, _End) for item in self._wire)

    def handle(self, event: str, reason: Reason | None = None) -> None:
        resets = self._lifecycle.resets(event)
        super().handle(event, reason)
        if resets:
            self._drop_output()
            self._put(_End(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))))

    def _enter(self, state: str) -> None:
        self._queue_turn()
        if state is HALF_CLOSED or (state is CLOSING and not self._has_ended()):
            self._put(_End(END_OF_INPUT))
        elif state is CLOSING:
            self._turns.run()

    def _has_ended(self) -> bool:
        """Return whether the peer has received the end of the output, or will receive it."""
        return self._lifecycle.output_is_over or bool(self._wire and isinstance(self._wire[-1], _End))

    def _conclude(self) -> None:
        """Report the end to the handler, discard input, and finish once all output has been delivered."""
        self._log_end()
        if self._handler is not None:
            self._report_end()
        if self.peer._wire:
            self.peer._lose_output(self._wire[-1] if self._wire else None)
        if not self._has_output() and self._lifecycle.state is CLOSING:
            if self._lingers():
                self._queue_turn()
                return
            self.handle(LOSE)
        if self._lifecycle.state is CLOSED:
            self.end_callbacks()

    def _lingers(self) -> bool:
        """Return whether to wait for the peer's end, as on sockets.  It is so if the peer has a turn, and its end was
        not reported.
        """
        peer = self.peer
        is_told = not (peer._lifecycle.is_established() or peer._lifecycle.owes_reason())
        return peer._turn_is_queued and not is_told and not self._lifecycle.input_is_over

    def _drop_output(self) -> None:
        self._close_iterables_later()
        self._wire.clear()
        self._output.drop()

    def _close_iterables_later(self) -> None:
        for item in self._wire:
            if isinstance(item, Lines):
                self._close_later(item)

    def _close_later(self, lines: Lines) -> None:
        self._turns.queue(partial(self.close_lines, lines))

    def _lose_output(self, end: object) -> None:
        """Drop output, because the peer does not accept it any more.

        If the peer has aborted the connection, sending has failed.  As on sockets, this side is false from now on, and
        still receives the input that preceded the end.

        :param end: the end that the peer sent; None if this side has received it.
        """
        if self._has_output() and isinstance(end, _End) and isinstance(end.reason, BaseException):
            self.handle(OUTPUT_FAILED, end.reason)
        elif self._has_output() and self._lifecycle.input_is_over and self.is_live():
            self.handle(LOSE, BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))  # there was no end to wait for
        elif self._lifecycle.state is HALF_CLOSED and not self._has_output():
            self.handle(OUTPUT_ENDED)  # an end is delivered, although the peer has gone
        self._drop_output()
        self._queue_turn()


class TextConnection(Connection):
    """A :class:`Connection` whose peer prints text."""

    __slots__ = ()

    printing_handler = TextPrintingHandler


def unconnected() -> Connection:
    """Return one side of a connection that is not set up."""
    return Connection.__new__(Connection)
