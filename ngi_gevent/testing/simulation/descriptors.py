"""Descriptors of simulated sockets, and the watchers that wait until they are ready."""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from ngi_gevent.testing.simulation.errors import NotSimulated
from ngi_gevent.testing.simulation.watchers import Io

__all__ = ["Descriptors", "Pollable"]


class Pollable(Protocol):
    """An object that has a descriptor."""

    def readiness(self) -> int:
        """Return what the descriptor is ready for: 1 to read, 2 to write, 3 for both."""


class Descriptors:
    """All descriptors of a simulation.

    Watchers are level-triggered: they call in each turn in which the descriptor is ready.  To save time, only
    descriptors that were ready in the last turn, or have changed since, are checked.
    """

    __slots__ = ("_changed", "_things", "_watchers")

    def __init__(self) -> None:
        self._things: dict[int, Pollable] = {}
        self._watchers: dict[int, list[Io]] = {}
        self._changed: dict[int, None] = {}  # those to check, in the order of their changes

    def __bool__(self) -> bool:
        """Return whether a descriptor may be ready."""
        return bool(self._changed)

    def add(self, descriptor: int, thing: Pollable) -> None:
        """Register *thing* for its descriptor."""
        self._things[descriptor] = thing

    def remove(self, descriptor: int) -> None:
        """Remove a descriptor that is closed."""
        self._things.pop(descriptor, None)
        self._changed.pop(descriptor, None)

    def changed(self, descriptor: int) -> None:
        """Mark *descriptor* as possibly ready."""
        if descriptor in self._watchers:
            self._changed[descriptor] = None

    def all_changed(self) -> None:
        """Mark all descriptors as possibly ready."""
        self._changed.update(dict.fromkeys(self._watchers))

    def check(self, descriptor: int) -> None:
        """Raise unless *descriptor* belongs to the simulation."""
        if descriptor not in self._things:
            raise NotSimulated(
                f"descriptor {descriptor} does not belong to the simulation; use connect and listener of a host"
            )

    def watch(self, watcher: Io) -> None:
        """Add *watcher* for its descriptor."""
        self._watchers.setdefault(watcher.fd, []).append(watcher)
        self._changed[watcher.fd] = None

    def unwatch(self, watcher: Io) -> None:
        """Remove *watcher*."""
        watchers = self._watchers.get(watcher.fd)
        if watchers and watcher in watchers:
            watchers.remove(watcher)
            if not watchers:
                del self._watchers[watcher.fd]
                self._changed.pop(watcher.fd, None)

    def take_ready(self, held: Container[str]) -> list[Io]:
        """Return the watchers whose descriptors are ready, except those that belong to *held* hosts."""
        ready: list[Io] = []
        for descriptor in list(self._changed):
            is_ready = False
            thing = self._things.get(descriptor)
            if thing is not None:
                mask = thing.readiness()
                for watcher in self._watchers[descriptor]:
                    if watcher.events & mask and watcher.host not in held:
                        ready.append(watcher)
                        is_ready = True
            if not is_ready:
                del self._changed[descriptor]
        return ready

    def drop(self, host: str) -> None:
        """Stop the watchers of *host*."""
        for watcher in [one for some in self._watchers.values() for one in some]:
            if watcher.host == host:
                watcher.stop()

    def clear(self) -> None:
        """Remove all descriptors and watchers."""
        for some in self._things, self._watchers, self._changed:
            some.clear()
