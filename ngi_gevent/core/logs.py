"""The loggers.  They are never called on the hub, where nothing can block, and they escape bytes from peers.

The handlers of a log are the application's code.  They can block, which lets other greenlets run, they can raise, and
they can even write to a connection.  So log only before a change of state has begun, or after it is complete.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import Any, Protocol

from gevent import spawn_raw
from greenlet import getcurrent

from ngi_gevent.core import clock, forks
from ngi_gevent.core.threads import get_hub_if_exists

__all__ = [
    "RATE_PERIOD",
    "Log",
    "LogRaised",
    "RateLimit",
    "attempts",
    "connections",
    "datagrams",
    "format_reason",
    "listeners",
    "systemd",
]

#: Characters of a reason to show.  Some exceptions quote everything that a peer has sent.
SHOWN = 200


class LogRaised(Protocol):
    """A function that logs an exception in a handler.

    It is called with the peer or the address, the name of the callback, the exception, and the level.
    """

    def __call__(self, peer: Any, where: str, error: BaseException, level: int = ..., /) -> None: ...


#: Seconds of one period of the rate limits of log entries, which untrusted peers can cause.
RATE_PERIOD = 10.0


class Log:
    """A logger whose handlers can block or raise.

    Handlers run on the calling greenlet.  If that is the hub, they run soon, on another greenlet.  In a simulation they
    always run at once; on the hub, they cannot wait there.  Exceptions in filters and handlers of the log never reach
    the caller: they go to standard error, as in ``logging`` itself.  A ``GreenletExit``, a ``gevent.Timeout`` or a
    ``KeyboardInterrupt`` that arrives while the log blocks does reach the caller.

    :param limit: a rate limit for the entry, which then says how many entries before it were dropped.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self.is_enabled_for = self._logger.isEnabledFor

    def debug(self, line: str, *arguments: object) -> None:
        self.log(logging.DEBUG, line, *arguments)

    def info(self, line: str, *arguments: object, limit: RateLimit | None = None) -> None:
        self.log(logging.INFO, line, *arguments, limit=limit)

    def warning(self, line: str, *arguments: object, limit: RateLimit | None = None) -> None:
        self.log(logging.WARNING, line, *arguments, limit=limit)

    def error(self, line: str, *arguments: object, exc_info: BaseException | None = None) -> None:
        self.log(logging.ERROR, line, *arguments, exc_info=exc_info)

    def log(self, level: int, line: str, *arguments: object, limit: RateLimit | None = None, **options: Any) -> None:
        if not self._logger.isEnabledFor(level):
            return
        if limit is not None:
            more = limit()
            if more is None:
                return
            if more:
                line, arguments = f"{line}; %d more since the last such entry", (*arguments, more)
        # In a simulation, logging must not change what happens: a failure is replayed with more log entries.
        if getcurrent() is get_hub_if_exists() and not clock.is_virtual():
            spawn_raw(self._log_in, forks.generation(), level, line, *arguments, **options)
        else:
            self._log(level, line, *arguments, **options)

    def _log_in(self, generation: int, level: int, line: str, *arguments: object, **options: Any) -> None:
        """Log, unless this is a child that was forked since the call: the parent logs."""
        if generation == forks.generation():
            self._log(level, line, *arguments, **options)

    def _log(self, level: int, line: str, *arguments: object, **options: Any) -> None:
        try:
            self._logger.log(level, line, *arguments, **options)
        except Exception:
            if logging.raiseExceptions and sys.stderr is not None:
                with suppress(Exception):  # standard error can be closed
                    traceback.print_exc()


attempts = Log("ngi_gevent.attempt")
connections = Log("ngi_gevent.connection")
listeners = Log("ngi_gevent.listener")
datagrams = Log("ngi_gevent.datagram")
systemd = Log("ngi_gevent.systemd")


def format_reason(reason: object) -> str:
    """Return *reason* as one line of printable ASCII for a log entry, even if it quotes a peer."""
    try:
        text = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)
    except Exception:  # raised by the __str__ of some exceptions
        text = type(reason).__name__
    return ascii(text[:SHOWN])[1:-1]


class RateLimit:
    """A rate limit of *most* log entries of a kind in every ``RATE_PERIOD`` seconds.  It counts the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = 0
        self._until = 0.0
        self._count = 0

    def __call__(self) -> int | None:
        """Count an entry.  Return how many were dropped before it; None if it must be dropped, too."""
        now = clock.now()
        if now >= self._until:
            self._until = now + RATE_PERIOD
            self._left = self._most
        if not self._left:
            self._count += 1
            return None
        self._left -= 1
        count, self._count = self._count, 0
        return count
