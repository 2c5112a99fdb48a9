"""The counters of a listener, which ``ListenerMetrics`` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ngi_gevent.core.lifecycle import ABORTED, CLOSED, END_OF_INPUT, STOPPED
from ngi_gevent.core.threads import make_lock

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason

__all__ = ["LIMITS", "SYSTEM", "Counters", "name_of_end"]

#: The limit that the kernel sets: it has no more descriptors or memory.
SYSTEM = "system"

#: The limits that are counted.
LIMITS = ("max_connections", "max_per_host", "max_handshakes", "max_lifetime", SYSTEM)

#: The texts of this package that are reasons.  Other texts come from the application, and can quote a peer.
KNOWN = (END_OF_INPUT, STOPPED, CLOSED, ABORTED)


class Counters:
    """The counters of one listener."""

    __slots__ = ("_lock", "_most_bytes", "accepted", "ended", "failed_handshakes", "limited", "received", "sent")

    def __init__(self) -> None:
        self.accepted = 0
        self.limited = dict.fromkeys(LIMITS, 0)
        self.failed_handshakes = 0
        self.ended: Counter[str] = Counter()
        #: Bytes of the connections that have ended.
        self.received = self.sent = 0
        self._lock = make_lock()
        self._most_bytes = 0, 0  # reported so far

    def bytes_with(self, traffic: Iterator[tuple[int, int]]) -> tuple[int, int]:
        """Return how many bytes were received and sent, including *traffic*, the bytes of open connections.

        Neither number ever falls, because a monitor would take that for a new process, and count everything again.
        """
        with self._lock:
            # In this order, a connection that ends in between can be missing, but does not count twice.
            ended = self.received, self.sent
            received, sent = map(max, self._most_bytes, map(sum, zip(ended, *traffic, strict=True)))
            self._most_bytes = received, sent
        return received, sent


def name_of_end(reason: Reason) -> str:
    """Return the name under which ends for *reason* are counted.  The name contains no text of a peer."""
    if isinstance(reason, str):
        return reason if reason in KNOWN else "failed"
    return type(reason).__name__
