"""What tests of handlers play on: an implementation, with peers that are not ours, and a way to wait for what happens.

A stage for another implementation is a class derived from :class:`MemoryStage`, if nothing takes time there, or from
:class:`SocketStage`, with a ``make`` of its own.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.queue import Queue

import ngi_gevent
from ngi_gevent.adapters import bottom
from ngi_gevent.sockets.network import Network
from ngi_gevent.testing.memory.implementation import Implementation
from ngi_gevent.testing.recorder import Recorder

__all__ = ["PATIENCE", "DatagramWitness", "MemoryStage", "SocketStage", "Stage", "Witness", "playing", "stages"]

#: Seconds in which everything that a test waits for happens, even on a busy machine.
PATIENCE = 20


class Witness(Recorder):
    """A recorder that tells its stage of all that happens, and keeps the order of it."""

    def __init__(self, stage: Stage, connection: Any = None) -> None:
        self.stage = stage
        self.trace: list[Any] = []
        super().__init__(connection)

    @property
    def size(self) -> int:
        """How much input there is so far: to wait for much of it without joining it again and again."""
        return sum(map(len, self.chunks))

    def connected(self, connection: Any) -> None:
        self.meet(connection)
        connection.set_handler(self)

    def meet(self, connection: Any) -> None:
        """Know *connection*, without being its handler yet."""
        self.connection = connection
        self.stage.connections.append(connection)
        connection.when_closed(self._is_gone)
        self.stage.happened()

    def _is_gone(self) -> None:
        super()._is_gone()
        self.stage.happened()

    def failed_connect(self, reason: Any) -> None:
        super().failed_connect(reason)
        self.stage.happened()

    def handle_input(self, connection: Any, data: bytes) -> None:
        super().handle_input(connection, data)
        self.trace.append(data)
        self.stage.happened()

    def handle_close(self, connection: Any, reason: Any) -> None:
        super().handle_close(connection, reason)
        self.trace.append(("close", reason))
        self.stage.happened()

    def handle_exception(self, connection: Any, exception: BaseException) -> None:
        super().handle_exception(connection, exception)
        self.trace.append(("exception", exception))
        self.stage.happened()


class DatagramWitness:
    """A handler of datagrams that keeps them, and tells its stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.senders: list[Any] = []
        self.datagrams: list[bytes] = []

    def __call__(self, address: Any, data: bytes) -> None:
        self.senders.append(address)
        self.datagrams.append(data)
        self.stage.happened()


def _shown(condition: Callable[[], object]) -> str:
    """The line that *condition* is written in."""
    code = getattr(condition, "__code__", None)
    if code is None:
        return repr(condition)
    line = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    return f"{line} ({code.co_filename}:{code.co_firstlineno})"


class Stage:
    """An implementation to play on."""

    #: What it is called in the names of tests.
    name: str

    #: Whether everything has happened when a call returns, since nothing takes time.
    at_once = False

    def __init__(self, tmp_path: object) -> None:
        self.tmp_path = tmp_path
        self.implementation = self.make()
        self.listeners: list[Any] = []
        self.connections: list[Any] = []
        self.peers: list[Any] = []
        #: The witnesses of server connections, in the order they came.
        self.served: list[Any] = []

    def make(self) -> Any:
        """A new implementation."""
        raise NotImplementedError

    def waiting(self, connection: Any) -> int:
        """Bytes of output of *connection* that wait for its peer, where the implementation tells."""
        return connection._waiting_for_peer() if hasattr(connection, "_waiting_for_peer") else 0

    def happened(self) -> None:
        """Something happened: let who waits look again."""

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* is true."""
        raise NotImplementedError

    def peer(self, listener: Any) -> Any:
        """Connect a peer that knows nothing of NGI."""
        raise NotImplementedError

    def address(self) -> Any:
        """An address to listen on."""
        return None

    def server(self, witness: Callable[..., Any] = Witness) -> Callable[[Any], None]:
        """A server that gives each connection a new *witness*."""

        def serve(connection: Any) -> None:
            served = witness(self)
            self.served.append(served)
            served.connected(connection)

        return serve

    def listen(self, server: Any = None, **options: Any) -> Any:
        """Listen with *server*, a class of witnesses or a server of another kind."""
        if server is None or (isinstance(server, type) and issubclass(server, Witness)):
            server = self.server(server or Witness)
        listener = self.implementation.listener(self.address(), server, **options)
        self.listeners.append(listener)
        return listener

    def listen_udp(self, handler: Any, **options: Any) -> Any:
        """Have *handler* get the datagrams that arrive at an address of its own."""
        listener = self.implementation.udp_listener(self.address(), handler, **options)
        self.listeners.append(listener)
        return listener

    def client(self, listener: Any, witness: Callable[..., Any] = Witness) -> Any:
        """Connect a witness."""
        client = witness(self)
        self.implementation.connect(listener.address, client)
        self.until(lambda: client.connection is not None or client.failed is not None)
        return client

    def talk(self, server: Any = None, witness: Callable[..., Any] = Witness, **options: Any) -> tuple[Any, Any]:
        """A client and the server's witness, connected."""
        client = self.client(self.listen(server, **options), witness)
        self.until(lambda: self.served)
        return client, self.served[-1]

    def clear(self) -> None:
        """End everything, and check that all of it ends."""
        for listener in self.listeners:
            listener.close()
        for connection in self.connections:
            connection.abort()
        for peer in self.peers:
            peer.close()
        self.implementation.wait(PATIENCE)
        self.implementation.close()


class MemoryPeer:
    """A client connection in memory, taken by hand."""

    def __init__(self, stage: Stage, listener: Any) -> None:
        self._witness = Witness(stage)
        self._witness.connected = self._witness.meet  # type: ignore[method-assign]
        listener.connect(self._witness)
        self._connection = self._witness.connection

    @property
    def received(self) -> bytes:
        return self._witness.data

    @property
    def size(self) -> int:
        return self._witness.size

    @property
    def ended(self) -> str | None:
        reason = self._witness.closed
        return None if reason is None else "end" if reason == "end of input" else "broken"

    def send(self, data: bytes) -> None:
        # Not as pending output, which would keep the connection from reading: a plain peer has no such scruples.
        bottom(self._connection).peer.test_input(data)

    def finish(self) -> None:
        bottom(self._connection).peer.test_close()

    def read_when_sent(self) -> None:
        self.read()

    def reset(self) -> None:
        self._connection.abort()

    def read(self) -> None:
        self._connection.set_handler(self._witness)

    def close(self) -> None:
        self._connection.abort()


class MemoryStage(Stage):
    """The implementation in memory."""

    name = "memory"
    at_once = True

    def make(self) -> Any:
        return Implementation()

    def until(self, condition: Callable[[], object]) -> None:
        # Nothing waits in memory, so it has happened or never will.
        assert condition(), f"it has not happened: {_shown(condition)}"

    def peer(self, listener: Any) -> MemoryPeer:
        self.peers.append(MemoryPeer(self, listener))
        return self.peers[-1]  # type: ignore[no-any-return]


class SocketPeer:
    """A plain socket.  What it is told to do, it does in order, on a greenlet."""

    def __init__(self, stage: Stage, address: Any) -> None:
        self._stage = stage
        self._pieces: list[bytes] = []
        self.ended: str | None = None
        self.sent = 0
        if isinstance(address, (str, bytes)):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address[:2])
        self._tasks: Queue[Callable[[], object]] = Queue()
        self._greenlets = [gevent.spawn(self._work)]

    @property
    def received(self) -> bytes:
        """All that has arrived; joined when somebody asks, since that takes longer than receiving it."""
        self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    @property
    def size(self) -> int:
        """How much has arrived."""
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
            self.ended = "end"
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


class SocketStage(Stage):
    """An implementation on sockets, on the hub of the test's thread."""

    def __init__(self, tmp_path: object) -> None:
        super().__init__(tmp_path)
        self._happened = Event()

    def make(self) -> Any:
        return ngi_gevent.Implementation()

    def happened(self) -> None:
        self._happened.set()

    def until(self, condition: Callable[[], object]) -> None:
        with gevent.Timeout(PATIENCE, AssertionError(f"it did not happen in time: {_shown(condition)}")):
            while not condition():
                self._happened.clear()
                self._happened.wait()

    def peer(self, listener: Any) -> SocketPeer:
        self.peers.append(SocketPeer(self, listener.address))
        return self.peers[-1]  # type: ignore[no-any-return]


def playing(kind: type[Stage], tmp_path: object) -> Iterator[Stage]:
    """The body of a fixture: a stage of that *kind*, cleared at the end."""
    stage = kind(tmp_path)
    yield stage
    stage.clear()


def stages(*kinds: type[Stage]) -> Any:
    """The fixture ``stage``: a place to play on, for each of *kinds*."""

    @pytest.fixture(params=kinds, ids=lambda kind: kind.name)
    def stage(request: pytest.FixtureRequest, tmp_path: object) -> Iterator[Stage]:
        yield from playing(request.param, tmp_path)

    return stage
