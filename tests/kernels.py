"""A pair of connected sockets on the kernel and a pair in the simulation, which run the same programs."""

from __future__ import annotations

import errno
import heapq
import os
import socket
import tempfile
from itertools import count
from random import Random

import gevent

from ngi_gevent.sockets.network import Network
from ngi_gevent.testing.simulation.internet import Internet
from ngi_gevent.testing.simulation.schedule import Draws
from ngi_gevent.testing.simulation.trace import Trace

__all__ = ["World", "make_pair", "program", "run", "snapshot"]


class World:
    """An event loop that runs only the network's events, and an internet that uses it."""

    def __init__(self, seed: int = 0) -> None:
        self.time = 0.0
        self.things: dict[int, object] = {}
        self.changes: list[int] = []
        self._entries: list[tuple[float, int, list]] = []
        self._number = count()
        self.trace = Trace(self.now)
        self.trace.keep_all()
        self.internet = Internet(self, Draws(seed, "n", lambda *_: None), self.trace)

    def now(self) -> float:
        return self.time

    def after(self, seconds, function, *arguments, host=""):
        entry = [function, arguments]
        heapq.heappush(self._entries, (self.time + max(0.0, seconds), next(self._number), entry))
        return Event(entry)

    def changed(self, descriptor):
        self.changes.append(descriptor)

    def add_descriptor(self, descriptor, thing):
        self.things[descriptor] = thing

    def remove_descriptor(self, descriptor):
        self.things.pop(descriptor, None)

    def settle(self, seconds: float = 1000.0) -> None:
        """Run all events of the next *seconds*."""
        until = self.time + seconds
        while self._entries and self._entries[0][0] <= until:
            self.time, _, (function, arguments) = heapq.heappop(self._entries)
            if function is not None:
                function(*arguments)
        self.time = until

    def call(self, function, *arguments):
        """Call a function that blocks its greenlet, and run events until it returns."""
        results = []

        def run():
            try:
                results.append(function(*arguments))
            except OSError as error:
                results.append(error)

        gevent.spawn(run)
        while not results:
            gevent.sleep(0)
            self.settle()
        if isinstance(results[0], OSError):
            raise results[0]
        return results[0]

    def texts(self, *kinds):
        """Return the texts of all log entries of these kinds."""
        return [event.text for event in self.trace.events if event.kind in kinds]


class Event:
    def __init__(self, entry):
        self._entry = entry

    def cancel(self):
        self._entry[0] = None


def make_pair(network, family, call, *, peer_network=None, host="127.0.0.1"):
    """Return two connected sockets, and the address of the listener."""
    server = peer_network or network
    listener = server.make_socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            address = os.path.join(tempfile.mkdtemp(), "socket")
            listener.bind(address)
        else:
            listener.bind((host, 0))
            address = listener.getsockname()
        listener.listen(5)
        client = network.make_socket(family, socket.SOCK_STREAM)
        call(network.connect, client, address)
        accepted, _ = call(server.accept, listener)
        return client, accepted
    finally:
        listener.close()
        if family == socket.AF_UNIX and type(server) is Network:
            os.unlink(address)
            os.rmdir(os.path.dirname(address))


def result_of(function, *arguments, **options):
    """Return the call's result, or the name of its exception."""
    try:
        return function(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else str(error)


def snapshot(network, sock):
    """Return the socket's state, as the kernel reports it."""
    if sock.fileno() == -1:
        return "closed"
    asked = ["has_input", "is_broken", "has_error", "peer_has_finished"]
    return [getattr(network, name)(sock) for name in asked] + [network.queued_output(sock) > 0]


STEPS = [
    "send",
    "send",
    "send",
    "recv",
    "recv",
    "recv",
    "peek",
    "finish",
    "shut",
    "close",
    "reset",
    "error",
    "name",
    "half",
]


def program(seed: int, length: int = 14) -> list[tuple[int, str, int]]:
    """Return steps: which end of the connection makes a call, the name of the call, and a number."""
    draw = Random(seed)
    return [(draw.randrange(2), draw.choice(STEPS), draw.choice([1, 2, 5, 40, 1000])) for _ in range(length)]


def step(network, sock, what, number):
    """Make one call.  Return its result."""
    plain = network.plain(sock)
    call = {
        "send": lambda: plain.send(b"x" * number, 0),
        "recv": lambda: plain.recv(number),
        "peek": lambda: plain.recv(number, socket.MSG_PEEK),
        "finish": lambda: sock.shutdown(socket.SHUT_WR),
        "half": lambda: sock.shutdown(socket.SHUT_RD),
        "shut": lambda: sock.shutdown(socket.SHUT_RDWR),
        "close": lambda: network.close(sock),
        "reset": lambda: (network.reset_on_close(sock), network.close(sock))[0],
        "error": lambda: errno.errorcode[network.take_error(sock).errno],
        "name": lambda: bool(sock.getpeername()),
    }[what]
    return result_of(call)


def run(family, steps, patience=2.0):
    """Run *steps* on the kernel and in the simulation.  Return the first difference, or None."""
    real, world = Network(), World()
    simulated = world.internet.add_host("host")
    pairs = [make_pair(real, family, lambda f, *a: f(*a)), make_pair(simulated, family, world.call)]
    done = []
    try:
        for which, what, number in steps:
            if pairs[0][which].fileno() == -1:
                continue
            results = [
                step(network, pair[which], what, number) for network, pair in zip((real, simulated), pairs, strict=True)
            ]
            world.settle()
            done.append((which, what, number, results[0]))
            if results[0] != results[1]:
                return done, results
            for index in range(2):
                expected = snapshot(simulated, pairs[1][index])
                with gevent.Timeout(patience, False):
                    while snapshot(real, pairs[0][index]) != expected:
                        gevent.sleep(0.001)
                found = snapshot(real, pairs[0][index])
                if found != expected:
                    return done, index, found, expected
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()
    return None
