"""Peers that do not use NGI: clients that a test controls call by call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket
from gevent.queue import Queue

from ngi_gevent.adapters import bottom
from ngi_gevent.sockets.network import Network
from ngi_gevent.testing.contract.witness import Witness

__all__ = ["MemoryPeer", "SocketPeer"]


class MemoryPeer(Witness):
    """A client connection in memory.  It does not receive input before ``read``."""

    def __init__(self, stage: Any, listener: Any) -> None:
        super().__init__(stage)
        self._has_eof = False
        listener.connect(self)

    def connected(self, connection: Any) -> None:
        self.meet(connection)

    @property
    def received(self) -> bytes:
        return self.data

    @property
    def ended(self) -> str | None:
        if self.closed is None:
            return "end" if self._has_eof else None
        return "end" if self.closed == "end of input" else "broken"

    def handle_eof(self, connection: Any) -> None:
        """Stay open for output, as a plain socket does."""
        self._has_eof = True
        self._wake()

    def send(self, data: bytes) -> None:
        # This is not pending output, which would keep the connection from reading: a plain peer continues to read.
        bottom(self.connection).peer.test_input(data)

    def finish(self) -> None:
        self.connection.write_eof()

    def read_when_sent(self) -> None:
        self.read()

    def read(self) -> None:
        self.connection.set_handler(self)

    def reset(self) -> None:
        self.connection.abort()

    def close(self) -> None:
        self.connection.abort()


class SocketPeer:
    """A plain socket.  A greenlet sends data in the order of the calls."""

    def __init__(self, stage: Any, address: Any) -> None:
        self._stage = stage
        self._pieces: list[bytes] = []
        self.ended: str | None = None
        #: Bytes that the kernel has accepted.
        self.sent = 0
        self._connect(address)
        self._tasks: Queue[Callable[[], object]] = Queue()
        self._greenlets = [gevent.spawn(self._work)]

    def _connect(self, address: Any) -> None:
        self.socket: Any
        if isinstance(address, (str, bytes)):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address[:2])

    @property
    def received(self) -> bytes:
        """All input so far.  It is joined only here, since joining takes longer than receiving."""
        self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    @property
    def size(self) -> int:
        """The number of bytes of input so far."""
        return sum(map(len, self._pieces))

    def _work(self) -> None:
        try:
            for task in self._tasks:
                task()
                self._stage.happened()
        except OSError as error:
            self.ended = self.ended or f"broken: {error}"
            self._stage.happened()

    def _send(self, data: bytes) -> None:
        for start in range(0, len(data), 65536):
            piece = data[start : start + 65536]
            self.socket.sendall(piece)
            self.sent += len(piece)

    def _read(self) -> None:
        try:
            while piece := self.socket.recv(1 << 20):
                self._pieces.append(piece)
                self._stage.happened()
            # A reset is reported only once.  If the sending greenlet asks first, it gets the report.
            self.ended = self.ended or "end"
        except OSError:
            self.ended = "broken"
        self._stage.happened()

    def send(self, data: bytes) -> None:
        self._tasks.put(lambda: self._send(data))

    def finish(self) -> None:
        self._tasks.put(lambda: self.socket.shutdown(socket.SHUT_WR))

    def reset(self) -> None:
        Network().reset_on_close(self.socket)
        self.close()

    def read_when_sent(self) -> None:
        self._tasks.put(self.read)

    def read(self) -> None:
        self._greenlets.append(gevent.spawn(self._read))

    def close(self) -> None:
        gevent.killall(self._greenlets)
        self.socket.close()
