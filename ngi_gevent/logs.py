"""The loggers, and how they are told: never by the hub, where nothing may wait, and of strangers only what is harmless.

What handles a log is foreign code.  It may wait for a lock or a socket, which lets other greenlets run; it may raise;
it may even write to one of our connections.  So whoever logs has finished what it was doing, or has only begun.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from time import monotonic
from typing import Any

from gevent import spawn_raw
from greenlet import getcurrent

from ngi_gevent.threads import get_hub_if_exists

__all__ = ["Log", "Seldom", "connections", "datagrams", "listeners", "shown"]

#: Characters of a reason that are shown: some exceptions quote all that a peer has sent.
SHOWN = 200


class Log:
    """A logger, which is told on the calling greenlet; what the hub has to tell, soon, on a greenlet of its own.

    Exceptions in filters and handlers of the log never reach the caller.  They go to standard error, as they do where
    ``logging`` itself catches them.  A ``GreenletExit``, a ``gevent.Timeout`` or a ``KeyboardInterrupt`` that arrives
    while the log blocks is for the caller, and reaches it.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self.is_enabled_for = self._logger.isEnabledFor

    def debug(self, line: str, *arguments: object) -> None:
        self.tell(logging.DEBUG, line, *arguments)

    def info(self, line: str, *arguments: object) -> None:
        self.tell(logging.INFO, line, *arguments)

    def warning(self, line: str, *arguments: object) -> None:
        self.tell(logging.WARNING, line, *arguments)

    def error(self, line: str, *arguments: object, error: BaseException | None = None) -> None:
        self.tell(logging.ERROR, line, *arguments, exc_info=error)

    def tell(self, level: int, line: str, *arguments: object, **options: Any) -> None:
        if not self._logger.isEnabledFor(level):
            return
        if getcurrent() is get_hub_if_exists():
            spawn_raw(self._log, level, line, *arguments, **options)
        else:
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


def shown(reason: object) -> str:
    """*reason* in a line of the log: one line of ASCII without control characters, whatever a stranger has put in."""
    try:
        text = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)
    except Exception:  # there are exceptions that cannot be shown
        text = type(reason).__name__
    return ascii(text[:SHOWN])[1:-1]


class Seldom:
    """Lets through one line of a kind in so many seconds, and counts the others, so that nobody can fill the log."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = 0.0
        self._count = 0

    def __call__(self) -> int:
        """How many there were since the last line, this one included, if it is time for another; or 0."""
        self._count += 1
        now = monotonic()
        if now < self._next:
            return 0
        count, self._count = self._count, 0
        self._next = now + self._seconds
        return count
