"""Greenlets and descriptors that a test leaves open, and the lines of the test that made them."""

from __future__ import annotations

import gc
import os
import socket
from typing import Any
from weakref import WeakSet

import gevent
from greenlet import getcurrent, greenlet

import ngi_gevent
from ngi_gevent.core.threads import get_hub_if_exists

__all__ = ["Descriptors", "Greenlets", "find_line"]

#: The folders of code that the user has not written.
_PLUMBING = tuple(os.path.dirname(module.__file__ or "") + os.sep for module in (ngi_gevent, gevent))


def find_line(frame: Any) -> str | None:
    """Return the innermost line of the user's code at *frame*, as ``file:line``, or None."""
    while frame is not None and frame.f_code.co_filename.startswith(_PLUMBING):
        frame = frame.f_back
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Greenlets:
    """All greenlets that are made on this thread from now on.  Only the garbage collector can list them all.

    A search through all objects takes long, compared to a test in memory.  So existing objects are frozen until the
    end: the collector keeps them apart, and lists only new ones.
    """

    def __init__(self) -> None:
        self._freezes = not gc.get_freeze_count()  # otherwise the program itself freezes objects
        if self._freezes:
            gc.freeze()
        self._before = WeakSet(_running())

    def stop(self) -> None:
        """Restore the collector."""
        if self._freezes:
            gc.unfreeze()

    def running(self) -> list[Any]:
        """Return the greenlets that have not ended, after giving them a turn."""
        if get_hub_if_exists() is not None:
            gevent.idle()
        return [one for one in _running() if one not in self._before]

    def kill(self, timeout: float) -> list[str]:
        """Kill the greenlets that do not end within *timeout* seconds, and describe them."""
        new = self.running()
        gevent.joinall([one for one in new if isinstance(one, gevent.Greenlet)], timeout)
        left = [one for one in new if not one.dead]
        described = list(map(_describe_greenlet, left))
        gevent.killall(left, timeout=timeout)
        return described


def _running() -> list[Any]:
    hub, here = get_hub_if_exists(), getcurrent()
    found = [one for one in gc.get_objects() if issubclass(type(one), greenlet)]
    return [one for one in found if one.parent is hub is not None and one is not here and not one.dead]


def _describe_greenlet(one: Any) -> str:
    made, waiting = find_line(getattr(one, "spawning_stack", None)), find_line(one.gr_frame)
    return repr(one) + (f", made at {made}" if made else "") + (f", waiting at {waiting}" if waiting else "")


class Descriptors:
    """The descriptors that this process opens from now on, without those for event loops, if the kernel lists them."""

    def __init__(self) -> None:
        self._before = _open_descriptors()

    def describe_new(self) -> list[str]:
        return [
            f"descriptor {number}, {_describe_descriptor(number, target)}"
            for number, target in _open_descriptors().items()
            if self._before.get(number) != target
        ]


def _open_descriptors() -> dict[int, str]:
    found = {}
    directory = "/proc/self/fd"
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError:
            continue  # the descriptor used for listing
        if not target.startswith("anon_inode:"):
            found[int(name)] = target
    return found


def _describe_descriptor(number: int, target: str) -> str:
    if not target.startswith("socket:"):
        return target
    with socket.socket(fileno=os.dup(number)) as sock:
        return f"a socket on {sock.getsockname()!r}"
