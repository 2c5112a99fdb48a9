"""PROXY headers on sockets: the peers that can send them, their timeouts, and the data after them."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl

import gevent
import pytest
from certificates import client_context, server_context
from stages import PATIENCE, Witness, needs_ipv6
from test_proxy_protocol import EXAMPLE, HEADERS, IPV4, REQUEST, SIGNATURE, binary, shortened

import ngi_gevent
from ngi_gevent import testing
from ngi_gevent.core import clock
from ngi_gevent.proxy_protocol import header
from ngi_gevent.sockets import crowd
from ngi_gevent.sockets.plain import PlainTransport
from ngi_gevent.sockets.transport import HANDSHAKE_TIMEOUT
from ngi_gevent.testing.contract.rules.common import Echo
from ngi_gevent.testing.simulation import explore

EVERYWHERE = ["0.0.0.0/0", "::/0", "unix"]
CLIENT, FRONT = ("192.168.0.1", 56324), ("192.168.0.11", 443)

#: The options of a client with TLS.
SECURE = {"ssl_context": client_context(), "server_hostname": "localhost"}


def listen(stage, server=Echo, **options):
    return stage.listen(server, **{"proxy_protocol": EVERYWHERE} | options)


def dial(stage, listener):
    """Return a connected socket that has sent nothing."""
    return stage.peer(listener).socket


def until(condition):
    """Wait for a *condition* that no event reports."""
    with gevent.Timeout(PATIENCE, AssertionError("it did not happen in time")):
        while not condition():
            gevent.sleep(0.001)


def read_to_end(sock):
    """Return all data up to the end of the connection, or up to its reset."""
    received = b""
    with gevent.Timeout(PATIENCE), contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1000):
            received += data
    return received


@pytest.fixture
def info(caplog):
    """The log entries of the package, from level INFO on."""
    caplog.set_level(logging.INFO, logger="ngi_gevent.connection")
    return caplog


def refusal(info):
    """Return the reason in the only log entry."""
    (record,) = info.records
    assert (record.levelname, record.name) == ("INFO", "ngi_gevent.connection")
    peer, _, reason = record.getMessage().partition(": no valid PROXY header: ")
    assert peer.startswith("connection with ")
    return reason


# Headers that are valid.


@pytest.mark.parametrize("data", HEADERS, ids=shortened)
def test_data_after_a_header_goes_to_the_handler(tcp, data):
    sock = dial(tcp, listen(tcp))
    sock.sendall(data + REQUEST)
    assert sock.recv(1000) == REQUEST.upper()
    connection = tcp.served[0].connection
    assert connection.proxy_address == sock.getsockname()
    assert connection.peer_address == (sock.getsockname() if HEADERS[data][0] is None else HEADERS[data][0])
    assert tcp.served[0].data == REQUEST


@pytest.mark.parametrize("data", [EXAMPLE, binary(0x21, 0x11, IPV4)], ids=["1", "2"])
def test_a_header_can_arrive_byte_by_byte(simulated, info, data):
    sock = dial(simulated, listen(simulated))
    for byte in data + b"hello":
        sock.sendall(bytes([byte]))
        gevent.sleep(0.01)
    simulated.until(lambda: simulated.served and simulated.served[0].data == b"hello")
    assert simulated.served[0].connection.peer_address in (CLIENT, ("192.0.2.1", 56324))
    assert info.records == []


def test_the_transport_is_a_plain_one_after_the_header(tcp):
    client = Witness(tcp)
    tcp.implementation.connect(listen(tcp).address, client, proxy_header=EXAMPLE)
    tcp.until(lambda: tcp.served)
    connection = tcp.served[0].connection
    assert type(connection._transport) is PlainTransport
    assert type(connection._transport.recv.__self__).__module__ in ("_socket", "socket", "gevent._socket3")
    assert connection._handshake is None


def test_a_server_can_write_first(tcp):
    def greet(connection):
        connection.set_handler(Witness(tcp))
        connection.write(b"220 ready\r\n")

    sock = dial(tcp, listen(tcp, greet))
    sock.sendall(EXAMPLE)
    assert sock.recv(100) == b"220 ready\r\n"


@needs_ipv6
def test_an_ipv4_proxy_of_a_dual_stack_listener_is_in_an_ipv4_network(tcp):
    listener = tcp.implementation.listener(("::", 0), tcp.server(Echo), dual_stack=True, proxy_protocol=["127.0.0.0/8"])
    tcp.listeners.append(listener)
    with gevent.socket.create_connection(("127.0.0.1", listener.address[1])) as sock:
        sock.sendall(EXAMPLE + b"hello")
        assert sock.recv(100) == b"HELLO"
    assert tcp.served[0].connection.proxy_address[0] == "::ffff:127.0.0.1"


def test_unix_in_proxy_protocol_trusts_every_peer_on_a_unix_socket(tcp, tmp_path, info):
    for networks, answer in (["unix"], b"HELLO"), (["0.0.0.0/0", "::/0"], b""):
        path = str(tmp_path / "socket")
        listener = tcp.implementation.listener(path, tcp.server(Echo), proxy_protocol=networks)
        with gevent.socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            with contextlib.suppress(BrokenPipeError):
                sock.sendall(EXAMPLE + b"hello")
                sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) == answer
        listener.close()
    assert tcp.served[0].connection.peer_address == CLIENT
    assert refusal(info) == "the peer is not in a network of proxy_protocol"


# Headers before TLS.


@pytest.mark.parametrize("data", [EXAMPLE, binary(0x21, 0x11, IPV4)], ids=["1", "2"])
def test_tls_begins_after_the_header_in_the_same_piece(tcp, data):
    sock = dial(tcp, listen(tcp, ssl_context=server_context()))
    begun = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(*begun, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    sock.sendall(data + begun[1].read())
    begun[0].write(sock.recv(100_000))
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    tls.write(b"hello")
    sock.sendall(begun[1].read())
    tcp.until(lambda: tcp.served and tcp.served[0].data == b"hello")
    assert tcp.served[0].connection.peer_address[1] == 56324
    assert tcp.served[0].connection.ssl_object.version()


def test_a_client_sends_its_header_before_tls(tcp):
    """The server uses the standard library.  It reads the header before TLS begins."""

    def accept(server):
        sock, _ = server.accept()
        with sock:
            received = b""
            while not received.endswith(b"\r\n"):
                received += sock.recv(1)
            with server_context().wrap_socket(sock, server_side=True) as secured:
                return received, secured.recv(100)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        accepted = gevent.get_hub().threadpool.spawn(accept, server)
        client = Witness(tcp)
        tcp.implementation.connect(server.getsockname(), client, proxy_header=EXAMPLE, **SECURE)
        tcp.until(lambda: client.connection)
        client.connection.write(b"hello")
        assert accepted.get(timeout=PATIENCE) == (EXAMPLE, b"hello")


def test_a_header_and_tls_share_one_timeout(simulated, info):
    sock = dial(simulated, listen(simulated, ssl_context=server_context()))
    gevent.sleep(HANDSHAKE_TIMEOUT - 1)
    sock.sendall(EXAMPLE)
    assert read_to_end(sock) == b""
    assert clock.now() == pytest.approx(HANDSHAKE_TIMEOUT, abs=0.01)
    (record,) = info.records
    assert record.getMessage() == (
        f"connection with {CLIENT!r}: the TLS handshake failed: "
        "the client did not finish it within 10.0 seconds; does it use TLS?"
    )
    assert simulated.served == []


# Headers that are not valid, and peers that are not trusted.


def test_a_peer_outside_all_networks_is_refused_whatever_it_sends(tcp, info):
    listener = listen(tcp, proxy_protocol=["192.0.2.0/24", "unix"])
    sock = dial(tcp, listener)
    with contextlib.suppress(OSError):
        sock.sendall(EXAMPLE + b"hello")
    assert read_to_end(sock) == b""
    until(lambda: not listener._connections)
    assert refusal(info) == "the peer is not in a network of proxy_protocol"
    assert repr(sock.getsockname()) in info.records[0].getMessage()
    assert tcp.served == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (REQUEST, "a PROXY header must begin with"),
        (b"\x16\x03\x01\x02\x00\x01", "a PROXY header must begin with"),
        (EXAMPLE.replace(b"443", b"65536"), "the ports of a PROXY line must be from 0 to 65535"),
        (EXAMPLE.replace(b"\r", b""), "a PROXY line must end in CR and LF"),
        (b"PROXY " + b"\n\x1b[2J" * 1000, "a PROXY line must end in CR and LF"),
        (b"PROXY " + b"x" * 1000, "a PROXY line must end within 107 bytes"),
        (SIGNATURE + b"\x21\x11\xff\xff", "a PROXY header must have at most 4096 bytes; got 65551"),
        (b"PROXY TCP4 ", "the connection ended after 11 bytes"),
        (b"", "the connection ended after 0 bytes"),
    ],
)
def test_an_invalid_header_is_refused_with_one_log_entry(tcp, info, data, reason):
    listener = listen(tcp)
    sock = dial(tcp, listener)
    sock.sendall(data)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    assert read_to_end(sock) == b""
    until(lambda: not listener._connections)
    assert refusal(info).startswith(reason)
    assert info.records[0].getMessage().isprintable()
    assert tcp.served == []


def test_a_reset_during_a_header_is_one_log_entry(tcp, info):
    listener = listen(tcp)
    peer = tcp.peer(listener)
    peer.socket.sendall(b"PROXY ")
    until(lambda: listener._connections)
    peer.reset()
    until(lambda: not listener._connections)
    assert refusal(info).startswith(("ConnectionResetError: ", "the connection ended"))


@pytest.mark.parametrize("data", [b"", b"PROXY ", SIGNATURE])
def test_a_header_must_be_complete_before_the_timeout(simulated, info, data):
    listener = listen(simulated)
    sock = dial(simulated, listener)
    sock.sendall(data)
    assert read_to_end(sock) == b""
    assert clock.now() == pytest.approx(HANDSHAKE_TIMEOUT, abs=0.01)
    assert refusal(info) == "the client did not finish it within 10.0 seconds"
    assert not listener._connections


def test_single_bytes_do_not_prolong_the_timeout_of_a_header(simulated, info):
    sock = dial(simulated, listen(simulated))
    ended = gevent.spawn(read_to_end, sock)
    for byte in b"PROXY UNKNOWN ".ljust(100):
        if ended.ready():
            break
        with contextlib.suppress(OSError):
            sock.sendall(bytes([byte]))
        gevent.sleep(0.9)
    ended.join()
    assert clock.now() == pytest.approx(HANDSHAKE_TIMEOUT, abs=1)
    assert refusal(info) == "the client did not finish it within 10.0 seconds"


def test_a_header_that_arrived_in_time_is_accepted_after_a_stall(simulated, info):
    sock = dial(simulated, listen(simulated))
    until(lambda: simulated.listeners[0]._connections)
    sock.sendall(EXAMPLE + b"hello")
    simulated.simulation.compute(HANDSHAKE_TIMEOUT + 1)
    simulated.until(lambda: simulated.served and simulated.served[0].data == b"hello")
    assert info.records == []


def test_refusals_do_not_fill_the_log(tcp, info):
    listener = listen(tcp)
    for _ in range(crowd.MOST_FAILED + 5):
        sock = dial(tcp, listener)
        sock.sendall(b"hello")
        assert read_to_end(sock) == b""
        until(lambda: not listener._connections)
    assert len(info.records) == crowd.MOST_FAILED


# Connections whose header has not arrived.


def test_a_connection_without_its_header_counts_but_is_not_listed(tcp):
    listener = listen(tcp, max_connections=1)
    first, second = dial(tcp, listener), dial(tcp, listener)
    first.sendall(EXAMPLE[:-1])
    second.sendall(EXAMPLE + b"second")
    until(lambda: listener._connections)
    assert list(listener.connections()) == tcp.served == []
    first.sendall(b"\n")
    tcp.until(lambda: tcp.served)
    assert [connection.peer_address for connection in listener.connections()] == [CLIENT]
    first.close()
    assert second.recv(100) == b"SECOND"


@pytest.mark.parametrize("end", ["close", "close_wait"])
def test_a_closing_listener_ends_connections_that_wait_for_their_header(tcp, end):
    listener = listen(tcp)
    sock = dial(tcp, listener)
    until(lambda: listener._connections)
    if end == "close":
        listener.close()
    else:
        listener.close_wait(0)
    assert read_to_end(sock) == b""
    until(lambda: not listener._connections)
    assert tcp.served == []


# Clients.


@pytest.mark.parametrize("make", [testing.Implementation, ngi_gevent.Implementation])
def test_a_header_is_input_if_the_listener_does_not_expect_one(make):
    with make() as implementation:
        served = testing.Recorder()
        listener = implementation.listener(None, served.connected)
        client = testing.Recorder()
        listener.connect(client, proxy_header=EXAMPLE)
        client.wait_connected().write(b"hello")
        served.expect(EXAMPLE + b"hello")


def test_in_memory_a_connectable_connection_gets_the_header_as_input():
    implementation = testing.Implementation()
    served = testing.Recorder()
    implementation.connectable("address", testing.Connection(served))
    implementation.connect("address", testing.Recorder(), proxy_header=EXAMPLE)
    assert served.data == EXAMPLE


def test_in_memory_a_client_can_omit_the_header():
    client, served = testing.Recorder(), testing.Recorder()
    testing.Implementation().listener(None, served.connected, proxy_protocol=["10.0.0.0/8"]).connect(client)
    assert served.connection.proxy_address is None
    assert served.connection.peer_address == client.connection.local_address


# Simulations.


@pytest.mark.parametrize("options", [{}, {"ssl_context": server_context()}], ids=["plain", "tls"])
def test_a_header_is_received_under_many_seeds(options):
    def scenario(simulation):
        server = simulation.host("server")
        network = server.addresses[0].rpartition(".")[0] + ".0/24"
        served = testing.Recorder()
        listener = server.listener((server.addresses[0], 8000), served.connected, proxy_protocol=[network], **options)
        client = testing.Recorder()
        secure = SECURE if options else {}
        simulation.host("balancer").connect(
            (server.addresses[0], 8000), client, proxy_header=header(CLIENT, FRONT), **secure
        )
        client.wait_connected().write(b"hello")
        served.expect(b"hello")
        assert served.connection.peer_address == CLIENT
        client.connection.close()
        served.wait_closed()
        listener.close()

    explore(scenario, seeds=range(30))


def test_a_header_can_be_cut_anywhere_under_many_seeds():
    def scenario(simulation):
        server, balancer = simulation.host("server"), simulation.host("balancer")
        served = testing.Recorder()
        address = (server.addresses[0], 8000)
        server.listener(address, served.connected, proxy_protocol=EVERYWHERE)
        client = testing.Recorder()
        balancer.connect(address, client)
        client.wait_connected()
        rest = header(CLIENT, FRONT, version=simulation.random.choice([1, 2])) + b"hello"
        while rest:
            size = simulation.random.randint(1, 20)
            client.connection.write(rest[:size])
            rest = rest[size:]
            gevent.sleep(simulation.random.choice([0, 0.001, 0.1]))
        served.expect(b"hello")
        assert served.connection.peer_address == CLIENT

    explore(scenario, seeds=range(30))
