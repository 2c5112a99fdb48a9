"""The watchdog, which logs long turns of a hub's loop.  A long turn is the sign of a blocking call.

While a callback waits on gevent, the loop runs.  But if a callback blocks the thread, or computes, everything else on
the hub waits for it.  Measuring each callback would cost a third of the time that a small message takes.  So a native
thread checks the hub's thread from time to time.  That does not slow the hub down, and shows the line that blocks while
it blocks, even if it never ends.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from gevent import get_hub
from gevent.hub import Hub

from ngi_gevent.core import clock, logs
from ngi_gevent.core.threads import allocate_lock, get_ident, start_new_thread

__all__ = ["Watchdog"]

#: Checks within the time that a turn may take.
CHECKS = 4

#: Slow turns of one hub that are logged in ``logs.RATE_PERIOD`` seconds.
MOST_SLOW = 10

#: Modules whose functions do not belong to the application.
LIBRARIES = ("ngi_gevent", "gevent", "greenlet")


class Watchdog:
    """A native thread that watches the loop of the calling thread's hub.

    :param slow: seconds; longer turns are logged.
    """

    def __init__(self, slow: float) -> None:
        self._slow = slow
        self._ident = get_ident()
        self._loop: Any = get_hub().loop
        self._limit = logs.RateLimit(MOST_SLOW)
        #: The longest turn so far that was slow, in seconds.
        self.longest = 0.0
        self._turn = 0.0  # when the turn of the last check began
        self._logged = 0.0  # when the turn that was last logged began
        self._stopped = allocate_lock()
        self._stopped.acquire()
        start_new_thread(self._run, ())

    def stop(self) -> None:
        """Stop watching.  Never blocks.  Calling this again is harmless."""
        if self._stopped.locked():
            self._stopped.release()

    def _run(self) -> None:
        checked = before = clock.now()  # before: the last time at which this turn had not begun
        while not self._stopped.acquire(timeout=self._slow / CHECKS):
            frame = sys._current_frames().get(self._ident)
            try:
                turn = self._loop.now()  # after the frame: otherwise, a turn that begins in between would seem older
            except ValueError:  # the hub was destroyed
                return
            now = clock.now()
            if frame is None or frame.f_code is Hub.run.__code__:  # the hub waits for events
                before = now
            elif turn != self._turn:
                before = checked
            self._turn, checked = turn, now
            # The loop's clock is exact, but can be set.  The other clock cannot be set, but this thread may have been
            # delayed.
            seconds = min(clock.wall() - turn, now - before)
            if frame is not None and seconds >= self._slow:
                self.longest = max(self.longest, seconds)
                if self._logged != turn:
                    self._logged = turn
                    self._log(seconds, frame)
            del frame  # the frame would keep local variables of the application

    def _log(self, seconds: float, frame: FrameType) -> None:
        callback, place = describe(frame)
        logs.listeners.warning(
            "%s has blocked the hub for %.3f seconds (slow_callback=%s); now at %s",
            *(callback, seconds, self._slow, place),
            limit=self._limit,
        )


def describe(frame: FrameType) -> tuple[str, str]:
    """Return the name of the application's outermost function, and the place that runs now."""
    callback = place = None
    at: FrameType | None = frame
    while at is not None:
        if str(at.f_globals.get("__name__")).partition(".")[0] not in LIBRARIES:
            callback = str(getattr(at.f_code, "co_qualname", at.f_code.co_name))  # Python 3.10 has no qualified names
            place = place or f"{at.f_code.co_filename}:{at.f_lineno}"
        at = at.f_back
    return callback or frame.f_code.co_name, place or f"{frame.f_code.co_filename}:{frame.f_lineno}"
