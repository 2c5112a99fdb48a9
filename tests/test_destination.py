"""Destinations: the options of a connection attempt, the local address, and connections to oneself."""

from __future__ import annotations

import errno
import socket

import gevent
import pytest
from stages import PATIENCE, Witness, needs_ipv6

import ngi_gevent
from ngi_gevent.core import clock
from ngi_gevent.sockets import linger
from ngi_gevent.sockets.network import Network
from ngi_gevent.testing.contract.rules.common import Echo


def connected(stage, address, **options):
    """Connect to *address*.  Return a witness that is connected or has failed."""
    client = Witness(stage)
    stage.implementation.connect(address, client, **options)
    stage.until(lambda: client.connection or client.failed)
    return client


@pytest.fixture
def port():
    """A port that the kernel does not give to any other socket."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", 0))
        yield sock.getsockname()[1]


def option(connection, name):
    level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
    return connection._transport.socket.getsockopt(level, getattr(socket, name))


# Options.


@pytest.mark.parametrize("keep_alive", [True, False, (61, 11, 4)])
def test_the_kernel_probes_silent_peers_as_configured(tcp, keep_alive):
    listener = tcp.listen(keep_alive=keep_alive)
    client = connected(tcp, listener.address, keep_alive=keep_alive)
    tcp.until(lambda: tcp.served)
    for connection in client.connection, tcp.served[0].connection:
        assert bool(option(connection, "SO_KEEPALIVE")) is bool(keep_alive)
        times = tuple(option(connection, f"TCP_{name}") for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT"))
        assert (times == (61, 11, 4)) is (keep_alive == (61, 11, 4))


def test_a_listener_on_a_unix_socket_sets_no_tcp_options(tcp):
    """The kernel would refuse them on such a socket."""
    try:
        sock = socket.socket(socket.AF_VSOCK)
        sock.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    except (AttributeError, OSError) as error:
        pytest.skip(f"this machine has no vsock: {error}")
    listener = tcp.implementation.listener(sock, tcp.server(), keep_alive=(60, 10, 3))
    tcp.listeners.append(listener)
    assert listener.address == sock.getsockname()


def test_an_idle_client_is_closed(simulated):
    client = connected(simulated, simulated.listen().address, idle_timeout=60)
    simulated.until(lambda: client.closed)
    assert clock.now() == pytest.approx(60, abs=0.01)
    assert isinstance(client.closed, ngi_gevent.Timeout)
    simulated.until(lambda: simulated.served[0].closed)
    assert simulated.served[0].closed == "end of input"


def test_a_closed_client_waits_for_its_peer_for_the_linger_timeout(simulated):
    """The servers have no handler, so they do not detect the end."""
    listener = simulated.listen(lambda connection: None)
    brief, long = (connected(simulated, listener.address, linger_timeout=timeout) for timeout in (5, None))
    for client in brief, long:
        client.connection.close()
    simulated.until(lambda: brief.gone)
    assert clock.now() == pytest.approx(5, abs=0.01)
    gevent.sleep(20)
    assert not long.gone
    simulated.until(lambda: long.gone)
    assert clock.now() == pytest.approx(linger.DISCARD_TIMEOUT, abs=0.01)
    listener.close()


# The local address.


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost"])
def test_a_connection_can_come_from_a_given_address(tcp, port, host):
    listener = tcp.listen(Echo)
    for _ in range(2):  # the second time, the kernel still remembers the first connection
        client = connected(tcp, listener.address, local_address=(host, port))
        assert client.connection.local_address == ("127.0.0.1" if host == "localhost" else host, port)
        client.connection.close()
        tcp.until(lambda client=client: client.gone)
    assert tcp.served[0].connection.peer_address == client.connection.local_address


@needs_ipv6
def test_an_empty_local_host_is_the_wildcard_of_either_family(tcp):
    """``socket.create_connection`` has the same rule."""
    listener = tcp.implementation.listener([("127.0.0.1", 0), ("::1", 0)], Echo)
    tcp.listeners.append(listener)
    for address in listener.addresses:
        client = connected(tcp, address, local_address=("", 0))
        assert client.connection.local_address[0] == address[0]


@needs_ipv6
@pytest.mark.parametrize(
    ("local", "number"),
    [(("192.0.2.1", 0), errno.EADDRNOTAVAIL), (("::1", 0), errno.EAFNOSUPPORT), (("no-such-host.invalid", 0), None)],
)
def test_an_unusable_local_address_is_reported(tcp, local, number):
    address = tcp.listen().address
    client = connected(tcp, address, local_address=local)
    assert isinstance(client.failed, OSError)
    assert number in (None, client.failed.errno)
    assert f"local_address {local}" in str(client.failed)
    assert str(address) in str(client.failed)


@pytest.mark.parametrize(
    ("local", "error"),
    [
        *((local, TypeError) for local in ["127.0.0.1", 8000, ["127.0.0.1", 0], (None, 0), ("127.0.0.1", "0")]),
        *((local, ValueError) for local in [("127.0.0.1",), ("127.0.0.1", -1), ("a..b", 0)]),
    ],
)
def test_an_invalid_local_address_is_refused(tcp, local, error):
    with pytest.raises(error, match="local_address") as caught:
        tcp.implementation.connect(("127.0.0.1", 9), Witness(tcp), local_address=local)
    assert repr(local) in str(caught.value)


def test_a_local_address_is_refused_for_a_unix_socket(tcp, tmp_path):
    with pytest.raises(ValueError, match="local_address must be None for a Unix socket"):
        tcp.implementation.connect(tmp_path / "socket", Witness(tcp), local_address=("127.0.0.1", 0))


# Connections to oneself.


def test_a_connection_to_itself_is_refused(tcp, port):
    """The kernel makes such a connection if nothing listens on a port, and it picks that port for the client."""
    address = "127.0.0.1", port
    client = connected(tcp, address, local_address=address)
    assert isinstance(client.failed, ConnectionRefusedError)
    assert "itself" in str(client.failed)
    assert str(address) in str(client.failed)
    listener = tcp.implementation.listener(address, tcp.server())  # at once, on the same port
    tcp.listeners.append(listener)
    with gevent.Timeout(PATIENCE):
        assert connected(tcp, address).connection


class ResetsAtOnce(Network):
    """A network in which peers reset each connection before the client receives anything."""

    def __init__(self, listening):
        self.listening = listening

    def connect(self, sock, address):
        super().connect(sock, address)
        accepted = self.listening.accept()[0]
        self.reset_on_close(accepted)
        accepted.close()
        with gevent.Timeout(PATIENCE):
            while not self.is_broken(sock):
                gevent.sleep(0.001)


def test_a_connection_that_its_peer_has_already_reset_is_not_considered_its_own_peer(tcp):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        tcp.implementation._network = ResetsAtOnce(listening)
        client = connected(tcp, listening.getsockname())
    assert client.failed is None
    tcp.until(lambda: client.closed)
    assert isinstance(client.closed, OSError)
