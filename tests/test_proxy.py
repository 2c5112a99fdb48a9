"""The example proxy: in memory, in a simulation, on sockets, and with real clients."""

from __future__ import annotations

import contextlib
import logging
import select
import shutil
import socket
import subprocess
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gevent
import programs
import pytest
from certificates import AUTHORITY, certificate, client_context, server_context
from stages import PATIENCE, Witness

from ngi_gevent import testing
from ngi_gevent.proxy_protocol import header, parse
from ngi_gevent.testing.contract.rules.common import Echo
from ngi_gevent.testing.simulation import explore

CLIENT, FRONT = ("192.0.2.1", 4711), ("192.0.2.9", 443)
NOWHERE = ("0.0.0.0", 0)  # the destination in a header that leaves it out
SECURE = {"ssl_context": client_context(), "server_hostname": "localhost"}


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(programs.EXAMPLES)
    import proxy

    return proxy


@pytest.fixture
def failed(caplog):
    """A function that returns the unreachable upstreams, from the log."""
    caplog.set_level(logging.WARNING, logger="proxy")
    return lambda: [record.args[0] for record in caplog.records if record.name == "proxy"]


# In memory.


class Upper(testing.Recorder):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


@pytest.mark.parametrize("version", [None, 1, 2])
def test_a_client_is_relayed_and_its_address_is_passed_on(example, ngi, version):
    served = Upper()
    upstream = ngi.listener(None, served.connected, proxy_protocol=["unix"] if version else None)
    front = ngi.listener(FRONT, example.proxy_server([upstream.address], version, ngi.connect))
    client = testing.Recorder()
    front.connect(client, CLIENT)
    client.connection.write(b"hello")
    client.connection.write_eof()
    assert client.data == b"HELLO"
    assert client.closed == "end of input"
    assert (served.connection.peer_address == CLIENT) is bool(version)
    front.close()
    upstream.close()


def test_the_upstream_gets_the_address_of_a_balancers_client(example, ngi):
    served = Upper()
    upstream = ngi.listener(None, served.connected, proxy_protocol=["unix"])
    serve = example.proxy_server([upstream.address], 2, ngi.connect)
    front = ngi.listener(FRONT, serve, proxy_protocol=["10.0.0.0/8"])
    balancer = testing.Recorder()
    front.connect(balancer, ("10.0.0.1", 5), proxy_header=header(CLIENT, FRONT))
    assert served.connection.peer_address == CLIENT
    front.close()
    upstream.close()


@pytest.mark.parametrize(("balancer", "destination"), [(None, FRONT), ("", NOWHERE), (("10.0.0.1", 5), NOWHERE)])
def test_the_upstream_never_gets_a_wrong_destination(example, ngi, balancer, destination):
    """A client of a balancer has connected to the balancer, so the proxy's own address would be wrong."""
    received = testing.Recorder()
    upstream = ngi.listener(None, received.connected)
    serve = example.proxy_server([upstream.address], 2, ngi.connect)
    front = ngi.listener(FRONT, serve, proxy_protocol=["unix", "10.0.0.0/8"])
    client = testing.Recorder()
    named = None if balancer is None else header(CLIENT, ("198.51.100.1", 443))
    front.connect(client, CLIENT if balancer is None else balancer, proxy_header=named)
    assert parse(received.data)[:2] == (CLIENT, destination)
    front.close()
    upstream.close()


def test_an_unreachable_upstream_is_tried_last_from_then_on(example, ngi, failed):
    served = Upper()
    upstream = ngi.listener("third", served.connected)
    front = ngi.listener(None, example.proxy_server(["first", "second", "third"], connect=ngi.connect))
    for number in range(3):
        client = testing.Recorder()
        front.connect(client)
        client.connection.write(b"%d" % number)
        assert client.data == b"%d" % number
    assert failed() == ["first", "second"]
    upstream.close()
    client = testing.Recorder()
    front.connect(client)
    assert failed()[2:] == ["third", "first", "second"]
    assert isinstance(client.closed, OSError)
    front.close()


# In a simulation.


def listen_as(host, name):
    """Let *host* answer all input with *name*, on its port 80."""

    def serve(connection):
        handler = testing.Recorder(connection)
        handler.handle_input = lambda connection, data: connection.write(name)

    return host.listener((host.name, 80), serve, proxy_protocol=["0.0.0.0/0", "::/0"])


def test_clients_get_another_upstream_if_one_crashes_or_is_cut_off(example):
    def scenario(simulation):
        def ask(expected):
            """Return the seconds until the answer, which must be *expected*."""
            client, began = testing.Recorder(), simulation.now()
            clients.connect(("front", 80), client)
            client.wait_connected().write(b"hello")
            client.expect(expected)
            client.connection.close()
            return simulation.now() - began

        one, two = (simulation.host(name, partial(listen_as, name=name.encode())) for name in ("one", "two"))
        gevent.sleep(0.1)
        front, clients = simulation.host("front"), simulation.host("clients")
        front.listener(("front", 80), example.proxy_server([("one", 80), ("two", 80)], 1, front.connect))
        assert ask(b"one") < 1
        simulation.partition(front, one)
        assert ask(b"two") == pytest.approx(example.CONNECT_TIMEOUT, abs=1)
        assert ask(b"two") < 1  # the first one is not tried again
        simulation.heal(front, one)
        two.crash()
        assert ask(b"one") < 1

    explore(scenario, seeds=range(10))


def test_the_proxy_reads_for_a_slow_client_only_as_fast_as_the_client_reads(example):
    """The proxy buffers no more than a relay does, however long the answer is."""

    def scenario(simulation):
        def serve(connection):
            connection.writelines(b"x" * 10_000 for _ in range(300))
            connection.close()

        upstream, front, slow = (simulation.host(name) for name in ("upstream", "front", "slow"))
        upstream.listener(("upstream", 80), serve)
        listener = front.listener(("front", 80), example.proxy_server([("upstream", 80)], connect=front.connect))
        simulation.link(front, slow).set(bandwidth=1_000_000)
        client = testing.Recorder()
        slow.connect(("front", 80), client)
        client.wait_connected()
        most = 0
        while client.closed is None:
            gevent.sleep(0.01)
            most = max(most, *(connection.output_pending for connection in listener.connections()), 0)
        assert (len(client.data), client.closed) == (3_000_000, "end of input")
        assert 3 < simulation.now() < 5
        assert most <= 128 * 1024

    explore(scenario, seeds=range(2))


# On sockets.


def test_the_proxy_accepts_tls_and_passes_proxy_headers_on(example, tcp):
    upstream = tcp.listen(Echo, proxy_protocol=["127.0.0.0/8"])
    serve = example.proxy_server([upstream.address], 2, tcp.implementation.connect)
    front = tcp.listen(serve, ssl_context=server_context(), proxy_protocol=["127.0.0.0/8"])
    client = Witness(tcp)
    tcp.implementation.connect(front.address, client, proxy_header=header(CLIENT, FRONT), **SECURE)
    tcp.until(lambda: client.connection)
    client.connection.write(b"hello")
    tcp.until(lambda: client.data == b"HELLO")
    assert tcp.served[0].connection.peer_address == CLIENT
    client.connection.close()
    tcp.until(lambda: tcp.served[0].closed)


# Real clients.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "upstream"),
        (["nowhere"], "must be HOST:PORT; got 'nowhere'"),
        (["127.0.0.1:65536"], "got '127.0.0.1:65536'"),
        (["--trust", "10.0.0.1/8", "127.0.0.1:9"], "--trust: invalid ip_network value: '10.0.0.1/8'"),
    ],
)
def test_wrong_options_are_reported_by_name(arguments, named):
    ended = programs.run("proxy.py", *arguments)
    assert ended.returncode == 2
    assert named in ended.stderr.splitlines()[-1]


@pytest.fixture
def files(tmp_path):
    """The certificate of the proxy, and its authority's."""
    server, authority = tmp_path / "server.pem", tmp_path / "authority.pem"
    server.write_bytes(certificate("localhost").private_key_and_cert_chain_pem.bytes())
    authority.write_bytes(AUTHORITY.cert_pem.bytes())
    return server, authority


def run(*command, **options):
    return subprocess.run(command, capture_output=True, timeout=60, check=True, **options).stdout


def unused():
    """Return a bound socket that does not listen, and its address.  The socket keeps the address from others."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock, f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nc") is None, reason="nc is not installed")
def test_nc_gets_its_answer_from_the_only_reachable_upstream():
    sock, nowhere = unused()
    with (
        contextlib.closing(sock),
        programs.running("echo_server.py", "--bind", "127.0.0.1:0") as upstream,
        programs.running("proxy.py", "--port", 0, nowhere, upstream.address) as proxy,
    ):
        for _ in range(2):
            assert run("nc", "-N", "127.0.0.1", str(proxy.port), input=b"hello") == b"HELLO"
        proxy.stop(2)
        code, _, log = proxy.end()
    assert code == 0
    assert log.count(f"unable to connect to upstream {tuple_of(nowhere)}: ") == log.count("\n") == 1


def tuple_of(address):
    host, _, port = address.rpartition(":")
    return host, int(port)


class Page(BaseHTTPRequestHandler):
    """A web server with two pages: one has the PROXY line of its connection, the other one is long."""

    def setup(self):
        super().setup()
        self.line = self.rfile.readline().decode()

    def do_GET(self):
        body = b"x" * 20_000_000 if self.path == "/long" else self.line.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Log nothing."""


def to_localhost(authority):
    """Return options that make curl connect to the proxy, which listens on IPv4 only."""
    return ["--connect-to", "localhost::127.0.0.1:", "--cacert", str(authority)]


@pytest.fixture
def web():
    """The address of a web server behind the proxy."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_web_server_gets_the_address_of_curl_over_tls(files, web):
    server, authority = files
    options = ["--port", 0, "--certificate", server, "--send-proxy", 1]
    with programs.running("proxy.py", *options, web) as proxy:
        where = [f"https://localhost:{proxy.port}/", *to_localhost(authority)]
        client = run("curl", "-s", *where, "--local-port", "20000-60000", "-w", "%{local_port}").decode()
        line, _, port = client.rpartition("\r\n")
        assert line == f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {proxy.port}"
        where[0] += "long"
        assert len(run("curl", "-s", *where)) == 20_000_000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "10.0.0.0/8"])
def test_curl_sends_a_proxy_header_before_tls(files, web, trusted):
    server, authority = files
    options = ["--port", 0, "--certificate", server, "--send-proxy", 1, "--trust", trusted]
    with programs.running("proxy.py", *options, web) as proxy:
        where = [f"https://localhost:{proxy.port}/", *to_localhost(authority)]
        command = ["curl", "-s", "--haproxy-protocol", *where, "-w", "%{local_port}"]
        if trusted.startswith("10."):
            assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0
        else:
            line, _, port = run(*command).decode().rpartition("\r\n")
            assert line.split()[:2] + line.split()[4:5] == ["PROXY", "TCP4", port]


def resident(process):
    """Return the bytes of memory that *process* uses."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096


def send_until_blocked(sock, piece):
    """Send until the other end accepts no data for a moment.  Return the number of bytes."""
    sock.setblocking(False)
    sent = 0
    while select.select([], [sock], [], 0.2)[1]:
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(piece)
    return sent


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not show the memory of a process")
def test_a_slow_reader_costs_no_memory():
    piece = bytes(1 << 16)
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        programs.running("proxy.py", "--port", 0, f"127.0.0.1:{listening.getsockname()[1]}") as proxy,
        proxy.connect() as client,
    ):
        listening.settimeout(PATIENCE)
        upstream, _ = listening.accept()
        with upstream:
            before = resident(proxy.process)
            sent = send_until_blocked(upstream, piece)  # fills the kernel's buffers
            received, most = 0, resident(proxy.process)
            for number in range(100):
                received += len(client.recv(1 << 16))
                if number % 25 == 0:
                    sent += send_until_blocked(upstream, piece)
                most = max(most, resident(proxy.process))
            upstream.setblocking(True)
            upstream.shutdown(socket.SHUT_WR)
            received += len(programs.read_all(client))
    assert received == sent > 1_000_000
    assert most - before < 2_000_000
