"""The clock of the calling native thread.  A simulation has its own."""

from __future__ import annotations

import time
from collections.abc import Callable

from gevent.monkey import get_original

__all__ = ["deadline_after", "is_virtual", "left_until", "now", "of_thread", "use", "wall"]


_REAL: Callable[[], float] = time.monotonic  # kept, because a simulation can replace it in the module


# The original class, because the patched threading.local is local to greenlets.
class _Here(get_original("_thread", "_local")):  # type: ignore[misc]
    now: Callable[[], float] = staticmethod(_REAL)


_here = _Here()


def now() -> float:
    """Return the time in seconds, on a clock that never goes back."""
    return _here.now()


def wall() -> float:
    """Return the time in seconds since 1970, on the clock of the system, which can be set."""
    return time.time()


def deadline_after(timeout: float | None) -> float | None:
    """Return the time at which *timeout* expires, seconds from now, or None for no limit."""
    return None if timeout is None else now() + timeout


def left_until(deadline: float | None) -> float | None:
    """Return how many seconds are left until *deadline*, 0 after it, or None for no limit."""
    return None if deadline is None else max(0.0, deadline - now())


def is_virtual() -> bool:
    """Return whether this thread has the clock of a simulation."""
    return _here.now is not _REAL


def of_thread() -> Callable[[], float]:
    """Return the function that ``now`` calls on this thread, for the hub that runs on it."""
    return _here.now


def use(clock: Callable[[], float]) -> Callable[[], float]:
    """Use *clock* on this thread from now on, and return the one that was used before."""
    before: Callable[[], float] = _here.now
    _here.now = clock
    return before
