"""Decisions that a seed makes.  Each has a number, so that a run can repeat only some of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection
from random import Random

__all__ = ["Draws", "parse_replay"]

#: Called with the name of the stream, the number of the draw, and the result if it is not the plain choice.
Note = Callable[[str, int, object], None]


class Draws:
    """The draws of one stream: of the schedule (``s``), or of the network (``n``).

    Each stream has its own random numbers, so an additional draw in one stream does not change the other.  Seed 0 draws
    nothing: each choice is the plain one.

    :ivar count: the number of draws so far.
    :ivar deviations: the numbers of the draws that were not plain.
    """

    __slots__ = ("_kept", "_note", "_plain", "_random", "count", "deviations", "name")

    def __init__(self, seed: int, name: str, note: Note, kept: Collection[int] | None = None) -> None:
        """:param kept: the numbers of the draws to make.  All others are plain.  None makes all of them."""
        self.name = name
        self.count = 0
        self.deviations = array("Q")  # an array, because a long run has millions
        self._note = note
        self._plain = seed == 0
        self._kept = kept
        # Python promises the same numbers on each version only for this method.
        self._random = Random(f"{name}{seed}").random

    def _draw(self) -> float | None:
        """Return a number from 0 to below 1, or None for the plain choice."""
        if self._plain:
            return None
        self.count += 1
        drawn = self._random()
        return drawn if self._kept is None or self.count in self._kept else None

    def pick(self, count: int) -> int:
        """Return a number from 0 to below *count*. 0 is plain."""
        drawn = self._draw() if count > 1 else None
        picked = 0 if drawn is None else int(drawn * count)
        if picked:
            self._deviate(picked)
        return picked

    def between(self, low: float, high: float) -> float:
        """Return a number from *low* to *high*.  *low* is plain."""
        drawn = self._draw() if low < high else None
        if drawn is None:
            return low
        result = low + drawn * (high - low)
        self._deviate(result)
        return result

    def chance(self, probability: float) -> bool:
        """Return True with *probability*.  False is plain, unless *probability* is 1."""
        if probability >= 1:
            return True
        drawn = self._draw() if probability > 0 else None
        if drawn is None or drawn >= probability:
            return False
        self._deviate(True)
        return True

    def _deviate(self, drawn: object) -> None:
        self.deviations.append(self.count)
        self._note(self.name, self.count, drawn)


def parse_replay(replay: str) -> tuple[int, dict[str, frozenset[int]] | None]:
    """Return the seed, and the numbers of the draws to make in each stream, or None for all draws.

    :param replay: ``'7'``; or ``'7:s12,n45'`` for only the draws 12 of the schedule and 45 of the network.
    :raises TypeError: *replay* is not text.
    :raises ValueError: *replay* has another form.
    """
    if not isinstance(replay, str):
        raise TypeError(f"a replay must be a str, such as '7' or '7:s12,n45'; got {replay!r}")
    seed, colon, numbers = replay.partition(":")
    try:
        if not colon:
            return int(seed), None
        kept: dict[str, set[int]] = {"s": set(), "n": set()}
        for number in filter(None, numbers.split(",")):
            kept[number[0]].add(int(number[1:]))
        if min(kept["s"] | kept["n"], default=1) < 1:
            raise ValueError
        return int(seed), {name: frozenset(some) for name, some in kept.items()}
    except (KeyError, ValueError):
        raise ValueError(f"a replay must be a seed, such as '7' or '7:s12,n45'; got {replay!r}") from None
