"""Random programs in simulations, generated from seeds: their greenlets use the network in many ways while it fails.

``python tests/simulated_programs.py 0 20`` prints the digests of the first twenty programs.
"""

from __future__ import annotations

import logging
import ssl
import sys
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import gevent
import trustme
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool
from gevent.queue import Empty, Queue

import ngi_gevent
from ngi_gevent import adapters, blocking, generator, testing
from ngi_gevent.message import message
from ngi_gevent.relay import relay
from ngi_gevent.testing.simulation import Host, Simulation

ECHO, FILES, TLS, GENERATOR, PROXY, DATAGRAMS = 80, 81, 443, 82, 83, 90

#: Names of key exchanges whose messages have a constant size, unlike those on elliptic curves.
AUTHORITY = trustme.CA(key_type=trustme.KeyType.RSA)
SERVER_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
AUTHORITY.issue_cert("localhost", key_type=trustme.KeyType.RSA).configure_cert(SERVER_CONTEXT)
CLIENT_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
AUTHORITY.configure_trust(CLIENT_CONTEXT)

#: Errors that programs can get while hosts crash and links are cut.
EXPECTED = (ngi_gevent.NGIError, AssertionError, OSError)


class Echo:
    """Sends lines back, some of them late, or in an iterable."""

    def __init__(self, connection: Any) -> None:
        adapters.Lines(connection).set_handler(self)

    def handle_input(self, connection: Any, line: bytes) -> None:
        connection.write(line + b"\n")
        if line == b"wait":
            gevent.sleep(1)
        elif line == b"lines":
            connection.writelines(slowly())
        elif line == b"close":
            connection.close()
        elif line == b"eof":
            connection.write_eof()

    def handle_close(self, connection: Any, reason: object) -> None:
        gevent.sleep(0.01)


def slowly() -> Iterator[bytes]:
    """Yield a few lines, with pauses between them."""
    for number in range(5):
        gevent.sleep(0.1)
        yield b"%d\n" % number


@blocking.server
def files(input: Any, output: Any) -> None:
    for line in input:
        output.write(line)
        output.flush()


@generator.handler(connection_adapter=adapters.Sized)
def sized(connection: Any) -> Any:
    while True:
        connection.write((yield))


def start(host: Host) -> None:
    """Start the listeners of a host: the host's start function."""
    host.listener((host.name, ECHO), Echo)
    host.listener((host.name, FILES), files, max_connections=3)
    host.listener((host.name, GENERATOR), sized)
    host.listener((host.name, TLS), Echo, ssl_context=SERVER_CONTEXT, handshake_timeout=2)
    host.listener((host.name, PROXY), lambda client: gevent.spawn(forward, host, client))
    host.listener(f"/run/{host.name}", Echo)
    host.udp_listener((host.name, DATAGRAMS), lambda address, data: host.udp(address, b"answer"))


def forward(host: Host, client: Any) -> None:
    """Connect a client to the echo server of this host, as a proxy does."""
    try:
        relay(client, blocking.connect((host.name, ECHO), host.connect, timeout=1)).wait(3)
    except EXPECTED:
        client.abort()


def act(host: Host, names: list[str], random: Random) -> None:
    """Use other hosts until this one crashes or the simulation ends: the body of a greenlet."""
    while True:
        try:
            random.choice([talk, ask, send, pause, work])(host, random.choice(names), random)
        except EXPECTED:
            gevent.sleep(0.05)


def talk(host: Host, name: str, random: Random) -> None:
    """Exchange lines with a server, and end the connection in one of several ways."""
    recorder = testing.Recorder()
    port = random.choice([ECHO, FILES, TLS, PROXY])
    options: dict[str, Any] = {"timeout": 3, "idle_timeout": random.choice([None, 2])}
    if port == TLS:
        options |= {"ssl_context": CLIENT_CONTEXT, "server_hostname": "localhost"}
    address: Any = f"/run/{host.name}" if random.random() < 0.1 else (name, port)
    if not isinstance(address, tuple):
        options = {}
    host.connect(address, recorder, **options)
    connection = recorder.wait_connected(10)
    for _ in range(random.randrange(4)):
        lines = [b"hi\n", b"wait\n", b"lines\n", b"close\n", b"eof\n", b"x" * 100_000 + b"\n"]
        connection.write(random.choice(lines))
        gevent.sleep(random.random())
    random.choice([connection.close, connection.abort, lambda: recorder.wait_closed(5)])()


def ask(host: Host, name: str, random: Random) -> None:
    """Make a request, and wait for the answer."""
    sized_message = (5).to_bytes(4, "big") + b"hello"
    message(host.connect, (name, GENERATOR), sized_message, lambda data: len(data) >= 9, timeout=2)


def send(host: Host, name: str, random: Random) -> None:
    """Send a few datagrams."""
    for _ in range(random.randrange(5)):
        host.udp((name, DATAGRAMS), b"question")


def pause(host: Host, name: str, random: Random) -> None:
    """Sleep for a while."""
    with gevent.Timeout(random.random(), False):
        gevent.sleep(random.random() * 3)


def work(host: Host, name: str, random: Random) -> None:
    """Spawn greenlets that wait for each other."""
    queue: Queue[int] = Queue(1)
    lock, pool = BoundedSemaphore(1), Pool(2)

    def produce(number: int) -> None:
        with lock:
            gevent.sleep(0.01 * number)
        queue.put(number)

    def consume() -> None:
        with suppress(Empty):
            queue.get(timeout=1)

    for number in range(3):
        pool.spawn(produce, number)
        gevent.spawn(consume).join()
    pool.join(timeout=2)


def disturb(simulation: Simulation, hosts: list[Host], random: Random) -> None:
    """Change hosts or links at random."""
    one, other = random.sample(hosts, 2)
    choice = random.randrange(8)
    if choice == 0:
        simulation.partition(one, other, both=random.random() < 0.5)
    elif choice == 1:
        simulation.heal(one, other)
    elif choice == 2:
        one.crash(silent=random.random() < 0.5)
    elif choice == 3 and not one.is_up:
        one.restart()
        one.spawn(act, one, [host.name for host in hosts], Random(random.random()))
    elif choice == 4 and one.is_up:
        one.pause(random.random() * 5)
    elif choice == 5:
        bandwidth = random.choice([1e5, float("inf")])
        simulation.link(one, other).set(loss=0.3, duplicates=0.3, reorder=0.3, bandwidth=bandwidth)
    elif choice == 6:
        simulation.compute(0.3)


def run_program(seed: int, steps: int = 12) -> str:
    """Run the program of *seed*, with *steps* changes to the network.  Return the digest."""
    random = Random(seed)
    with Simulation(seed) as simulation:
        hosts = [simulation.host(f"host{number}", start) for number in range(3)]
        names = [host.name for host in hosts]
        for host in hosts:
            for _ in range(2):
                host.spawn(act, host, names, Random(random.random()))
        for _ in range(steps):
            gevent.sleep(random.random() * 2)
            disturb(simulation, hosts, random)
        return simulation.digest


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    for seed in range(*map(int, sys.argv[1:])):
        print(run_program(seed))
