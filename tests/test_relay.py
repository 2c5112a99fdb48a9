"""Two connections that pass their input to each other, like a proxy's, on every implementation."""

from __future__ import annotations

import http.client
import http.server
import logging
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from certificates import client_context, server_context
from stages import STAGES, WRAPPED_STAGES, TCPStage, Witness, WrappedMemoryStage, WrappedTCPStage, in_thread, params

import ngi_gevent
from ngi_gevent import Deadlock, Timeout, adapters, blocking
from ngi_gevent.adapters import bottom
from ngi_gevent.relay import relay
from ngi_gevent.sockets import probe
from ngi_gevent.testing import contract

MEGABYTE = 1 << 20

#: More than the kernel buffers for three peers that do not read.
MUCH = 24 * MEGABYTE

stage = contract.stages(*params([*STAGES, *WRAPPED_STAGES], slow=[WrappedMemoryStage, WrappedTCPStage]))
pytestmark = pytest.mark.usefixtures("no_socket_left")


@pytest.fixture(scope="module")
def tmp_path(folder):
    """The folder for all stages of this module."""
    return folder


@pytest.fixture(scope="module", autouse=True)
def short_pauses():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(probe, "PROBE_INTERVAL", 0.02)
        monkeypatch.setattr(ngi_gevent.relay, "LAST_DELIVERY", 0.05)
        monkeypatch.setattr(ngi_gevent.relay, "CHECK_INTERVAL", 0.01)
        yield


class EOFWitness(Witness):
    """A witness that records the end of input, and leaves the connection open for output."""

    def handle_eof(self, connection):
        self.trace.append("eof")
        self.stage.happened()


class Proxy:
    """A listener that relays its connections to a second listener, where *server* answers."""

    def __init__(self, stage: Any, server: Any = EOFWitness, back: Any = None, **options: Any) -> None:
        self.stage = stage
        self.back = stage.listen(server, **(back or {}))
        self.relays: list[Any] = []
        self.connections: list[tuple[Any, Any]] = []
        self.options = options
        self.front = stage.listen(self.accept, **options)

    def accept(self, client: Any) -> None:
        self.stage.implementation.connect(self.back.address, _Front(self, client), **self.options)

    def talk(self) -> tuple[Any, Any, Any]:
        """Connect a client.  Return its witness, the server's, and the relay."""
        client = self.stage.client(self.front, EOFWitness)
        self.stage.until(lambda: self.relays and self.stage.served)
        return client, self.stage.served[-1], self.relays[-1]

    def peer(self) -> Any:
        """Connect a client that does not use NGI."""
        peer = self.stage.peer(self.front)
        self.stage.until(lambda: self.relays)
        return peer


class _Front:
    def __init__(self, proxy: Proxy, client: Any) -> None:
        self.proxy = proxy
        self.client = client

    def connected(self, backend: Any) -> None:
        self.proxy.connections.append((self.client, backend))
        self.proxy.relays.append(relay(self.client, backend))
        self.proxy.stage.happened()

    def failed_connect(self, reason: Any) -> None:
        self.client.close()


def send_much(peer: Any) -> None:
    for _ in range(MUCH // 65536):  # in memory, each write is one piece of input
        peer.send(b"x" * 65536)


def fill(stage: Any, connection: Any) -> None:
    """Wait until the peer of *connection* accepts no more data."""
    while connection.output_pending <= 64 * 1024:
        stage.settle()


def test_each_direction_ends_separately_and_no_data_is_lost(stage):
    client, served, relayed = Proxy(stage).talk()
    client.connection.write(b"a" * MEGABYTE)
    client.connection.write_eof()
    stage.until(lambda: "eof" in served.trace)
    assert served.data == b"a" * MEGABYTE
    with pytest.raises(Timeout, match="relay"):
        relayed.wait(timeout=0.01)
    served.connection.write(b"b" * MEGABYTE)
    served.connection.writelines(b"c" for _ in range(3))
    served.connection.write_eof()
    stage.until(lambda: "eof" in client.trace)
    assert client.data == b"b" * MEGABYTE + b"ccc"
    assert relayed.wait(timeout=20) is None
    stage.until(lambda: not client.connection and not served.connection)
    assert client.closed is served.closed is None


def test_a_peer_that_does_not_read_pauses_the_other_peer(stage):
    proxy = Proxy(stage)
    peer = proxy.peer()
    peer.read()
    slow, backend = proxy.connections[0]
    stage.until(lambda: stage.served)
    served = stage.served[0]
    served.connection.pause_reading()
    send_much(peer)
    peer.finish()
    served.connection.write(b"answer")  # the other direction continues
    stage.until(lambda: peer.received == b"answer")
    fill(stage, backend)
    for _ in range(5):
        stage.settle()
        assert 0 < backend.output_pending <= 128 * 1024
    served.connection.resume_reading()
    stage.until(lambda: "eof" in served.trace)
    assert served.size == MUCH
    served.connection.close()
    stage.until(lambda: peer.ended)
    assert proxy.relays[0].wait(timeout=20) is None


@pytest.mark.parametrize("reads", [True, False])
def test_a_reset_of_one_side_resets_the_other(stage, reads):
    proxy = Proxy(stage)
    peer = proxy.peer()
    stage.until(lambda: stage.served)
    served = stage.served[0]
    if not reads:
        served.connection.pause_reading()
        send_much(peer)
        fill(stage, proxy.connections[0][1])
    peer.reset()
    # A closed Unix socket can mean that the peer has finished, so its input is delivered first.
    if stage.name == "unix":
        served.connection.resume_reading()
    stage.until(lambda: served.closed)
    assert isinstance(served.closed, OSError)
    assert isinstance(proxy.relays[0].wait(timeout=20), OSError)


def test_closing_the_listener_ends_both_connections(stage):
    proxy = Proxy(stage)
    client, served, relayed = proxy.talk()
    client.connection.write(b"last words")
    stage.until(lambda: served.data)
    proxy.front.close()
    stage.until(lambda: "eof" in client.trace and "eof" in served.trace)
    client.connection.close()
    served.connection.close()
    assert relayed.wait(timeout=20) == "stopped"


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_close_by_the_program_closes_the_other_side(stage, end):
    proxy = Proxy(stage)
    client, served, relayed = proxy.talk()
    client.connection.write(b"all of it")
    stage.until(lambda: served.data == b"all of it")
    getattr(proxy.connections[0][1], end)()
    stage.until(lambda: served.closed or "eof" in served.trace)
    served.connection.close()
    stage.until(lambda: "eof" in client.trace)
    client.connection.close()
    assert relayed.wait(timeout=20) == "closed"


def test_data_for_an_output_that_the_program_has_ended_is_an_error(stage):
    proxy = Proxy(stage)
    client, served, relayed = proxy.talk()
    proxy.connections[0][1].write_eof()
    stage.until(lambda: "eof" in served.trace)
    client.connection.write(b"to nowhere")
    stage.until(lambda: client.closed or "eof" in client.trace)
    client.connection.close()
    assert isinstance(relayed.wait(timeout=20), ngi_gevent.ConnectionClosed)


def test_input_that_ended_before_the_relay_ends_the_other_output(stage):
    listener = stage.listen(EOFWitness)
    client, other = (stage.client(listener, EOFWitness) for _ in range(2))
    stage.until(lambda: len(stage.served) == 2)
    served, other_served = stage.served
    client.connection.write_eof()
    stage.until(lambda: "eof" in served.trace)
    relayed = relay(served.connection, other.connection)
    stage.until(lambda: "eof" in other_served.trace)
    other_served.connection.write(b"answer")
    other_served.connection.write_eof()
    stage.until(lambda: "eof" in client.trace)
    assert client.data == b"answer"
    assert relayed.wait(timeout=20) is None


def test_a_connection_that_ended_before_the_relay_ends_the_other_one(stage):
    listener = stage.listen(EOFWitness)
    clients = [stage.client(listener) for _ in range(2)]
    stage.until(lambda: len(stage.served) == 2)
    clients[0].connection.abort()
    relayed = relay(clients[0].connection, clients[1].connection)
    stage.until(lambda: "eof" in stage.served[1].trace)
    stage.served[1].connection.close()
    assert relayed.wait(timeout=20) == "closed"


def test_waiting_in_a_callback_of_either_connection_fails_at_once(stage):
    errors = []
    proxy = Proxy(stage)
    client, served, relayed = proxy.talk()

    class Handler(Witness):
        def handle_input(self, connection, data):
            try:
                relayed.wait(timeout=20)
            except Deadlock as error:
                errors.append(error)
            stage.happened()

    for connection, other in zip(proxy.connections[0], [client, served], strict=True):
        connection.set_handler(Handler(stage))
        before = len(errors)
        other.connection.write(b"x")
        stage.until(lambda before=before: len(errors) > before)


def test_invalid_arguments_are_refused(stage):
    client, served = stage.talk()
    with pytest.raises(ValueError, match="different connections"):
        relay(client.connection, client.connection)
    with pytest.raises(ValueError, match="different connections"):
        relay(client.connection, adapters.Base(client.connection))
    for wrong in None, 5, ("127.0.0.1", 80), type(client.connection), socket.socket:
        with pytest.raises(TypeError, match="b must be a connection; got"):
            relay(client.connection, wrong)
        with pytest.raises(TypeError, match="a must be a connection; got"):
            relay(wrong, client.connection)
    relayed = relay(client.connection, served.connection)  # these are the two ends of one connection
    for wrong, error in ("1", TypeError), (-1, ValueError):
        with pytest.raises(error, match="timeout"):
            relayed.wait(wrong)


@pytest.fixture
def tcp(tmp_path):
    yield from contract.playing(TCPStage, tmp_path)


def test_silence_of_one_side_resets_the_other(simulated, caplog):
    """A graceful end would mean that the data is complete."""
    caplog.set_level(logging.INFO, "ngi_gevent.connection")
    proxy = Proxy(simulated, back={"idle_timeout": None}, idle_timeout=60)
    proxy.options = {}  # the options of connections to the server
    client, served, relayed = proxy.talk()
    simulated.until(lambda: "eof" in client.trace and served.closed)
    assert isinstance(served.closed, ConnectionResetError)
    client.connection.close()
    reason = relayed.wait(timeout=100)
    assert isinstance(reason, Timeout)
    assert len([record for record in caplog.records if record.getMessage().endswith(f"ended: Timeout: {reason}")]) == 1


def test_a_peer_that_does_not_read_is_ended_by_its_own_idle_timeout(simulated):
    """The other connection has no idle timeout.  It is reset, since data from its peer was not delivered."""
    back = simulated.listen(EOFWitness)
    clients = []

    class Front(_Front):
        def __init__(self, client):
            self.client = client
            self.proxy = Proxy(simulated)
            simulated.implementation.connect(back.address, self, idle_timeout=60)
            clients.append(self)

    peer = simulated.peer(simulated.listen(Front))
    peer.send(b"x" * MUCH)
    peer.read()
    simulated.until(lambda: clients and clients[0].proxy.relays and simulated.served)
    simulated.served[0].connection.pause_reading()
    reason = clients[0].proxy.relays[0].wait(timeout=100)
    assert isinstance(reason, Timeout)
    simulated.until(lambda: peer.ended)
    assert peer.ended.startswith("broken")


def test_traffic_in_one_direction_keeps_both_connections_open(simulated):
    client, served, relayed = Proxy(simulated, idle_timeout=60).talk()
    for _ in range(50):
        client.connection.write(b"x")
        with pytest.raises(Timeout):
            relayed.wait(timeout=59)
    simulated.until(lambda: served.size == 50)
    assert isinstance(relayed.wait(timeout=100), Timeout)


def test_input_that_arrived_before_a_reset_is_passed_on(tcp, monkeypatch):
    """The server answers early and does not read the rest.  The client begins to read only after that."""
    monkeypatch.setattr(ngi_gevent.relay, "LAST_DELIVERY", 20)
    proxy = Proxy(tcp)
    peer = proxy.peer()
    tcp.until(lambda: tcp.served)
    served, (client, backend) = tcp.served[0].connection, proxy.connections[0]
    served.write(b"x" * 2 * MEGABYTE)
    while served.unsent_size():
        tcp.settle()
    served.abort()
    while backend:
        tcp.settle()
    assert bottom(client).unsent_size()
    peer.read()
    assert isinstance(proxy.relays[0].wait(timeout=20), OSError)
    tcp.until(lambda: peer.ended)
    assert (peer.size, peer.ended) == (2 * MEGABYTE, "broken")


def test_a_client_of_an_http_server_notices_no_relay(tcp):
    """The client is the standard library's, with TLS.  It uses keep-alive, a large answer, and a large upload."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[::-1])

        def log_message(self, *arguments):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *arguments):
            """Print nothing: the client ends TLS without a close_notify, so this connection is reset."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()

    def front(client):
        relay(client, blocking.connect(server.server_address, timeout=10))

    def ask(port):
        connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=client_context())
        answers = []
        for body in b"short", bytes(range(256)) * (8 * MEGABYTE // 256):
            connection.request("POST", "/", body)
            answers.append(connection.getresponse().read() == body[::-1])
        connection.close()
        return answers

    with ngi_gevent.Threaded() as ngi:
        listener = ngi.listener(("127.0.0.1", 0), front, ssl_context=server_context())
        assert in_thread(ask, listener.address[1]) == [True, True]
    server.shutdown()
    server.server_close()


#: A proxy, made with ``relay`` or with two greenlets. It prints its port. At the end of its input, it prints its
#: processor time and its memory.
PROGRAM = """
import resource, socket, sys, time
import gevent
from gevent.server import StreamServer

backend = "127.0.0.1", int(sys.argv[2])


def pump(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def serve(client, address):
    other = gevent.socket.create_connection(backend)
    gevent.joinall([gevent.spawn(pump, client, other), gevent.spawn(pump, other, client)])


def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if sys.argv[1] == "relay":
    import ngi_gevent
    from ngi_gevent import blocking, relay
    listener = ngi_gevent.listener(None, lambda client: relay.relay(client, blocking.connect(backend)))
    port = listener.address[1]
else:
    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    port = server.server_port
before, most = memory(), 0
print(port, flush=True)
reading = gevent.get_hub().threadpool.spawn(sys.stdin.read)
began = time.process_time()
while not reading.ready():
    most = max(most, memory())
    gevent.sleep(0.02)
print(time.process_time() - began, most - before)
"""


def cost_of(kind: str, size: int, rate: float) -> tuple[float, int]:
    """Return the processor time and the memory that a proxy needs for *size* bytes each way.

    :param rate: bytes a second for the slower of the two readers.
    """
    received = []

    def send(sock):
        for _ in range(size // 65536):
            sock.sendall(bytes(65536))
        sock.shutdown(socket.SHUT_WR)

    def receive(sock, rate):
        buffer, count, began = bytearray(1 << 18), 0, time.monotonic()
        while got := sock.recv_into(buffer):
            count += got
            if (ahead := began + count / rate - time.monotonic()) > 0.005:
                time.sleep(ahead)
        received.append(count)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        arguments = [sys.executable, "-c", PROGRAM, kind, str(listening.getsockname()[1])]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                client = socket.create_connection(("127.0.0.1", int(process.stdout.readline())))
                with client, listening.accept()[0] as backend:
                    threads = [
                        threading.Thread(target=target, args=arguments)
                        for target, *arguments in [
                            (send, client),
                            (send, backend),
                            (receive, client, rate),
                            (receive, backend, 1e12),
                        ]
                    ]
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join(120)
                seconds, memory = process.communicate(timeout=20)[0].split()
            finally:
                process.kill()
    assert received == [size, size]
    return float(seconds), int(memory)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no /proc")
def test_256_mebibytes_both_ways_with_a_slow_reader_cost_little():
    """The relay may take about as much processor time as two greenlets that receive and send.

    The factor 2 allows for noise.
    """
    costs = {"relay": [], "greenlets": []}
    for _ in range(3):
        for kind, found in costs.items():
            found.append(cost_of(kind, 256 * MEGABYTE, 400e6))
    for kind, found in costs.items():
        print(kind, *(f"{seconds * 1e6 / 512:.0f} µs/MiB {memory / 1e6:.1f} MB" for seconds, memory in found), sep="; ")
    assert max(memory for _, memory in costs["relay"]) < 40e6
    assert min(costs["relay"])[0] < 2 * min(costs["greenlets"])[0]
