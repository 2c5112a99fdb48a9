"""The agenda: timers and future events of the network, ordered by virtual time."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from ngi_gevent.testing.simulation.watchers import Scheduled, Timer

__all__ = ["Agenda"]

#: If there are more entries than this, entries of stopped timers are removed now and then.
MOST_ENTRIES = 10_000


class Agenda:
    """All entries that have a time, and the time itself.

    :ivar time: virtual seconds since the start.
    :ivar noticed: the time when the loop last read the clock.  Timers count from then, as in libev.
    :ivar references: entries that keep the loop running.
    :ivar one_shots: the number of these entries that happen once.
    """

    __slots__ = ("_entries", "_number", "noticed", "one_shots", "references", "time")

    def __init__(self) -> None:
        self.time = self.noticed = 0.0
        self.references = self.one_shots = 0
        self._number = 0  # of the last entry
        #: An item that was stopped, or has another entry since, has a different number from its old entry.
        self._entries: list[tuple[float, int, Timer | Scheduled]] = []

    def now(self) -> float:
        """Return the virtual seconds since the start."""
        return self.time

    def push(self, seconds: float, item: Timer | Scheduled) -> None:
        """Make *item* due after *seconds*."""
        self._number = number = self._number + 1
        item.number = number
        heappush(self._entries, (self.time + seconds if seconds > 0 else self.time, number, item))
        if not number % MOST_ENTRIES and len(self._entries) > MOST_ENTRIES:
            self._entries = [entry for entry in self._entries if entry[2].number == entry[1]]
            heapify(self._entries)

    def is_due(self) -> bool:
        """Return whether an entry is still valid."""
        return bool(self._entries) and self._entries[0][0] <= self.time

    def take_due(self) -> list[Timer | Scheduled]:
        """Return the items that are due, in the order of their times, and remove their entries."""
        entries, time, due = self._entries, self.time, []
        while entries and entries[0][0] <= time:
            _, number, item = heappop(entries)
            if item.number == number:
                due.append(item)
        return due

    def jump(self) -> bool:
        """Move the time to the next entry.  Return False if no entry keeps the loop running."""
        entries = self._entries
        while entries and entries[0][2].number != entries[0][1]:
            heappop(entries)
        if not self.references or not entries:
            return False
        self.time = max(self.time, entries[0][0])
        return True

    def drop(self, host: str) -> None:
        """Stop all items of *host*."""
        for _, _, item in self._entries:
            if item.host == host:
                item.stop()

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
