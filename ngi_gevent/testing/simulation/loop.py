"""An event loop for gevent's hub in pure Python.  Its time is virtual, and a seed draws its order.

A turn of the loop runs the callbacks that existed when the turn began.  Then it polls for timers that are due and
sockets that are ready.  Each turn takes a microsecond of virtual time, so that greenlets that only yield do not stop
the clock.  If there is nothing to do now, the clock jumps to the next timer.

Callbacks keep their order, as gevent guarantees.  The seed draws the order of events that are due in the same turn.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from ngi_gevent.sockets.mailbox import this_thread
from ngi_gevent.testing.simulation.agenda import Agenda
from ngi_gevent.testing.simulation.descriptors import Descriptors, Pollable
from ngi_gevent.testing.simulation.errors import NotSimulated, Spins, Stuck
from ngi_gevent.testing.simulation.limits import Limits
from ngi_gevent.testing.simulation.schedule import Draws
from ngi_gevent.testing.simulation.trace import Trace
from ngi_gevent.testing.simulation.watchers import Async, ByHost, Callback, Io, Scheduled, Timer, TurnWatcher

__all__ = ["VirtualLoop"]

#: Virtual seconds that a turn takes.
TURN_COST = 1e-6


class VirtualLoop:
    """gevent's loop, in virtual time.

    :ivar host: the host whose turn it is; empty for the test itself.
    :ivar dispatchers: the dispatcher of each host.
    :ivar trace: what happens.
    :ivar ended: why the loop cannot continue.
    :ivar describe_waiting: returns where each greenlet waits.
    """

    # Methods that gevent expects of any loop.
    MAXPRI, MINPRI = 2, -2
    approx_timer_resolution = TURN_COST
    default = False
    error_handler: Any = None
    starting_timer_may_update_loop_time = False

    def __init__(self, schedule: Draws, limits: Limits, *, is_any_order: bool) -> None:
        self.host = ""
        self.dispatchers: dict[str, Any] = {}
        self.ended: Exception | None = None
        self.describe_waiting: Callable[[], list[str]] = list
        self.agenda = Agenda()
        self.trace = Trace(self.now)
        self.limits = limits
        self._active: dict[str, None] = {}  # hosts that have had their turn since the last poll
        self._schedule = schedule
        self._is_any_order = is_any_order
        self._callbacks: deque[Callback] = deque()
        self._descriptors = Descriptors()
        self._prepare = ByHost()
        self._check: list[TurnWatcher] = []
        self._idle: list[TurnWatcher] = []
        self._held: dict[str, list[Callable[[], None]]] = {}  # the pending calls of each paused host
        self._held_until: dict[str, float] = {}

    # Time.

    def now(self) -> float:
        """Return the virtual seconds since the start."""
        return self.agenda.time

    def update_now(self) -> None:
        """Read the clock: timers that start now count from this moment, even if a callback has computed for long."""
        self.agenda.noticed = self.agenda.time

    update = update_now

    def compute(self, seconds: float) -> None:
        """Advance the time without running anything."""
        self.agenda.time += seconds

    # Hosts.

    def enter(self, host: str) -> None:
        """Make it the turn of *host*."""
        self._active[host] = None
        if host is not self.host:
            self.host = host
            this_thread.dispatcher = self.dispatchers.get(host)

    def hold(self, host: str, seconds: float) -> None:
        """Pause *host* for so many seconds, or until an earlier pause ends if that is later."""
        self._held.setdefault(host, [])
        until = self._held_until[host] = max(self._held_until.get(host, 0.0), self.now() + seconds)
        self.after(until - self.now(), self._release, host, until)

    def _release(self, host: str, until: float) -> None:
        """Resume *host* unless another pause is longer.  The events that it has missed come first."""
        if until < self._held_until.get(host, 0.0):
            return
        for redo in self._held.pop(host, ()):
            redo()
        self._descriptors.all_changed()

    def drop(self, host: str) -> None:
        """Remove all pending events of *host*."""
        self._held.pop(host, None)
        self._held_until.pop(host, None)
        self.agenda.drop(host)
        self._descriptors.drop(host)
        for callback in self._callbacks:
            if callback.host == host:
                callback.stop()
        for watcher in [*self._prepare.by_host.get(host, ()), *self._check, *self._idle]:
            if watcher.host == host:
                watcher.stop()

    # Methods that gevent calls.

    def run_callback(self, function: Callable[..., object], *arguments: Any) -> Callback:
        """Call *function* in the next turn."""
        return self.call_soon(self.host, function, *arguments)

    run_callback_threadsafe = run_callback

    def io(self, fd: int, events: int, ref: bool = True, priority: int | None = None) -> Io:
        """Return a watcher that calls while *descriptor* is ready."""
        self._descriptors.check(fd)
        return Io(self, self._descriptors, fd, events, priority)

    def timer(self, after: float, repeat: float = 0.0, ref: bool = True, priority: int | None = None) -> Timer:
        """Return a watcher that calls after so many seconds."""
        return Timer(self, self.agenda, after, repeat, ref, priority)

    def prepare(self, ref: bool = True, priority: int | None = None) -> TurnWatcher:
        """Return a watcher that calls before each poll."""
        return TurnWatcher(self, self._prepare, priority)

    def check(self, ref: bool = True, priority: int | None = None) -> TurnWatcher:
        """Return a watcher that calls after each poll."""
        return TurnWatcher(self, self._check, priority)

    def idle(self, ref: bool = True, priority: int | None = None) -> TurnWatcher:
        """Return a watcher that calls in each turn in which no other event happens."""
        return TurnWatcher(self, self._idle, priority)

    def async_(self, ref: bool = True, priority: int | None = None) -> Async:
        """Return a watcher that calls after its ``send``."""
        return Async(self, priority)

    def fork(self, ref: bool = True, priority: int | None = None) -> TurnWatcher:
        """Return a watcher that never calls, since there are no processes."""
        return TurnWatcher(self, [], priority)

    def signal(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: signals are not simulated."""
        raise _not_simulated("signals")

    def child(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: processes are not simulated."""
        raise _not_simulated("child processes")

    def stat(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: changes of files are not simulated."""
        raise _not_simulated("watchers of files")

    def reinit(self) -> NoReturn:
        """Raise: processes are not simulated."""
        raise _not_simulated("forks")

    def install_sigchld(self) -> None:
        """Do nothing, since there are no processes."""

    reset_sigchld = install_sigchld

    def closing_fd(self, fd: int) -> bool:
        """Return whether watchers were waiting for a descriptor, which is about to be closed."""
        return False

    def handle_error(self, context: Any, type: Any, value: Any, tb: Any) -> None:
        """Pass an exception to the hub."""
        if self.error_handler is None:
            raise value
        self.error_handler.handle_error(context, type, value, tb)

    def destroy(self) -> bool:
        """Remove all events and watchers."""
        self._callbacks.clear()
        self._held.clear()
        self.agenda.clear()
        self._descriptors.clear()
        self._prepare.by_host.clear()
        self._check.clear()
        self._idle.clear()
        return True

    def debug(self) -> list[str]:
        """Return where each greenlet waits."""
        return self.describe_waiting()

    def _format(self) -> str:
        return f"virtual time {self.now():.6f}"

    # Methods for hosts and the network.

    def call_soon(self, host: str, function: Callable[..., object], *arguments: Any) -> Callback:
        """Call *function* on behalf of *host* in the next turn."""
        callback = Callback(function, arguments, host)
        self._callbacks.append(callback)
        return callback

    def after(self, seconds: float, function: Callable[..., object], *arguments: Any, host: str = "") -> Scheduled:
        """Schedule a function on *host* after so many seconds.  It is dropped if the host crashes."""
        return Scheduled(self.agenda, seconds, function, arguments, host)

    def add_descriptor(self, descriptor: int, thing: Pollable) -> None:
        """Register *thing* for the readiness of *descriptor*."""
        self._descriptors.add(descriptor, thing)

    def remove_descriptor(self, descriptor: int) -> None:
        """Remove a descriptor that is closed."""
        self._descriptors.remove(descriptor)

    def changed(self, descriptor: int) -> None:
        """Mark *descriptor* as possibly ready."""
        self._descriptors.changed(descriptor)

    # The loop.

    def run(self, nowait: bool = False, once: bool = False) -> None:
        """Run until ``ended`` has a reason."""
        agenda, descriptors = self.agenda, self._descriptors
        prepare, check, idle = self._prepare.by_host, self._check, self._idle
        while self.ended is None:
            exceeded = self.limits.exceeded()
            if exceeded:
                self.ended = Spins(self._message(exceeded))
                break
            agenda.time += TURN_COST
            self.update_now()
            # A process whose loop has nothing to do does not turn its loop.
            active, self._active = self._active, {}
            for host in active:
                if host in prepare:
                    self._call_watchers(prepare[host][:])
            if self._callbacks:
                self.starting_timer_may_update_loop_time = True
                self._run_callbacks()
                self.starting_timer_may_update_loop_time = False
                self.update_now()
            # libev runs callbacks last, right before it polls.  Work that a callback leaves to a prepare watcher waits
            # until another event happens on the same host, so a missing wake-up becomes visible.
            self._active.clear()
            has_happened = agenda.is_due()
            if has_happened:
                self._run_due()
            if descriptors:
                has_happened = self._run_ready() or has_happened
            if not (self._callbacks or has_happened):
                if idle:
                    self._call_watchers(idle[:])
                elif not descriptors:
                    self._jump()
            if check:
                self._call_watchers(check[:])

    def _jump(self) -> None:
        """Move the clock to the next event."""
        agenda = self.agenda
        is_only_periodic = not agenda.one_shots and self.limits.is_only_periodic()
        if is_only_periodic or not agenda.jump():
            self.ended = Stuck(self._message("nothing is left to happen, and the test still waits"))
        else:
            self.limits.note_jump()

    def _message(self, what: str) -> str:
        return "\n  ".join([f"{what}, at {self.now():.6f} seconds; waiting are:", *self.describe_waiting()])

    def _run_callbacks(self) -> None:
        if self._is_any_order:
            self._callbacks = deque(self._in_drawn_order(list(self._callbacks)))
        callbacks = self._callbacks
        for _ in range(len(callbacks)):
            callback = callbacks.popleft()
            function, arguments = callback.callback, callback.args
            if function is None or arguments is None:
                continue
            if callback.host in self._held:
                self._held[callback.host].append(lambda callback=callback: self._callbacks.append(callback))  # type: ignore[misc]
                continue
            callback.callback = None
            try:
                self._call(callback, function, arguments)
            finally:
                callback.args = None

    def _run_ready(self) -> bool:
        ready = self._descriptors.take_ready(self._held)
        if len(ready) > 1:
            ready = self._in_drawn_order(ready)
        for watcher in ready:
            if watcher.callback is not None:  # an earlier one may have stopped it
                self._call(watcher, watcher.callback, watcher.args)
        return bool(ready)

    def _run_due(self) -> None:
        due = self.agenda.take_due()
        if len(due) > 1:
            due = self._in_drawn_order(due)
            due.sort(key=_order_of_due)
        for item in due:
            if item.host in self._held:
                self._held[item.host].append(lambda item=item: self.agenda.push(0, item) if item.number else None)  # type: ignore[misc]
            elif item.number:  # an earlier one may have stopped it
                self.trace.mark(-item.number)
                self._call(item, *item.expire())
                if type(item) is Scheduled:
                    self.limits.note_progress()

    def _in_drawn_order(self, items: list[Any]) -> list[Any]:
        pick, drawn = self._schedule.pick, []
        while len(items) > 1:
            drawn.append(items.pop(pick(len(items))))
        return drawn + items

    def _call_watchers(self, watchers: list[TurnWatcher]) -> None:
        for watcher in watchers:
            if watcher.callback is not None and watcher.host not in self._held:  # an earlier one may have stopped it
                self._call(watcher, watcher.callback, watcher.args)

    def _call(self, caller: Any, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.enter(caller.host)
        try:
            function(*arguments)
        except BaseException:
            self.handle_error(caller, *sys.exc_info())


def _order_of_due(item: Timer | Scheduled) -> tuple[bool, int]:
    # The network comes first: its data has arrived, even if a process that computes has not checked its timers since.
    return type(item) is not Scheduled, -item.priority


def _not_simulated(what: str) -> NotSimulated:
    return NotSimulated(f"{what} are not simulated; the simulation has neither processes nor the system's files")
