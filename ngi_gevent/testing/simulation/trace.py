"""What happened in a simulation: the last events, or all of them, and a digest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

__all__ = ["Event", "Trace"]

#: Events that are kept for the report of a failure.
KEPT = 50

#: Entries that go into the digest at once, which is faster than one by one.
AT_ONCE = 1000


class Event(NamedTuple):
    """Something that happened.

    :ivar time: virtual seconds since the start.
    :ivar kind: a word, such as ``'send'``.
    :ivar host: the name of a host; empty for the test.
    :ivar text: what a reader is shown.
    :ivar piece: the number of a piece of data, which its events share; 0 for none.
    """

    time: float
    kind: str
    host: str
    text: str
    piece: int = 0

    def __str__(self) -> str:
        return f"{self.time:12.6f}  {self.host or '(test)':12} {self.kind:9} {self.text}"


class Trace:
    """The events of one simulation.  Equal digests mean that the same happened, in the same order."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._pieces = 0
        self._entries: list[object] = []
        self._digest = blake2b(digest_size=16)
        self._events: deque[tuple[float, str, str, str, int]] = deque(maxlen=KEPT)

    @property
    def events(self) -> list[Event]:
        """The events that are kept, oldest first: the last 50, or all."""
        return [Event(*event) for event in self._events]

    def keep_all(self) -> None:
        """Keep all events from now on."""
        self._events = deque(self._events)

    def new_piece(self) -> int:
        """Return the number of a new piece of data."""
        self._pieces += 1
        return self._pieces

    def note(self, kind: str, host: str, text: str, piece: int = 0) -> None:
        """Note an event.  *text* has the same words in each run: no addresses of objects, no data of a handshake."""
        event = (self._now(), kind, host, text, piece)
        self._events.append(event)
        self.mark(event)

    def mark(self, entry: object) -> None:
        """Note a number, a text or a tuple of these, for the digest only."""
        entries = self._entries
        entries.append(entry)
        if len(entries) >= AT_ONCE:
            self._flush()

    @property
    def digest(self) -> str:
        """The digest of everything so far."""
        self._flush()
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if self._entries:
            self._digest.update(repr(self._entries).encode("utf-8", "surrogatepass"))  # once, since that is faster
            self._entries.clear()
