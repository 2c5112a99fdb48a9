"""How tests wait: on whatever thread and hub, for as long as it takes, and not once it can not happen any more."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from ngi_gevent.core.threads import Flag, get_hub_if_exists, is_only_thread
from ngi_gevent.sockets.event_loop import for_timer

__all__ = ["PATIENCE", "is_set_in_time"]

#: Seconds in which everything that a test waits for happens, even on a busy machine.
PATIENCE = 10.0


def is_set_in_time(flag: Flag, timeout: float, wait: Callable[[Flag, float | None], object] | None = None) -> bool:
    """Wait until *flag* is set, or for *timeout* seconds; whether it is set.

    Raises :class:`~ngi_gevent.Deadlock` as soon as nothing is left that could set it.  *wait* is what a connection has
    for that, which knows who may.
    """
    if wait is None:
        wait = _wait_alone
    timeout = max(0.0, timeout)
    hub = get_hub_if_exists()
    if hub is not None:
        # A timer that does not count as something that is left: and the False means that it raises nothing.
        with gevent.Timeout(for_timer(hub.loop, timeout), False, ref=False):  # type: ignore[arg-type]
            wait(flag, None)
    else:
        wait(flag, timeout)
    return flag.is_set()


def _wait_alone(flag: Flag, timeout: float | None) -> object:
    return flag.wait(timeout, alone=is_only_thread())
