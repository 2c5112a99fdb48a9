"""Addresses: each implementation with sockets refuses an invalid address at the call, and names it."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

import gevent.socket
import pytest
from conftest import open_sockets
from stages import PATIENCE, DatagramWitness, Witness, needs_ipv6

import ngi_gevent
from ngi_gevent import blocking

needs_abstract_names = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract Unix sockets")

WRONG_TYPE = [
    8000,
    b"bytes",
    b"",
    b"/a/path",
    ["127.0.0.1", 8000],
    ("127.0.0.1", "8000"),
    (None, 8000),
    ("127.0.0.1", True),
    object(),
]
WRONG_VALUE = [
    ("127.0.0.1", 65536),
    ("127.0.0.1", -1),
    ("127.0.0.1",),
    ("127.0.0.1", 1, 2),
    "",
    "a\0b",
    "8000",
    "localhost:8000",
    ("a\0b", 1),
    ("a..b", 1),
    ("x" * 70, 1),
]


@pytest.mark.parametrize("address", WRONG_TYPE)
def test_an_address_of_the_wrong_type_is_refused(tcp, address):
    with pytest.raises(TypeError, match="address"):
        tcp.implementation.listener(address, tcp.server())
    with pytest.raises(TypeError, match="address"):
        tcp.implementation.connect(address, Witness(tcp))


@pytest.mark.parametrize("address", WRONG_VALUE)
def test_an_invalid_address_is_refused(tcp, address):
    with pytest.raises(ValueError, match=r"address|Unix|host") as caught:
        tcp.implementation.listener(address, tcp.server())
    assert repr(address) in str(caught.value)
    with pytest.raises(ValueError, match=r"address|Unix|host"):
        tcp.implementation.connect(address, Witness(tcp))


def test_a_path_in_bytes_is_not_an_address(tcp):
    (entry,) = (entry for entry in os.scandir(b"/") if entry.name == b"proc")
    with pytest.raises(TypeError, match=r"must be a str; got <DirEntry b'proc'>"):
        tcp.implementation.listener(entry, tcp.server())


def test_none_is_an_address_only_for_listeners(tcp):
    assert tcp.listen().address[0] == "127.0.0.1"
    with pytest.raises(TypeError, match="address"):
        tcp.implementation.connect(None, Witness(tcp))


def test_port_0_picks_a_free_port(tcp):
    listener = tcp.implementation.listener(("127.0.0.1", 0), tcp.server())
    tcp.listeners.append(listener)
    assert listener.address[1] > 0
    assert tcp.client(listener).connection


def test_a_host_name_is_looked_up(tcp):
    listener = tcp.implementation.listener(("localhost", 0), tcp.server())
    tcp.listeners.append(listener)
    assert listener.address[0] == "127.0.0.1"
    client = Witness(tcp)
    tcp.implementation.connect(("localhost", listener.address[1]), client)
    tcp.until(lambda: client.connection)


def test_a_host_that_does_not_resolve_is_reported(tcp):
    host = "no-such-host.invalid"
    with pytest.raises(OSError, match=host):
        tcp.implementation.listener((host, 0), tcp.server())
    client = Witness(tcp)
    tcp.implementation.connect((host, 80), client)
    tcp.until(lambda: client.failed)
    assert isinstance(client.failed, OSError)
    assert host in str(client.failed)


def test_an_address_of_another_host_is_refused(tcp):
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        tcp.implementation.listener(("192.0.2.1", 0), tcp.server())


def test_the_path_of_a_unix_socket_can_be_a_path_object(tcp, tmp_path):
    path = tmp_path / "socket"
    listener = tcp.implementation.listener(path, tcp.server())
    tcp.listeners.append(listener)
    assert listener.address == str(path)
    client = Witness(tcp)
    tcp.implementation.connect(path, client)
    tcp.until(lambda: client.connection)
    listener.close()
    assert not path.exists()


def test_the_file_of_a_unix_socket_is_removed_although_the_directory_changed(tcp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listener = tcp.implementation.listener("socket", tcp.server())
    assert os.path.exists("socket")
    monkeypatch.chdir("/")
    listener.close()
    assert not (tmp_path / "socket").exists()


def test_the_socket_file_of_a_dead_server_is_replaced(tcp, tmp_path):
    path = str(tmp_path / "socket")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.listen()
    dead.close()
    listener = tcp.implementation.listener(path, tcp.server())
    tcp.listeners.append(listener)
    assert tcp.client(listener).connection


def test_the_socket_file_of_a_live_server_is_kept(tcp, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(path)
        alive.listen()
        with pytest.raises(OSError, match="in use") as caught:
            tcp.implementation.listener(path, tcp.server())
        assert path in str(caught.value)
        assert os.path.exists(path)


def test_a_file_that_is_not_a_socket_is_kept(tcp, tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(OSError, match="precious"):
        tcp.implementation.listener(path, tcp.server())
    assert path.read_text() == "data"


def test_a_file_that_replaced_the_socket_is_kept(tcp, tmp_path):
    path = tmp_path / "socket"
    listener = tcp.implementation.listener(path, tcp.server())
    path.unlink()
    path.write_text("mine")
    listener.close()
    assert path.read_text() == "mine"


@pytest.mark.parametrize("path", ["x" * 200, "/no/such/directory/socket"])
def test_an_impossible_path_is_refused(tcp, path):
    with pytest.raises(OSError, match=path):
        tcp.implementation.listener(Path(path), tcp.server())
    client = Witness(tcp)
    tcp.implementation.connect(path, client)
    tcp.until(lambda: client.failed)
    assert isinstance(client.failed, OSError)


def text(name):
    return f"\0{name}"


def binary(name):
    return text(name).encode()


def bound(name):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(text(name))
    return sock


@needs_abstract_names
@pytest.mark.parametrize("address", [text, binary, bound])
def test_an_abstract_name_is_a_valid_address(tcp, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    listener = tcp.implementation.listener(address(tmp_path), tcp.server())
    tcp.listeners.append(listener)
    assert listener.address == binary(tmp_path)
    for name in text, binary:
        client = Witness(tcp)
        tcp.implementation.connect(name(tmp_path), client)
        tcp.until(lambda client=client: client.connection)
        assert client.connection.peer_address == listener.address
    client = Witness(tcp)
    listener.connect(client)
    tcp.until(lambda: client.connection)
    with pytest.raises(OSError, match="in use") as caught:
        tcp.implementation.listener(text(tmp_path), tcp.server())
    assert repr(text(tmp_path)) in str(caught.value)
    listener.close()
    again = tcp.implementation.listener(text(tmp_path), tcp.server())
    again.close()
    assert os.listdir(tmp_path) == []
    client = Witness(tcp)
    tcp.implementation.connect(again.address, client)
    tcp.until(lambda: client.failed)
    assert repr(again.address) in str(client.failed)


@needs_abstract_names
def test_an_abstract_name_can_contain_any_bytes(tcp, tmp_path):
    name = f"\0{tmp_path}\0x:1"
    listener = tcp.implementation.listener(name, tcp.server())
    tcp.listeners.append(listener)
    assert listener.address == name.encode()
    assert tcp.client(listener).connection
    with pytest.raises(OSError, match="too long"):
        tcp.implementation.listener("\0" + "x" * 200, tcp.server())


@pytest.mark.parametrize("make", [socket.socket, gevent.socket.socket])
def test_a_bound_socket_is_used_unchanged(tcp, make):
    sock = make()
    sock.bind(("127.0.0.1", 0))
    address = sock.getsockname()
    listener = tcp.implementation.listener(sock, tcp.server())
    tcp.listeners.append(listener)
    assert listener.address == address
    client = tcp.client(listener)
    tcp.until(lambda: tcp.served)
    client.connection.write(b"hello")
    tcp.until(lambda: tcp.served[0].data == b"hello")


def test_the_file_of_a_bound_unix_socket_is_not_removed(tcp, tmp_path):
    path = tmp_path / "socket"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    tcp.implementation.listener(sock, tcp.server()).close()
    assert path.exists()


def test_a_socket_must_be_bound_and_a_stream_socket(tcp):
    for sock in socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(type=socket.SOCK_DGRAM):
        with sock, pytest.raises(ValueError, match="socket"):
            tcp.implementation.listener(sock, tcp.server())


def test_the_four_part_form_is_accepted_for_every_family(tcp):
    listener = tcp.implementation.listener(("127.0.0.1", 0, 0, 0), tcp.server())
    tcp.listeners.append(listener)
    assert tcp.client(listener).connection


def test_a_failed_listener_leaves_nothing_open(tcp, tmp_path):
    taken = tcp.listen()
    for address in taken.address, ("no-such-host.invalid", 0), tmp_path:
        with pytest.raises(OSError, match=r"use|known|resolution"):
            tcp.implementation.listener(address, tcp.server())
    taken.close()
    tcp.implementation.wait(10)


def test_with_reuse_port_two_listeners_share_a_port(tcp):
    one = tcp.listen(reuse_port=True)
    two = tcp.implementation.listener(one.address, tcp.server(), reuse_port=True)
    tcp.listeners.append(two)
    assert one.address == two.address


def test_a_listener_whose_file_was_removed_still_closes(tcp, tmp_path):
    listener = tcp.implementation.listener(tmp_path / "socket", tcp.server())
    os.unlink(tmp_path / "socket")
    listener.close()
    tcp.implementation.wait(PATIENCE)


@needs_ipv6
def test_the_scope_of_an_ipv6_address_is_kept(tcp):
    """Without a scope, the kernel does not know the network of a link-local address, and the call fails."""
    witnesses = [Witness(tcp), Witness(tcp)]
    for scope, witness in enumerate(witnesses):
        tcp.implementation.connect(("fe80::1", 9, 0, scope), witness, timeout=1)
    tcp.until(lambda: all(witness.failed for witness in witnesses))
    assert "Invalid argument" in str(witnesses[0].failed)
    assert "Invalid argument" not in str(witnesses[1].failed)


def test_a_pending_connection_attempt_shows_its_target(tcp, tmp_path):
    clients = [Witness(tcp), Witness(tcp)]
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(f"{tmp_path}/full")
        full.listen(0)
        for client in clients:
            tcp.implementation.connect(f"{tmp_path}/full", client)
        with pytest.raises(ngi_gevent.Timeout, match=r"pending after 0.1 seconds: .*Connector to '.*/full'"):
            tcp.implementation.wait(0.1)
    tcp.until(lambda: clients[0].closed and clients[1].failed)


class Resolver:
    """Replaces gevent's resolver: counts the look-ups, and raises."""

    def __init__(self, error):
        self.error = error
        self.asked = 0

    def getaddrinfo(self, *arguments):
        self.asked += 1
        raise self.error


@pytest.fixture
def resolver(monkeypatch):
    """A resolver whose exception is not an ``OSError``.  gevent's resolver raises such a one if it cannot start
    threads.
    """
    resolver = Resolver(RuntimeError("can't start new thread"))
    monkeypatch.setattr(gevent.get_hub(), "resolver", resolver)
    return resolver


NUMERIC = [("127.0.0.1", 0), ("", 0), ("127.1", 0), ("127.0.0.1", 0, 0, 0)]
NUMERIC += [pytest.param(address, marks=needs_ipv6) for address in (("::1", 0), ("::1", 0, 0, 0))]


@pytest.mark.parametrize("address", NUMERIC)
def test_a_numeric_host_is_not_looked_up(tcp, resolver, address):
    """A look-up waits for a thread of gevent's pool, which other work can occupy for long."""
    listener = tcp.implementation.listener(address, tcp.server())
    tcp.listeners.append(listener)
    client = Witness(tcp)
    tcp.implementation.connect((address[0], listener.address[1], *address[2:]), client)
    tcp.until(lambda: client.connection)
    receiving = tcp.implementation.udp_listener(address, witness := DatagramWitness(tcp))
    tcp.listeners.append(receiving)
    for send in tcp.implementation.udp, receiving.send:
        send((address[0], receiving.address[1], *address[2:]), b"x")
    tcp.until(lambda: witness.datagrams == [b"x", b"x"])
    assert resolver.asked == 0


@needs_ipv6
@pytest.mark.parametrize("address", [("fe80::1%lo", 9), ("fe80::1", 9, 0, 1), ("fe80::1", 9, 0, "lo")])
def test_a_numeric_host_with_a_scope_is_not_looked_up(tcp, resolver, address):
    client = Witness(tcp)
    tcp.implementation.connect(address, client, timeout=1)
    tcp.until(lambda: client.failed)
    assert resolver.asked == 0


def test_numeric_hosts_do_not_wait_for_other_work_in_gevents_thread_pool(tcp):
    release = threading.Event()
    pool = gevent.get_hub().threadpool
    busy = [pool.spawn(release.wait) for _ in range(pool.maxsize)]
    try:
        with gevent.Timeout(PATIENCE / 2):
            tcp.listeners.append(tcp.implementation.listener(("127.0.0.1", 0), tcp.server()))
            assert tcp.client(tcp.listeners[0]).connection
    finally:
        release.set()
        gevent.joinall(busy)


@pytest.mark.parametrize("address", [("localhost", 1), ("x" * 62, 1, 0, 1), "/tmp/\ud800"])
def test_a_connection_attempt_that_fails_before_the_network_reports_the_reason(tcp, resolver, address):
    """The reasons: a resolver without threads, a name that its scope makes too long, and a name that cannot be
    encoded.
    """
    client = Witness(tcp)
    tcp.implementation.connect(address, client)
    tcp.until(lambda: client.failed)
    assert client.failed is resolver.error or isinstance(client.failed, UnicodeError)
    tcp.implementation.wait(PATIENCE)
    with pytest.raises(ngi_gevent.ConnectionFailed):
        blocking.connect(address, tcp.implementation.connect, timeout=PATIENCE)


@pytest.mark.parametrize("address", [("localhost", 0), ("x" * 64, 0), "/tmp/\ud800", ("::1", 0, 0, "lo")])
def test_a_listener_that_fails_before_the_network_leaves_nothing_open(tcp, resolver, address):
    before = open_sockets()
    for listen in tcp.implementation.listener, tcp.implementation.udp_listener:
        with pytest.raises((RuntimeError, ValueError, TypeError)) as kept:
            listen(address, print)
        assert open_sockets() <= before, kept
    tcp.implementation.wait(PATIENCE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_connection_attempt_fails_and_the_main_greenlet_raises(tcp, resolver, error, caplog):
    resolver.error = error()
    client = Witness(tcp)
    tcp.implementation.connect(("localhost", 1), client)
    with pytest.raises(error):
        tcp.until(lambda: client.failed and not client.failed)
    assert client.failed is resolver.error
    tcp.implementation.wait(PATIENCE)
