"""The trace of a simulation: the last events, or all of them, and a digest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

__all__ = ["Event", "Trace"]

#: Events that are kept for the report of a failure.
KEPT = 50

#: The number of entries that go into the digest together, which is faster than one by one.
AT_ONCE = 1000


class Event(NamedTuple):
    """An event in a simulation.

    :ivar time: virtual seconds since the start.
    :ivar kind: a word, such as ``'send'``.
    :ivar host: the name of a host; empty for the test.
    :ivar text: the description that is shown to readers.
    :ivar piece: the number of a piece of data, which all its events share; 0 if there is no data.
    """

    time: float
    kind: str
    host: str
    text: str
    piece: int = 0

    def __str__(self) -> str:
        return f"{self.time:12.6f}  {self.host or '(test)':12} {self.kind:9} {self.text}"


class Trace:
    """The events of one simulation.  If two digests are equal, the same events happened in the same order."""

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
        """Add an event.  *text* has the same words in each run: no addresses of objects, and no data of a handshake."""
        event = (self._now(), kind, host, text, piece)
        self._events.append(event)
        self.mark(event)

    def mark(self, entry: object) -> None:
        """Add a number, a text or a tuple of these, only to the digest."""
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
            # All at once, since that is faster
            self._digest.update(repr(self._entries).encode("utf-8", "surrogatepass"))
            self._entries.clear()
