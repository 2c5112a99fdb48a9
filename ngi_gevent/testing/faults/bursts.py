"""Bursts of output: the data that the application writes in one callback, or in one call outside callbacks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ngi_gevent.core.checks import as_bytes, as_iterator, close_iterator
from ngi_gevent.errors import ConnectionClosed
from ngi_gevent.testing.faults.link import Cuts

if TYPE_CHECKING:
    from ngi_gevent.interfaces import Data

__all__ = ["Bursts"]


class Bursts:
    """The output of one side of a connection, which marks the end of each burst in ``cuts``."""

    def __init__(self, connection: Any) -> None:
        self.cuts = Cuts()
        self._connection = connection
        self._pulling: _Pulling | None = None  # while an iterable is being consumed
        self._ended = False  # whether the output ends once nothing is pending
        self._waiting: deque[Any] = deque()  # that iterable and later output: iterators and bursts
        self._burst: list[bytes] | None = None  # the current burst, if it must wait
        self._callbacks = 0  # running calls, which may be nested

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
        self._check_open()
        if not self._connection:
            self._connection.write(data)  # raises if the type is wrong
        elif self._pulling is None:
            self._count(data)  # before writing, because in memory a write can deliver the burst
            self._connection.write(data)
        else:
            if self._burst is None:
                self._burst = []
                self._waiting.append(self._burst)
            self._burst.append(data)
            if not self._callbacks:
                self._burst = None

    def writelines(self, data: Iterable[Data], *, is_cut: bool) -> None:
        """Write *data*.  Each item is a burst if the plan cuts them (*is_cut*)."""
        self._check_open()
        if not self._connection or not (is_cut or self._pulling is not None):
            self._connection.writelines(data)
            return
        self._waiting.append(as_iterator(data))
        self._burst = None
        if self._pulling is None:
            self._pull()

    def write_eof(self) -> None:
        """End the output after all pending data."""
        self._ended = bool(self._connection)
        if self._pulling is None:
            self._connection.write_eof()

    def _check_open(self) -> None:
        if self._ended and self._connection:
            peer = self._connection.peer_address
            raise ConnectionClosed(f"the connection to {peer!r} is half-closed", self._connection)

    def _count(self, data: bytes) -> None:
        self.cuts.add(len(data))
        if not self._callbacks:
            self.cuts.end()

    def _pull(self) -> None:
        self._pulling = _Pulling(self)
        self._connection.writelines(self._pulling)

    def close(self, pulling: _Pulling) -> None:
        """Close all pending iterators, whose data is dropped.  Does nothing if *pulling* is over."""
        while self._waiting and self._pulling is pulling:
            close_iterator(self._waiting.popleft())

    def pulled(self) -> Iterator[bytes]:
        """Yield all pending data.  Each item is a burst, since the time of its arrival is unknown."""
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
            self._pulling = None
        except Exception:
            failed = self._waiting.popleft()  # later output follows
            self._pulling = None
            if self._waiting and self._connection:
                self._pull()
            close_iterator(failed)
            raise
        finally:
            if self._ended and self._pulling is None:
                self._connection.write_eof()


class _Pulling:
    """An iterator over all data in *bursts*.

    This is not a generator, because closing a generator that has not begun would close nothing.
    """

    def __init__(self, bursts: Bursts) -> None:
        self._bursts = bursts
        self._items = bursts.pulled()

    def __iter__(self) -> _Pulling:
        return self

    def __next__(self) -> bytes:
        return next(self._items)

    def close(self) -> None:
        self._bursts.close(self)
