"""When a simulation is taken for one that has no end."""

from __future__ import annotations

import gc

__all__ = ["Limits"]

#: Turns in which no time passes but their own, after which greenlets are said to spin.
MOST_WITHOUT_TIME = 100_000

#: Turns with nothing but periodic timers, after which nothing is expected to happen any more.
MOST_PERIODIC = 1_000

#: Turns between two collections of garbage, which must not depend on what else the process has allocated.
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
        """Note that time has passed."""
        self._last_jump = self.turns

    def note_progress(self) -> None:
        """Note that a greenlet has run, or the network has done something."""
        self._has_progressed = True

    def exceeded(self) -> str:
        """Count a turn.  Return what is wrong, or nothing."""
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
        """Return whether nothing has happened for long but periodic timers."""
        return self.turns > self._last_progress + MOST_PERIODIC
