"""Limits of listeners on sockets: the number of connections, how long they can be idle, and the system's own limits."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from certificates import client_context
from gevent.event import Event
from stages import Witness

import ngi_gevent
from ngi_gevent import blocking
from ngi_gevent.core import clock
from ngi_gevent.sockets import acceptor
from ngi_gevent.sockets.network import Network
from ngi_gevent.testing.simulation.stream_sockets import StreamSocket
from ngi_gevent.testing.simulation.streams import RECEIVE_BUFFER, SEND_BUFFER


class Echo(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


def plain_client(address: Any, data: bytes = b"") -> socket.socket:
    """Return a blocking socket that the kernel has connected.  If there is *data*, it has been sent, and the output has
    ended.
    """
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    client = socket.socket(family)
    client.settimeout(20)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    if data:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
    return client


def answer(client: socket.socket, secure: bytes | None = None) -> bytes:
    """Return all input that *client* receives, over TLS if *secure* is given.  The hub runs until then."""
    return gevent.get_hub().threadpool.apply(_read_all, [client, secure])  # type: ignore[no-any-return]


def _read_all(client: socket.socket, secure: bytes | None) -> bytes:
    if secure is not None:
        with client_context().wrap_socket(client, server_hostname="localhost") as tls_client:
            tls_client.sendall(secure)
            return tls_client.recv(65536)
    with client:
        pieces = []
        while piece := client.recv(65536):
            pieces.append(piece)
        return b"".join(pieces)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "ngi_gevent.listener"]


# max_connections.


def test_a_pause_is_two_log_entries_however_many_clients_come_and_go(simulated, caplog):
    listener = simulated.listen(Echo, max_connections=2)
    clients = [simulated.client(listener)]
    assert lines(caplog) == []
    for _ in range(40):  # each client waits until the one before the last has gone
        clients.append(simulated.client(listener))
        clients[-1].connection.write(b"?")
        clients[-2].connection.abort()
        simulated.until(lambda: clients[-1].data)
    clients += [simulated.client(listener), simulated.client(listener)]  # the last client must wait
    gevent.sleep(5.2 * acceptor.QUIET)  # while the listener is full, the pause continues
    for client in clients:
        client.connection.abort()
    clients = [simulated.client(listener) for _ in range(3)]  # for a moment, the listener is full again
    for client in clients:
        client.connection.abort()
    gevent.sleep(acceptor.QUIET)
    (begin,) = lines(caplog)
    assert begin == f"listener on {listener.address!r} paused, and new clients wait: max_connections=2 reached"
    gevent.sleep(acceptor.QUIET)
    assert lines(caplog)[1:] == [f"listener on {listener.address!r} accepts connections again"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_waiting_is_not_a_deadlock_while_the_listener_is_full(tcp):
    class Silent(Witness):
        def connected(self, connection):
            self.meet(connection)  # the server sets no handler, so nothing is watched any more

    listener = tcp.listen(Silent, max_connections=1)
    with plain_client(listener.address):
        tcp.until(lambda: tcp.served)
        with plain_client(listener.address), pytest.raises(gevent.Timeout), gevent.Timeout(0.05, ref=False):
            Event().wait()


@pytest.mark.parametrize("close", ["close_wait", "close with a handler"])
def test_clients_that_connected_before_the_close_are_served(socket_stage, close):
    if not socket_stage.has_threads:
        pytest.skip("a simulation has no plain sockets")
    listener = socket_stage.listen(Echo)
    secure = b"hello" if socket_stage.name == "tls" else None
    clients = [plain_client(listener.address, b"" if secure else b"hello") for _ in range(20)]
    gone = []
    if close == "close_wait":
        closing = gevent.spawn(listener.close_wait, 20)
    else:
        closing = gevent.spawn(listener.close, lambda listener: (gone.append(listener), socket_stage.happened()))
    assert [answer(client, secure) for client in clients] == [b"HELLO"] * 20
    assert closing.get(timeout=20) == (0 if close == "close_wait" else None)
    if close != "close_wait":
        socket_stage.until(lambda: gone)


def test_clients_that_connected_before_the_close_are_served_up_to_max_connections(tcp):
    listener = tcp.listen(Echo, max_connections=3)
    clients = [plain_client(listener.address, b"hello") for _ in range(5)]
    closing = gevent.spawn(listener.close_wait, 20)
    assert [answer(client) for client in clients[:3]] == [b"HELLO"] * 3
    for client in clients[3:]:
        with pytest.raises(ConnectionResetError):
            answer(client)
    assert closing.get(timeout=20) == 0


def test_close_resets_connections_that_were_not_accepted(tcp):
    listener = tcp.listen(Echo)
    clients = [plain_client(listener.address) for _ in range(5)]
    listener.close()
    for client in clients:
        with pytest.raises(ConnectionResetError):
            answer(client)
    assert tcp.served == []


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_a_connection_stopped_before_its_server_is_called_is_not_served(request, kind, caplog):
    stage = request.getfixturevalue(kind)
    listener = stage.listen(Echo)
    clients = [plain_client(listener.address) for _ in range(5)]
    gone = []
    listener.close(lambda listener: (gone.append(listener), stage.happened()))
    listener.close()
    assert [answer(client) for client in clients] == [b""] * 5
    stage.until(lambda: gone)
    assert (stage.served, caplog.records) == ([], [])


# idle_timeout.


def talk_to_idle(stage, server, seconds=30, first=b""):
    """Return a peer that sends *first* and nothing more, and the server's witness of its connection."""
    peer = stage.peer(stage.listen(server, idle_timeout=seconds))
    if first:
        peer.send(first)
    peer.read()
    stage.until(lambda: stage.served)
    return peer, stage.served[0]


@pytest.fixture
def since(simulated):
    """A function that returns the virtual seconds since a moment."""
    return lambda began: simulated.simulation.now() - began


def test_a_silent_connection_is_closed_with_its_reason(socket_stage):
    class Greet(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"hello")

    began = clock.now()
    peer, served = talk_to_idle(socket_stage, Greet, 0.03)
    socket_stage.until(lambda: served.closed and peer.ended)
    assert 0.025 < clock.now() - began < 5
    assert isinstance(served.closed, ngi_gevent.Timeout)
    assert "0.03 seconds" in str(served.closed)
    assert "idle_timeout" in str(served.closed)
    assert (served.trace, peer.received, peer.ended) == ([("close", served.closed)], b"hello", "end")


def test_bytes_in_either_direction_keep_a_connection_open(simulated, since):
    began = clock.now()
    peers = [talk_to_idle(simulated, Witness)[0], simulated.peer(simulated.listeners[0])]
    simulated.until(lambda: len(simulated.served) == 2)
    for _ in range(10):
        gevent.sleep(29)
        peers[0].send(b"i")
        simulated.served[1].connection.write(b"o")
    simulated.until(lambda: all(served.closed for served in simulated.served))
    assert since(began) == pytest.approx(10 * 29 + 30, abs=0.01)
    assert [len(served.data) for served in simulated.served] == [10, 0]


def test_after_a_stall_no_active_client_is_idle(simulated):
    """A handler blocks the process for longer than the idle timeout.  The other clients' requests arrive during this
    time.
    """

    class Server(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"stall":
                for peer in peers[1:]:
                    peer.socket.sendall(b"request")
                simulated.simulation.compute(35)
            connection.write(b"answer")

    listener = simulated.listen(Server, idle_timeout=30)
    peers = [simulated.peer(listener) for _ in range(3)]
    simulated.until(lambda: len(simulated.served) == 3)
    for peer in peers:
        peer.read()
    peers[0].send(b"stall")
    simulated.until(lambda: all(peer.ended or peer.received for peer in peers))
    assert [peer.received for peer in peers] == [b"answer"] * 3
    simulated.until(lambda: all(served.closed for served in simulated.served))  # now, the clients are idle
    assert {type(served.closed) for served in simulated.served} == {ngi_gevent.Timeout}


def test_a_peer_that_does_not_read_is_idle_although_it_has_sent_more(simulated, since):
    """The server does not read this input until the peer reads some of the output."""

    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.write(bytes(8_000_000))

    began = clock.now()
    peer = simulated.peer(simulated.listen(Answer, idle_timeout=30))
    for _ in range(3):
        peer.send(bytes(300_000))
    simulated.until(lambda: simulated.served and simulated.served[0].closed)
    assert isinstance(simulated.served[0].closed, ngi_gevent.Timeout)
    assert since(began) == pytest.approx(30, abs=0.1)


def test_the_idle_timeout_starts_after_the_handshake(tls):
    def talk():
        with client_context().wrap_socket(client, server_hostname="localhost") as secure:
            secure.sendall(b"hello")
            return secure.recv(5), secure.recv(5)

    listener = tls.listen(Echo, idle_timeout=0.1)
    client = plain_client(listener.address)
    gevent.sleep(0.12)  # only handshake_timeout limits this pause
    assert gevent.get_hub().threadpool.apply(talk) == (b"HELLO", b"")
    tls.until(lambda: tls.served[0].closed)
    assert isinstance(tls.served[0].closed, ngi_gevent.Timeout)


class Slow(Witness):
    """Blocks in handle_input until the test releases it."""

    def __init__(self, stage, connection=None):
        self.release = Event()
        super().__init__(stage, connection)

    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        self.release.wait()


def test_a_connection_with_a_slow_handler_is_not_idle(simulated, since):
    _, served = talk_to_idle(simulated, Slow, first=b"x")
    gevent.sleep(100)
    assert served.data
    assert served.connection
    released = clock.now()
    served.release.set()
    simulated.until(lambda: served.closed)
    assert isinstance(served.closed, ngi_gevent.Timeout)
    assert 25 < since(released) < 35  # the peer's time starts when its turn comes


def test_a_connection_with_a_slow_iterator_is_not_idle(simulated):
    def lines():
        yield b"first "
        gevent.sleep(100)
        yield b"last"

    peer, served = talk_to_idle(simulated, Witness)
    served.connection.writelines(lines())
    gevent.sleep(99)
    assert served.connection
    simulated.until(lambda: served.closed and peer.ended)
    assert isinstance(served.closed, ngi_gevent.Timeout)
    assert peer.received == b"first last"


@pytest.mark.parametrize("write", ["write", "writelines", "write in a slow handler"])
def test_a_peer_that_does_not_read_is_idle_and_its_connection_is_reset(simulated, since, write):
    class Answer(Slow):
        def handle_input(self, connection, data):
            if write == "writelines":
                connection.writelines(b"x" * 65536 for _ in range(1000))
            else:
                connection.write(b"x" * 8_000_000)
            if write == "write in a slow handler":
                super().handle_input(connection, data)

    began = clock.now()
    peer = simulated.peer(simulated.listen(Answer, idle_timeout=30))
    peer.send(b"x")
    gevent.sleep(29)
    served = simulated.served[0]
    assert served.connection
    gevent.sleep(2)
    assert not served.connection  # the idle timeout is as long as for a silent peer
    served.release.set()
    simulated.until(lambda: served.closed and served.connection._lifecycle.is_gone())
    assert isinstance(served.closed, ngi_gevent.Timeout)
    assert since(began) < 32
    peer.read()
    simulated.until(lambda: peer.ended)
    assert peer.ended == "broken"


#: Bytes that the kernels of the two hosts accept at once.
SIZE = RECEIVE_BUFFER + SEND_BUFFER


def test_a_peer_that_reads_what_was_sent_long_ago_is_not_idle(simulated):
    class Answer(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(b"x" * SIZE)

    peer = simulated.peer(simulated.listen(Answer, idle_timeout=30)).socket
    for _ in range(2):
        peer.sendall(b"?")
        left = SIZE
        while left:
            piece = peer.recv(min(left, 10_000))
            assert piece
            left -= len(piece)
            if left > RECEIVE_BUFFER:  # otherwise all of it has arrived, and this side may be silent
                gevent.sleep(5)
    assert simulated.served[0].chunks == [b"?", b"?"]


def test_a_closed_connection_is_not_idle_while_its_output_is_delivered(simulated):
    class Answer(Witness):
        def handle_input(self, connection, data):
            connection.write(bytes(12_000_000))
            connection.close()

    received = 0
    peer = simulated.peer(simulated.listen(Answer, idle_timeout=5)).socket
    peer.sendall(b"?")
    gevent.sleep(25)
    while data := peer.recv(65536):
        received += len(data)
    assert received == 12_000_000


@pytest.mark.parametrize("why", ["no handler", "paused", "input has ended"])
def test_a_peer_that_is_not_expected_to_send_or_read_is_not_idle(simulated, why):
    class Quiet(Witness):
        def connected(self, connection):
            self.meet(connection) if why == "no handler" else super().connected(connection)
            if why == "paused":
                connection.pause_reading()

        def handle_eof(self, connection):
            self.stage.happened()

    peer, served = talk_to_idle(simulated, Quiet)
    if why == "input has ended":
        peer.finish()
    gevent.sleep(1000)
    assert served.connection
    if why == "input has ended":
        return
    served.connection.set_handler(served)
    served.connection.resume_reading()
    simulated.until(lambda: served.closed)
    assert isinstance(served.closed, ngi_gevent.Timeout)


def test_an_iterable_that_waits_does_not_excuse_a_peer_that_does_not_read(simulated, since):
    def lines():
        while not served.connection._transport.queued_output():  # the kernel has output that the peer does not read
            yield b"x" * 65536
            gevent.sleep(0.01)
        Event().wait()

    began = clock.now()
    simulated.peer(simulated.listen(idle_timeout=30))
    simulated.until(lambda: simulated.served)
    served = simulated.served[0]
    served.connection.writelines(lines())
    simulated.until(lambda: served.closed)
    assert isinstance(served.closed, ngi_gevent.Timeout)
    assert 30 < since(began) < 31


def test_an_ended_connection_leaves_no_timer(tcp):
    client, served = tcp.talk(idle_timeout=1000)
    connection = weakref.ref(served.connection)
    client.connection.close()
    tcp.until(lambda: connection()._lifecycle.is_gone())
    served.connection = None
    tcp.connections.clear()
    client = served = None
    tcp.served.clear()
    gevent.sleep(0)
    gc.collect()
    assert connection() is None


def test_a_very_short_timeout_takes_effect(simulated):
    simulated.peer(simulated.listen(idle_timeout=1e-7))
    simulated.until(lambda: simulated.served and simulated.served[0].closed)
    assert isinstance(simulated.served[0].closed, ngi_gevent.Timeout)


def test_without_a_timeout_sockets_are_called_directly(tcp):
    client, served = tcp.talk()
    transport = served.connection._transport
    assert transport.recv == transport.socket._sock.recv
    assert transport.send == transport.socket._sock.send


# Exhausted resources of the system.


#: A server that runs out of descriptors at ten connections, until the test allows more.
LIMITED = """
import json, logging, os, resource, signal, sys, time
import gevent, ngi_gevent
from gevent.event import Event
from ngi_gevent import testing
from ngi_gevent.sockets import acceptor

class Echo(testing.Recorder):
    def handle_input(self, connection, data):
        connection.write(data.upper())

def allow(more):
    in_use = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + more, hard))

logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
done = Event()
gevent.signal_handler(signal.SIGTERM, done.set)
gevent.signal_handler(signal.SIGUSR1, resource.setrlimit, resource.RLIMIT_NOFILE, (1000, hard))
options = json.loads(sys.argv[1])
acceptor.LAST_RETRY = options.get("last_retry", acceptor.LAST_RETRY)
if "retry" in options:
    acceptor.FIRST_RETRY = acceptor.LAST_RETRY = options["retry"]
listener = ngi_gevent.listener(("127.0.0.1", 0), Echo, linger_timeout=0.05)  # its clients stay
allow(10)
used = -time.process_time()
print(listener.address[1], flush=True)
done.wait()
used += time.process_time()
listener.close()
ngi_gevent.wait(10)
print(used, flush=True)
"""


class Limited:
    """Runs the server ``LIMITED`` in a separate process."""

    def __init__(self, options: dict[str, float]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-c", LIMITED, json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.log: list[str] = []
        self.address = "127.0.0.1", int(self.process.stdout.readline())

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def read_log(self) -> None:
        """Wait for a line in the server's log."""
        self.log.append(self.process.stderr.readline().rstrip("\n"))

    def end(self) -> tuple[float, list[str]]:
        """Stop the server.  Return its processor time while it served, in seconds, and its log lines."""
        self.process.terminate()
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, err
        return float(out), self.log + err.splitlines()


@contextlib.contextmanager
def limited(**options: float) -> Iterator[Limited]:
    server = Limited(options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def is_served(client: socket.socket) -> bool:
    """Return whether *client* gets an answer."""
    client.sendall(b"?")
    return client.recv(1) == b"?"


def out_of_descriptors(server: Limited, clients: contextlib.ExitStack) -> tuple[list[socket.socket], socket.socket]:
    """Connect clients until *server* has no descriptors left.  Return those that are served, and one more that is
    not.
    """
    served = []
    while True:
        client = clients.enter_context(server.connect())
        client.sendall(b"?")
        if client not in select.select([client, server.process.stderr], [], [], 20)[0]:
            server.read_log()
            return served, client
        assert client.recv(1) == b"?"
        served.append(client)


BEGIN = "WARNING ngi_gevent.listener listener on ('127.0.0.1', {}) paused, and new clients wait: Too many open files"
END = "WARNING ngi_gevent.listener listener on ('127.0.0.1', {}) accepts connections again"


def check_recovery(server: Limited, served: list[socket.socket], waiting: socket.socket, seconds: float) -> None:
    """Check that the waiting client is served within *seconds*, and that open connections still work."""
    began = time.monotonic()
    waiting.settimeout(20)
    assert waiting.recv(1) == b"?"
    assert time.monotonic() - began < seconds
    for client in *served, waiting:
        assert is_served(client)
    used, log = server.end()
    assert log[0] == BEGIN.format(server.address[1])
    assert log[1:] in ([], [END.format(server.address[1])])
    assert used < 0.7


def test_out_of_descriptors_until_the_limit_is_raised():
    with limited(last_retry=0.08) as server, contextlib.ExitStack() as clients:
        served, waiting = out_of_descriptors(server, clients)
        assert len(served) in (9, 10)  # another part of the process may use one more
        time.sleep(0.2)  # long enough for several attempts, the last of them 0.08 seconds apart
        for client in served:
            assert is_served(client)
        server.process.send_signal(signal.SIGUSR1)
        check_recovery(server, served, waiting, 1)


def test_out_of_descriptors_until_a_connection_has_ended():
    with limited(retry=30) as server, contextlib.ExitStack() as clients:
        served, waiting = out_of_descriptors(server, clients)
        served.pop().close()
        check_recovery(server, served, waiting, 5)


def test_accepting_resumes_without_waiting_clients_and_two_entries_are_logged(simulated, caplog):
    """The process is out of descriptors for a minute, and the listener tries again at least twice a second."""
    server, clients = simulated.simulation.host("server", max_descriptors=12), []
    address = server.listener(("server", 80), simulated.server(Echo), max_connections=20).address
    for _ in range(12):
        clients.append(Witness(simulated))
        simulated.implementation.connect(address, clients[-1])
        simulated.until(lambda: clients[-1].connection)
        clients[-1].connection.write(b"?")
    gevent.sleep(60)
    assert [len(client.data) for client in clients] == [1] * 10 + [0, 0]
    began = f"listener on {address!r} paused, and new clients wait: Too many open files"
    assert lines(caplog) == [began]
    clients[0].connection.close()
    gevent.sleep(acceptor.LAST_RETRY)
    assert [len(client.data) for client in clients] == [1] * 11 + [0]
    for client in clients:
        client.connection.close()
    gevent.sleep(2 * acceptor.QUIET)
    assert lines(caplog) == [began, f"listener on {address!r} accepts connections again"]
    server.close()


def test_the_default_leaves_descriptors_for_handlers(simulated, caplog):
    server = simulated.simulation.host("server", max_descriptors=400)
    listener = server.listener(("server", 80), simulated.server(Echo))
    clients = [Witness(simulated) for _ in range(370)]
    for client in clients:
        simulated.implementation.connect(listener.address, client)
    simulated.until(lambda: len(simulated.served) == 360)
    gevent.sleep(60)
    assert len(simulated.served) == 360
    for _ in range(acceptor.RESERVED):
        assert blocking.connect(simulated.listen().address, server.connect)
    assert lines(caplog)[0].endswith("paused, and new clients wait: max_connections=360 reached")
    server.close()


def test_if_descriptors_are_not_limited_connections_are_not_limited(monkeypatch):
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (unlimited, unlimited))
    assert acceptor.default_max_connections(Network()) == sys.maxsize


class Faulty(socket.socket):
    """A listening socket on which accepting fails a few times."""

    errors: list[int]

    def _accept(self) -> Any:
        if self.errors:
            number = self.errors.pop()
            raise OSError(number, os.strerror(number))
        return super()._accept()  # type: ignore[misc]


def faulty_listener(stage: Any, errors: list[int]) -> Any:
    sock = Faulty()
    sock.errors = errors
    sock.bind(("127.0.0.1", 0))
    listener = stage.implementation.listener(sock, stage.server(Echo))
    stage.listeners.append(listener)
    return listener


@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.EPROTO])
def test_a_connection_that_ends_before_it_is_accepted_does_not_affect_others(tcp, caplog, capfd, error):
    listener = faulty_listener(tcp, [error] * 3)
    echo = tcp.client(listener)
    echo.connection.write(b"hello")
    tcp.until(lambda: echo.data == b"HELLO")
    assert caplog.records == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
def test_the_listener_tries_again_if_the_system_refuses_to_accept(simulated, caplog, capfd, error):
    def accept():
        if refusals:
            raise OSError(error, os.strerror(refusals.pop()))
        return StreamSocket.accept(sock)

    refusals = [error] * 3
    sock = simulated.implementation._network.make_socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    sock.accept = accept
    listener = simulated.implementation.listener(sock, simulated.server(Echo))
    simulated.listeners.append(listener)
    began = clock.now()
    echo = simulated.client(listener)
    echo.connection.write(b"hello")
    simulated.until(lambda: echo.data == b"HELLO")
    assert clock.now() - began == pytest.approx(acceptor.FIRST_RETRY * (1 + 2 + 4), abs=0.001)
    gevent.sleep(2 * acceptor.QUIET)
    assert lines(caplog) == [
        f"listener on {listener.address!r} paused, and new clients wait: {os.strerror(error)}",
        f"listener on {listener.address!r} accepts connections again",
    ]
    assert capfd.readouterr().err == ""


def test_a_socket_that_no_longer_listens_ends_its_listener_but_no_connection(tcp, caplog, capfd):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    listener = tcp.implementation.listener(sock, tcp.server(Echo))
    tcp.listeners.append(listener)
    client = tcp.client(listener)
    sock.shutdown(socket.SHUT_RDWR)
    with gevent.Timeout(20):
        while not caplog.records:
            gevent.sleep(0.01)
    client.connection.write(b"hello")
    tcp.until(lambda: client.data == b"HELLO")
    assert listener.close_wait(0) == 1
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert repr(listener.address) in record.getMessage()
    assert capfd.readouterr().err == ""
