"""The links between the two sides of each connection, which give both sides the same faults."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Reason
    from ngi_gevent.testing.faults.plan import Faults, Plan

__all__ = ["Cuts", "Link", "Links"]


class Cuts:
    """The places where the output of one side is cut before the plan cuts it: the end of each burst."""

    def __init__(self) -> None:
        self._written = 0
        self._ends: deque[int] = deque()

    def add(self, size: int) -> None:
        """Count *size* more bytes of the current burst."""
        self._written += size

    def end(self) -> None:
        """End the current burst."""
        if self._written and not (self._ends and self._ends[-1] == self._written):
            self._ends.append(self._written)

    def after(self, position: int) -> int | None:
        """Return the next cut after *position*, which must not decrease between calls."""
        while self._ends and self._ends[0] <= position:
            self._ends.popleft()
        return self._ends[0] if self._ends else None


class Link:
    """The state that the two sides of a connection share."""

    def __init__(self) -> None:
        self.faults: Faults | None = None
        self.sides: list[Any] = []
        self.gone = 0  # sides that are closed
        self.reason: Reason | None = None  # the reason, once the plan has ended the connection

    def other(self, side: Any) -> Any:
        """Return the side opposite to *side*, or None if that is unknown."""
        return next((other for other in self.sides if other is not side), None)


class Links:
    """The links of one implementation, and the faults for its next connection."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._connections = 0
        self._links: dict[Any, Link] = {}

    def peek_faults(self) -> Faults:
        """Return the faults for the next connection, without consuming them."""
        return self._plan.connection(self._connections)

    def take_faults(self) -> Faults:
        """Return the faults for the next connection, which begins now."""
        self._connections += 1
        return self._plan.connection(self._connections - 1)

    def join(self, side: Any, addresses: tuple[Any, Any], faults: Faults | None) -> Link:
        """Make *side* a side of the connection between *addresses*: the client's and the server's."""
        # Without an address, as over Unix sockets, the sides cannot find each other.
        link = self._links.setdefault(addresses, Link()) if addresses[0] else Link()
        link.sides.append(side)
        if faults is not None or not self._plan.connections:
            link.faults = faults or self._plan.connection(0)
        return link

    def leave(self, addresses: tuple[Any, Any]) -> None:
        """Forget the link between *addresses* once both sides are closed, because a later connection can have the same
        addresses.
        """
        link = self._links.get(addresses)
        if link is not None:
            link.gone += 1
            if link.gone == len(link.sides):
                del self._links[addresses]
