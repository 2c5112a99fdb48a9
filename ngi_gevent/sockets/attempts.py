"""Attempts to connect to the addresses of one host, staggered as in RFC 8305 ("Happy Eyeballs").

The families take turns, so that a host with a broken IPv6 network is reached by IPv4, and the other way round.  An
attempt begins when the one before has failed, or after ``STAGGER`` seconds.  The first socket that is connected is the
result, and the other attempts are cancelled.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING

from gevent import Greenlet, killall, spawn
from gevent.event import Event

if TYPE_CHECKING:
    from ngi_gevent.sockets.network import Resolved, Socket

__all__ = ["Attempts", "in_turns"]

#: Seconds until the next attempt begins, although the one before has not failed.
STAGGER = 0.25


class Attempts:
    """Attempts to connect to *candidates*.  ``connect`` connects to one of them, and blocks."""

    def __init__(self, candidates: Iterable[Resolved], connect: Callable[[Resolved], Socket]) -> None:
        self._connect = connect
        self._waiting = in_turns(candidates)
        self._running: dict[Resolved, Greenlet[[Resolved], None]] = {}
        self._failures: dict[Resolved, OSError] = {}
        self._connected: Socket | None = None
        self._interrupt: BaseException | None = None  # an exception that is not an OSError
        self._is_over = False
        self._changed = Event()

    def first(self) -> Socket:
        """Return the first socket that is connected.  Called once.

        Blocks the greenlet.

        :raises OSError: no address accepts.  If there are several, the message lists them with their reasons.
        """
        if len(self._waiting) == 1:
            return self._connect(self._waiting[0])  # without another greenlet, because most hosts have one address
        try:
            while self._interrupt is None and self._connected is None and (self._waiting or self._running):
                self._changed.clear()
                if self._waiting:
                    candidate = self._waiting.pop(0)
                    self._running[candidate] = spawn(self._try, candidate)
                self._changed.wait(STAGGER if self._waiting else None)
            if self._interrupt is not None:
                raise self._interrupt
            if self._connected is None:
                raise failure_of(self._failures)
            connected, self._connected = self._connected, None
            return connected
        finally:
            self._is_over = True
            killall(list(self._running.values()), block=False)
            if self._connected is not None:
                self._connected.close()
            # Their tracebacks hold this object, which only the garbage collector would free.
            self._failures.clear()
            self._interrupt = None

    def _try(self, candidate: Resolved) -> None:
        """The body of the greenlet of one attempt."""
        try:
            sock = self._connect(candidate)
        except BaseException as error:
            # If this is over, the traceback would keep this object until the next garbage collection.
            if self._is_over:
                pass
            elif isinstance(error, OSError):
                self._failures[candidate] = error
            else:
                self._interrupt = error
        else:
            if self._is_over or self._connected is not None:
                sock.close()
            else:
                self._connected = sock
        del self._running[candidate]
        self._changed.set()


def in_turns(candidates: Iterable[Resolved]) -> list[Resolved]:
    """Return each of *candidates* once, with the families in turns.

    The first candidate stays the first, and each family keeps its order, because the kernel sorts by preference.
    """
    by_family: dict[int, list[Resolved]] = {}
    for candidate in dict.fromkeys(candidates):
        by_family.setdefault(candidate[0], []).append(candidate)
    return [candidate for turn in zip_longest(*by_family.values()) for candidate in turn if candidate is not None]


def failure_of(failures: dict[Resolved, OSError]) -> OSError:
    """Return the error of several attempts.  It has an errno if they agree on it."""
    if not failures:
        return OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    listed = ", ".join(f"{candidate[4][0]} ({error.strerror or error})" for candidate, error in failures.items())
    message = f"no address accepts a connection: {listed}"
    numbers = {error.errno for error in failures.values()}
    return OSError(message) if len(numbers) > 1 else OSError(numbers.pop(), message)
