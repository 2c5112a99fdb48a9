"""What a test leaves over: connections, listeners, connects, greenlets and descriptors, and where they were made.

::

    with testing.nothing_left(testing.Implementation()) as implementation:
        ...  # what is made here is to be ended here
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import gevent
from greenlet import getcurrent, greenlet

import ngi_gevent
from ngi_gevent.core.threads import Flag, get_hub_if_exists
from ngi_gevent.testing.faults.wrapping import (
    WrappingClient,
    WrappingConnection,
    WrappingDatagramListener,
    WrappingImplementation,
    WrappingListener,
)
from ngi_gevent.testing.memory.implementation import Implementation

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IClientConnectHandler, IServer

__all__ = ["GRACE", "Watched", "nothing_left"]

#: Seconds that what is ending is given to end.
GRACE = 2.0


@contextmanager
def nothing_left(implementation: Any) -> Iterator[Watched]:
    """Give an implementation around *implementation*, and check at the end that nothing is left over.

    Raises :class:`AssertionError`, which names what is left and where it was made: connections, listeners and connects
    of this implementation; greenlets that were made meanwhile; and, where the system tells, descriptors.  What is
    about to end is waited for, for up to two seconds.  All of these are ended then, and greenlets killed, also after
    another exception, which is not replaced.  Descriptors stay open: who has them is not known.
    """
    watched = Watched(implementation)
    try:
        yield watched
    except BaseException:
        watched.end()
        raise
    watched.check()


class Watched(WrappingImplementation):
    """An implementation around another one that knows what was made where.  Made by :func:`nothing_left`."""

    def __init__(self, implementation: Any) -> None:
        super().__init__(implementation)
        self._made: dict[Any, str] = {}
        self._empty = Flag()
        self._problems: list[str] = []
        self._descriptors_before = _descriptors()
        self._greenlets = _Greenlets()

    def check(self) -> None:
        """End everything, and raise ``AssertionError`` if something was left."""
        __tracebackhide__ = True
        left = self.end()
        if left:
            raise AssertionError("left over:\n" + "\n".join(f"  {line}" for line in left))

    def end(self) -> list[str]:
        """End everything; what was left to end, a line for each."""
        self._settle()
        left = self._problems + [f"{_shown(thing)}, {where}" for thing, where in self._made.items()]
        for thing in list(self._made):
            end = getattr(thing, "abort", None) or thing.close
            end()
        self._settle()
        self.implementation.close()
        greenlets = self._greenlets.left()
        left += [_shown_greenlet(one) for one in greenlets]
        gevent.killall(greenlets, timeout=GRACE)
        self._greenlets.stop()
        return left + _new_descriptors(self._descriptors_before)

    def _settle(self) -> None:
        """Give what is ending the time to end, if there is somebody to end it."""
        if self._made and not (self._is_at_once() and _is_alone() and not self._greenlets.alive()):
            self._empty.wait(GRACE)

    def _is_at_once(self) -> bool:
        """Whether it is in memory, where everything has happened when a call returns."""
        implementation = self.implementation
        while isinstance(implementation, WrappingImplementation):
            implementation = implementation.implementation
        return isinstance(implementation, Implementation)

    # What is made.

    def made(self, thing: Any, how: str) -> None:
        """*thing* is there now, and to be ended."""
        if not self._made:
            self._empty = Flag()
        self._made[thing] = how

    def ended(self, thing: Any) -> None:
        """*thing* is there no more."""
        self._made.pop(thing, None)
        if not self._made:
            self._empty.set()

    def problem(self, text: str) -> None:
        """Something else that must not be."""
        self._problems.append(text)

    def wrap(self, connection: Any, control: WrappingListener | None) -> WrappingConnection:
        how = "connected" if control is None else f"accepted by a listener {control.made}"
        return _WatchedConnection(self, connection, control, how)

    def close(self) -> None:
        super().close()
        for thing in list(self._made):
            if isinstance(thing, (_WatchedListener, _WatchedDatagramListener)):
                self.ended(thing)

    def wrap_listener(self, server: IServer) -> WrappingListener:
        return _WatchedListener(self, server)

    def wrap_datagram_listener(self, listener: Any) -> WrappingDatagramListener:
        return _WatchedDatagramListener(self, listener)

    def wrap_client(self, handler: IClientConnectHandler) -> WrappingClient:
        return _WatchedClient(self, handler)


class _WatchedConnection(WrappingConnection):
    def __init__(self, watched: Watched, connection: Any, control: Any, made: str) -> None:
        super().__init__(connection, control)
        self._watched = watched
        self._made = made
        self._closes = 0
        watched.made(self, made)
        connection.when_closed(lambda: watched.ended(self))

    def handle_close(self, connection: Any, reason: Any) -> None:
        self._closes += 1
        if self._closes > 1:
            self._watched.problem(f"handle_close was called {self._closes} times for {self.connection!r}, {self._made}")
        super().handle_close(connection, reason)


class _WatchedListener(WrappingListener):
    def __init__(self, watched: Watched, server: IServer) -> None:
        super().__init__(watched, server)
        self._watched = watched
        self.made = f"made at {_caller()}"
        watched.made(self, self.made)

    def close(self, handler: Any = None) -> None:
        super().close(handler)
        self._watched.ended(self)

    def close_wait(self, timeout: float | None = None) -> int:
        ended = super().close_wait(timeout)
        self._watched.ended(self)
        return ended


class _WatchedDatagramListener(WrappingDatagramListener):
    def __init__(self, watched: Watched, listener: Any) -> None:
        super().__init__(listener)
        self._watched = watched
        watched.made(self, f"made at {_caller()}")

    def close(self) -> None:
        super().close()
        self._watched.ended(self)


class _WatchedClient(WrappingClient):
    """A connect, from when it is under way until there is a connection, or none."""

    def __init__(self, watched: Watched, handler: IClientConnectHandler) -> None:
        super().__init__(watched, handler)
        self._watched = watched
        self.made = f"begun at {_caller()}"
        self.close: Any = None

    def __repr__(self) -> str:
        return f"a connect for {self._handler!r:.100}"

    def connecting(self, give_up: Any) -> None:
        self.close = give_up
        self._watched.made(self, self.made)
        connecting = getattr(self._handler, "connecting", None)
        if connecting is not None:
            connecting(give_up)

    def connected(self, connection: Any) -> object:
        self._watched.ended(self)
        how = self.made.replace("begun", "connected")
        return self._handler.connected(_WatchedConnection(self._watched, connection, None, how))

    def failed_connect(self, reason: Any) -> object:
        self._watched.ended(self)
        return super().failed_connect(reason)


def _is_alone() -> bool:
    """Whether there is no other thread, but for those of gevent's pool, for whose work a greenlet waits."""
    hub = get_hub_if_exists()
    return len(sys._current_frames()) == 1 + (0 if hub is None else hub.threadpool.size)


# What is left, in words.


def _shown(thing: Any) -> str:
    if isinstance(thing, _WatchedConnection):
        thing = thing.connection
    elif isinstance(thing, (_WatchedListener, _WatchedDatagramListener)):
        thing = thing.listener
    return repr(thing)


#: Where the code is that a user of this package has not written.
_PLUMBING = tuple(os.path.dirname(module.__file__ or "") + os.sep for module in (ngi_gevent, gevent))


def _caller() -> str:
    """The line that called this package."""
    return _line(sys._getframe(1)) or "an unknown place"


def _line(frame: Any) -> str | None:
    """The line of *frame* that is a user's, as ``file:line``, if there is one."""
    while frame is not None and frame.f_code.co_filename.startswith(_PLUMBING):
        frame = frame.f_back
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


class _Greenlets:
    """The greenlets of this thread that are made from now on: all kinds of them, of which only the collector knows.

    Looking through all objects takes long, compared to a test in memory.  Those that are there already are frozen
    meanwhile, that is, kept apart by the collector, so that it has only the new ones to show.
    """

    def __init__(self) -> None:
        self._freezes = not gc.get_freeze_count()  # else somebody else does, for as long as it likes
        if self._freezes:
            gc.freeze()
        self._before = WeakSet(self._alive())

    def stop(self) -> None:
        """Have the collector be as it was."""
        if self._freezes:
            gc.unfreeze()

    def alive(self) -> list[Any]:
        """Those that are not done, after giving them a turn."""
        if get_hub_if_exists() is not None:
            gevent.idle()
        return [one for one in self._alive() if one not in self._before]

    def left(self) -> list[Any]:
        """Those that are not done, after giving them the time to be."""
        new = self.alive()
        gevent.joinall([one for one in new if isinstance(one, gevent.Greenlet)], GRACE)
        return [one for one in new if not one.dead]

    def _alive(self) -> list[Any]:
        hub, here = get_hub_if_exists(), getcurrent()
        found = [one for one in gc.get_objects() if issubclass(type(one), greenlet)]
        return [one for one in found if one.parent is hub is not None and one is not here and not one.dead]


def _shown_greenlet(one: Any) -> str:
    """A greenlet: what it runs, where it was made, and where it is."""
    text = repr(one)
    made, waiting = _line(getattr(one, "spawning_stack", None)), _line(one.gr_frame)
    return text + (f", made at {made}" if made else "") + (f", waiting at {waiting}" if waiting else "")


def _descriptors() -> dict[int, str]:
    """The descriptors of this process, where the system tells, but for those of event loops."""
    found = {}
    directory = "/proc/self/fd"
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError:
            continue  # the listing's own
        if not target.startswith("anon_inode:"):
            found[int(name)] = target
    return found


def _new_descriptors(before: dict[int, str]) -> list[str]:
    return [
        f"descriptor {number}, {_shown_descriptor(number, target)}"
        for number, target in _descriptors().items()
        if before.get(number) != target
    ]


def _shown_descriptor(number: int, target: str) -> str:
    if not target.startswith("socket:"):
        return target
    with socket.socket(fileno=os.dup(number)) as sock:
        return f"a socket on {sock.getsockname()!r}"
