"""A connection on a gevent socket: one greenlet that reads and calls the handler, and a buffer that it never waits for.

Three things act on a connection.  They share one native thread, so each runs until it blocks:

* its **greenlet** (``run``) receives, calls the handler, and in between waits in one single place, where only the
  dispatcher and ``_notify`` resume it.  ``_attention`` says that there is something else to look at than input;
* the **dispatcher** and the write watcher send what is in ``_unsent``, on the hub, without ever blocking;
* the **pump**, a second greenlet that exists only while an iterable given to ``writelines`` is not exhausted, pulls
  from it, and holds what was written behind it.

How a connection ends: ``_leave_open`` stops new output; from then on input is discarded, since closing a socket with
unread input in it resets the connection and may cost the peer the answer.  Once everything is sent, ``_output_over``
half-closes the socket, and waits a moment for the peer to do so too; ``close_socket`` is the end.  Meanwhile the
greenlet pays what it owes the handler.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from ngi_gevent.core import forks, logs
from ngi_gevent.core.connection import (
    CLOSED,
    CLOSING,
    END_OF_INPUT,
    HANDSHAKE,
    HIGH_WATER,
    LOW_WATER,
    OPEN,
    OUTPUT_LIMIT,
    STOPPED,
    BaseConnection,
    ConnectionOwner,
    PendingLines,
    as_bytes,
    check_returned,
)
from ngi_gevent.core.threads import Flag
from ngi_gevent.errors import LimitExceeded, Timeout
from ngi_gevent.interfaces import IConnection, documented_by
from ngi_gevent.sockets.dispatcher import ConnectionGreenlet, Dispatcher, current_connection
from ngi_gevent.sockets.feeder import Pump
from ngi_gevent.sockets.idle import IdleTimer
from ngi_gevent.sockets.linger import Linger
from ngi_gevent.sockets.mailbox import this_thread

if TYPE_CHECKING:
    from contextvars import Context

    from ngi_gevent.interfaces import Data, IListener, Reason
    from ngi_gevent.sockets.network import Network, Socket

__all__ = ["StreamConnection"]

READ, WRITE = 1, 2  # what gevent's io watchers watch for

#: Bytes to receive at a time: large enough that a stream is not dominated by calls, and small enough that allocating
#: them does not mean to map memory, which begins at 128 KiB.
RECEIVE_SIZE = 64 * 1024

#: Bytes up to which pieces of output are joined for one system call.  Larger ones are not copied, but sent together.
JOINED_SIZE = 64 * 1024

#: How many pieces are sent together.
PIECES_AT_ONCE = 16


@documented_by(IConnection)
class StreamConnection(BaseConnection):
    """A connection on a gevent socket.  All runs on the thread of its hub; other threads hand over their calls."""

    __slots__ = (
        "_attention",
        "_callbacks_done",
        "_calls",
        "_children",
        "_dispatcher",
        "_held",
        "_input_over",
        "_linger",
        "_network",
        "_output_waits",
        "_paused",
        "_pump",
        "_read_watcher",
        "_reading",
        "_receive",
        "_send",
        "_send_pieces",
        "_shut",
        "_socket",
        "_unsent",
        "_write_watcher",
        "resume",
        "waiting",
    )

    resume: Callable[[], object]

    def __init__(
        self,
        network: Network,
        sock: Socket,
        peer_address: Any,
        owner: ConnectionOwner,
        control: IListener | None = None,
        output_limit: int = OUTPUT_LIMIT,
    ) -> None:
        super().__init__(owner, control, sock.getsockname(), peer_address, output_limit)
        self._network = network
        self._socket = sock
        self._receive: Callable[[int], bytes] = sock.recv
        self._send: Callable[[bytes | memoryview], int] = sock.send
        self._send_pieces: Callable[[list[bytes | memoryview]], int] = sock.sendmsg

        self._dispatcher = Dispatcher.current()
        self._calls = self._dispatcher.mailbox.calls  # of other threads, for any connection of this hub
        self.waiting = False  # whether the greenlet may be switched to
        self._attention = True  # whether the greenlet should look at something else than input
        self._callbacks_done = False
        self._held: Flag | None = None  # what a callback waits for that would not keep us from ending

        self._read_watcher = self._dispatcher.loop.io(sock.fileno(), READ)
        self._reading = False  # whether the read watcher wakes the greenlet
        self._paused = False  # whether reading waits for output to be taken
        self._input_over = False  # whether the peer has finished sending

        self._unsent: list[bytes | memoryview] = []
        self._write_watcher: Any = None
        self._output_waits = False  # whether the kernel takes no more output for now
        self._pump: Pump | None = None

        self._shut = False  # whether our side of the socket is closed
        self._children = forks.children()  # those that cannot hold the socket
        self._linger: Linger | None = None  # while it is closing
        self._dispatcher.acquire()

    # The greenlet.

    def start(self, begin: Callable[[Any], object], where: str, context: Context) -> None:
        """Run the connection on a greenlet of its own, beginning now with ``begin(connection)``.  Called on the hub.

        If there is no memory for a greenlet, aborts the connection and raises.
        """
        try:
            greenlet = ConnectionGreenlet(lambda: self.run(begin, where), self._dispatcher.hub, self, context)
        except BaseException:
            self._callbacks_done = True  # there is nothing to call them on
            self.abort()
            raise
        greenlet.switch()

    def shake_hands(self) -> None:
        """Agree with the peer on how to talk, on the greenlet that is to be the connection's; raises ``OSError``."""

    def end_when_idle(self, seconds: float) -> None:
        """End it when nothing was received or sent for *seconds*.  Called once, before it runs."""

        def expired() -> None:
            reason = Timeout(f"nothing was received or sent for {seconds} seconds, the idle_timeout")
            if self._state is OPEN and not (self._output_waits or self._paused):
                self._leave_open(reason)
            elif self._state is OPEN:  # a peer that takes nothing must not take what it got for all there is
                self._break_off_because(reason)

        queued = 0

        def is_busy() -> bool:
            nonlocal queued
            before, queued = queued, 0 if self._state is CLOSED else self._network.queued_output(self._socket)
            if self._peer_waits() or queued != before:  # the peer takes, or has taken, what was sent long ago
                return True
            # After a stall of the whole process, what the peer sent in time may not have been received.
            return self._reading and self._network.has_input(self._socket)

        timer = IdleTimer(self._dispatcher.loop, self._network.now, seconds, is_busy, expired)
        self._have_noted(timer)
        self.when_closed(timer.close)

    def _have_noted(self, timer: IdleTimer) -> None:
        """Have *timer* note what the socket receives and sends."""
        self._receive, self._send = timer.noting(self._receive), timer.noting(self._send)
        self._send_pieces = timer.noting(self._send_pieces)

    def _peer_waits(self) -> bool:
        """Whether a callback or an iterator takes its time; a handshake has a limit of its own."""
        if self._state is HANDSHAKE:
            return True
        pulling = self._pump is not None and not self._pump.waits
        return (pulling or not self.waiting) and not self._output_waits

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
            self._handler_told()

    def _serve(self) -> None:
        """Receive and call ``handle_input`` until the connection is not open any more: the hot path."""
        batch = self._dispatcher.batch
        switch_to_hub = self._dispatcher.hub.switch
        receive = self._receive
        while not self._attention or self._attend():
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
            if self._attention:
                continue
            try:
                data = receive(RECEIVE_SIZE)
            except BlockingIOError:
                if self._output_error is not None:
                    self._lost(self._output_error)
                continue
            except OSError as error:
                self._lost(error)
                continue
            if data:
                if self._pending > HIGH_WATER:
                    self._limit_answers()
                if not self._ended_elsewhere:
                    self._handler.handle_input(self, data)  # type: ignore[union-attr]
            else:
                self._input_over = True
                self._leave_open(self._output_error or END_OF_INPUT)

    def _attend(self) -> bool:
        """See to everything but input; whether the connection is still open."""
        self._attention = False
        if self._handler is not None:
            while self._exceptions and self:
                self._tell_exception(self._exceptions.pop(0))
        if self._state is not OPEN:
            return False
        if self._handler is None or self._paused:
            self.stop_reading()
            return True
        if not self._reading:
            self._reading = True
            self._read_watcher.start(self._dispatcher.ready.append, self)
        if self._output_error is not None:
            # Nothing more may come to wake the greenlet, so it looks again after each piece.
            self._attention = True
            self._receive_left()
            self._dispatcher.wake(self)  # not before: a handler that blocks would use that up
        return self._state is OPEN

    def _receive_left(self) -> None:
        """Output has failed: deliver the next piece of what had arrived before, or the end."""
        try:
            data = self._receive(RECEIVE_SIZE)
        except BlockingIOError:
            self._lost(self._output_error)  # type: ignore[arg-type]
        except OSError as error:
            self._lost(error)
        else:
            if not data:
                self._input_over = True
                self._leave_open(self._output_error)
            elif not self._ended_elsewhere:
                self._handler.handle_input(self, data)  # type: ignore[union-attr]

    def _notify(self) -> None:
        """Have the greenlet attend to something, at once or when it is back from the handler."""
        self._attention = True
        if self.waiting:
            self._dispatcher.wake(self)
        elif self._held is not None and self._is_ending():
            self._held.set()

    def stop_reading(self) -> None:
        """Have no more input wake the greenlet, until it attends again."""
        self._attention = True
        if self._reading:
            self._reading = False
            self._read_watcher.stop()

    def _handler_told(self) -> None:
        """The connection is not open any more: tell the handler why; a missing one is told when it is set."""
        try:
            self._log_end()
        finally:
            try:
                if self._handler is not None:
                    self._tell_end()
            finally:
                self._callbacks_done = True
                if self._state is CLOSED:
                    self._is_gone()

    def _handler_set(self) -> None:
        if not self._callbacks_done:
            self._notify()
        elif self._reason is not None:
            self._dispatcher.spawn(self._tell_end, self)

    # Output.

    def write(self, data: Data) -> None:
        if type(data) is not bytes:
            data = as_bytes(data)
        calls = self._calls
        if this_thread.calls is not calls:
            self._write_elsewhere(data)
            return
        if calls:
            self._dispatcher.mailbox.make_calls()
        if self._state is not OPEN or self._output_error is not None:
            raise self._closed_error()
        if self._pending:
            self._take(data)
        elif data:  # what most handlers do: nothing else is waiting, so it can't be too much, nor out of order
            self._pending = len(data)
            self._unsent.append(data)
            self._dispatcher.send_later(self)

    def _take(self, data: bytes) -> None:
        if self._pending > self._output_limit and self._over_limit():
            return
        self._pending += len(data)
        if self._pump is None:
            self.queue(data)
        else:
            self._pump.append(data)
        self._pause_if_answered()

    # Other threads.

    def _write_elsewhere(self, data: bytes) -> None:
        if not self:
            raise self._closed_error()
        if data:
            self._output_handed_over(self._take, data, len(data))

    def _output_handed_over(self, take: Callable[[Any], None], output: Any, size: int) -> bool:
        """Count the output at once: a busy hub must not let another thread fill the memory."""
        if not self._is_elsewhere():
            return self._handed_over(take, output)
        mailbox = self._dispatcher.mailbox
        with mailbox.lock:
            queued = mailbox.queued_output(self)
            if self._pending + queued > self._output_limit and self._output_error is None:
                self._output_error = LimitExceeded(
                    f"{self._pending + queued} bytes of output wait, {queued} of them from other threads, for a peer"
                    f" that does not read or a hub that is busy; output_limit is {self._output_limit}"
                )
                return self._handed_over(self._overrun, self._output_error)
            if not mailbox.post_output(self, size, self._take_handed, take, output):
                self._hub_gone()
                raise self._closed_error()
        return True

    def _overrun(self, error: LimitExceeded) -> None:
        if self._state is OPEN:
            self._break_off_because(error)

    def _take_handed(self, take: Callable[[Any], None], output: Any) -> None:
        if self._state is OPEN and self._output_error is None:
            take(output)

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

    def _hub_gone(self) -> None:
        """The hub has gone, so nothing more can happen: count as closed.  Called on any thread."""
        with self._dispatcher.mailbox.lock:
            self._state = CLOSED
            self._reason = None
            self._callbacks_done = self._gone = True
            callbacks, self._when_closed = self._when_closed, []
        for callback in callbacks:
            self._call_when_closed(callback)

    def unsent_size(self) -> int | None:
        return None if self._state is CLOSED else self._pending + self._network.queued_output(self._socket)

    def is_full(self) -> bool:
        waiting = self._pending + self._dispatcher.mailbox.queued_output(self)
        if waiting <= HIGH_WATER or self._output_error is not None:
            return False
        if self._pause_over is None:
            self._pause_over = waiting + HIGH_WATER
        return waiting > self._pause_over

    def is_ready_for_more(self) -> bool:
        if self._pending > HIGH_WATER and self.is_full():
            self.send_pending()
            while self.is_full() and self.hold(Flag()):
                pass
        return self._state is OPEN and not self._ended_elsewhere

    def _waiting_for_peer(self) -> int:
        if self._pending > self._output_limit:
            self.send_pending()
        return self._pending

    def send_pending(self) -> None:
        """Send as much as the kernel takes; never blocks.  Called once a batch, and when the socket is writable."""
        unsent = self._unsent
        while unsent:
            try:
                if len(unsent) > 1:
                    if self._send_several():
                        continue
                    break
                data = unsent[0]
                sent = self._send(data)
            except BlockingIOError:
                break
            except OSError as error:
                self._send_failed(error)
                break
            self._pending -= sent
            if sent == len(data):
                del unsent[0]
            else:
                unsent[0] = memoryview(data)[sent:]
                break
        if (
            unsent
            or self._output_waits
            or self._pump is not None
            or self._pause_over is not None
            or self._state is CLOSING
        ):
            self._after_send()

    def _send_several(self) -> bool:
        """Send several pieces with one system call; whether the kernel took all of them.  Raises what that does."""
        unsent = self._unsent
        self._join_small_pieces()
        pieces = unsent[:PIECES_AT_ONCE]
        sent = self._send_pieces(pieces)
        self._pending -= sent
        for piece in pieces:
            if sent < len(piece):
                unsent[0] = memoryview(piece)[sent:]
                return False
            sent -= len(piece)
            del unsent[0]
        return True

    def _join_small_pieces(self) -> None:
        """Join the first piece of what is unsent with those that follow, while they are small."""
        unsent = self._unsent
        size, count = len(unsent[0]), 1
        while count < len(unsent) and size + len(unsent[count]) <= JOINED_SIZE:
            size += len(unsent[count])
            count += 1
        if count > 1:
            unsent[:count] = [b"".join(unsent[:count])]

    def _after_send(self) -> None:
        """Start or end what depends on how much output is left."""
        if self._unsent:
            self._wait_for_peer()
        else:
            if self._output_waits:
                self._output_waits = False
                self._write_watcher.stop()
                if self._linger is not None and not self._shut:  # after which the timer is about something else
                    self._linger.stop_timer()
            if self._pump is not None and self._pump.waits:
                self._pump.everything_is_sent()
        if self._pending <= LOW_WATER:
            self._pause_over = None
            if self._paused:
                self._paused = False
                self._notify()
            if self._held is not None:
                self._held.set()
        if self._state is CLOSING and not self._unsent:
            if not self._pump:
                self._output_over()
            elif self._input_over:
                self._linger.check_for_break()  # type: ignore[union-attr]

    def _wait_for_peer(self) -> None:
        """The kernel takes no more: go on when it does, and be patient with a closing connection only for so long."""
        if not self._output_waits:
            self._output_waits = True
            if self._write_watcher is None:
                self._write_watcher = self._dispatcher.loop.io(self._socket.fileno(), WRITE)
            self._write_watcher.start(self.send_pending)
        if self._state is CLOSING:
            self._linger.expect_progress()  # type: ignore[union-attr]

    def _pause_if_answered(self) -> None:
        """Read no more if what was read while much output was pending has been answered with much more."""
        if self._pause_over is not None and self._pending > self._pause_over:
            self._paused = True
            if self._state is OPEN:
                self.stop_reading()

    def _send_failed(self, error: OSError) -> None:
        """Nothing can be sent any more.  What had arrived before is still read, and the end with it."""
        self._drop_output()
        if self._output_error is None:
            self._output_error = error
            self._paused = False
            self._notify()

    def _drop_output(self) -> None:
        self._unsent.clear()
        self._pending = 0
        if self._pump is not None:
            self._pump.drop()
            self._pump = None  # which ends soon, and is not to take what is written until then for what it drops

    def _queue_lines(self, lines: PendingLines) -> None:
        if self._output_error is not None:
            self._pending -= lines.size  # nothing is sent any more, and who pulls must not look like who sends
            return
        if self._pump is None:
            self._pump = Pump(self, self._dispatcher, lines)
        else:
            self._pump.append(lines)
        self._pause_if_answered()

    def _exception_queued(self) -> None:
        self._notify()

    # What the pump does with the connection.

    def queue(self, data: bytes) -> None:
        """Send *data* at the end of the batch, or after what waits for the peer already."""
        if not self._unsent:
            self._dispatcher.send_later(self)
        self._unsent.append(data)

    def has_unsent(self) -> bool:
        """Whether there is output that the kernel has not taken."""
        return bool(self._unsent)

    def count(self, size: int) -> None:
        """There are *size* bytes more, or less, of pending output."""
        self._pending += size
        if size < 0 and self._pause_over is not None:
            self._dispatcher.send_later(self)  # which looks whether there is still so much

    def pump_is_done(self, pump: Pump) -> None:
        """There is nothing more behind what was queued, unless *pump* was dropped, and there may be another."""
        if self._pump is pump:
            self._pump = None
            self._dispatcher.send_later(self)

    # The end.

    def _leave_open(self, reason: Reason | None) -> None:
        if self._calls:
            self._dispatcher.mailbox.make_calls()
            if self._state is not OPEN:
                return
        if not self._dispatcher.is_of_this_process():
            self._owe(None)
            self.close_socket()
            return
        self._state = CLOSING
        self._linger = Linger(self, self._network, self._dispatcher.loop, self._socket)
        self._owe(reason)
        self._dispatcher.send_later(self)
        self._notify()
        self.stop_reading()
        if not self._input_over:
            # A peer that is still sending may not take our output before we take its.
            self.start_discarding()

    def stop(self) -> None:
        if self._state is OPEN:
            self._leave_open(STOPPED)
        if self._state is CLOSING and not self._shut:
            self.send_pending()
            self._drop_output()
            self._output_over()

    def limit_delivery(self) -> None:
        if self._linger is not None:
            self._linger.limit_iterables()

    def hold(self, flag: Flag) -> bool:
        if self._is_ending() or not self.is_in_callback():
            return False
        self._held = flag
        try:
            flag.wait()
        finally:
            self._held = None
        return True

    def is_in_callback(self) -> bool:
        return current_connection() is self

    def _is_ending(self) -> bool:
        return self._state is not OPEN or self._output_error is not None

    def undelivered(self) -> bool:
        return self._state is OPEN or (self._state is CLOSING and not self._shut)

    def _lost(self, error: BaseException) -> None:
        """The connection broke: there is neither input nor output any more."""
        self._owe(error)
        self.close_socket()

    def interrupted(self, error: BaseException) -> None:
        """Sending was interrupted, by Ctrl-C say, and nobody knows how much was sent: there is no going on."""
        self._break_off_because(error)

    def _break_off(self) -> None:
        if self._state is not CLOSED and self._dispatcher.is_of_this_process():
            self._network.reset_on_close(self._socket)
            # A child that holds the descriptor too would hide the reset, so the peer sees an end instead.
            self._shut = self._children == forks.children()
        self.close_socket()

    def _output_over(self) -> None:
        """Everything is sent: say so to the peer, and wait for its end, for a moment."""
        if self._shut or self._state is CLOSED:
            return
        self._shut = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close_socket()
            return
        if self._input_over:
            self.close_socket()
            return
        self._linger.wait_for_peer()  # type: ignore[union-attr]

    # What the linger does with the connection.

    def pulled(self) -> int | None:
        """Return how many pieces have come from the iterables that are not exhausted; None if there are none."""
        return None if self._pump is None else self._pump.pulled

    def receive(self) -> bytes:
        """Receive some input, as ``recv`` of a non-blocking socket does."""
        return self._receive(RECEIVE_SIZE)

    def start_discarding(self) -> None:
        """Drop what arrives from now on."""
        self._read_watcher.start(self._linger.discard_input)  # type: ignore[union-attr]

    def stop_discarding(self) -> None:
        """Leave what arrives to the kernel."""
        self._read_watcher.stop()

    def input_has_ended(self) -> None:
        """The peer has finished sending, so nothing is left to discard."""
        self._input_over = True
        if self._shut:
            self.close_socket()
        else:
            self._read_watcher.stop()
            self._dispatcher.send_later(self)  # which sees to what nothing watches now

    def give_up_sending(self) -> None:
        """Reset the connection, because the peer takes no output."""
        peer, left = self.peer_address, self._pending
        self._break_off()
        logs.connections.info("connection with %r broken off: %d bytes were left to send to it", peer, left)

    def close_socket(self) -> None:
        """Go to CLOSED: nothing is received or sent any more."""
        if self._state is CLOSED:
            return
        # First of all, since a peer elsewhere may see the end before this returns.
        self._state = CLOSED
        if self._linger is not None:
            self._linger.close()
            self._linger = None
        try:
            self._drop_output()
        finally:  # there may be no memory for the greenlet that does it
            self._release_socket()
            self._notify()
            if self._callbacks_done:
                self._is_gone()

    def _release_socket(self) -> None:
        self._reading = self._output_waits = False
        self._read_watcher.close()
        if self._write_watcher is not None:
            self._write_watcher.close()
            self._write_watcher = None
        if not self._shut and self._dispatcher.is_of_this_process():
            with suppress(OSError):  # it may be broken
                self._socket.shutdown(socket.SHUT_RDWR)  # or a child that holds the descriptor too would hide the end
        self._socket.close()

    def _is_gone(self) -> None:
        if self._gone:
            return
        self._dispatcher.release()
        # What holds the connection: it would be freed by the next full garbage collection only.
        if self._reason is None:
            self._handler = None
        self.resume = self._receive = self._send = self._send_pieces = _is_closed
        self._output_error = None  # its traceback holds the connection
        super()._is_gone()


def _is_closed(*_: object) -> Any:
    """What stands for the socket's calls, and for the greenlet, once there are none."""
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
