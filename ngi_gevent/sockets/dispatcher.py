"""The dispatcher of a hub, which runs the greenlets of its connections in turn, and sends their output.

A message costs a connection two system calls, one to receive and one to send.  Three techniques make that possible:

* A connection's read watcher stays started as long as the connection accepts input.  Its callback is the ``append`` of
  the list ``ready``, so it runs no Python code.
* Once in each turn of the loop, before the loop polls again, ``_dispatch`` runs all ready connections, one batch after
  the other.  A greenlet that has handled its message switches directly to the next greenlet of its batch.  Only the
  last greenlet switches back to the hub.  So a message costs one switch instead of two.
* Output goes to the connection's sender, and the sender to ``unsent``.  At the end of the batch, each sender sends in
  one system call, however many writes there were.  If a handler blocks, the dispatcher goes on with the batch.

A started watcher fires as long as there is input, even while the connection's greenlet is blocked in a handler.  A
switch to that greenlet would break its wait.  So the connection's ``waiting`` is true only while a switch is allowed.
If a switch is not allowed, the dispatcher stops the watcher until the handler has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from contextvars import Context, copy_context
from typing import Any, Protocol

from gevent import get_hub
from greenlet import getcurrent
from greenlet import greenlet as raw_greenlet

from ngi_gevent.core import clock, forks
from ngi_gevent.sockets.mailbox import Mailbox, this_thread

__all__ = ["ConnectionGreenlet", "Dispatcher", "current_connection"]

#: Connections that run, at most, before their output is sent, and before the clock is read.  Larger batches need fewer
#: switches.  But in a batch of a thousand, the first connections have left the cache when their output is sent, which
#: costs more.
BATCH_SIZE = 32

#: Seconds after which a turn ends although connections are ready, so that timers, accepts and signals are handled.
TURN = 0.005

#: Seconds that each ready connection adds to a turn.  In every turn, the loop polls, and reports all ready connections
#: once more, which takes half a microsecond for each.  For thousands, that must not take longer than serving them.
REPORTED = 0.000002

#: Seconds that a connection takes in a long batch, on average.  After a long batch, the next one has one connection.
LONG = TURN / 16

#: Seconds in which every ready connection can deliver some of its records.
ALL_SLICES = 0.025


class ConnectionGreenlet(raw_greenlet):
    """A greenlet that runs the callbacks of a connection, a connection attempt, or a UDP listener.

    It runs in a copy of *context*; by default, of the context that it was made in.

    :ivar is_callback: whether the connection handles nothing else until the greenlet returns.
    """

    __slots__ = ("connection", "is_callback")

    def __init__(self, run: Callable[..., object], hub: Any, connection: Any, context: Context | None = None) -> None:
        super().__init__(run, hub)
        self.connection = connection
        self.is_callback = True
        self.gr_context = copy_context() if context is None else context.copy()


class TurnTime:
    """The time that connections have in one turn of the loop.

    A turn with few ready connections is short, so it does not read the clock.  *ready* has the connections to run.
    """

    __slots__ = ("_batch_began", "_idle", "_ready", "batch_size", "ends", "now", "was_short")

    def __init__(self, loop: Any, ready: Sized) -> None:
        self._ready = ready
        # While this watcher is started, the loop polls without waiting.  With a callback instead, gevent would run many
        # turns before it polls.
        self._idle = loop.idle(ref=False)
        #: Returns the time in seconds.  This is faster than ``clock.now``, and is called for each record of an adapter.
        self.now = clock.of_thread()
        self._batch_began = 0.0  # when the running batch began, if it has as many connections as it can
        #: When this turn ends; 0 until the clock has been read.
        self.ends = 0.0
        #: Whether the turn has ended although connections were ready.
        self.was_short = False
        #: How many connections run before the clock is read again.
        self.batch_size = BATCH_SIZE // 4

    def begin(self) -> None:
        """Begin another turn."""
        if self.was_short:
            self._idle.stop()
        self.ends = 0.0
        self.was_short = False

    def end(self) -> None:
        """End a turn early.  The loop begins another one after it has handled all other events."""
        self._idle.start(_do_nothing)

    def close(self) -> None:
        """Stop asking for turns, in a forked child."""
        self._idle.close()

    def measure(self) -> float:
        """Return the time.  After the first call, the turn has an end."""
        now = self.now()
        if not self.ends:
            self.ends = now + TURN + REPORTED * len(self._ready)
        return now

    def is_over(self) -> bool:
        """Return whether the turn is over, in the middle of a batch, which goes on."""
        return self.measure() > self.ends

    def is_left(self) -> bool:
        """Return whether the turn goes on."""
        self.was_short = self.is_over()
        return not self.was_short

    def begin_full_batch(self) -> None:
        """Begin a batch of ``batch_size`` connections, whose time decides how many the next one has."""
        self._batch_began = self.measure()

    def is_left_after_batch(self) -> bool:
        """Return whether the turn goes on.  If this batch took long, make the next one small."""
        began, self._batch_began = self._batch_began, 0.0
        now = self.measure()
        if began:
            is_long = now - began > LONG * self.batch_size
            self.batch_size = 1 if is_long else min(2 * self.batch_size, BATCH_SIZE)
        self.was_short = now > self.ends
        return not self.was_short

    def end_of_slice(self, others: int) -> float:
        """Return the time until which one connection can deliver records, if *others* wait behind it."""
        return self.measure() + ALL_SLICES / (ALL_SLICES / TURN + others)


class AcceptingTime:
    """The time that listeners have in one turn of the loop, after the connections: ``TURN``, in equal parts."""

    __slots__ = ("_before", "_count", "_loop", "now")

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self.now = clock.of_thread()
        self._count = 0  # listeners that have accepted in this turn
        self._before = 0  # the same, in the last turn in which there were any

    def share(self) -> float:
        """Return the time until which the calling listener, which now accepts, can go on in this turn."""
        if not self._count:
            self._loop.run_callback(self._end)
        self._count += 1
        return self.now() + TURN / max(self._count, self._before)

    def _end(self) -> None:
        self._before, self._count = self._count, 0


class Dispatched(Protocol):
    """The members of a connection that a dispatcher uses."""

    #: Whether the greenlet may be switched to.
    waiting: bool
    #: Switches to the greenlet.
    resume: Callable[[], object]

    def stop_reading(self) -> None:
        """Ignore input until the greenlet is back from the handler."""


class Flushed(Protocol):
    """The method of a connection's sender that a dispatcher calls."""

    def send_pending(self) -> None:
        """Send as much as the kernel takes.  If an exception interrupts this, end the connection and raise."""


def current_connection() -> Any:
    """Return the connection, connection attempt or UDP listener whose callback the caller is in; or None."""
    greenlet = getcurrent()
    # The application's greenlets can have an attribute with the same name.
    return greenlet.connection if isinstance(greenlet, ConnectionGreenlet) else None


class Dispatcher:
    """The dispatcher of one hub.  Used on that hub's thread only."""

    def __init__(self, hub: Any, mailbox: Mailbox | None = None) -> None:
        self.hub = hub
        self.loop = hub.loop
        #: Switches to the hub.  gevent's own switch only adds things for gevent's greenlets.
        self.switch_to_hub: Callable[[], object] = raw_greenlet.switch.__get__(hub)
        try:
            # This watcher must not keep a loop running that has nothing else to wait for.
            self._turn = self.loop.prepare(ref=False)
        except TypeError:
            raise RuntimeError(
                f"ngi_gevent needs gevent's default event loop, libev; got {type(self.loop).__module__};"
                " remove GEVENT_LOOP from the environment, and do not set gevent.config.loop"
            ) from None
        #: Calls of other native threads.
        self.mailbox = mailbox or Mailbox(hub)
        #: Connections whose greenlets have input or events.
        self.ready: list[Dispatched] = []
        #: The connections that run now.
        self.batch: list[Dispatched] = []
        #: Senders with output, or with an end to handle, at the end of the batch.
        self.unsent: list[Flushed] = []
        #: Whether a batch is running.  At its end, the senders in ``unsent`` are called.
        self.is_dispatching = False
        #: The time that this turn has.
        self.time = TurnTime(self.loop, self.ready)
        #: The time that it has for accepting.
        self.accepting = AcceptingTime(self.loop)
        self._users = 0
        forks.add(self)

    @staticmethod
    def current() -> Dispatcher:
        """Return the dispatcher of the calling thread's hub."""
        hub = get_hub()
        dispatcher: Dispatcher | None = this_thread.dispatcher
        if dispatcher is None or dispatcher.hub is not hub:
            dispatcher = this_thread.dispatcher = Dispatcher(hub)
        return dispatcher

    def leave_to_parent(self) -> None:
        """Stop, in a forked child, where the thread's hub gets a new dispatcher."""
        if this_thread.dispatcher is self:
            this_thread.dispatcher = this_thread.calls = None
        self.mailbox.leave_to_parent()
        for waiting in self.ready, self.batch, self.unsent:
            waiting.clear()
        self._turn.close()
        self.time.close()

    def acquire(self) -> None:
        """Note that there is one more connection.  With the first one, dispatching begins."""
        self._users += 1
        if self._users == 1:
            self._turn.start(self._dispatch)

    def release(self) -> None:
        """Note that a connection is gone.  With the last one, dispatching ends."""
        self._users -= 1
        if not self._users:
            self._turn.stop()
            self.time.begin()

    def wake(self, connection: Dispatched) -> None:
        """Make the greenlet of *connection* handle its events soon."""
        self.ready.append(connection)
        if not self.is_dispatching:
            self.loop.run_callback(self._dispatch)

    def end_of_slice(self) -> float:
        """Return the time until which one connection can deliver records, so that those behind it do not wait long."""
        return self.time.end_of_slice(len(self.ready) + len(self.batch))

    def postpone(self, connection: Dispatched) -> None:
        """Move *connection*, whose slice is over, behind the connections that are ready now."""
        self.wake(connection)
        if not self.time.is_left():
            # The turn ends with this connection.  The others of its batch are the first of the next turn.
            self.ready[:0] = reversed(self.batch)
            del self.batch[:]

    def send_later(self, sender: Flushed) -> None:
        """Call *sender* at the end of this batch, or soon if there is none."""
        unsent = self.unsent
        if not unsent and not self.is_dispatching:
            self.loop.run_callback(self._dispatch)
        unsent.append(sender)

    def spawn(self, run: Callable[[], object], connection: Any, *, is_callback: bool = True) -> ConnectionGreenlet:
        """Run *run* for *connection* soon, on its own greenlet, so that it can block."""
        greenlet = ConnectionGreenlet(run, self.hub, connection)
        greenlet.is_callback = is_callback
        self.loop.run_callback(greenlet.switch)
        return greenlet

    def _dispatch(self) -> None:
        """Run all ready connections, one batch after the other, and send their output.

        Most turns of most servers have one connection.  For these, the only calls are the switch and the sending.
        """
        ready, batch, unsent = self.ready, self.batch, self.unsent
        time = self.time
        if time.ends:
            self._begin_turn()
        while ready or batch or unsent:
            if len(ready) > 1 or batch:
                size = time.batch_size
                if len(ready) > size:
                    time.begin_full_batch()
                    batch += ready[size - 1 :: -1]
                    del ready[:size]
                else:
                    batch += ready[::-1]
                    ready.clear()
                connection = batch.pop()
            elif ready:
                connection = ready.pop()
            else:
                connection = None
            self.is_dispatching = True
            try:
                while connection is not None:
                    if connection.waiting:
                        connection.resume()
                    else:
                        connection.stop_reading()
                    connection = batch.pop() if batch else None
            except BaseException:
                self._go_on_in_next_turn()
                raise
            finally:
                self.is_dispatching = False
            while unsent:
                # One at a time, so that after an interruption, the next turn sends the rest.
                sender = unsent.pop()
                try:
                    sender.send_pending()
                except BaseException:
                    self._go_on_in_next_turn()
                    raise
            if ready and not time.is_left_after_batch():
                time.end()
                break

    def _begin_turn(self) -> None:
        """Begin a turn, after one in which the clock was read."""
        if self.time.was_short:
            # The started watchers of connections that were left have made them ready once more.
            self.ready[:] = dict.fromkeys(self.ready)
        self.time.begin()

    def _go_on_in_next_turn(self) -> None:
        """Serve the other connections soon, although an exception goes to the hub."""
        self.loop.run_callback(self._dispatch)  # otherwise the loop would first wait for another event


def _do_nothing() -> None:
    """Do nothing, as the callback of a watcher that only keeps the loop from waiting."""
