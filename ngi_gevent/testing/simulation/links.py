"""Links: how long data takes between two hosts, and whether it is lost."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import Any

from ngi_gevent.testing.simulation.schedule import Draws

__all__ = ["Link", "Way", "check_chance", "check_number"]


def check_number(name: str, value: float) -> float:
    """Return *value* if it is a finite number >= 0.  Raise otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be >= 0; got {value!r}")
    return value


def check_chance(name: str, value: float) -> float:
    """Return *value* if it is a number from 0 to 1.  Raise otherwise."""
    if check_number(name, value) > 1:
        raise ValueError(f"{name} must be from 0 to 1; got {value!r}")
    return value


class Way:
    """One direction of a link.

    :ivar link: the link to which this direction belongs.
    :ivar is_cut: whether nothing passes.
    """

    __slots__ = ("_after", "_datagrams", "_draws", "_free_at", "_held", "_now", "is_cut", "link")

    def __init__(self, link: Link, draws: Draws, loop: Any) -> None:
        self.link = link
        self._draws = draws
        self._now: Callable[[], float] = loop.now
        self._after: Callable[..., object] = loop.after
        self._free_at = 0.0  # when the last byte so far has left this end
        self._datagrams: deque[Callable[[], object]] = deque()  # events in transit, in order
        self._held: deque[Callable[[], object]] = deque()
        self.is_cut = False

    def delay(self, size: int) -> float:
        """Return after how many seconds a piece of *size* bytes arrives if it is sent now."""
        link = self.link
        delay = link.latency
        if link.jitter:
            delay += self._draws.between(0.0, link.jitter)
        if link.bandwidth is not None:
            now = self._now()
            self._free_at = max(now, self._free_at) + size / link.bandwidth
            delay += self._free_at - now
        return delay

    def carry(self, size: int, arrive: Callable[[], object]) -> bool:
        """Make a datagram of *size* bytes arrive once, twice, or not at all.  Return False if it does not arrive.

        Datagrams keep their order, unless the seed draws that one is overtaken.  While the direction is cut, all are
        lost.
        """
        link, draws = self.link, self._draws
        if self.is_cut or draws.chance(link.loss):
            return False
        for _ in range(1 + draws.chance(link.duplicates)):
            if draws.chance(link.reorder):
                self._after(self.delay(size) + draws.between(0.0, 2 * (link.latency + link.jitter)), arrive)
            else:
                self._datagrams.append(arrive)
                self._after(self.delay(size), self._deliver)
        return True

    def _deliver(self) -> None:
        self._datagrams.popleft()()

    def hold(self, send_again: Callable[[], object]) -> None:
        """Call *send_again* once the direction is no longer cut."""
        self._held.append(send_again)

    def cut(self) -> None:
        """Stop everything."""
        self.is_cut = True

    def heal(self) -> None:
        """Let everything pass.  Held data is sent first."""
        self.is_cut = False
        held, self._held = self._held, deque()
        for send_again in held:
            send_again()


class Link:
    """The link between two hosts, in both directions.

    :ivar latency: the minimum of seconds that everything takes.
    :ivar jitter: the maximum of seconds that is added.  The seed draws how many.
    :ivar bandwidth: bytes per second in each direction; None for no limit.
    :ivar loss: the chance that a datagram is lost.
    :ivar duplicates: the chance that a datagram arrives twice.
    :ivar reorder: the chance that a datagram takes up to three times as long, so that later datagrams overtake it.
    """

    __slots__ = ("bandwidth", "duplicates", "jitter", "latency", "loss", "reorder")

    def __init__(self, latency: float, jitter: float) -> None:
        self.latency = latency
        self.jitter = jitter
        self.bandwidth: float | None = None
        self.loss = self.duplicates = self.reorder = 0.0

    def copy(self) -> Link:
        """Return another link with the same values."""
        return copy(self)

    def set(
        self,
        *,
        latency: float | None = None,
        jitter: float | None = None,
        bandwidth: float | None = None,
        loss: float | None = None,
        duplicates: float | None = None,
        reorder: float | None = None,
    ) -> None:
        """Change the given values for data that is sent from now on.  Never blocks.

        To remove the limit of *bandwidth*, pass ``math.inf``.

        :raises TypeError: a value is not a number.
        :raises ValueError: a number is negative, a chance is more than 1, or the bandwidth is 0.
        """
        if bandwidth is not None and bandwidth != math.inf and not check_number("bandwidth", bandwidth):
            raise ValueError("bandwidth must be > 0; got 0; to block a link, use Simulation.partition")
        times = {"latency": latency, "jitter": jitter}
        chances = {"loss": loss, "duplicates": duplicates, "reorder": reorder}
        new = {name: check_number(name, value) for name, value in times.items() if value is not None}
        new |= {name: check_chance(name, value) for name, value in chances.items() if value is not None}
        for name, value in new.items():
            setattr(self, name, value)
        if bandwidth is not None:
            self.bandwidth = None if bandwidth == math.inf else bandwidth
