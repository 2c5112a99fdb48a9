"""Arriving input: cut, delayed and ended as planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gevent import get_hub

from ngi_gevent.adapters import bottom

if TYPE_CHECKING:
    from ngi_gevent.testing.faults.plan import InputFaults

__all__ = ["Arriving"]


class Arriving:
    """The input of *connection*, to which the faults of *plan* are applied.

    :param next_cut: returns where the peer ended a burst after a given position in the input, or None if that is
        unknown.
    :param deliver: passes pieces to the handler, one at a time.
    :param end: stops reading, or ends the connection, as *plan* says.
    """

    def __init__(
        self,
        connection: Any,
        plan: InputFaults,
        next_cut: Callable[[int], int | None],
        deliver: Callable[[Iterator[bytes]], object],
        end: Callable[[InputFaults], None],
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._next_cut = next_cut
        self._deliver = deliver
        self._end = end
        self._arrived = bytearray()
        self._position = 0  # bytes that were delivered
        self._pieces = 0  # pieces that were delivered
        self._delayed = False  # whether the delay of the next piece is over
        self._over_at = plan.over_at()

    def add(self, data: bytes) -> None:
        """Take *data*, and deliver the pieces that are due."""
        self._arrived += data
        self._go_on()

    def _go_on(self) -> None:
        self._deliver(self._pieces_due())

    def _pieces_due(self) -> Iterator[bytes]:
        delays = self._plan.delays
        while self._position != self._over_at and self._connection and (size := self._next_size()):
            if delays and not self._delayed:
                self._delayed = True
                if self._is_postponed(delays[self._pieces % len(delays)]):
                    return
                continue
            self._delayed = False
            self._pieces += 1
            self._position += size
            piece = bytes(self._arrived[:size])
            del self._arrived[:size]
            yield piece
            if self._position == self._over_at and self._connection:
                self._end(self._plan)

    def _next_size(self) -> int:
        """Return the size of the next piece; 0 if it has not arrived completely."""
        arrived = len(self._arrived)
        end = self._next_cut(self._position)
        size = arrived if end is None else end - self._position
        if self._plan.pieces:
            size = min(size, self._plan.pieces[self._pieces % len(self._plan.pieces)])
        if self._over_at is not None:
            size = min(size, self._over_at - self._position)
        return size if size <= arrived else 0

    def _is_postponed(self, turns: int) -> bool:
        """Give other connections *turns*. Return whether ``_go_on`` is called afterwards, as in memory, where nothing
        waits.
        """
        postpone = getattr(bottom(self._connection), "postpone", None)
        if postpone is None:
            for _ in range(turns):
                _wait_a_turn()
        elif turns:
            self._postpone(postpone, turns)
        return bool(turns and postpone)

    def _postpone(self, postpone: Callable[[Callable[[], None]], None], turns: int) -> None:
        postpone(lambda: self._postpone(postpone, turns - 1) if turns > 1 else self._go_on())


def _wait_a_turn() -> None:
    """Wait until the loop has served all others.  A timer takes longer, and a loop callback runs too early."""
    hub = get_hub()
    watcher = hub.loop.async_()
    hub.loop.run_callback(watcher.send)
    try:
        hub.wait(watcher)
    finally:
        watcher.close()
