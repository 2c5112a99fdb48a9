"""Stages, on which the tests of the contract run: an implementation, its listeners and clients, and a way to wait.

A stage for another implementation is a subclass of :class:`MemoryStage`, if nothing takes time there, or of
:class:`SocketStage`, with its own ``make``.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

import ngi_gevent
from ngi_gevent.testing.contract.peers import MemoryPeer, SocketPeer
from ngi_gevent.testing.contract.witness import Witness
from ngi_gevent.testing.memory.implementation import Implementation

__all__ = ["PATIENCE", "MemoryStage", "SocketStage", "Stage", "playing", "stages"]

#: Seconds in which everything that a test waits for happens, even on a busy machine.
PATIENCE = 20


def _shown(condition: Callable[[], object]) -> str:
    """Return the line that defines *condition*."""
    code = getattr(condition, "__code__", None)
    if code is None:
        return repr(condition)
    line = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    return f"{line} ({code.co_filename}:{code.co_firstlineno})"


class Stage:
    """An implementation under test."""

    #: The name of the stage in the names of tests.
    name: str

    #: Whether everything has happened when a call returns.
    at_once = False

    #: Whether native threads can use the implementation.
    has_threads = True

    def __init__(self, tmp_path: object) -> None:
        self.tmp_path = tmp_path
        self.implementation = self.make()
        self.listeners: list[Any] = []
        self.connections: list[Any] = []
        self.peers: list[Any] = []
        #: The witnesses of server connections, in the order of their connections.
        self.served: list[Any] = []
        self._echoed: Witness | None = None  # the client of a conversation, for ``settle``

    def make(self) -> Any:
        """Make an implementation."""
        raise NotImplementedError

    def waiting(self, connection: Any) -> int:
        """Return how many bytes of output of *connection* wait for its peer, or 0 if that is unknown."""
        return connection._waiting_for_peer() if hasattr(connection, "_waiting_for_peer") else 0

    def happened(self) -> None:
        """Make ``until`` check its condition again."""

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* is true."""
        raise NotImplementedError

    def compute(self) -> None:
        """Make a callback take some time if computing takes none."""

    def peer(self, listener: Any) -> Any:
        """Connect a client that does not use NGI."""
        raise NotImplementedError

    def address(self) -> Any:
        """Return an address to listen on."""
        return None

    def server(self, witness: Callable[..., Any] = Witness) -> Callable[[Any], None]:
        """Return a server that gives each connection a new *witness*."""

        def serve(connection: Any) -> None:
            served = witness(self)
            self.served.append(served)
            served.connected(connection)

        return serve

    def listen(self, server: Any = None, **options: Any) -> Any:
        """Listen with *server*, which is a class of witnesses or any other server."""
        if server is None or (isinstance(server, type) and issubclass(server, Witness)):
            server = self.server(server or Witness)
        listener = self.implementation.listener(self.address(), server, **options)
        self.listeners.append(listener)
        return listener

    def listen_udp(self, handler: Any, **options: Any) -> Any:
        """Listen for datagrams on a new address, and pass them to *handler*."""
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
        """Connect, and return the client and the server's witness."""
        client = self.client(self.listen(server, **options), witness)
        self.until(lambda: self.served)
        return client, self.served[-1]

    def settle(self) -> None:
        """Wait until everything that has begun has had its effect: a further conversation takes longer."""
        if self._echoed is None:
            self.listeners.append(self.implementation.listener(self.address(), _Echo))
            self._echoed = self.client(self.listeners[-1])
        echoed = self._echoed
        for _ in range(3):
            before = echoed.size
            echoed.connection.write(b"?")
            self.until(lambda before=before: echoed.size > before)  # type: ignore[misc]

    def clear(self) -> None:
        """End everything, and check that it ends."""
        for listener in self.listeners:
            listener.close()
        for connection in self.connections:
            connection.abort()
        for peer in self.peers:
            peer.close()
        self.implementation.wait(PATIENCE)
        self.implementation.close()
        self.implementation.wait(PATIENCE)


class MemoryStage(Stage):
    """The implementation in memory."""

    name = "memory"
    at_once = True

    def make(self) -> Any:
        return Implementation()

    def until(self, condition: Callable[[], object]) -> None:
        assert condition(), f"it has not happened: {_shown(condition)}"

    def peer(self, listener: Any) -> MemoryPeer:
        self.peers.append(MemoryPeer(self, listener))
        return self.peers[-1]  # type: ignore[no-any-return]


class SocketStage(Stage):
    """An implementation on sockets, which uses the hub of the test's thread."""

    #: Seconds in which everything that a test waits for happens.
    patience = PATIENCE

    def __init__(self, tmp_path: object) -> None:
        super().__init__(tmp_path)
        self._happened = Event()

    def make(self) -> Any:
        return ngi_gevent.Implementation()

    def happened(self) -> None:
        self._happened.set()

    def until(self, condition: Callable[[], object]) -> None:
        with gevent.Timeout(self.patience, AssertionError(f"it did not happen in time: {_shown(condition)}")):
            while not condition():
                self._happened.clear()
                self._happened.wait()

    def peer(self, listener: Any) -> SocketPeer:
        self.peers.append(SocketPeer(self, listener.address))
        return self.peers[-1]  # type: ignore[no-any-return]


class _Echo:
    """Sends everything back."""

    def __init__(self, connection: Any) -> None:
        connection.set_handler(self)

    def handle_input(self, connection: Any, data: bytes) -> None:
        connection.write(data)


def playing(kind: type[Stage], tmp_path: object) -> Iterator[Stage]:
    """Yield a stage of that *kind*, for a fixture, and end it at the end."""
    stage = kind(tmp_path)
    yield stage
    stage.clear()


def stages(*kinds: type[Stage]) -> Any:
    """Make the fixture ``stage``, with a stage of each of *kinds*."""

    @pytest.fixture(params=kinds, ids=lambda kind: kind.name)
    def stage(request: pytest.FixtureRequest, tmp_path: object) -> Iterator[Stage]:
        yield from playing(request.param, tmp_path)

    return stage
