"""Leftovers of a test: connections, listeners, connection attempts, greenlets and descriptors, and where they were
made.

::

    with testing.nothing_left(testing.Implementation()) as implementation:
        ...  # end what is made here
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ngi_gevent.core.threads import Flag, is_only_thread
from ngi_gevent.testing.faults.wrapping import (
    WrappingClient,
    WrappingConnection,
    WrappingDatagramListener,
    WrappingImplementation,
    WrappingListener,
)
from ngi_gevent.testing.leftovers import Descriptors, Greenlets, find_line
from ngi_gevent.testing.memory.implementation import Implementation

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IClientConnectHandler, IServer

__all__ = ["GRACE", "Watched", "nothing_left"]

#: Seconds that connections and greenlets have to end.
GRACE = 2.0


@contextmanager
def nothing_left(implementation: Any) -> Iterator[Watched]:
    """Give an implementation around *implementation*, and check at the end that nothing is left.

    It checks the connections, listeners and connection attempts of this implementation; greenlets made inside the
    block; and, if the kernel lists them, descriptors.  It waits up to two seconds for those that are about to end.
    Then it ends connections, listeners and attempts, and kills greenlets.  It does so after another exception too, and
    does not replace that exception.  Descriptors stay open, because their owners are unknown.

    :raises AssertionError: something is left; the message names it, and the line that made it.
    """
    watched = Watched(implementation)
    try:
        yield watched
    except BaseException:
        watched.end()
        raise
    watched.check()


class Watched(WrappingImplementation):
    """An implementation around another one that records which line made each object.  Made by :func:`nothing_left`."""

    def __init__(self, implementation: Any) -> None:
        super().__init__(implementation)
        self._made = _Made()
        self._descriptors = Descriptors()
        self._greenlets = Greenlets()

    def check(self) -> None:
        """End everything, and raise ``AssertionError`` if something was left."""
        __tracebackhide__ = True
        left = self.end()
        if left:
            raise AssertionError("left over:\n" + "\n".join(f"  {line}" for line in left))

    def end(self) -> list[str]:
        """End everything, and return a line for each thing that had not ended by itself."""
        self._settle()
        left = self._made.problems + [f"{_describe(thing)}, {where}" for thing, where in self._made.things.items()]
        for thing in list(self._made.things):
            end = getattr(thing, "abort", None) or thing.close
            end()
        self._settle()
        self.implementation.close()
        left += self._greenlets.kill(GRACE)
        self._greenlets.stop()
        return left + self._descriptors.describe_new()

    def _settle(self) -> None:
        """Wait for the things that are about to end, unless nothing can end them any more."""
        if self._made.things and not (self._is_in_memory() and is_only_thread() and not self._greenlets.running()):
            self._made.is_empty.wait(GRACE)

    def _is_in_memory(self) -> bool:
        implementation = self.implementation
        while isinstance(implementation, WrappingImplementation):
            implementation = implementation.implementation
        return isinstance(implementation, Implementation)

    def wrap(self, connection: Any, control: WrappingListener | None) -> WrappingConnection:
        how = "connected" if control is None else f"accepted by a listener {control.made}"
        return _WatchedConnection(self._made, connection, control, how)

    def wrap_listener(self, server: IServer) -> WrappingListener:
        return _WatchedListener(self, server, self._made)

    def wrap_datagram_listener(self, listener: Any) -> WrappingDatagramListener:
        return _WatchedDatagramListener(listener, self._made)

    def wrap_client(self, handler: IClientConnectHandler) -> WrappingClient:
        return _WatchedClient(self, handler, self._made)

    def close(self) -> None:
        super().close()
        for thing in list(self._made.things):
            if isinstance(thing, (_WatchedListener, _WatchedDatagramListener)):
                self._made.remove(thing)


class _Made:
    """The things that were made and have not ended, and where they were made."""

    def __init__(self) -> None:
        self.things: dict[Any, str] = {}
        self.is_empty = Flag()
        self.problems: list[str] = []  # ends after other mistakes, one on each line

    def add(self, thing: Any, how: str) -> None:
        if not self.things:
            self.is_empty = Flag()
        self.things[thing] = how

    def remove(self, thing: Any) -> None:
        self.things.pop(thing, None)
        if not self.things:
            self.is_empty.set()


class _WatchedConnection(WrappingConnection):
    def __init__(self, made: _Made, connection: Any, control: Any, how: str) -> None:
        super().__init__(connection, control)
        self._made = made
        self._how = how
        self._closes = 0
        made.add(self, how)
        connection.when_closed(lambda: made.remove(self))

    def handle_close(self, connection: Any, reason: Any) -> None:
        self._closes += 1
        if self._closes > 1:
            problem = f"handle_close was called {self._closes} times for {self.connection!r}, {self._how}"
            self._made.problems.append(problem)
        super().handle_close(connection, reason)


class _WatchedListener(WrappingListener):
    def __init__(self, watched: Watched, server: IServer, made: _Made) -> None:
        super().__init__(watched, server)
        self._made = made
        self.made = f"made at {_caller()}"
        made.add(self, self.made)

    def could_not_listen(self) -> None:
        self._made.remove(self)

    def close(self, handler: Any = None) -> None:
        super().close(handler)
        self._made.remove(self)

    def close_wait(self, timeout: float | None = None) -> int:
        ended = super().close_wait(timeout)
        self._made.remove(self)
        return ended


class _WatchedDatagramListener(WrappingDatagramListener):
    def __init__(self, listener: Any, made: _Made) -> None:
        super().__init__(listener)
        self._made = made
        made.add(self, f"made at {_caller()}")

    def close(self) -> None:
        super().close()
        self._made.remove(self)


class _WatchedClient(WrappingClient):
    """A connection attempt, until it succeeds or fails."""

    def __init__(self, watched: Watched, handler: IClientConnectHandler, made: _Made) -> None:
        super().__init__(watched, handler)
        self._made = made
        self._where = _caller()
        self.close: Any = None

    def __repr__(self) -> str:
        return f"a connection attempt for {self._handler!r:.100}"

    def connecting(self, give_up: Any) -> None:
        self.close = give_up
        self._made.add(self, f"begun at {self._where}")
        connecting = getattr(self._handler, "connecting", None)
        if connecting is not None:
            connecting(give_up)

    def connected(self, connection: Any) -> object:
        self._made.remove(self)
        return super().connected(connection)

    def failed_connect(self, reason: Any) -> object:
        self._made.remove(self)
        return super().failed_connect(reason)

    def _wrap(self, connection: Any) -> WrappingConnection:
        return _WatchedConnection(self._made, connection, None, f"connected at {self._where}")


def _describe(thing: Any) -> str:
    if isinstance(thing, _WatchedConnection):
        thing = thing.connection
    elif isinstance(thing, (_WatchedListener, _WatchedDatagramListener)):
        thing = thing.listener
    return repr(thing)


def _caller() -> str:
    """Return the line that called this package."""
    return find_line(sys._getframe(1)) or "an unknown place"
