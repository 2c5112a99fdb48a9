"""Forked processes: a child has copies of its parent's objects and descriptors, and must leave them alone.

A child can close its copy of a descriptor.  A ``shutdown``, a socket option or a message of TLS would reach the
connection itself, and end it for the parent.  So all objects of the parent count as closed in the child, before
``os.fork`` returns there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

from gevent.monkey import get_original

__all__ = ["Owned", "add", "children", "generation", "keep", "keep_in", "leave"]


class Owned(Protocol):
    """An object that belongs to one process."""

    def leave_to_parent(self) -> None:
        """Count as closed, in a forked child.  Close descriptors, then watchers.

        Must not call the application, log, or switch greenlets, because a fork can happen on any greenlet.
        """


_generation = _children = 0
_owned: WeakSet[Owned] = WeakSet()


# The original class, because the patched threading.local is local to greenlets.
class _Here(get_original("_thread", "_local")):  # type: ignore[misc]
    kept: list[object] = []  # noqa: RUF012 - shared by all threads that have no other


_here = _Here()


def add(thing: Owned) -> None:
    """Leave *thing* to the parent in each forked child, if *thing* still exists then."""
    _owned.add(thing)


def leave(things: Iterable[Owned]) -> None:
    """Leave *things* to the parent, and keep them in memory."""
    keep(*things)
    for thing in things:
        with suppress(ValueError):  # its loop was destroyed, so watchers cannot be closed
            thing.leave_to_parent()


def keep(*things: object) -> None:
    """Keep *things* in memory.  In a child, generators and greenlets of the parent would run if they were freed."""
    _here.kept.extend(things)


def keep_in(things: list[object]) -> list[object]:
    """Make ``keep`` on this thread use the list *things* from now on, and return the previous list.

    A simulated host that crashes leaves its objects as a parent does.  They stay in memory as long as the simulation.
    """
    before: list[object] = _here.kept
    _here.kept = things
    return before


def generation() -> int:
    """Return how many forks led to this process.  The number differs from the parent's."""
    return _generation


def children() -> int:
    """Return how often this process has forked.  Each child can hold the descriptors that were open then."""
    return _children


def _in_child() -> None:
    global _generation, _children
    _generation += 1
    _children = 0
    things = list(_owned)
    _owned.clear()
    leave(things)


def _in_parent() -> None:
    global _children
    _children += 1


os.register_at_fork(after_in_child=_in_child, after_in_parent=_in_parent)
