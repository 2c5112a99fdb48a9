"""Noticing that nothing goes over a connection any more, at the cost of reading the clock once for each system call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ngi_gevent.sockets.event_loop import for_timer

__all__ = ["IdleTimer"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class IdleTimer:
    """Calls ``expired()``, once, on the hub, when nothing was received or sent for *seconds*.

    The time in which ``is_busy()`` does not count: then it is not the peer who keeps everybody waiting.  A connection
    has one timer, not touched by what is received or sent: once it expires, it looks how long ago that was.
    """

    #: How often to look, within the time allowed, whether the application is still busy.
    LOOKS = 10

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
        """*call*, a socket's ``recv`` or ``send``, noting when it received or sent: that is, when it did not raise."""

        now = self._now

        def noted(argument: Argument) -> Result:
            result = call(argument)
            self._latest = now()
            return result

        return noted

    def close(self) -> None:
        """Expire no more."""
        self._timer.close()

    def _start(self, seconds: float) -> None:
        self._timer = self._loop.timer(for_timer(self._loop, seconds))
        self._timer.start(self._look)

    def _look(self) -> None:
        self._timer.close()
        if self._is_busy():
            self._latest = self._now()
            self._start(self._seconds / self.LOOKS)
            return
        left = self._latest + self._seconds - self._now()
        if left > 0:
            self._start(left)
        else:
            self._expired()
