"""Connection attempts in memory that wait."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ngi_gevent.testing.memory.turns import MemoryRegistry

__all__ = ["DelayedAttempt"]


class DelayedAttempt:
    """A connection attempt with a ``connect_delay``.  No time passes, so it waits until its address accepts."""

    def __init__(
        self, registry: MemoryRegistry, address: Hashable, connect: Callable[[], None], fail: Callable[[], None]
    ) -> None:
        self.address = address
        self._registry = registry
        self._connect = connect
        self._fail = fail
        #: Whether it has begun or been stopped.
        self.is_over = False
        registry.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.address!r}>"

    def unsent_size(self) -> None:
        """Return None: there is no connection yet."""

    def begin(self) -> None:
        """Connect, in its turn."""
        self._end(self._connect)

    def stop(self) -> None:
        """Give up, and call ``failed_connect`` with ``'stopped'``."""
        self._end(self._fail)
        self._registry.turns.run()

    def _end(self, then: Callable[[], None]) -> None:
        if not self.is_over:
            self.is_over = True
            self._registry.forget(self)
            self._registry.turns.queue(then)
