"""Random lives of connections in a simulation, generated from seeds, and rules that each life must keep.

Each side has a script, and a handler with its own behavior: it waits, computes, answers or pauses.  Both sides send
numbered bytes, so that the test detects each byte that is lost, doubled or out of order.  This file relies only on the
contract, and not on the implementation of connections.

``python tests/lives.py 0 1000`` runs a thousand lives, and stops at the first that breaks a rule.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

import gevent

import ngi_gevent
from ngi_gevent import adapters
from ngi_gevent.core.output import HIGH_WATER
from ngi_gevent.testing.simulation import Host, Simulation

#: Test data that does not repeat within a piece.
PATTERN = bytes(number * 7 % 251 for number in range(251 * 800))

#: The longest piece that a script writes, in bytes, and seconds in which every connection must end.
MOST, PATIENCE = 150_000, 400

#: Bytes that the network accepts for a peer that does not read.  One more byte stays pending.
FULL = 262_144


class Broken(AssertionError):
    """A rule is broken."""


def check(is_so: object, rule: str) -> None:
    if not is_so:
        raise Broken(rule)


def numbered(start: int, size: int) -> bytes:
    start %= 251
    return PATTERN[start : start + size]


class Records(adapters.Base):
    """Delivers input in records of up to 4,000 bytes."""

    def handle_input(self, connection: Any, data: bytes) -> None:
        self.deliver(data[start : start + 4000] for start in range(0, len(data), 4000))


class Side:
    """One side of a connection: its handler, and its script."""

    def __init__(self, life: Life, name: str, random: Random) -> None:
        self.life = life
        self.name = name
        self.random = random
        self.peer: Side
        self.connection: Any = None
        self.paused = 0  # how often this side paused reading
        self.since = 0.0  # when the connection was made
        self.iterables = 0  # iterables that are not exhausted
        self.sent = self.received = 0
        self.own_end = ""  # the call by which this side ended the connection
        self.reason: Any = None
        self.inside = False  # whether a callback runs
        self.has_eof = False
        self.writes_unasked = random.random() < 0.6
        self.answers = random.choice([0, 0, 1, 3, 6])
        self.waits = random.choice([0, 0, 0, 0.01, 0.3])
        self.computes = random.choice([0, 0, 0.001, 0.007])  # 0.007 is longer than a turn of the loop
        self.pauses = random.choice([0, 0, 1, 2])
        self.keeps_half_open = random.random() < 0.3
        if self.keeps_half_open:
            self.handle_eof = self._handle_eof

    # The handler.

    def enter(self) -> None:
        check(not self.inside, f"{self.name}: two callbacks at once")
        check(not self.own_end or self.own_end == "eof", f"{self.name}: a callback after its own {self.own_end}")
        check(self.reason is None, f"{self.name}: a callback after handle_close")
        self.inside = True

    def connected(self, connection: Any) -> None:
        self.connection = connection
        self.since = self.life.simulation.now()
        self.life.count += 1
        connection.set_handler(self)
        gevent.spawn(self.life.watched, self.play)

    def failed_connect(self, reason: object) -> None:
        raise Broken(f"{self.name}: no connection: {reason}")

    def handle_input(self, connection: Any, data: bytes) -> None:
        self.enter()
        try:
            check(connection is self.connection, f"{self.name}: another connection")
            check(data == numbered(self.received, len(data)), f"{self.name}: wrong bytes at {self.received}")
            self.received += len(data)
            if self.waits:
                gevent.sleep(self.waits * self.random.random() * len(data) / 65536)
            if self.computes:
                self.life.simulation.compute(self.computes)
            if self.pauses > self.paused and self.random.random() < 0.2 and connection:
                self.paused += 1
                connection.pause_reading()
                gevent.spawn_later(self.random.random() * 8, connection.resume_reading)
            if self.answers:
                self.write(self.random.randrange(self.answers * len(data) + 1))
                if not self.writes_unasked:
                    most = 2 * (HIGH_WATER + self.answers * 65536)
                    check(connection.output_pending <= most, f"{self.name}: {connection.output_pending} bytes pend")
        except ngi_gevent.ConnectionClosed:
            # If the handler raised this, the connection would end before the rest of its input is delivered.
            check(not connection, f"{self.name}: an open connection refuses a write")
        finally:
            self.inside = False

    def _handle_eof(self, connection: Any) -> None:
        self.enter()
        try:
            check(not self.has_eof, f"{self.name}: handle_eof twice")
            check(connection.input_ended, f"{self.name}: handle_eof before the end of input")
            self.has_eof = True
            gevent.spawn_later(self.random.random() * 5, self.finish)
        finally:
            self.inside = False

    def handle_close(self, connection: Any, reason: Any) -> None:
        self.enter()
        self.inside = False
        check(not connection, f"{self.name}: true in handle_close")
        self.reason = reason

    # The script.

    def write(self, size: int) -> None:
        if self.own_end or not self.connection:
            return
        for start in range(0, size, MOST):
            data = numbered(self.sent, min(MOST, size - start))
            self.connection.write(data)
            self.sent += len(data)

    def write_slowly(self, sizes: list[int]) -> None:
        """Write an iterable that waits between its pieces.  Output that is written later follows it."""
        pieces = []
        for size in sizes:
            pieces.append(numbered(self.sent, size))
            self.sent += size

        def slowly() -> Iterator[bytes]:
            for piece in pieces:
                if self.random.random() < 0.3:
                    gevent.sleep(self.random.random())
                yield piece
            self.iterables -= 1

        self.iterables += 1
        self.connection.writelines(slowly())

    def play(self) -> None:
        random = self.random
        try:
            for _ in range(random.randrange(6)):
                if self.own_end or not self.connection:
                    break
                step = random.choice(["write", "write", "drain", "lines", "sleep", "burst"])
                if not self.writes_unasked and step != "sleep":
                    continue
                if step == "write":
                    self.write(random.choice([1, 10, 1000, 70_000, MOST]))
                elif step == "burst":
                    for _ in range(random.randrange(40)):
                        self.write(random.choice([1, 100, 3000]))
                elif step == "drain":
                    self.drain()
                elif step == "lines":
                    self.write_slowly([random.choice([1, 50, 40_000]) for _ in range(4)])
                else:
                    gevent.sleep(random.random() * 4)
        except ngi_gevent.ConnectionClosed:
            check(not self.connection, f"{self.name}: an open connection refuses a call")
        gevent.sleep(random.random() * 2)
        self.end()

    def drain(self) -> None:
        below, began = self.random.choice([1, 1000, 5000]), self.life.simulation.now()
        adds = self.answers or self.iterables  # more output can become pending before this greenlet continues
        if self.random.random() < 0.5:
            self.write(FULL)
            self.write(below)
        try:
            self.connection.drain(300, below=below)
        except ngi_gevent.Timeout:
            # The server may not have accepted the connection in this time.
            check(self.peer.connection is None or self.peer.since > began, f"{self.name}: drain did not end")
            return
        if self.connection and not adds:
            check(self.connection.output_pending < below, f"{self.name}: drain returned with too much pending")

    def end(self) -> None:
        how = self.random.choice(["close", "close", "close", "abort", "eof", ""])
        if not self.connection or self.own_end or (how == "" and self.name == "client"):
            how = how or "close"
        if not self.connection or not how:
            return
        if how == "eof":
            self.own_end = "eof"
            self.connection.write_eof()
            gevent.sleep(60)
            how = "close"
            if not self.connection:
                return
        self.own_end = how
        getattr(self.connection, how)()

    def finish(self) -> None:
        """Close this side if the peer has finished."""
        if self.connection and self.own_end == "":
            self.own_end = "close"
            self.connection.close()

    def check_end(self) -> None:
        """Check all that has arrived, after the life is over."""
        peer, name = self.peer, self.name
        check(self.connection is not None, f"{name}: never connected")
        check(not self.connection, f"{name}: still open")
        check(not self.inside, f"{name}: still in a callback")
        check(self.received <= peer.sent, f"{name}: more than was sent")
        if self.own_end in ("", "eof") and peer.own_end in ("close", "eof"):
            # This side has only received, and the peer has closed gracefully.  Input can be lost in two cases: if
            # output fails while reading is paused, or if the closed peer cannot send anything for half a minute.
            if abs(self.since - peer.since) > 20:
                return
            if not (self.pauses and self.sent):
                check(self.received == peer.sent, f"{name}: {peer.sent - self.received} of {peer.sent} bytes were lost")
            if not self.has_eof:
                is_in_order = self.reason == "end of input" or (self.sent and isinstance(self.reason, OSError))
                check(is_in_order, f"{name}: ended by {self.reason!r}")
        elif self.own_end == "":
            check(self.reason is not None or self.has_eof, f"{name}: no handle_close")


class Life:
    """One server, and the connections of a few clients."""

    def __init__(self, simulation: Simulation, random: Random) -> None:
        self.simulation = simulation
        self.random = random
        self.broken: list[BaseException] = []
        self.count = 0  # sides that are connected
        self.sides: list[Side] = []
        self._clients: dict[Any, Side] = {}

    def watched(self, function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except Broken as error:
            self.broken.append(error)

    def serve(self, connection: Any) -> None:
        side = self._clients[connection.peer_address[1]]
        side.connected(connection)

    def connect(self, host: Host, address: Any, number: int) -> None:
        client = Side(self, "client", Random(self.random.random()))
        server = Side(self, "server", Random(self.random.random()))
        client.peer, server.peer = server, client
        # If both sides answered with more bytes than they receive, each would wait until the other reads: a deadlock.
        self.random.choice([client, server]).answers = 0
        self.sides += [client, server]
        port = 10_000 + number
        self._clients[port] = server
        timeout = self.random.choice([10, 20])
        host.connect(address, client, local_address=("", port), timeout=timeout)

    def run(self) -> None:
        simulation, random = self.simulation, self.random
        server = simulation.host("server")
        options: dict[str, Any] = {"max_connections": random.choice([1, 2, 100])}
        adapter: Any = random.choice([adapters.Base, Records, None, None])
        listener = server.listener(
            ("server", 80), lambda connection: self.serve(adapter(connection) if adapter else connection), **options
        )
        clients = [simulation.host(f"client{number}") for number in range(1 + random.randrange(2))]
        for client in clients:
            bandwidth = random.choice([None, None, 50_000, 1_000_000])
            simulation.link(client, server).set(
                latency=random.choice([0.0001, 0.001, 0.05]), jitter=random.random() / 20, bandwidth=bandwidth
            )
        for number in range(1 + random.randrange(4)):
            # Clients connect one at a time.  Otherwise two connection attempts of one client could both reach the
            # server, which identifies clients by their ports.
            self.connect(random.choice(clients), (server.addresses[0], 80), number)
            if random.random() < 0.5:
                gevent.sleep(random.random())
        until = simulation.now() + PATIENCE
        while simulation.now() < until and any(side.connection is None or side.connection for side in self.sides):
            gevent.sleep(5)
        gevent.sleep(100)
        for error in (*self.broken, *simulation.raised):
            simulation.raised.clear()
            raise error
        for side in self.sides:
            side.check_end()
        check(list(listener.connections()) == [], "connections are listed that have ended")
        listener.close()
        for host in (server, *clients):
            try:
                host.wait(100)
            except ngi_gevent.Timeout as error:
                raise Broken(str(error)) from None


def live(seed: int) -> None:
    """Run the life of *seed*.  Raise ``Broken`` if it breaks a rule."""
    with Simulation(seed) as simulation:
        Life(simulation, Random(seed)).run()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    for seed in range(*map(int, sys.argv[1:3])):
        try:
            live(seed)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            print(seed, f"{type(error).__name__}: {error}".partition("\n")[0], flush=True)
            if len(sys.argv) < 4:
                sys.exit(1)
