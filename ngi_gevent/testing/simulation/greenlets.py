"""The greenlets of a simulation: the host of each, and where it waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.hub import Hub
from greenlet import getcurrent, settrace

from ngi_gevent.testing.leftovers import find_line
from ngi_gevent.testing.simulation.loop import VirtualLoop

__all__ = ["Greenlets", "Life"]


class Life:
    """The record of a greenlet.  The simulation numbers greenlets itself, because gevent reuses its numbers."""

    __slots__ = ("greenlet", "host", "number")

    def __init__(self, greenlet: Any, host: str, number: int) -> None:
        self.greenlet = greenlet
        self.host = host
        self.number = number

    def describe(self) -> str:
        """Return the host, the function that runs, and the line where it waits."""
        frames = []
        frame = self.greenlet.gr_frame
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        if not frames:
            return f"{self.host or '(test)'}: greenlet {self.number}, running"
        functions = [name for frame in frames if (name := frame.f_code.co_name) not in _SWITCHES]
        line = find_line(frames[0]) or f"{frames[0].f_code.co_filename}:{frames[0].f_lineno}"
        return f"{self.host or '(test)'}: greenlet {self.number}, in {' < '.join(functions[:4])}, at {line}"


#: Functions that are part of every wait, and are not shown.
_SWITCHES = {"switch", "switch_out"}


class Greenlets:
    """All greenlets that run during the simulation, in the order of their first runs.

    A greenlet belongs to the host on whose behalf it was made.  It is that host's turn whenever the greenlet runs.
    gevent does not pass a context on to a spawned greenlet, so this class traces all switches.
    """

    def __init__(self, loop: VirtualLoop, hub: Any) -> None:
        self._loop = loop
        self._hub = hub
        self._lives: dict[Any, Life] = {}
        self._number = 0
        self._host_of_event = ""
        self._before: Any = None
        #: Called with a greenlet that switches to a hub outside the simulation.
        self.left: Callable[[Any, Any], None] = lambda origin, target: None

    def start(self) -> None:
        """Trace switches from now on.  The caller's greenlet is the test's."""
        self._lives[getcurrent()] = Life(getcurrent(), "", 0)
        self._before = settrace(self._switched)

    def stop(self) -> None:
        """Stop tracing switches."""
        settrace(self._before)
        self._lives.clear()

    def host_of(self, greenlet: Any) -> str:
        """Return the host of *greenlet*; empty for the test."""
        life = self._lives.get(greenlet)
        return "" if life is None else life.host

    def move(self, host: str) -> str:
        """Make the current greenlet act on behalf of *host*.  Return the host for which it acted before."""
        current = getcurrent()
        life = self._lives.get(current)
        if life is None:  # the hub itself, in a callback
            before = self._loop.host
        else:
            before, life.host = life.host, host
        self._loop.enter(host)
        return before

    def of_host(self, host: str | None = None) -> list[Any]:
        """Return the greenlets of *host*, or of all hosts, without the test's."""
        return [
            life.greenlet
            for life in self._lives.values()
            if life.number and not life.greenlet.dead and (host is None or life.host == host)
        ]

    def describe(self, host: str | None = None) -> list[str]:
        """Return where each greenlet waits: the test first, then host by host; or only those on *host*."""
        lives = [life for life in self._lives.values() if not life.greenlet.dead and host in (None, life.host)]
        return [life.describe() for life in sorted(lives, key=lambda life: (life.host, life.number))]

    def _switched(self, event: str, switch: tuple[Any, Any]) -> None:
        origin, target = switch
        loop = self._loop
        if origin.dead:
            self._lives.pop(origin, None)
        if target is self._hub:
            loop.enter(self._host_of_event)
            return
        if origin is self._hub:
            self._host_of_event = loop.host
        life = self._lives.get(target)
        if life is None:
            if isinstance(target, Hub):
                self.left(origin, target)
                return
            self._number += 1
            life = self._lives[target] = Life(target, loop.host, self._number)
        loop.trace.mark(life.number)
        loop.limits.note_progress()
        loop.enter(life.host)
