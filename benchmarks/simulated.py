"""Works in the simulation, for ``in_memory``: how much fits into a real second.

* ``simulated-seconds`` runs virtual seconds in which ten clients, each on its own host, send a line to a server and get
  it back.
* ``simulated-resets`` runs conversations of one line each, which the client ends with a reset.
* ``simulated-races`` runs simulations, each with its own seed, in which two clients increment a number.
* ``simulated-memory`` counts the MiB by which the process grows for a number of conversations, as in
  ``simulated-resets``.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import gevent

from benchmarks.servers.ngi import Echo
from ngi_gevent import adapters, testing
from ngi_gevent.testing.simulation import Simulation

ADDRESS = ("server", 8000)

#: Conversations before memory is measured, so that one-time allocations do not count.
FIRST = 1_000


class Heart(testing.Recorder):
    """A client that sends a line each second, and counts its input."""

    beats = 0

    def connected(self, connection: Any) -> None:
        connection.set_handler(self)
        gevent.spawn(self.beat, connection)

    def beat(self, connection: Any) -> None:
        while connection:
            connection.write(b"beat\n")
            gevent.sleep(1)

    def handle_input(self, connection: Any, data: bytes) -> None:
        self.beats += data.count(b"\n")


def seconds() -> Iterator[int]:
    """Yield the simulated seconds, after each ten."""
    with Simulation(1) as simulation:
        simulation.host("server").listener(ADDRESS, Echo)
        hearts = [Heart() for _ in range(10)]
        for number, heart in enumerate(hearts):
            simulation.host(f"client{number}").connect(ADDRESS, heart)
        count = 0
        while True:
            gevent.sleep(10)
            count += 10
            if any(abs(heart.beats - count) > 1 for heart in hearts):
                raise AssertionError(f"{[heart.beats for heart in hearts]} beats in {count} seconds")
            yield count


def resets() -> Iterator[int]:
    """Yield the number of conversations, after each ten."""
    with Simulation(1, max_turns=1 << 60) as simulation:
        simulation.host("server").listener(ADDRESS, Echo)
        client, count = simulation.host("client"), 0
        while True:
            for _ in range(10):
                recorder = testing.Recorder()
                client.connect(ADDRESS, recorder)
                connection = recorder.wait_connected()
                connection.write(b"hello\n")
                recorder.expect(b"hello\n")
                connection.abort()
            count += 10
            yield count


class Register:
    """A server for a number: ``?`` returns it, and digits set it."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, connection: Any) -> None:
        adapters.Lines(connection).set_handler(self)

    def handle_input(self, connection: Any, line: bytes) -> None:
        if line == b"?":
            connection.write(b"%d\n" % self.number)
        else:
            self.number = int(line)


def add_one(host: Any, delay: float) -> None:
    """After *delay* seconds, read the number, and write one more. Another client can do the same in between."""
    gevent.sleep(delay)
    recorder = testing.Recorder()
    host.connect(ADDRESS, recorder)
    connection = recorder.wait_connected()
    connection.write(b"?\n")
    recorder.wait_until(lambda: recorder.data)
    connection.write(b"%d\n" % (int(recorder.data) + 1))
    connection.close()


def races() -> Iterator[int]:
    """Yield the number of seeds that were tried, after each."""
    seed = lost = 0
    while True:
        seed += 1
        with Simulation(seed) as simulation:
            register = Register()
            simulation.host("server").listener(ADDRESS, register)
            for name in "one", "other":
                client = simulation.host(name)
                client.spawn(add_one, client, simulation.random.random() / 50)
            gevent.sleep(1)
            lost += register.number == 1
        if seed >= 20 and not lost:
            raise AssertionError(f"no update was lost under {seed} seeds")
        yield seed


def resident() -> int:
    """Return the bytes of memory that this process uses."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(conversations: int) -> dict[str, float]:
    """Return by how many MiB the process grows for that many *conversations*."""
    before = 0
    for count in resets():
        if count == FIRST:
            gc.collect()
            before = resident()
        elif count >= FIRST + conversations:
            break
    gc.collect()
    return {"MiB": max(0.0, (resident() - before) / (1 << 20))}
