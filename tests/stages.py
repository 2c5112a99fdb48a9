"""The stages of this project's tests, one for each implementation that must keep the contract.

``STAGES`` lists them.  A new stage is one line there.
"""

from __future__ import annotations

import contextlib
import itertools
import ssl
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from queue import Queue
from typing import Any

import pytest
from certificates import client_context, server_context
from gevent import socket

import ngi_gevent
from ngi_gevent import adapters, testing
from ngi_gevent.core.threads import Flag
from ngi_gevent.testing import contract
from ngi_gevent.testing.contract import (
    PATIENCE,
    DatagramWitness,
    MemoryStage,
    SimulationStage,
    SocketStage,
    Stage,
    Witness,
)
from ngi_gevent.testing.faults.wrapping import WrappingImplementation

__all__ = [
    "PATIENCE",
    "SIMULATIONS",
    "STAGES",
    "WRAPPED_STAGES",
    "AdaptedMemoryStage",
    "DatagramWitness",
    "FaultlessTCPStage",
    "IPv6Stage",
    "MemoryStage",
    "SocketStage",
    "Stage",
    "TCPStage",
    "TLSStage",
    "UnixStage",
    "Witness",
    "WrappedMemoryStage",
    "WrappedTCPStage",
    "end_by",
    "needs_ipv6",
    "params",
]


def in_thread(function, *arguments):
    """Call *function* on another native thread, while this thread's greenlets run.  Return its result, or raise its
    exception.
    """
    results = []
    done = Flag()

    def run():
        try:
            results.append(function(*arguments))
        except BaseException as error:
            results.append(error)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert done.wait(PATIENCE)
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def end_by(end: str, stage: Stage, connection: Any, peer: Any) -> None:
    """End *connection*, whose other end is *peer*, by "abort", "stop" or "reset"."""
    if end == "abort":
        connection.abort()
    elif end == "stop":
        stage.listeners[0].close()
        peer.finish()
    else:
        peer.reset()


class Steps:
    """Runs *function* in another thread.  Between any two lines of the functions *named*, calls *each* in this
    thread.
    """

    def __init__(self, function: Callable[[], object], each: Callable[[], object], named: set[str]) -> None:
        self._named = named
        self._steps: Queue[threading.Event | None] = Queue()
        self._thread = threading.Thread(target=self._run, args=[function])
        self._thread.start()
        while (step := self._steps.get(timeout=PATIENCE)) is not None:
            try:
                each()
            finally:
                step.set()

    def join(self) -> None:
        """Wait until *function* has returned, and stop tracing."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self, function: Callable[[], object]) -> None:
        sys.settrace(self._trace)
        try:
            function()
        finally:
            sys.settrace(None)
            self._steps.put(None)

    def _trace(self, frame: Any, event: str, argument: object) -> Any:
        if frame.f_code.co_name not in self._named:
            return None
        step = threading.Event()
        self._steps.put(step)
        step.wait(0.05)  # not longer, since this thread may hold a lock that *each* needs
        return self._trace


class ThreadedStage(SocketStage):
    """A hub in a separate thread, called from the test's thread."""

    name = "threaded"

    def __init__(self, tmp_path: object) -> None:
        super().__init__(tmp_path)
        self._something = Flag()

    def make(self) -> Any:
        return ngi_gevent.Threaded()

    def happened(self) -> None:
        self._something.set()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            self._something = Flag()
            if condition():
                return
            assert time.monotonic() < deadline, "it did not happen in time"
            # The other thread may report an event before its effects, which can come a moment later.
            self._something.wait(0.05)


class TCPStage(SocketStage):
    name = "tcp-ipv4"


class TLSImplementation(ngi_gevent.Implementation):
    """A peer that uses TLS unless an option turns it off."""

    def connect(self, address: Any, handler: Any, **options: Any) -> None:
        options = {"ssl_context": client_context(), "server_hostname": "localhost"} | options
        super().connect(address, handler, **options)

    def listener(self, address: Any, handler: Any, **options: Any) -> Any:
        return super().listener(address, handler, **{"ssl_context": server_context()} | options)


class TLSSocket:
    """The standard library's TLS on a plain gevent socket, with the methods that a peer needs.

    ``ssl.SSLSocket`` cannot end its output and continue to read.
    """

    def __init__(self, sock: Any, *, handshake: bool = True) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = client_context().wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            self._ssl.do_handshake()
        self._flush()
        if handshake:
            self.shake_hands()

    def shake_hands(self) -> None:
        self._do(self._ssl.do_handshake)

    def _do(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            try:
                return operation(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
                data = self._sock.recv(1 << 20)
                if not data:
                    raise ssl.SSLEOFError("the server ended the connection without ending TLS") from None
                self._incoming.write(data)
            finally:
                self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._sock.sendall(self._outgoing.read())

    def sendall(self, data: bytes) -> None:
        self._ssl.write(data)
        self._flush()

    def recv(self, size: int) -> bytes:
        pieces = []
        with contextlib.suppress(ssl.SSLZeroReturnError):  # raised if both sides have ended
            pieces.append(self._do(self._ssl.read, size))
            while self._incoming.pending and pieces[-1]:
                with contextlib.suppress(ssl.SSLWantReadError):
                    pieces.append(self._ssl.read(size))
        return b"".join(pieces)

    def shutdown(self, how: int) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._ssl.unwrap()
        self._flush()
        self._sock.shutdown(how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class TLSStage(SocketStage):
    name = "tls"

    def make(self) -> Any:
        return TLSImplementation()

    def peer(self, listener: Any) -> Any:
        peer = super().peer(listener)
        peer.socket = TLSSocket(peer.socket)
        return peer


class IPv6Stage(SocketStage):
    name = "tcp-ipv6"

    def __init__(self, tmp_path: object) -> None:
        if not IPV6:
            pytest.skip(NO_IPV6)
        super().__init__(tmp_path)

    def address(self) -> Any:
        return ("::1", 0)


class UnixStage(SocketStage):
    name = "unix"
    _numbers = itertools.count()  # shared by all stages, since their Unix sockets are in one folder

    def address(self) -> Any:
        return f"{self.tmp_path}/socket{next(self._numbers)}"


class WrappedMemoryStage(MemoryStage):
    """A wrapper around the implementation in memory, which changes nothing."""

    name = "wrapped-memory"

    def make(self) -> Any:
        return WrappingImplementation(super().make())


class WrappedTCPStage(TCPStage):
    """A wrapper around an implementation on sockets, which changes nothing."""

    name = "wrapped-tcp"

    def make(self) -> Any:
        return WrappingImplementation(super().make())


class AdaptedMemoryStage(MemoryStage):
    """The implementation in memory, whose connections are adapters that change nothing."""

    name = "adapted-memory"

    def make(self) -> Any:
        return contract.Adapted(super().make(), adapters.Base)


class AdaptedTCPStage(TCPStage):
    """An implementation on sockets, whose connections are adapters that change nothing."""

    name = "adapted-tcp"

    def make(self) -> Any:
        return contract.Adapted(super().make(), adapters.Base)


class FaultlessMemoryStage(MemoryStage):
    """The implementation in memory, with a faulty network that has no faults planned."""

    name = "faultless-memory"

    def make(self) -> Any:
        return testing.Faulty(super().make(), testing.Plan())


class FaultlessTCPStage(TCPStage):
    """An implementation on sockets, with a faulty network that has no faults planned."""

    name = "faultless-tcp"

    def make(self) -> Any:
        return testing.Faulty(super().make(), testing.Plan())


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = _has_ipv6()
NO_IPV6 = "this machine has no IPv6"
needs_ipv6 = pytest.mark.skipif(not IPV6, reason=NO_IPV6)


def simulation_stage(seed: int) -> type[Stage]:
    """Return the stage of a simulation with *seed*."""
    return type(f"SimulationStage{seed}", (SimulationStage,), {"name": f"simulation{seed}", "seed": seed})


SIMULATIONS: list[type[Stage]] = [simulation_stage(seed) for seed in range(4)]

STAGES: list[type[Stage]] = [MemoryStage, TCPStage, IPv6Stage, UnixStage, TLSStage, ThreadedStage]

#: Stages that wrap others.  They need only the tests of the contract.
WRAPPED_STAGES: list[type[Stage]] = [
    WrappedMemoryStage,
    WrappedTCPStage,
    AdaptedMemoryStage,
    AdaptedTCPStage,
    FaultlessMemoryStage,
    FaultlessTCPStage,
]


def params(kinds: Iterable[type[Stage]], slow: Collection[type[Stage]]) -> list[Any]:
    """Return the *kinds* as parameters of a fixture.  The kinds in *slow* are marked slow."""
    return [pytest.param(kind, marks=pytest.mark.slow if kind in slow else ()) for kind in kinds]
