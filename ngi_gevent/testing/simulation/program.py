"""The time and the random numbers that a program gets from the modules ``time`` and ``random`` in a simulation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ngi_gevent.core.threads import allocate_lock
from ngi_gevent.testing.simulation.errors import SimulationError
from ngi_gevent.testing.simulation.fence import is_inside

__all__ = ["BEGIN", "patched_time"]

#: The ``time.time()`` at which simulations begin: 2030-01-01, UTC.
BEGIN = 1_893_456_000.0

_OFFSETS = {"time": BEGIN, "monotonic": 0.0, "perf_counter": 0.0}

_used = allocate_lock()


@contextmanager
def patched_time(now: Callable[[], float], draws: random.Random) -> Iterator[None]:
    """Make the functions of ``time`` and ``random`` follow a simulation on this native thread.

    Replaces ``time.time``, ``time.monotonic``, ``time.perf_counter`` and their variants in nanoseconds.  ``time.time``
    begins on 2030-01-01, UTC.  Other threads get the real time.  Seeds ``random`` from *draws*, and restores its state
    at the end.

    ``datetime.now``, and functions that were imported with ``from time import ...``, do not follow the simulation.

    :param now: returns the virtual seconds since the start.
    :raises SimulationError: a simulation on another thread already does this.
    """
    if not _used.acquire(blocking=False):
        raise SimulationError("only one simulation at a time can patch the modules time and random")
    originals = {name: getattr(time, name) for base in _OFFSETS for name in (base, f"{base}_ns")}
    state = random.getstate()
    random.seed(int(draws.random() * 2**53))  # an int, because a float would be hashed
    try:
        for base, offset in _OFFSETS.items():
            setattr(time, base, _virtual(now, offset, originals[base]))
            setattr(time, f"{base}_ns", _virtual_ns(now, offset, originals[f"{base}_ns"]))
        yield
    finally:
        for name, original in originals.items():
            setattr(time, name, original)
        random.setstate(state)
        _used.release()


def _virtual(now: Callable[[], float], offset: float, original: Callable[[], float]) -> Any:
    return lambda: offset + now() if is_inside() else original()


def _virtual_ns(now: Callable[[], float], offset: float, original: Callable[[], int]) -> Any:
    begin = int(offset) * 10**9  # separate, since a float is too imprecise for a date in nanoseconds
    return lambda: begin + round(now() * 1e9) if is_inside() else original()
