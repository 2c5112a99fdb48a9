"""Bursts of output: what the application writes in one callback, or outside of callbacks in one call."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ngi_gevent.core.checks import as_bytes, as_iterator
from ngi_gevent.testing.faults.link import Cuts

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data

__all__ = ["Bursts"]


class Bursts:
    """The output of one side of a connection, which marks the end of each burst in ``cuts``."""

    def __init__(self, connection: Any) -> None:
        self.cuts = Cuts()
        self._connection = connection
        self._pulls = False  # whether an iterable is being consumed
        self._waiting: deque[Any] = deque()  # that iterable and later output: iterators and bursts
        self._burst: list[bytes] | None = None  # the current burst, if it has to wait
        self._callbacks = 0  # running ones, which may be nested

    def run_callback(self, call: Any, *arguments: Any) -> Any:
        """Call the application; its output until it returns is one burst."""
        self._callbacks += 1
        try:
            return call(*arguments)
        finally:
            self._callbacks -= 1
            self._burst = None
            self.cuts.end()

    def write(self, data: Data) -> None:
        data = as_bytes(data)
        if not self._connection:
            self._connection.write(data)  # raises
        elif not self._pulls:
            self._count(data)  # before writing: in memory, that may deliver it
            self._connection.write(data)
        else:
            if self._burst is None:
                self._burst = []
                self._waiting.append(self._burst)
            self._burst.append(data)
            if not self._callbacks:
                self._burst = None

    def writelines(self, data: Iterable[Data], *, is_cut: bool) -> None:
        """Write *data*, each item a burst if the plan cuts them (*is_cut*)."""
        if not self._connection or not (is_cut or self._pulls):
            self._connection.writelines(data)
            return
        self._waiting.append(as_iterator(data))
        self._burst = None
        if not self._pulls:
            self._pull()

    def _count(self, data: bytes) -> None:
        self.cuts.add(len(data))
        if not self._callbacks:
            self.cuts.end()

    def _pull(self) -> None:
        self._pulls = True
        self._connection.writelines(self._pulled())

    def _pulled(self) -> Iterator[bytes]:
        """Yield everything that waits, each item as a burst, since nothing says when it arrives."""
        try:
            while self._waiting:
                if isinstance(self._waiting[0], list):
                    self._burst = None
                    item: Any = b"".join(self._waiting.popleft())
                else:
                    item = next(self._waiting[0], None)
                if item is None:
                    self._waiting.popleft()
                else:
                    item = as_bytes(item)
                    self.cuts.end()
                    self.cuts.add(len(item))
                    self.cuts.end()
                    yield item
            self._pulls = False
        except Exception:
            self._waiting.popleft()  # the one that raised; later output follows
            self._pulls = False
            if self._waiting and self._connection:
                self._pull()
            raise
