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

from ngi_gevent.core.threads import get_hub_if_exists

__all__ = ["SELDOM", "Log", "Seldom", "connections", "datagrams", "listeners", "shown"]

#: Characters of a reason that are shown: some exceptions quote all that a peer has sent.
SHOWN = 200

#: Seconds of one count of the log entries that an untrusted peer can cause.
SELDOM = 10.0


class Log:
    """A logger, which is told on the calling greenlet; what the hub has to tell, soon, on a greenlet of its own.

    Exceptions in filters and handlers of the log never reach the caller.  They go to standard error, as they do where
    ``logging`` itself catches them.  A ``GreenletExit``, a ``gevent.Timeout`` or a ``KeyboardInterrupt`` that arrives
    while the log blocks is for the caller, and reaches it.

    With *seldom*, the entry is written only if that allows it, and says how many were not.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self.is_enabled_for = self._logger.isEnabledFor

    def debug(self, line: str, *arguments: object) -> None:
        self.tell(logging.DEBUG, line, *arguments)

    def info(self, line: str, *arguments: object, seldom: Seldom | None = None) -> None:
        self.tell(logging.INFO, line, *arguments, seldom=seldom)

    def warning(self, line: str, *arguments: object, seldom: Seldom | None = None) -> None:
        self.tell(logging.WARNING, line, *arguments, seldom=seldom)

    def error(
        self, line: str, *arguments: object, error: BaseException | None = None, seldom: Seldom | None = None
    ) -> None:
        self.tell(logging.ERROR, line, *arguments, seldom=seldom, exc_info=error)

    def tell(self, level: int, line: str, *arguments: object, seldom: Seldom | None = None, **options: Any) -> None:
        if not self._logger.isEnabledFor(level):
            return
        if seldom is not None:
            more = seldom()
            if more is None:
                return
            if more:
                line, arguments = f"{line}; %d more since the last such entry", (*arguments, more)
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
    """Allows so many log entries of a kind in every ``SELDOM`` seconds, and counts the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = 0
        self._until = 0.0
        self._count = 0

    def __call__(self) -> int | None:
        """Count an entry; the number of entries before it that were not written, or None if this one is not either."""
        now = monotonic()
        if now >= self._until:
            self._until = now + SELDOM
            self._left = self._most
        if not self._left:
            self._count += 1
            return None
        self._left -= 1
        count, self._count = self._count, 0
        return count
