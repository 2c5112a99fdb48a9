"""Datagrams beyond the contract: in memory, and on sockets."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from greenlet import GreenletExit
from stages import PATIENCE, DatagramWitness, needs_ipv6

import ngi_gevent
from ngi_gevent import ImplementationClosed, ListenerClosed, Timeout, testing
from ngi_gevent.core import clock
from ngi_gevent.sockets import datagram_socket
from ngi_gevent.sockets.datagram_socket import MOST_AT_ONCE, DatagramSender
from ngi_gevent.sockets.network import Network


class Failure(Exception):
    """An exception that handlers in these tests raise."""


def warnings(caplog):
    return [record for record in caplog.records if record.name == "ngi_gevent.datagram"]


def inet_socket():
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def test_only_a_listener_with_broadcast_sends_broadcasts(tcp):
    witness = DatagramWitness(tcp)
    receiver = tcp.implementation.udp_listener(("127.255.255.255", 0), witness)
    tcp.listeners.append(receiver)
    for send in tcp.implementation.udp, tcp.listen_udp(print).send:
        with pytest.raises(PermissionError) as caught:
            send(receiver.address, b"x")
        assert repr(receiver.address) in str(caught.value)
    allowed = tcp.listen_udp(print, broadcast=True)
    allowed.send(receiver.address, b"hello")
    tcp.until(lambda: witness.datagrams)
    assert (witness.senders, witness.datagrams) == ([allowed.address], [b"hello"])


def test_with_reuse_port_two_listeners_share_a_port_and_each_sender_stays_with_one(tcp):
    witnesses = [DatagramWitness(tcp), DatagramWitness(tcp)]
    first = tcp.listen_udp(witnesses[0], reuse_port=True)
    with pytest.raises(OSError, match="in use"):
        tcp.implementation.udp_listener(first.address, print)
    tcp.listeners.append(tcp.implementation.udp_listener(first.address, witnesses[1], reuse_port=True))
    senders = [tcp.listen_udp(print) for _ in range(30)]
    for sender in senders * 2:
        sender.send(first.address, b"x")
    tcp.until(lambda: sum(len(witness.datagrams) for witness in witnesses) == 60)
    assert set(witnesses[0].senders).isdisjoint(witnesses[1].senders)
    assert all(witness.datagrams for witness in witnesses)


# Errors.


def test_the_wait_of_inline_raises_errors_that_are_not_logged(caplog, monkeypatch):
    monkeypatch.setattr("ngi_gevent.core.datagram.MOST_RAISED", 0)

    def raise_it(address, data):
        raise Failure

    with ngi_gevent.Inline() as script:
        listener = script.udp_listener(None, raise_it)
        for _ in range(3):
            script.udp(listener.address, b"x")
            with pytest.raises(Failure):
                script.wait(PATIENCE)
        listener.close()
    assert not [record for record in caplog.records if record.exc_info]


# In memory.


def test_in_memory_any_hashable_is_an_address_separate_from_connections():
    implementation = testing.Implementation()
    received = []
    implementation.listener("here", testing.Recorder)
    assert implementation.udp_listener("here", lambda address, data: received.append(data)).address == "here"
    one, other = (implementation.udp_listener(None, print) for _ in range(2))
    assert one.address != other.address
    implementation.udp("here", b"x")
    implementation.udp("nowhere", b"y")
    testing.Implementation().udp("here", b"z")
    assert received == [b"x"]


def test_in_memory_a_datagram_goes_to_the_listener_at_the_time_of_sending():
    implementation = testing.Implementation()
    early, late = [], []

    def replace(address, data):
        implementation.udp("there", b"x")
        first.close()
        implementation.udp_listener("there", lambda address, data: late.append(data))

    implementation.udp_listener("here", replace)
    first = implementation.udp_listener("there", lambda address, data: early.append(data))
    implementation.udp("here", b"go")
    assert (early, late) == ([], [])


def test_in_memory_the_call_raises_system_exit():
    implementation = testing.Implementation()
    implementation.udp_listener("here", lambda address, data: sys.exit(3))
    with pytest.raises(SystemExit):
        implementation.udp("here", b"x")


def test_the_default_implementation_works_in_memory():
    received = []
    listener = testing.udp_listener(None, lambda address, data: received.append(data))
    testing.udp(listener.address, b"x")
    listener.close()
    assert received == [b"x"]


# On sockets: addresses.


def test_the_default_implementation_works_on_sockets(no_socket_left):
    received = []
    arrived = Event()

    def handle(address, data):
        received.append(data)
        arrived.set()

    listener = ngi_gevent.udp_listener(None, handle)
    sock = inet_socket()
    sock.sendto(b"x", listener.address)
    assert arrived.wait(PATIENCE)
    listener.close()
    sock.close()
    ngi_gevent.wait(PATIENCE)
    assert received == [b"x"]


def test_the_listeners_address_has_the_picked_port(tcp):
    for address in None, ("127.0.0.1", 0), ("127.0.0.1", 0, 0, 0):
        listener = tcp.implementation.udp_listener(address, DatagramWitness(tcp))
        tcp.listeners.append(listener)
        assert listener.address[0] == "127.0.0.1"
        assert listener.address[1] > 0


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_the_sender_can_be_answered(tcp, host):
    def answer(address, data):
        tcp.implementation.udp(address, data.upper())

    listener = tcp.implementation.udp_listener((host, 0), answer)
    tcp.listeners.append(listener)
    with gevent.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.sendto(b"hello", listener.address)
        assert client.recv(100) == b"HELLO"


def test_a_host_name_is_looked_up_without_blocking_the_hub(tcp):
    witness = DatagramWitness(tcp)
    listener = tcp.implementation.udp_listener(("localhost", 0), witness)
    tcp.listeners.append(listener)
    ran = Event()
    gevent.spawn(ran.set)
    tcp.implementation.udp(listener.address, b"to an address")
    assert not ran.is_set()
    tcp.implementation.udp(("localhost", listener.address[1]), b"to a name")
    assert ran.is_set()
    tcp.until(lambda: witness.datagrams == [b"to an address", b"to a name"])
    assert len(set(witness.senders)) == 1


def test_a_host_that_does_not_resolve_is_reported(tcp):
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        tcp.implementation.udp(("no-such-host.invalid", 80), b"x")
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        tcp.implementation.udp_listener(("no-such-host.invalid", 80), DatagramWitness(tcp))


@pytest.mark.parametrize("address", [8000, b"bytes", ["127.0.0.1", 8000], ("127.0.0.1", "8000"), (None, 8000)])
def test_an_address_of_the_wrong_type_is_refused(tcp, address):
    with pytest.raises(TypeError, match="address"):
        tcp.implementation.udp(address, b"x")
    with pytest.raises(TypeError, match="address"):
        tcp.implementation.udp_listener(address, DatagramWitness(tcp))


@pytest.mark.parametrize("address", [("127.0.0.1", 65536), ("127.0.0.1",), "", "a\0b", "localhost:8000", ("a..b", 1)])
def test_an_invalid_address_is_refused(tcp, address):
    with pytest.raises(ValueError, match=r"address|Unix|host"):
        tcp.implementation.udp(address, b"x")
    with pytest.raises(ValueError, match=r"address|Unix|host"):
        tcp.implementation.udp_listener(address, DatagramWitness(tcp))


def test_an_error_of_the_kernel_names_the_address(tcp, tmp_path):
    listener = tcp.listen_udp(DatagramWitness(tcp))
    with pytest.raises(OSError, match="too long") as caught:
        tcp.implementation.udp(listener.address, b"x" * 65_508)
    assert caught.value.errno == errno.EMSGSIZE
    assert repr(listener.address) in str(caught.value)
    for address in tmp_path / "unused", Path("x" * 200):
        with pytest.raises(OSError, match=str(address)):
            tcp.implementation.udp(address, b"x")


def test_a_failed_listener_leaves_nothing_open(tcp, tmp_path):
    taken = tcp.listen_udp(DatagramWitness(tcp))
    for address in taken.address, ("192.0.2.1", 0), tmp_path, "/no/such/directory/socket":
        with pytest.raises(OSError, match=r"use|assign|directory"):
            tcp.implementation.udp_listener(address, DatagramWitness(tcp))
    with pytest.raises((MemoryError, OverflowError)):
        tcp.implementation.udp_listener(tmp_path / "large", DatagramWitness(tcp), buffer_size=1 << 62)
    assert not (tmp_path / "large").exists()
    taken.close()
    tcp.implementation.wait(PATIENCE)


# On sockets: sending from a listener.


def upper(stage, address, **options):
    """Return a listener that answers in upper case."""

    def answer(sender, data):
        listener.send(sender, data.upper())

    listener = stage.implementation.udp_listener(address, answer, **options)
    stage.listeners.append(listener)
    return listener


def asks(sock, listener, data=b"hello"):
    """Return *listener*'s answers to *sock*, a connected standard socket, which accepts datagrams from no other
    address.
    """

    def ask():
        with sock:
            sock.settimeout(PATIENCE)
            sock.connect(listener.address)
            sock.send(data)
            return sock.recv(65536)

    return gevent.get_hub().threadpool.apply(ask)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0.0.0.0", *(pytest.param(host, marks=needs_ipv6) for host in ("::1", "::"))]
)
def test_a_connected_socket_receives_the_answer_of_a_listener(tcp, host):
    listener = upper(tcp, (host, 0))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    assert asks(socket.socket(family, socket.SOCK_DGRAM), listener) == b"HELLO"


@needs_ipv6
def test_a_listener_on_both_families_answers_both(tcp):
    listener = upper(tcp, ("::", 0))
    with gevent.socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", listener.address[1]))
        client.send(b"hello")
        assert client.recv(100) == b"HELLO"


def test_a_connected_socket_receives_the_answer_of_a_threaded_listener():
    with ngi_gevent.Threaded() as implementation, inet_socket() as sock:
        listener = implementation.udp_listener(None, lambda address, data: listener.send(address, data.upper()))
        sock.settimeout(PATIENCE)
        sock.connect(listener.address)
        sock.send(b"hello")
        assert sock.recv(100) == b"HELLO"
        listener.send(sock.getsockname(), b"from another thread")
        assert sock.recv(100) == b"from another thread"


@pytest.mark.parametrize("make", [socket.socket, gevent.socket.socket])
def test_a_listener_sends_from_the_socket_that_it_was_given(tcp, make):
    sock = make(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    assert asks(socket.socket(type=socket.SOCK_DGRAM), upper(tcp, sock)) == b"HELLO"


def test_a_bound_unix_socket_gets_its_answer(tcp, tmp_path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "client"))
    assert asks(sock, upper(tcp, tmp_path / "server")) == b"HELLO"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract Unix sockets")
@pytest.mark.parametrize("kind", [str, bytes])
def test_an_abstract_name_is_a_valid_address(tcp, tmp_path, kind):
    def answer(sender, data):
        listener.send(sender, data.upper())

    names = [f"\0{tmp_path}/{number}" for number in range(2)]
    names = [name if kind is str else name.encode() for name in names]
    witness = DatagramWitness(tcp)
    listener = tcp.implementation.udp_listener(names[0], answer)
    asking = tcp.implementation.udp_listener(names[1], witness)
    tcp.listeners += [listener, asking]
    asking.send(names[0], b"hello")
    tcp.until(lambda: witness.datagrams == [b"HELLO"])
    assert witness.senders == [listener.address]
    tcp.implementation.udp(names[1], b"directly")
    tcp.until(lambda: b"directly" in witness.datagrams)
    listener.close()
    with pytest.raises(ConnectionRefusedError, match="/0"):
        tcp.implementation.udp(listener.address, b"x")


@pytest.fixture
def wakes_after_log(tcp, caplog, monkeypatch):
    """Make ``tcp.until`` check its condition again after each log entry."""
    monkeypatch.setattr(caplog.handler, "filters", [lambda record: bool(gevent.spawn(tcp.happened))])


@pytest.mark.usefixtures("wakes_after_log")
def test_a_unix_socket_without_a_path_cannot_be_answered(tcp, tmp_path, caplog):
    tcp.implementation.udp(upper(tcp, tmp_path / "server").address, b"hello")
    tcp.until(lambda: [record for record in caplog.records if record.exc_info])
    (record,) = [record for record in caplog.records if record.exc_info]
    told = str(record.exc_info[1])
    assert told.startswith("an address to send to must be (host, port), ")
    assert told.endswith("; got None")


@pytest.mark.skipif(shutil.which("nc") is None, reason="nc is not installed")
@pytest.mark.parametrize("address", [("127.0.0.1", 0), pytest.param(("::1", 0), marks=[needs_ipv6, pytest.mark.slow])])
def test_netcat_receives_the_answer_of_a_listener(tcp, address):
    host, port = upper(tcp, address).address[:2]

    def run_netcat():
        """Return the output of nc until it is killed.  It would not end by itself for another second."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(["nc", "-u", host, str(port)], **pipes) as nc:
            nc.stdin.write(b"hello")
            nc.stdin.flush()
            select.select([nc.stdout], [], [], PATIENCE)
            nc.kill()
            return nc.communicate()

    assert gevent.get_hub().threadpool.apply(run_netcat) == (b"HELLO", b"")


def test_a_listener_looks_up_a_host_name_without_blocking_the_hub(tcp):
    witness = DatagramWitness(tcp)
    listener, sending = tcp.listen_udp(witness), tcp.listen_udp(DatagramWitness(tcp))
    ran = Event()
    gevent.spawn(ran.set)
    sending.send(listener.address, b"to an address")
    assert not ran.is_set()
    sending.send(("localhost", listener.address[1]), b"to a name")
    assert ran.is_set()
    tcp.until(lambda: witness.datagrams == [b"to an address", b"to a name"])
    assert witness.senders == [sending.address] * 2


@needs_ipv6
def test_if_a_host_has_several_addresses_a_listener_uses_one_in_its_family(tcp, monkeypatch):
    """The look-up is replaced: a test machine may have only one address for each of its names."""
    witness = DatagramWitness(tcp)
    listener = tcp.implementation.udp_listener(("::1", 0), witness)
    tcp.listeners.append(listener)
    found = [(socket.AF_INET6, 2, 17, "", listener.address), (socket.AF_INET, 2, 17, "", ("127.0.0.1", 9))]
    monkeypatch.setattr(gevent.socket, "getaddrinfo", lambda *arguments, **options: found)
    listener.send(("both.example", listener.address[1]), b"x")
    tcp.until(lambda: witness.datagrams == [b"x"])


@pytest.mark.parametrize("address", [("::1", 9), "/tmp/socket", ("2001:db8::1", 9, 0, 0)])
def test_an_address_of_another_family_is_refused_with_its_name(tcp, address):
    listener = tcp.listen_udp(DatagramWitness(tcp))
    with pytest.raises(OSError, match="only to its own address family") as caught:
        listener.send(address, b"x")
    assert caught.value.errno == errno.EAFNOSUPPORT
    assert repr(address) in str(caught.value)
    assert repr(listener.address) in str(caught.value)


def test_if_a_listener_cannot_send_the_error_names_the_address(tcp, tmp_path):
    listener = tcp.listen_udp(DatagramWitness(tcp))
    with pytest.raises(OSError, match="too long") as caught:
        listener.send(("127.0.0.1", 9), b"x" * 65_508)
    assert caught.value.errno == errno.EMSGSIZE
    assert repr(("127.0.0.1", 9)) in str(caught.value)
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        listener.send(("no-such-host.invalid", 80), b"x")
    unix = tcp.implementation.udp_listener(tmp_path / "socket", DatagramWitness(tcp))
    tcp.listeners.append(unix)
    with pytest.raises(FileNotFoundError, match="unused"):
        unix.send(tmp_path / "unused", b"x")


@pytest.mark.parametrize("address", [8000, b"bytes", ["127.0.0.1", 8000], ("127.0.0.1", "8000"), (None, 8000)])
def test_a_listener_refuses_to_send_to_an_address_of_the_wrong_type(tcp, address):
    with pytest.raises(TypeError, match="address"):
        tcp.listen_udp(DatagramWitness(tcp)).send(address, b"x")


@pytest.mark.parametrize("address", [("127.0.0.1", 65536), ("127.0.0.1",), "", "a\0b", "localhost:8000", ("a..b", 1)])
def test_a_listener_refuses_to_send_to_an_invalid_address(tcp, address):
    with pytest.raises(ValueError, match=r"address|Unix|host"):
        tcp.listen_udp(DatagramWitness(tcp)).send(address, b"x")


def test_a_listener_waits_for_a_full_unix_socket(tcp, tmp_path):
    """Linux queues ten unread datagrams, and as many bytes as the sender's buffer has."""
    sending = tcp.implementation.udp_listener(tmp_path / "sending", DatagramWitness(tcp))
    tcp.listeners.append(sending)
    for name, data in ("small", b"%d"), ("large", b"%d" + b"x" * 50_000):
        witness = DatagramWitness(tcp)
        tcp.listeners.append(tcp.implementation.udp_listener(tmp_path / name, witness))
        for number in range(100):
            sending.send(tmp_path / name, data % number)
        tcp.until(lambda witness=witness: len(witness.datagrams) == 100)
        assert witness.datagrams == [data % number for number in range(100)]
        assert set(witness.senders) == {sending.address}


def test_a_listener_that_waits_to_send_does_not_hold_up_others(tcp, tmp_path, monkeypatch):
    """Two greenlets wait for a socket that no process reads.  The listener still sends and receives for others."""
    monkeypatch.setattr(datagram_socket, "SEND_TIMEOUT", PATIENCE)
    witness, own = DatagramWitness(tcp), DatagramWitness(tcp)
    tcp.listeners.append(tcp.implementation.udp_listener(tmp_path / "free", witness))
    sending = tcp.implementation.udp_listener(tmp_path / "sending", own)
    tcp.listeners.append(sending)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stuck:
        stuck.bind(str(tmp_path / "stuck"))

        def send():
            for _ in range(20):
                sending.send(tmp_path / "stuck", b"x")

        senders = [gevent.spawn(send) for _ in range(2)]
        gevent.sleep(0)
        for _ in range(20):
            sending.send(tmp_path / "free", b"x")
            tcp.implementation.udp(tmp_path / "sending", b"y")
        tcp.until(lambda: len(witness.datagrams) == len(own.datagrams) == 20)
        assert not any(sender.ready() for sender in senders)
    for sender in senders:  # the receiver has gone
        with pytest.raises(OSError, match="stuck"):
            sender.get(timeout=PATIENCE)


@pytest.mark.parametrize("spawn", [gevent.spawn, lambda send: gevent.get_hub().threadpool.spawn(send)])
def test_closing_a_listener_ends_sends_that_wait(tcp, tmp_path, spawn, monkeypatch):
    monkeypatch.setattr(datagram_socket, "SEND_TIMEOUT", PATIENCE)
    sending = tcp.implementation.udp_listener(tmp_path / "sending", DatagramWitness(tcp))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stuck:
        stuck.bind(str(tmp_path / "stuck"))
        taken = []

        def send():
            while True:
                sending.send(tmp_path / "stuck", b"x")
                taken.append(1)

        sender = spawn(send)
        with gevent.Timeout(PATIENCE):
            while not taken:
                gevent.sleep(0.001)
        sending.close()
        tcp.implementation.udp_listener(sending.address, DatagramWitness(tcp)).close()
        with pytest.raises(ListenerClosed, match="sending"):
            sender.get(timeout=PATIENCE)


def test_a_listener_that_is_closed_during_a_look_up_sends_nothing(tcp):
    listener = tcp.listen_udp(DatagramWitness(tcp))
    sending = gevent.spawn(listener.send, ("localhost", 9), b"x")
    gevent.sleep(0)
    assert not sending.ready()
    listener.close()
    with pytest.raises(ListenerClosed, match=r"127\.0\.0\.1"):
        sending.get(timeout=PATIENCE)


# Clients that do not receive.


class Clients:
    """Sockets of clients in *directory*.  Each asks the listener there, and gets an answer."""

    def __init__(self, directory):
        self.directory = directory
        self.address = str(directory / "server")
        self.sockets = []

    def make(self, connected_to=None):
        sock = gevent.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sockets.append(sock)
        sock.bind(str(self.directory / f"client{len(self.sockets)}"))
        sock.settimeout(PATIENCE)
        if connected_to is not None:
            sock.connect(str(connected_to))
        return sock

    def ask(self, sock, data=b"hello"):
        while not sock.sendto(data, self.address):  # gevent returns 0 if the second attempt has no room
            gevent.sleep(0)

    def answered(self, sock):
        self.ask(sock)
        return sock.recv(100_000)


@pytest.fixture
def clients(tmp_path):
    clients = Clients(tmp_path)
    yield clients
    for sock in clients.sockets:
        sock.close()


def dropped(caplog):
    return [record.getMessage() for record in warnings(caplog) if " dropped: " in record.getMessage()]


@pytest.mark.parametrize("answer_with", ["send", "udp"])
@pytest.mark.parametrize("size", [5, 20_000])
def test_a_unix_client_that_never_receives_does_not_delay_answers_to_others(
    tcp, tmp_path, clients, caplog, size, answer_with
):
    if answer_with == "send":

        def answer(sender, data):
            listener.send(sender, data * size)
    else:

        def answer(sender, data):
            tcp.implementation.udp(sender, data * size)

    listener = tcp.implementation.udp_listener(tmp_path / "server", answer)
    tcp.listeners.append(listener)
    silent = clients.make()
    others = [clients.make()] if answer_with == "udp" else [clients.make(), clients.make(connected_to=listener.address)]
    for _ in range(50):
        clients.ask(silent, b"x")
    for other in others:
        assert [clients.answered(other) for _ in range(5)] == [b"hello" * size] * 5
    (line,) = dropped(caplog)
    assert line == f"datagram to {silent.getsockname()!r} dropped: {os.strerror(errno.EAGAIN)}"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps what was not received with its sender")
@pytest.mark.parametrize(("size", "times"), [(1, 400), (20_000, 30)])
def test_a_connected_unix_client_does_not_fill_the_send_buffer(tcp, tmp_path, clients, caplog, size, times):
    """For this client, the kernel limits only the bytes in the buffer of the listener's socket, not the datagrams."""
    listener = tcp.implementation.udp_listener(
        tmp_path / "server", lambda sender, data: listener.send(sender, data * size)
    )
    tcp.listeners.append(listener)
    silent = clients.make(connected_to=listener.address)
    for _ in range(times):
        clients.ask(silent, b"x")
    for other in clients.make(), clients.make(connected_to=listener.address):
        assert [clients.answered(other) for _ in range(5)] == [b"hello" * size] * 5
    assert silent.getsockname() in dropped(caplog)[0]
    held = 0
    silent.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while silent.recv(size):
            held += 1
    assert 0 < held < times
    silent.settimeout(PATIENCE)
    assert clients.answered(silent) == b"hello" * size


@pytest.mark.parametrize("answer_with", ["send", "udp"])
def test_a_unix_client_connected_to_another_address_gets_no_answer(tcp, tmp_path, clients, caplog, answer_with):
    """The send does not raise.  Over UDP, the client's kernel would also discard the answer."""

    def answer(sender, data):
        send = listener.send if answer_with == "send" else tcp.implementation.udp
        send(sender, data)
        answered.append(sender)

    answered = []
    listener = tcp.implementation.udp_listener(tmp_path / "server", answer)
    tcp.listeners.append(listener)
    elsewhere = clients.make(connected_to=clients.make().getsockname())
    for _ in range(20):
        clients.ask(elsewhere)
    assert clients.answered(clients.make()) == b"hello"
    assert answered[:20] == [elsewhere.getsockname()] * 20
    assert dropped(caplog) == [f"datagram to {elsewhere.getsockname()!r} dropped: {os.strerror(errno.EPERM)}"]


@pytest.mark.parametrize("send_with", ["send", "udp"])
def test_outside_of_handlers_the_wait_for_a_unix_receiver_has_a_limit(simulated, caplog, send_with):
    listener = simulated.implementation.udp_listener("/server", DatagramWitness(simulated))
    simulated.listeners.append(listener)
    send = listener.send if send_with == "send" else simulated.implementation.udp
    silent = simulated.implementation._network.make_socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    silent.bind("/silent")
    for _ in range(15):
        send("/silent", b"x")
    silent.close()
    assert len(dropped(caplog)) == 1
    assert clock.now() == pytest.approx(4 * datagram_socket.SEND_TIMEOUT, rel=0.05)


def test_the_number_of_remembered_receivers_is_limited(tcp, tmp_path, clients, monkeypatch):
    """There can be any number of receivers while the send buffer is half full."""
    monkeypatch.setattr(datagram_socket, "MOST_RECEIVERS", 3)
    listener = tcp.implementation.udp_listener(tmp_path / "server", DatagramWitness(tcp))
    tcp.listeners.append(listener)
    sender = listener._sender
    silent = clients.make(connected_to=listener.address)
    while not sender._used_before:
        listener.send(silent.getsockname(), b"x" * 10_000)
    for _ in range(5):
        listener.send(clients.make().getsockname(), b"x")
        assert len(sender._used_before) <= 3


# The caller's sockets, and the files of Unix sockets.


@pytest.mark.parametrize("make", [socket.socket, gevent.socket.socket])
def test_a_bound_socket_is_used_unchanged(tcp, make):
    sock = make(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    address = sock.getsockname()
    witness = DatagramWitness(tcp)
    listener = tcp.implementation.udp_listener(sock, witness)
    tcp.listeners.append(listener)
    assert listener.address == address
    tcp.implementation.udp(address, b"x")
    tcp.until(lambda: witness.datagrams == [b"x"])


def test_a_socket_must_be_bound_and_a_datagram_socket(tcp, tmp_path):
    with socket.socket(type=socket.SOCK_DGRAM) as unbound, socket.socket() as stream:
        stream.bind(("127.0.0.1", 0))
        for sock, match in (unbound, "bound"), (stream, "datagram socket"):
            with pytest.raises(ValueError, match=match):
                tcp.implementation.udp_listener(sock, DatagramWitness(tcp))


def test_the_file_of_a_bound_socket_is_not_removed(tcp, tmp_path):
    path = tmp_path / "socket"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    tcp.implementation.udp_listener(sock, DatagramWitness(tcp)).close()
    assert path.exists()


def test_a_unix_socket_can_have_a_path_object_and_its_file_is_removed(tcp, tmp_path):
    path = tmp_path / "socket"
    witness = DatagramWitness(tcp)
    listener = tcp.implementation.udp_listener(path, witness)
    assert listener.address == str(path)
    tcp.implementation.udp(path, b"x")
    tcp.until(lambda: witness.datagrams == [b"x"])
    listener.close()
    assert not path.exists()


def test_the_socket_file_of_a_dead_process_is_replaced(tcp, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(path)
    witness = DatagramWitness(tcp)
    tcp.listeners.append(tcp.implementation.udp_listener(path, witness))
    tcp.implementation.udp(path, b"x")
    tcp.until(lambda: witness.datagrams == [b"x"])


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_the_socket_file_of_a_live_process_is_kept(tcp, tmp_path, kind):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, kind) as alive:
        alive.bind(path)
        if kind == socket.SOCK_STREAM:
            alive.listen()
        with pytest.raises(OSError, match="in use") as caught:
            tcp.implementation.udp_listener(path, DatagramWitness(tcp))
        assert path in str(caught.value)
        assert os.path.exists(path)


def test_a_listener_for_connections_keeps_the_socket_file_of_a_live_datagram_socket(tcp, tmp_path):
    path = tmp_path / "socket"
    tcp.listeners.append(tcp.implementation.udp_listener(path, DatagramWitness(tcp)))
    with pytest.raises(OSError, match="in use"):
        tcp.implementation.listener(path, tcp.server())


def test_a_file_that_replaced_the_socket_is_kept(tcp, tmp_path):
    path = tmp_path / "socket"
    listener = tcp.implementation.udp_listener(path, DatagramWitness(tcp))
    path.unlink()
    path.write_text("mine")
    listener.close()
    assert path.read_text() == "mine"
    with pytest.raises(OSError, match="in use"):
        tcp.implementation.udp_listener(path, DatagramWitness(tcp))
    assert path.read_text() == "mine"


# Receiving.


@pytest.mark.parametrize("size", [20_000, 65_507])
def test_long_datagrams_arrive_complete(socket_stage, size):
    witness = DatagramWitness(socket_stage)
    listener = socket_stage.listen_udp(witness)
    data = os.urandom(size)
    socket_stage.implementation.udp(listener.address, data)
    socket_stage.until(lambda: witness.datagrams)
    assert witness.datagrams == [data]


def test_unix_datagrams_can_be_longer_than_udp_datagrams(tcp, tmp_path, caplog):
    witness = DatagramWitness(tcp)
    small, large = tmp_path / "small", tmp_path / "large"
    tcp.listeners.append(tcp.implementation.udp_listener(small, witness))
    tcp.listeners.append(tcp.implementation.udp_listener(large, witness, buffer_size=100_000))
    tcp.implementation.udp(small, b"x" * 100_000)
    tcp.implementation.udp(small, b"end")
    tcp.implementation.udp(large, b"y" * 100_000)
    tcp.until(lambda: len(witness.datagrams) == 2)
    assert sorted(witness.datagrams) == [b"end", b"y" * 100_000]
    assert "100000 bytes" in warnings(caplog)[0].getMessage()


def test_a_handler_that_blocks_keeps_the_order_and_does_not_delay_others(socket_stage):
    slow, quick = DatagramWitness(socket_stage), DatagramWitness(socket_stage)
    go_on = Event()

    def block(address, data):
        slow(address, data)
        assert go_on.wait(PATIENCE)

    blocked, free = socket_stage.listen_udp(block), socket_stage.listen_udp(quick)
    for data in b"one", b"two", b"three":
        socket_stage.implementation.udp(blocked.address, data)
    socket_stage.implementation.udp(free.address, b"quick")
    socket_stage.until(lambda: slow.datagrams and quick.datagrams)
    client, served = socket_stage.talk()
    assert slow.datagrams == [b"one"]
    go_on.set()
    socket_stage.until(lambda: slow.datagrams == [b"one", b"two", b"three"])


def test_a_flood_of_datagrams_does_not_stop_other_greenlets(tcp):
    witness = DatagramWitness(tcp)
    turns = []

    def handle(address, data):
        witness(address, data)
        if len(witness.datagrams) == 1:
            gevent.spawn(lambda: turns.append(len(witness.datagrams)))

    listener = tcp.listen_udp(handle)
    for _ in range(3 * MOST_AT_ONCE):
        tcp.implementation.udp(listener.address, b"x")
    tcp.until(lambda: len(witness.datagrams) == 3 * MOST_AT_ONCE)
    assert turns == [MOST_AT_ONCE]


def test_an_error_on_receiving_does_not_end_the_listener(tcp, caplog):
    """The caller's socket is connected to a socket that has gone.  The kernel reports this when the listener
    receives.
    """
    witness = DatagramWitness(tcp)
    sock, gone = inet_socket(), inet_socket()
    peer_address = gone.getsockname()
    sock.connect(peer_address)
    gone.close()
    listener = tcp.implementation.udp_listener(sock, witness)
    tcp.listeners.append(listener)
    sock.send(b"x")
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.bind(peer_address)
        peer.sendto(b"y", listener.address)
        tcp.until(lambda: witness.datagrams == [b"y"])
    (record,) = warnings(caplog)
    assert "refused" in record.getMessage()
    assert repr(listener.address) in record.getMessage()


@pytest.mark.usefixtures("wakes_after_log")
def test_a_timeout_that_was_not_cancelled_does_not_end_the_listener(tcp, caplog):
    witness = DatagramWitness(tcp)

    def handle(address, data):
        witness(address, data)
        if data == b"one":
            timeouts.append(gevent.Timeout.start_new(0.01))

    timeouts = []
    listener = tcp.listen_udp(handle)
    tcp.implementation.udp(listener.address, b"one")
    tcp.until(lambda: caplog.records)
    tcp.implementation.udp(listener.address, b"two")
    tcp.until(lambda: witness.datagrams == [b"one", b"two"])
    assert "was interrupted, and continues" in caplog.records[0].getMessage()
    timeouts[0].close()


def test_killing_the_greenlet_while_it_waits_closes_the_listener(tcp):
    greenlets = []

    def handle(address, data):
        greenlets.append(gevent.getcurrent())
        tcp.happened()

    listener = tcp.listen_udp(handle)
    tcp.implementation.udp(listener.address, b"x")
    tcp.until(lambda: greenlets)
    gevent.kill(greenlets[0], GreenletExit)
    tcp.implementation.wait(PATIENCE)
    assert "closed" in repr(listener)


# Closing.


def test_a_listener_whose_handler_blocks_is_pending_until_the_handler_returns(socket_stage):
    witness = DatagramWitness(socket_stage)
    go_on = Event()

    def block(address, data):
        witness(address, data)
        assert go_on.wait(PATIENCE)
        witness(address, b"finished")

    listener = socket_stage.listen_udp(block)
    for data in b"one", b"two":
        socket_stage.implementation.udp(listener.address, data)
    socket_stage.until(lambda: witness.datagrams)
    listener.close()
    socket_stage.implementation.udp_listener(listener.address, witness).close()
    with pytest.raises(Timeout):
        socket_stage.implementation.wait(0.01)
    go_on.set()
    socket_stage.implementation.wait(PATIENCE)
    assert witness.datagrams == [b"one", b"finished"]


def test_a_listener_that_never_started_can_be_closed(tcp):
    listener = tcp.implementation.udp_listener(None, DatagramWitness(tcp))
    listener.close()
    tcp.implementation.wait(PATIENCE)


def test_a_listener_can_be_closed_by_another_native_thread(tcp):
    """The listener closes on its own thread, because another thread must not touch the objects of its hub."""
    listener = tcp.listen_udp(DatagramWitness(tcp))
    gevent.sleep(0)
    thread = threading.Thread(target=listener.close)
    thread.start()
    thread.join(0.05)  # this thread's hub cannot run during the join
    assert thread.is_alive()
    assert "open" in repr(listener)
    tcp.implementation.wait(PATIENCE)
    assert "closed" in repr(listener)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_greenlet_of_a_closed_listener_ends(tcp):
    listener = tcp.listen_udp(DatagramWitness(tcp))
    gevent.sleep(0)
    greenlet = listener._greenlet
    assert not greenlet.dead
    listener.close()
    gevent.sleep(0)
    assert greenlet.dead


# Sending.


def test_a_sender_waits_for_a_full_unix_socket(tcp, tmp_path):
    """Linux queues ten unread datagrams, and as many bytes as the sender's buffer has."""
    small, large = DatagramWitness(tcp), DatagramWitness(tcp)
    for witness, name, data in (small, "small", b"x"), (large, "large", b"x" * 50_000):
        tcp.listeners.append(tcp.implementation.udp_listener(tmp_path / name, witness))
        for _ in range(100):
            tcp.implementation.udp(tmp_path / name, data)
        tcp.until(lambda witness=witness: len(witness.datagrams) == 100)
        assert set(witness.datagrams) == {data}


def test_a_full_unix_socket_does_not_hold_up_others(tcp, tmp_path, monkeypatch):
    """Two greenlets wait for a socket that no process reads, and other work continues."""
    monkeypatch.setattr(datagram_socket, "SEND_TIMEOUT", PATIENCE)
    witness = DatagramWitness(tcp)
    tcp.listeners.append(tcp.implementation.udp_listener(tmp_path / "free", witness))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stuck:
        stuck.bind(str(tmp_path / "stuck"))

        def send():
            for _ in range(20):
                tcp.implementation.udp(tmp_path / "stuck", b"x" * 50_000)

        senders = [gevent.spawn(send) for _ in range(2)]
        gevent.sleep(0)
        for _ in range(20):
            tcp.implementation.udp(tmp_path / "free", b"x")
        tcp.until(lambda: len(witness.datagrams) == 20)
        assert not any(sender.ready() for sender in senders)
    for sender in senders:  # the receiver has gone
        with pytest.raises(OSError, match="stuck"):
            sender.get(timeout=PATIENCE)


def test_a_sender_that_was_closed_during_a_look_up_opens_no_socket(tcp):
    sending = gevent.spawn(tcp.implementation.udp, ("localhost", 9), b"x")
    gevent.sleep(0)
    assert not sending.ready()
    tcp.implementation.wait = lambda timeout: None
    tcp.implementation.close()
    with pytest.raises(ImplementationClosed):
        sending.get(timeout=PATIENCE)


def test_a_freed_sender_closes_its_sockets(no_socket_left):
    with inet_socket() as sock:
        sender = DatagramSender(Network())
        sender.send(sock.getsockname(), b"x")
        del sender
        gc.collect()


def test_the_default_implementation_leaves_no_warning_at_exit():
    program = "import ngi_gevent; ngi_gevent.udp(('127.0.0.1', 9), b'x')"
    ran = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, timeout=PATIENCE)
    assert (ran.returncode, ran.stderr) == (0, b"")
