"""The limits after which a simulation counts as endless."""

from __future__ import annotations

import gc

__all__ = ["Limits"]

#: If so many turns pass and time advances only by the turns themselves, greenlets are reported as spinning.
MOST_WITHOUT_TIME = 100_000

#: If only periodic timers have fired for so many turns, the simulation counts as over.
MOST_PERIODIC = 1_000

#: Turns between two garbage collections, which must not depend on other allocations of the process.
COLLECT_EVERY = 100_000


class Limits:
    """Counts the turns of the loop."""

    __slots__ = ("_has_progressed", "_last_jump", "_last_progress", "_max_turns", "turns")

    def __init__(self, max_turns: int) -> None:
        if isinstance(max_turns, bool) or not isinstance(max_turns, int):
            raise TypeError(f"max_turns must be an int >= 1; got {max_turns!r}")
        if max_turns < 1:
            raise ValueError(f"max_turns must be an int >= 1; got {max_turns!r}")
        self._max_turns = max_turns
        self.turns = 0
        self._last_jump = 0
        self._last_progress = 0
        self._has_progressed = False

    def note_jump(self) -> None:
        """Notice that time has passed."""
        self._last_jump = self.turns

    def note_progress(self) -> None:
        """Notice that a greenlet has run, or that the network has acted."""
        self._has_progressed = True

    def exceeded(self) -> str:
        """Count a turn.  Return the error, or an empty string."""
        self.turns = turns = self.turns + 1
        if self._has_progressed:
            self._has_progressed = False
            self._last_progress = turns
        if not turns % COLLECT_EVERY:
            gc.collect()
        # In both cases, the test may catch the error and go on.
        if turns > self._last_jump + MOST_WITHOUT_TIME:
            self._last_jump = turns
            return f"no time has passed for {MOST_WITHOUT_TIME} turns of the loop"
        if turns > self._max_turns:
            self._max_turns = turns + MOST_WITHOUT_TIME
            return f"there was no end after {turns} turns of the loop, more than max_turns"
        return ""

    def is_only_periodic(self) -> bool:
        """Return whether only periodic timers have fired for long."""
        return self.turns > self._last_progress + MOST_PERIODIC
