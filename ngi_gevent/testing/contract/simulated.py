"""A stage in a simulation, and clients there that do not use NGI."""

from __future__ import annotations

import socket
from typing import Any, cast

from gevent import get_hub

from ngi_gevent.testing.contract.peers import SocketPeer
from ngi_gevent.testing.contract.stage import SocketStage
from ngi_gevent.testing.simulation.host import Host
from ngi_gevent.testing.simulation.simulation import Simulation
from ngi_gevent.testing.simulation.sites import family_of

__all__ = ["SimulationStage"]

#: Seconds that a callback computes, about as long as a short callback really takes.
COMPUTING = 2e-6

READ, WRITE = 1, 2  # the events of gevent's io watchers


class SimulationStage(SocketStage):
    """A host of a simulation.  The simulation ends with the stage.

    :cvar seed: the seed of the simulation, 0 by default.  Subclasses set others.
    """

    name = "simulation"
    seed = 0
    has_threads = False
    patience = 3600  # virtual seconds, which take no real time
    simulation: Simulation | None = None
    _hosts = 0

    def make(self) -> Host:
        if self.simulation is None:
            self.simulation = Simulation(self.seed).__enter__()
        self._hosts += 1
        return self.simulation.host(f"host{self._hosts}")

    def address(self) -> Any:
        host: Host = self.implementation
        return (host.addresses[0], 0)

    def compute(self) -> None:
        assert self.simulation is not None
        self.simulation.compute(COMPUTING)

    def peer(self, listener: Any) -> SimulatedPeer:
        self.peers.append(SimulatedPeer(self, listener.address))
        return self.peers[-1]  # type: ignore[no-any-return]

    def clear(self) -> None:
        assert self.simulation is not None
        try:
            super().clear()
        finally:
            self.simulation.raised.clear()  # since many rules are about handlers that raise
            self.simulation.__exit__(None, None, None)


class SimulatedPeer(SocketPeer):
    """A plain socket of the simulation."""

    def _connect(self, address: Any) -> None:
        self.socket = BlockingSocket(self._stage.implementation, address)

    def reset(self) -> None:
        self.socket.reset()
        self.close()


class BlockingSocket:
    """A stream socket of a host, whose calls wait."""

    def __init__(self, host: Host, address: Any) -> None:
        network = self._network = host._network
        is_path = isinstance(address, (str, bytes))
        family, address = (socket.AF_UNIX, address) if is_path else (family_of(address[0]), address[:2])
        self._socket = network.make_socket(family, socket.SOCK_STREAM)
        network.connect(self._socket, address)

    def recv(self, size: int) -> bytes:
        while True:
            try:
                return cast(bytes, self._socket.recv(size))
            except BlockingIOError:
                self._wait(READ)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                self._wait(WRITE)

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def reset(self) -> None:
        self._network.reset_on_close(self._socket)

    def close(self) -> None:
        self._socket.close()

    def _wait(self, events: int) -> None:
        hub = get_hub()
        watcher = hub.loop.io(self._socket.fileno(), events)
        try:
            hub.wait(watcher)
        finally:
            watcher.close()
