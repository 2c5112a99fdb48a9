"""The watchers of a virtual loop, which gevent starts and stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Async", "ByHost", "Callback", "Io", "Scheduled", "Timer", "TurnWatcher"]


class Loop(Protocol):
    """The methods of a loop that a watcher uses."""

    starting_timer_may_update_loop_time: bool

    def update_now(self) -> None:
        """Read the clock."""

    @property
    def host(self) -> str:
        """The host whose turn it is."""

    def call_soon(self, host: str, function: Callable[..., object], /) -> object:
        """Call *function* on behalf of *host* in the next turn."""


class Times(Protocol):
    """The methods of the agenda that timers use."""

    time: float
    noticed: float
    references: int
    one_shots: int

    def push(self, seconds: float, item: Any, /) -> None:
        """Make *item* due after *seconds*."""


class Polled(Protocol):
    """The methods of the descriptors that an io watcher uses."""

    def watch(self, watcher: Any, /) -> None:
        """Add *watcher* for its descriptor."""

    def unwatch(self, watcher: Any, /) -> None:
        """Remove *watcher*."""


class Callback:
    """A function to call in the next turn, on behalf of *host*."""

    __slots__ = ("args", "callback", "host")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], host: str) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args: tuple[Any, ...] | None = args
        self.host = host

    def stop(self) -> None:
        """Cancel the call."""
        self.callback = self.args = None

    close = stop

    def __bool__(self) -> bool:
        """Return whether the call is pending or running."""
        return self.args is not None

    @property
    def pending(self) -> bool:
        """Whether the call is pending."""
        return self.callback is not None


class Scheduled:
    """A future event of the network or the simulation."""

    __slots__ = ("_agenda", "args", "callback", "host", "number")

    priority = 0

    def __init__(
        self, agenda: Times, seconds: float, callback: Callable[..., object], args: tuple[Any, ...], host: str
    ) -> None:
        self._agenda = agenda
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.host = host
        #: The number of its entry, while it has one.
        self.number = 0
        agenda.push(seconds, self)
        agenda.references += 1
        agenda.one_shots += 1

    def expire(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        """Stop, and return the function to call now, and its arguments."""
        callback, args = self.callback, self.args
        assert callback is not None
        self.stop()
        return callback, args

    def stop(self) -> None:
        """Cancel the event, unless it has happened."""
        if self.number:
            self.number = 0
            self._agenda.references -= 1
            self._agenda.one_shots -= 1
            self.callback, self.args = None, ()


class Watcher:
    """A watcher of gevent.  It calls on behalf of the host that has started it."""

    __slots__ = ("__weakref__", "args", "callback", "host", "loop", "priority")

    def __init__(self, loop: Loop, priority: int | None) -> None:
        self.loop = loop
        self.priority = priority or 0
        self.host = loop.host
        self.callback: Callable[..., object] | None = None
        self.args: tuple[Any, ...] = ()

    @property
    def active(self) -> bool:
        """Whether the watcher is started."""
        return self.callback is not None

    @property
    def pending(self) -> bool:
        """Whether the watcher has fired, and its callback has not been called yet."""
        return False

    def start(self, callback: Callable[..., object], *args: Any, **_: Any) -> None:
        """Call *callback* from now on."""
        if not callable(callback):
            raise TypeError(f"the callback of a watcher must be callable; got {callback!r}")
        was_active = self.callback is not None
        self.callback, self.args = callback, args
        if not was_active:
            self.host = self.loop.host
            self._begin()

    def stop(self) -> None:
        """Stop calling."""
        if self.callback is not None:
            self.callback, self.args = None, ()
            self._end()

    def close(self) -> None:
        """Stop calling for good."""
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class Timer(Watcher):
    """A watcher that calls after a time, and can repeat."""

    __slots__ = ("_agenda", "after", "number", "ref", "repeat")

    def __init__(self, loop: Loop, agenda: Times, after: float, repeat: float, ref: bool, priority: int | None) -> None:
        super().__init__(loop, priority)
        if repeat < 0:
            raise ValueError(f"repeat must be a number of seconds >= 0; got {repeat!r}")
        self._agenda = agenda
        self.after = after
        self.repeat = repeat
        self.ref = ref
        #: The number of its entry, while it has one.
        self.number = 0

    def start(self, callback: Callable[..., object], *args: Any, update: bool | None = None, **_: Any) -> None:
        """Call *callback* after the time, which counts from the moment when the loop last read the clock.

        With *update*, that moment is now.  In a function given to ``run_callback``, *update* is the default.
        """
        if self.loop.starting_timer_may_update_loop_time if update is None else update:
            self.loop.update_now()
        super().start(callback, *args)

    def again(self, callback: Callable[..., object], *args: Any, **_: Any) -> None:
        """Begin again, with the time between two calls."""
        self.stop()
        self.after = self.repeat
        self.start(callback, *args)

    def expire(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        """Return the function to call now, and its arguments.  Then wait for the next time, or stop."""
        callback, args = self.callback, self.args
        assert callback is not None
        if self.repeat:
            self._agenda.push(self.repeat, self)
        else:
            self.stop()
        return callback, args

    def _begin(self) -> None:
        self._count(1)
        agenda = self._agenda
        agenda.push(self.after + agenda.noticed - agenda.time, self)

    def _end(self) -> None:
        if self.number:
            self.number = 0
            self._count(-1)

    def _count(self, change: int) -> None:
        if self.ref:
            self._agenda.references += change
            if not self.repeat:
                self._agenda.one_shots += change


class Io(Watcher):
    """A watcher that calls in each turn in which a descriptor is ready."""

    __slots__ = ("_descriptors", "events", "fd")

    def __init__(self, loop: Loop, descriptors: Polled, fd: int, events: int, priority: int | None) -> None:
        super().__init__(loop, priority)
        self._descriptors = descriptors
        self.fd = fd
        self.events = events

    def _begin(self) -> None:
        self._descriptors.watch(self)

    def _end(self) -> None:
        self._descriptors.unwatch(self)


class ByHost:
    """The watchers that run in each turn, by the hosts that have started them."""

    def __init__(self) -> None:
        self.by_host: dict[str, list[TurnWatcher]] = {}

    def append(self, watcher: TurnWatcher) -> None:
        """Add *watcher*."""
        self.by_host.setdefault(watcher.host, []).append(watcher)

    def remove(self, watcher: TurnWatcher) -> None:
        """Remove *watcher*."""
        watchers = self.by_host[watcher.host]
        watchers.remove(watcher)
        if not watchers:
            del self.by_host[watcher.host]


class TurnWatcher(Watcher):
    """A watcher that calls in each turn, at the place of its list."""

    __slots__ = ("_watchers",)

    def __init__(self, loop: Loop, watchers: list[TurnWatcher] | ByHost, priority: int | None) -> None:
        super().__init__(loop, priority)
        self._watchers = watchers

    def _begin(self) -> None:
        self._watchers.append(self)

    def _end(self) -> None:
        self._watchers.remove(self)


class Async(Watcher):
    """A watcher that calls soon after ``send``."""

    __slots__ = ("_sent",)

    def __init__(self, loop: Loop, priority: int | None) -> None:
        super().__init__(loop, priority)
        self._sent = False

    def send(self) -> None:
        """Call once, soon.  Further calls until then have no effect."""
        if not self._sent:
            self._sent = True
            self.loop.call_soon(self.host, self._call)

    send_ignoring_arg = send

    @property
    def pending(self) -> bool:
        return self._sent

    def _call(self) -> None:
        self._sent = False
        if self.callback is not None:
            self.callback(*self.args)

    def _begin(self) -> None:
        pass

    def _end(self) -> None:
        pass
