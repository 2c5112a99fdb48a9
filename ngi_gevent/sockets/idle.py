"""The timer of an idle connection.  It costs one reading of the clock for each ``recv`` and ``send``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["IdleTimer"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class IdleTimer:
    """Calls ``expired()`` once, on the hub, after *seconds* in which nothing was received or sent.

    Time does not count while ``is_busy()`` is true, because the peer is waiting then.  Input and output do not restart
    the gevent timer: they only note the time, and the timer compares it when it fires.
    """

    #: How often in *seconds* a busy connection is checked.
    CHECKS = 10

    def __init__(
        self,
        loop: Any,
        now: Callable[[], float],
        seconds: float,
        is_busy: Callable[[], bool],
        expired: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._now = now
        self._seconds = seconds
        self._is_busy = is_busy
        self._expired = expired
        self._latest = now()
        self._start(seconds)

    def noting(self, call: Callable[[Argument], Result]) -> Callable[[Argument], Result]:
        """Return *call*, a socket's ``recv`` or ``send``, as a function that also notes the time of each success."""
        now = self._now

        def noted(argument: Argument) -> Result:
            result = call(argument)
            self._latest = now()
            return result

        return noted

    def close(self) -> None:
        """Stop the timer."""
        self._timer.close()

    def _start(self, seconds: float) -> None:
        self._timer = self._loop.timer(seconds)
        self._timer.start(self._check)

    def _check(self) -> None:
        self._timer.close()
        if self._is_busy():
            self._latest = self._now()
            self._start(self._seconds / self.CHECKS)
            return
        left = self._latest + self._seconds - self._now()
        if left > 0:
            self._start(left)
        else:
            self._expired()
