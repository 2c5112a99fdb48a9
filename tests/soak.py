"""A soak: clients use and misuse a server for minutes or hours; afterwards the server must be in its initial state.

    python tests/soak.py --minutes 10 [--tls]

The server is a separate process, with a listener of each kind.  Each round starts a process with clients.  The clients
exchange data, compare every byte, and cause every fault that peers can cause.  At the end of every other round, that
process is killed.  Between rounds, when no connection is left, the server reports its memory, descriptors and
greenlets.  At the end, these numbers must be those after the first round, and no errors must have occurred.  The server
must end gracefully, without output on its standard error.  Under ``python -X dev``, all processes run in that mode.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import trustme

__all__ = ["SoakFailed", "soak"]

#: Idle timeouts in seconds: of the listener for silent clients, and of all others, whose clients may have to wait for
#: the processor.
SILENT_TIMEOUT, IDLE_TIMEOUT = 0.5, 30.0

#: The max_connections of each listener: fewer than there are clients, so that some clients must wait.
MAX_CONNECTIONS = 8

#: The limit of connections per host at the listener that refuses more.
MAX_PER_HOST = 1

#: Seconds of a callback that is reported as slow.
SLOW = 0.05

CLIENTS = 32

#: Bytes by which the server's memory can grow: allocators keep memory, mostly for output that was pulled ahead for each
#: client.
TOLERANCE = CLIENTS * 256 << 10


#: Counts that must not be higher at the end than after the first round.
COUNTED = "descriptors", "greenlets"


class SoakFailed(AssertionError):
    """The server is not in its initial state, or a client did not get its answer."""


# The server.


class Refusal(Exception):
    """An exception that the server raises on request."""


def new_server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


def serve(unix_path: str, *, tls: bool) -> None:
    """Serve until SIGTERM.  On SIGUSR1, print the current figures."""
    import gevent
    from gevent.event import Event
    from greenlet import greenlet

    import ngi_gevent
    from ngi_gevent import Limits, blocking, generator
    from ngi_gevent.adapters import Lines

    class Echo:
        def __init__(self, connection: Any) -> None:
            connection.set_handler(self)

        def handle_input(self, connection: Any, data: bytes) -> None:
            connection.write(data.upper())
            if data.endswith(b"raise\n"):
                raise Refusal

    class EchoLines(Echo):
        def handle_input(self, connection: Any, data: bytes) -> None:
            connection.writelines(iter([data.upper(), b"\n"]))
            if data.endswith(b"raise"):
                raise Refusal

    @blocking.server
    def echo_file(file_in: Any, file_out: Any) -> None:
        for line in file_in:
            file_out.write(line.upper())
            if line.endswith(b"raise\n"):
                raise Refusal

    @generator.handler
    def echo_generator(connection: Any) -> Any:
        while True:
            data = yield
            gevent.sleep(0)  # handlers can block, too
            connection.write(data.upper())
            if data.endswith(b"raise\n"):
                raise Refusal

    class Unexpected(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            expected = record.name == "ngi_gevent.listener" or bool(
                record.exc_info and isinstance(record.exc_info[1], Refusal)
            )
            logged[record.name] += expected
            return not expected

    logged: Counter[str] = Counter()
    logging.basicConfig()
    logging.getLogger().handlers[0].addFilter(Unexpected())
    limits = Limits(max_per_host=2 * CLIENTS, max_handshakes=MAX_CONNECTIONS, max_lifetime=IDLE_TIMEOUT * 4)
    crowd = Limits(max_per_host=MAX_PER_HOST, max_handshakes=4, max_lifetime=SILENT_TIMEOUT)
    common: dict[str, Any] = {"slow_callback": SLOW}
    usual = common | {"max_connections": MAX_CONNECTIONS, "idle_timeout": IDLE_TIMEOUT, "limits": limits}
    encrypted = {"ssl_context": new_server_context()} if tls else {}
    listeners = [
        ngi_gevent.listener(("127.0.0.1", 0), Echo, **usual, **encrypted),
        ngi_gevent.listener(("127.0.0.1", 0), lambda connection: EchoLines(Lines(connection)), **usual, **encrypted),
        ngi_gevent.listener(("127.0.0.1", 0), echo_file, **usual, **encrypted),
        ngi_gevent.listener(unix_path, echo_generator, **usual),
        ngi_gevent.listener(("127.0.0.1", 0), Echo, limits=crowd, **common, **encrypted),
        ngi_gevent.listener(("127.0.0.1", 0), Echo, idle_timeout=SILENT_TIMEOUT, **common, **encrypted),
    ]
    stop = Event()

    def tell() -> None:
        gc.collect()
        with open("/proc/self/statm") as statm:
            memory = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        figures = {
            "connections": sum(len(listener._connections) for listener in listeners),
            "memory": memory,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "greenlets": sum(isinstance(thing, greenlet) for thing in gc.get_objects()),
            "longest turn": max(listener.metrics().longest_turn or 0 for listener in listeners),
            "limited": dict(sum((Counter(listener.metrics().limited) for listener in listeners), Counter())),
            "logged": dict(logged),
        }
        print(json.dumps(figures), flush=True)

    gevent.signal_handler(signal.SIGTERM, stop.set)
    gevent.signal_handler(signal.SIGUSR1, tell)
    print(json.dumps([listener.address for listener in listeners]), flush=True)
    # The first slow turn makes the greenlet of the thread that reports it, once.
    gevent.get_hub().loop.run_callback(lambda: time.sleep(4 * SLOW))
    stop.wait()
    ended = sum(listener.close_wait(1) for listener in listeners)
    sys.exit(ended)


# The clients.


def client_context() -> ssl.SSLContext:
    """Return a context that accepts all certificates: the soak tests only the server."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Clients:
    """Clients on threads that exchange data and misbehave, at random, for *seconds*."""

    def __init__(self, addresses: list[Any], seconds: float, seed: int, *, tls: bool) -> None:
        *self.addresses, self.address_of_the_crowd, self.address_of_the_silent = addresses
        self.context = client_context() if tls else None
        self.until = time.monotonic() + seconds
        self.seed = seed
        self.tally: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run the clients.  Report at intervals, and report each error at once."""
        threads = [threading.Thread(target=self._client, args=[number], daemon=True) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.25)
                with self._lock:
                    print(json.dumps([self.tally, self.wrong]), flush=True)

    def _client(self, number: int) -> None:
        chance = random.Random(self.seed * CLIENTS + number)
        deeds: list[Callable[[socket.socket, random.Random], None]] = [
            *[self.talks] * 5,
            *[self.says_all_and_listens] * 2,
            *(self.says_it_byte_by_byte, self.is_silent, self.asks_for_trouble, self.resets, self.resets),
            *(self.sends_garbage, self.never_reads, self.leaves, self.is_in_a_crowd),
        ]
        special = {self.is_silent: self.address_of_the_silent, self.is_in_a_crowd: self.address_of_the_crowd}
        while time.monotonic() < self.until:
            deed = chance.choice(deeds)
            address = special.get(deed) or chance.choice(self.addresses)
            sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
            sock.settimeout(60)
            with sock:
                try:
                    sock.connect(address if isinstance(address, str) else tuple(address))
                    if self.context is None or sock.family == socket.AF_UNIX or deed == self.sends_garbage:
                        deed(sock, chance)
                    else:
                        self._with_tls(deed, sock, chance, self.context)
                except (OSError, AssertionError) as error:
                    if deed == self.is_in_a_crowd and isinstance(error, OSError):
                        self._count("refused")
                    else:
                        with self._lock:
                            self.wrong.append(f"{deed.__name__} at {address}: {error!r}")
            self._count(deed.__name__)

    def _with_tls(
        self,
        deed: Callable[[socket.socket, random.Random], None],
        sock: socket.socket,
        chance: random.Random,
        context: ssl.SSLContext,
    ) -> None:
        with context.wrap_socket(sock) as encrypted:
            deed(encrypted, chance)

    def _count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.tally[what] += number

    @staticmethod
    def _request(chance: random.Random) -> bytes:
        """Return lines of random lengths, up to 100 kB in all."""
        size = chance.choice([1, 20, 1000, 20_000, 100_000])
        data = bytearray(chance.randbytes(size).hex().encode()[:size])
        for _ in range(size // 1000):
            data[chance.randrange(size)] = 10
        data[-1] = 10
        return bytes(data)

    def _receive(self, sock: socket.socket, expected: bytes) -> None:
        received = bytearray()
        while len(received) < len(expected):
            data = sock.recv(65536)
            assert data, f"the end after {len(received)} of {len(expected)} bytes"
            received += data
        assert received == expected, f"another answer than expected, of {len(received)} bytes"
        self._count("bytes", len(received))

    @staticmethod
    def _reset(sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def talks(self, sock: socket.socket, chance: random.Random) -> None:
        for _ in range(chance.randint(1, 10)):
            request = self._request(chance)
            sock.sendall(request)
            self._receive(sock, request.upper())

    def says_all_and_listens(self, sock: socket.socket, chance: random.Random) -> None:
        request = self._request(chance)
        sock.sendall(request)
        if not isinstance(sock, ssl.SSLSocket):  # the ssl module cannot finish only one direction
            sock.shutdown(socket.SHUT_WR)
        self._receive(sock, request.upper())
        if not isinstance(sock, ssl.SSLSocket):
            assert sock.recv(1) == b"", "more than the answer"

    def says_it_byte_by_byte(self, sock: socket.socket, chance: random.Random) -> None:
        request = self._request(chance)[-20:]
        for byte in request:
            sock.sendall(bytes([byte]))
            time.sleep(0.01)
        self._receive(sock, request.upper())

    def is_silent(self, sock: socket.socket, chance: random.Random) -> None:
        assert sock.recv(1) == b"", "something for nothing"

    def asks_for_trouble(self, sock: socket.socket, chance: random.Random) -> None:
        sock.sendall(b"raise\n")
        self._receive(sock, b"RAISE\n")
        assert sock.recv(1) == b"", "more than the answer"

    def resets(self, sock: socket.socket, chance: random.Random) -> None:
        sock.sendall(self._request(chance))
        if chance.random() < 0.5:
            sock.recv(chance.choice([1, 1000]))
        self._reset(sock)

    def sends_garbage(self, sock: socket.socket, chance: random.Random) -> None:
        try:
            sock.sendall(chance.randbytes(chance.choice([1, 1000, 200_000])))
            sock.settimeout(0.1)
            sock.recv(1000)
        except OSError:
            pass  # the server can refuse this request

    def never_reads(self, sock: socket.socket, chance: random.Random) -> None:
        sock.settimeout(0.2)
        try:
            for _ in range(200):
                sock.sendall(self._request(chance))
        except OSError:
            time.sleep(chance.random())

    def is_in_a_crowd(self, sock: socket.socket, chance: random.Random) -> None:
        sock.sendall(b"hello\n")
        received = sock.recv(100)
        while len(received) < 6 and (data := sock.recv(100)):
            received += data
        assert received in (b"", b"HELLO\n"), f"{received!r}"
        self._count("served in a crowd")
        time.sleep(chance.random())  # other clients connect during this time

    def leaves(self, sock: socket.socket, chance: random.Random) -> None:
        pass


# Server and clients.


def soak(seconds: float, rounds: int, *, dev: bool = False, tls: bool = False) -> dict[str, Any]:
    """Soak a server for *seconds*, in *rounds* rounds.  Return the report, or raise :class:`SoakFailed`."""
    flags = ["-X", "dev", "-W", "error"] if dev else ["-W", "error"]
    script = [sys.executable, *flags, __file__, *(["--tls"] if tls else [])]
    told: list[dict[str, Any]] = []
    tally: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w+") as errors:
        server = subprocess.Popen(
            [*script, "--serve", f"{directory}/socket"], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert server.stdout is not None
            addresses = server.stdout.readline()
            for number in range(rounds):
                _run_clients([*script, "--clients", addresses], seconds / rounds, number, tally)
                told.append(_told_by(server))
                print(told[-1], flush=True)
            server.terminate()
            code = server.wait(60)
            errors.seek(0)
            _check(told, code, errors.read())
        finally:
            server.kill()
            server.communicate()
    return {"first": told[0], "last": told[-1], "done": dict(tally)}


def _run_clients(command: list[str], seconds: float, number: int, tally: Counter[str]) -> None:
    killed = number % 2 == 1
    clients = subprocess.Popen(
        [*command, "--seconds", str(seconds * (2 if killed else 1)), "--seed", str(number)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if killed:
            time.sleep(seconds)
            clients.kill()
        output, _ = clients.communicate(timeout=seconds + 120)
    finally:
        clients.kill()
        clients.communicate()
    last = [line for line in output.split("\n")[:-1] if line][-1]
    done, wrong = json.loads(last)
    tally.update(done)
    if wrong:
        raise SoakFailed("\n".join(wrong[:20]))
    if clients.returncode != (-signal.SIGKILL if killed else 0):
        raise SoakFailed(f"the clients ended with {clients.returncode}")


def _told_by(server: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the server's figures after its last connection is gone, and its descriptors and greenlets no longer
    change.
    """
    assert server.stdout is not None
    deadline = time.monotonic() + 60
    before: dict[str, Any] = {}
    while time.monotonic() < deadline:
        server.send_signal(signal.SIGUSR1)
        figures: dict[str, Any] = json.loads(server.stdout.readline())
        if not figures["connections"] and [before.get(what) for what in COUNTED] == [figures[what] for what in COUNTED]:
            return figures
        before = figures
        time.sleep(0.3)
    raise SoakFailed(f"there is something left: {before}")


def _check(told: list[dict[str, Any]], code: int, errors: str) -> None:
    first, last = told[0], told[-1]
    for what in COUNTED:
        if last[what] > first[what]:
            raise SoakFailed(f"{what}: {first[what]} after the first round, {last[what]} after the last")
    if last["memory"] > first["memory"] + TOLERANCE:
        raise SoakFailed(f"memory: {first['memory']} after the first round, {last['memory']} after the last")
    if code or errors:
        raise SoakFailed(f"the server ended with {code}, saying: {errors[:10_000]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--tls", action="store_true", help="with TLS on the TCP listeners")
    for internal in "--serve", "--clients", "--seconds", "--seed":
        parser.add_argument(internal, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, tls=options.tls)
    elif options.clients:
        Clients(json.loads(options.clients), float(options.seconds), int(options.seed), tls=options.tls).run()
    else:
        rounds = max(2, round(options.minutes))
        print(json.dumps(soak(options.minutes * 60, rounds, dev=sys.flags.dev_mode, tls=options.tls), indent=4))


if __name__ == "__main__":
    main()
