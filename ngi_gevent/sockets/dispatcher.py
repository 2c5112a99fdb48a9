"""Whose turn it is: the one object of a hub that runs its connections' greenlets and sends what they wrote.

A connection costs two system calls a message, one to receive and one to send, because of three things done here:

* Its read watcher stays started for as long as it wants input, and does no more than to append the connection to
  ``ready``; that is a method of a list, so no Python code runs for it.
* Once a turn of the loop, before it polls again, ``_dispatch`` lets all that are ready run, a batch at a time.  A
  greenlet that is done with its message switches directly to the next of its batch, and only the last one back to the
  hub: one switch for a message instead of two.
* Output goes to the connection's sender, and the sender to ``unsent``.  At the end of the batch, each sends in one
  system call, however many writes there were.  A handler that blocks ends its part of the batch too.

A started watcher fires for as long as there is input, also while its greenlet is blocked in a handler.  Switching into
that greenlet would break what it waits for, so a connection says, in ``waiting``, when it may be switched to; where it
may not, its watcher is stopped until its greenlet is back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Protocol

from gevent import get_hub
from greenlet import getcurrent
from greenlet import greenlet as raw_greenlet

from ngi_gevent.core import clock, forks
from ngi_gevent.sockets.mailbox import Mailbox, this_thread

__all__ = ["ConnectionGreenlet", "Dispatcher", "current_connection"]


#: Connections that run, at most, before what they wrote is sent, and before there is a look at the clock.  All of them
#: would be fewer switches; but with a thousand, the first would no longer be in the cache when their output is sent,
#: which costs more.
BATCH_SIZE = 32

#: Seconds after which a turn ends although connections are ready, so that timers, accepts and signals are handled.
TURN = 0.005

#: Seconds for each connection of a batch from which on the next batch has only one.
LONG = TURN / 16

#: Seconds in which every connection that is ready can deliver some of its records.
ALL_SLICES = 0.025


class ConnectionGreenlet(raw_greenlet):
    """A greenlet on which the application is called for a connection, a connection attempt, or a UDP listener.

    It runs in a copy of *context*, or of the context that it was made in.

    :ivar is_callback: whether nothing more happens on the connection before it returns.
    """

    __slots__ = ("connection", "is_callback")

    def __init__(self, run: Callable[..., object], hub: Any, connection: Any, context: Context | None = None) -> None:
        super().__init__(run, hub)
        self.connection = connection
        self.is_callback = True
        self.gr_context = copy_context() if context is None else context.copy()


class TurnTime:
    """The time that connections have in one turn of the loop.

    A turn in which few are ready takes no time, so it does not ask for the time either.
    """

    __slots__ = ("_asked", "_idle", "batch_size", "ends", "now", "was_short")

    def __init__(self, loop: Any) -> None:
        # Started, it makes the loop poll without waiting.  With a callback in its place, gevent would run many turns
        # before it polls.
        self._idle = loop.idle(ref=False)
        #: Returns the time in seconds.  Not ``clock.now``, since it is called for each record of an adapter.
        self.now = clock.of_thread()
        self._asked = 0.0  # when the time was asked for last
        #: When this turn ends; 0 as long as nothing has asked for the time.
        self.ends = 0.0
        #: Whether the turn has ended although connections were ready.
        self.was_short = False
        #: How many connections run before the next look at the clock.
        self.batch_size = BATCH_SIZE // 4

    def begin(self) -> None:
        """Begin another turn."""
        if self.was_short:
            self._idle.stop()
        self.ends = 0.0
        self.was_short = False

    def end(self) -> None:
        """End a turn that was short: let the loop go on with another one after everything else that has happened."""
        self._idle.start(_do_nothing)

    def close(self) -> None:
        """Ask for no more turns, in a forked child."""
        self._idle.close()

    def measure(self) -> float:
        """Return the time.  From now on, the turn has an end."""
        self._asked = now = self.now()
        if not self.ends:
            self.ends = now + TURN
        return now

    def is_left(self) -> bool:
        """Return whether the turn goes on."""
        self.was_short = self.measure() > self.ends
        return not self.was_short

    def is_left_after_batch(self) -> bool:
        """Return whether the turn goes on.  The next batch is small if this one took long."""
        is_measured, began = bool(self.ends), self._asked
        is_left = self.is_left()
        if is_measured:
            is_long = self._asked - began > LONG * self.batch_size
            self.batch_size = 1 if is_long else min(2 * self.batch_size, BATCH_SIZE)
        return is_left

    def end_of_slice(self, others: int) -> float:
        """Return until when one connection can deliver records, if *others* are behind it."""
        return self.measure() + ALL_SLICES / (ALL_SLICES / TURN + others)


class Dispatched(Protocol):
    """What a dispatcher asks of a connection."""

    #: Whether the greenlet may be switched to.
    waiting: bool
    #: Switches to the greenlet.
    resume: Callable[[], object]

    def stop_reading(self) -> None:
        """Do not become ready for input until the greenlet is back."""


class Flushed(Protocol):
    """What a dispatcher asks of the sender of a connection."""

    def send_pending(self) -> None:
        """Send as much as the kernel takes.  Raises what interrupts it, after it has ended the connection."""


def current_connection() -> Any:
    """The connection, connect or listener for datagrams in one of whose callbacks the caller is, if it is in one."""
    greenlet = getcurrent()
    # Greenlets of the application can have an attribute of that name, too.
    return greenlet.connection if isinstance(greenlet, ConnectionGreenlet) else None


class Dispatcher:
    """The dispatcher of one hub.  Used on that hub's thread only."""

    def __init__(self, hub: Any, mailbox: Mailbox | None = None) -> None:
        self.hub = hub
        self.loop = hub.loop
        #: Switches to the hub from a greenlet that is not gevent's, so that gevent's own switch has nothing to add.
        self.switch_to_hub: Callable[[], object] = raw_greenlet.switch.__get__(hub)
        try:
            # It must not keep a loop running that has nothing else to wait for.
            self._turn = self.loop.prepare(ref=False)
        except TypeError:
            raise RuntimeError(
                f"ngi_gevent needs gevent's default event loop, libev; got {type(self.loop).__module__};"
                " remove GEVENT_LOOP from the environment, and do not set gevent.config.loop"
            ) from None
        #: Calls of other native threads.
        self.mailbox = mailbox or Mailbox(hub)
        #: Connections whose greenlets have something to look at.
        self.ready: list[Dispatched] = []
        #: Those of them whose greenlets take turns now.
        self.batch: list[Dispatched] = []
        #: Senders with output, or an end, to be seen to at the end of the batch.
        self.unsent: list[Flushed] = []
        #: Whether a batch is running, at whose end ``unsent`` is seen to.
        self.is_dispatching = False
        #: The time that this turn has.
        self.time = TurnTime(self.loop)
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
        """Let nothing run from now on, in a forked child, where the thread's hub gets a new dispatcher."""
        if this_thread.dispatcher is self:
            this_thread.dispatcher = this_thread.calls = None
        self.mailbox.leave_to_parent()
        for waiting in self.ready, self.batch, self.unsent:
            waiting.clear()
        self._turn.close()
        self.time.close()

    def acquire(self) -> None:
        """Dispatch from now on: there is one more connection."""
        self._users += 1
        if self._users == 1:
            self._turn.start(self._dispatch)

    def release(self) -> None:
        """Note that a connection is gone.  With the last one, nothing is left in the loop."""
        self._users -= 1
        if not self._users:
            self._turn.stop()
            self.time.begin()

    def wake(self, connection: Dispatched) -> None:
        """Let the greenlet of *connection* look at its events, soon."""
        self.ready.append(connection)
        if not self.is_dispatching:
            self.loop.run_callback(self._dispatch)

    def end_of_slice(self) -> float:
        """Return until when one connection can deliver records, so that those behind it do not wait long."""
        return self.time.end_of_slice(len(self.ready) + len(self.batch))

    def postpone(self, connection: Dispatched) -> None:
        """Let *connection* go on behind those that are ready now: its slice is over."""
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
        """Run something for *connection* that may block on a greenlet of its own, soon."""
        greenlet = ConnectionGreenlet(run, self.hub, connection)
        greenlet.is_callback = is_callback
        self.loop.run_callback(greenlet.switch)
        return greenlet

    def _dispatch(self) -> None:
        """Run everything that is ready, a batch at a time, and send its output.

        A turn with one connection is what most servers have most of the time, so it makes no call but the switch and
        the sending.
        """
        ready, batch, unsent = self.ready, self.batch, self.unsent
        time = self.time
        if time.ends:
            self._begin_turn()
        while ready or batch or unsent:
            if len(ready) > 1 or batch:
                size = time.batch_size
                if len(ready) > size:
                    time.measure()
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
                # One at a time: should this be interrupted, the rest is seen to in the next turn.
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
        """Begin a turn, after one in which there was a question for the time."""
        if self.time.was_short:
            # Those that were left have become ready once more since, because their watchers are started.
            self.ready[:] = dict.fromkeys(self.ready)
        self.time.begin()

    def _go_on_in_next_turn(self) -> None:
        """Serve the other connections soon, though an exception of one goes to the hub."""
        self.loop.run_callback(self._dispatch)  # otherwise the loop would first wait for something else to happen


def _do_nothing() -> None:
    """The callback of a watcher that is only started to keep the loop from waiting."""
