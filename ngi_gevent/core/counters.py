"""What a listener counts.  ``ListenerMetrics`` shows it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ngi_gevent.core.lifecycle import ABORTED, CLOSED, END_OF_INPUT, STOPPED

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason

__all__ = ["LIMITS", "SYSTEM", "Counters", "name_of_end"]

#: The limit that the kernel sets: it has no more descriptors or memory.
SYSTEM = "system"

#: The limits that are counted.
LIMITS = ("max_connections", "max_per_host", "max_handshakes", "max_lifetime", SYSTEM)

#: The reasons that are text of this package.  Others are the application's, and can quote a peer.
KNOWN = (END_OF_INPUT, STOPPED, CLOSED, ABORTED)


class Counters:
    """What a listener counts."""

    __slots__ = ("accepted", "ended", "failed_handshakes", "limited", "received", "sent")

    def __init__(self) -> None:
        self.accepted = 0
        self.limited = dict.fromkeys(LIMITS, 0)
        self.failed_handshakes = 0
        self.ended: Counter[str] = Counter()
        #: Bytes of the connections that have ended.
        self.received = self.sent = 0


def name_of_end(reason: Reason) -> str:
    """Return the name under which ends for *reason* are counted.  Nothing in it comes from a peer."""
    if isinstance(reason, str):
        return reason if reason in KNOWN else "failed"
    return type(reason).__name__
