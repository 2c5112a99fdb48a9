"""The loggers, and how they are called: never on the hub, where nothing may wait, and with peers' bytes made harmless.

Handlers of a log are foreign code.  They may wait for a lock or a socket, which lets other greenlets run.  They may
raise, and they may even write to a connection.  So a caller has finished what it was doing, or has only begun.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

from gevent import spawn_raw
from greenlet import getcurrent

from ngi_gevent.core import clock, forks
from ngi_gevent.core.threads import get_hub_if_exists

__all__ = [
    "RATE_PERIOD",
    "Log",
    "LogRaised",
    "RateLimit",
    "connections",
    "datagrams",
    "format_reason",
    "listeners",
    "systemd",
]

#: Characters of a reason that are shown.  Some exceptions quote everything that a peer has sent.
SHOWN = 200

#: Logs an exception in a handler.  Called with the peer, the name of what has raised, and the exception.
LogRaised: TypeAlias = Callable[[Any, str, BaseException], None]

#: Seconds of one count of the log entries that an untrusted peer can cause.
RATE_PERIOD = 10.0


class Log:
    """A logger whose handlers may block or raise.

    It is called on the calling greenlet, except on the hub: then it is called soon, on its own greenlet.  In a
    simulation, it is called at once, also on the hub, where it cannot wait.  Exceptions in filters and handlers of the
    log never reach the caller.  They go to standard error, as in ``logging`` itself.  A ``GreenletExit``, a
    ``gevent.Timeout`` or a ``KeyboardInterrupt`` that arrives while the log blocks does reach it.

    :param limit: writes the entry only if this rate limit allows it, and says how many were not written.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self.is_enabled_for = self._logger.isEnabledFor

    def debug(self, line: str, *arguments: object) -> None:
        self.tell(logging.DEBUG, line, *arguments)

    def info(self, line: str, *arguments: object, limit: RateLimit | None = None) -> None:
        self.tell(logging.INFO, line, *arguments, limit=limit)

    def warning(self, line: str, *arguments: object, limit: RateLimit | None = None) -> None:
        self.tell(logging.WARNING, line, *arguments, limit=limit)

    def error(
        self, line: str, *arguments: object, error: BaseException | None = None, limit: RateLimit | None = None
    ) -> None:
        self.tell(logging.ERROR, line, *arguments, limit=limit, exc_info=error)

    def tell(self, level: int, line: str, *arguments: object, limit: RateLimit | None = None, **options: Any) -> None:
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
        """Log, unless this is a child that was forked in the meantime: then the parent logs."""
        if generation == forks.generation():
            self._log(level, line, *arguments, **options)

    def _log(self, level: int, line: str, *arguments: object, **options: Any) -> None:
        try:
            self._logger.log(level, line, *arguments, **options)
        except Exception:
            if logging.raiseExceptions and sys.stderr is not None:
                with suppress(Exception):  # standard error may be closed
                    traceback.print_exc()


connections = Log("ngi_gevent.connection")
listeners = Log("ngi_gevent.listener")
datagrams = Log("ngi_gevent.datagram")
systemd = Log("ngi_gevent.systemd")


def format_reason(reason: object) -> str:
    """Return *reason* for a log entry: one line of ASCII without control characters, even if it quotes a peer."""
    try:
        text = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)
    except Exception:  # some exceptions cannot be shown
        text = type(reason).__name__
    return ascii(text[:SHOWN])[1:-1]


class RateLimit:
    """Allows *most* log entries of a kind in every ``RATE_PERIOD`` seconds, and counts the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = 0
        self._until = 0.0
        self._count = 0

    def __call__(self) -> int | None:
        """Count an entry.  Return how many before it were not written; None if this one must not be either."""
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
