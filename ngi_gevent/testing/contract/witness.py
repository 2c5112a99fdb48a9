"""Handlers for tests of the contract: they record what happens, and wake their stage."""

from __future__ import annotations

from typing import Any

from ngi_gevent.testing.recorder import Recorder

__all__ = ["DatagramWitness", "Witness"]


class Witness(Recorder):
    """A recorder that wakes its stage, and records the order of callbacks in ``trace``."""

    def __init__(self, stage: Any, connection: Any = None) -> None:
        self.stage = stage
        self.trace: list[Any] = []
        super().__init__(connection)

    @property
    def size(self) -> int:
        """The number of bytes of input so far. This is cheaper than ``len(data)``, which joins all input."""
        return sum(map(len, self.chunks))

    def meet(self, connection: Any) -> None:
        """Take *connection* without becoming its handler yet."""
        self._set_connection(connection)
        self._wake()

    def _set_connection(self, connection: Any) -> None:
        if connection is not self.connection:
            self.stage.connections.append(connection)
        super()._set_connection(connection)

    def _wake(self) -> None:
        super()._wake()
        self.stage.happened()

    # The trace is written before waiting tests are woken, because they may be on another thread.

    def handle_input(self, connection: Any, data: bytes) -> None:
        self.trace.append(data)
        super().handle_input(connection, data)

    def handle_close(self, connection: Any, reason: Any) -> None:
        self.trace.append(("close", reason))
        super().handle_close(connection, reason)

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        self.trace.append(("exception", exception))
        super().handle_exception(connection, exception)


class DatagramWitness:
    """A handler that records datagrams, and wakes its stage."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        self.senders: list[Any] = []
        self.datagrams: list[bytes] = []

    def __call__(self, address: Any, data: bytes) -> None:
        self.senders.append(address)
        self.datagrams.append(data)
        self.stage.happened()
