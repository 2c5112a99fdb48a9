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
from contextvars import ContextVar
from traceback import extract_stack
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import Hub
from greenlet import greenlet

from ngi_gevent.errors import ImplementationClosed, Timeout
from ngi_gevent.testing.wrapping import WrappingClient, WrappingConnection, WrappingImplementation, WrappingListener
from ngi_gevent.threads import has_hub

if TYPE_CHECKING:
    from ngi_gevent.interfaces import IClientConnectHandler, IServer, IUDPHandler

__all__ = ["GRACE", "Watched", "nothing_left"]

#: Seconds that what is ending is given to end.
GRACE = 2.0

#: The watch that greenlets were made under, which they inherit from who makes them.
_watch: ContextVar[object] = ContextVar("ngi_gevent watch")


@contextmanager
def nothing_left(implementation: Any) -> Iterator[Watched]:
    """Give an implementation around *implementation*, and check at the end that nothing is left over.

    Raises :class:`AssertionError`, which names what is left and where it was made: connections, listeners and connects
    of this implementation; greenlets that were made meanwhile; and, where the system tells, descriptors.  What is
    about to end is waited for, for up to two seconds.  Everything is ended then, also after another exception, which
    is not replaced.
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
        self._problems: list[str] = []
        self._before = _descriptors()
        self._token = _watch.set(self)

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
        left += self._greenlets_left()
        _watch.reset(self._token)
        return left + _new_descriptors(self._before)

    def _settle(self) -> None:
        """Give what is ending the time to end."""
        try:
            self.implementation.wait(GRACE)
        except (Timeout, ImplementationClosed):
            pass

    def _greenlets_left(self) -> list[str]:
        if not has_hub():
            return []
        made = self._greenlets()
        gevent.joinall([one for one in made if isinstance(one, gevent.Greenlet)], GRACE)
        gevent.idle()
        return [_shown_greenlet(one) for one in made if not one.dead]

    def _greenlets(self) -> list[Any]:
        """The greenlets that were made under this watch, and are not done."""
        return [one for one in gc.get_objects() if isinstance(one, greenlet) and self._watches(one)]

    def _watches(self, one: Any) -> bool:
        if one.dead or one is gevent.getcurrent() or isinstance(one, Hub):
            return False
        try:
            context = one.gr_context
        except ValueError:  # it runs on another thread
            return False
        return context is not None and context.get(_watch) is self

    # What is made.

    def made(self, thing: Any, how: str) -> None:
        """*thing* is there now, and to be ended."""
        self._made[thing] = how

    def ended(self, thing: Any) -> None:
        """*thing* is there no more."""
        self._made.pop(thing, None)

    def problem(self, text: str) -> None:
        """Something else that must not be."""
        self._problems.append(text)

    def connect(self, address: Any, handler: IClientConnectHandler) -> None:
        super().connect(address, handler)

    def listener(self, address: Any, server: IServer, **options: Any) -> WrappingListener:
        listener: WrappingListener = super().listener(address, server, **options)
        self.made(listener, f"made at {_caller()}")
        return listener

    def udp_listener(self, address: Any, handler: IUDPHandler, *arguments: Any, **options: Any) -> Any:
        listener = _WatchedDatagramListener(self, super().udp_listener(address, handler, *arguments, **options))
        self.made(listener, f"made at {_caller()}")
        return listener

    def wrap(self, connection: Any, control: WrappingListener | None) -> WrappingConnection:
        return _WatchedConnection(self, connection, control)

    def wrap_client(self, handler: IClientConnectHandler) -> WrappingClient:
        return _WatchedClient(self, handler)
