"""Crowds at a listener: the attacks that its limits prevent, each with and without the limit."""

from __future__ import annotations

import re
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import gevent.socket
import pytest
from certificates import client_context
from stages import PATIENCE, UnixStage, Witness

import ngi_gevent
from ngi_gevent import Limits, proxy_protocol, testing
from ngi_gevent.core import clock
from ngi_gevent.core.limits import HostCount, format_host, host_key
from ngi_gevent.sockets import crowd, lifetime, linger
from ngi_gevent.testing.contract import playing
from ngi_gevent.testing.contract.simulated import BlockingSocket


class Echo(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    """A stack that closes its sockets at the end of the test."""
    with ExitStack() as stack:
        yield stack


# Limits as values.


def test_limits_have_equality_and_a_repr():
    limits = Limits(max_per_host=3, max_lifetime=60)
    assert limits == Limits(max_lifetime=60.0, max_per_host=3, max_handshakes=None)
    assert limits != Limits()
    assert (limits.max_per_host, limits.max_handshakes, limits.max_lifetime) == (3, None, 60)
    assert repr(limits) == "Limits(max_per_host=3, max_handshakes=None, max_lifetime=60)"
    assert Limits(max_lifetime=float("inf")) == Limits()
    with pytest.raises(AttributeError):
        limits.max_per_host = 4
    with pytest.raises(AttributeError):
        limits.max_per_hots = 4
    with pytest.raises(TypeError):
        Limits(3)


@pytest.mark.parametrize(("name", "near"), [("max_per_hots", "; did you mean max_per_host?"), ("backlog", "")])
def test_an_unknown_limit_names_the_limits_and_the_one_that_is_near(name, near):
    with pytest.raises(TypeError) as caught:
        Limits(**{name: 4})
    assert str(caught.value) == f"a limit must be max_per_host, max_handshakes or max_lifetime; got {name}=4{near}"


@pytest.mark.parametrize("name", ["max_per_host", "max_handshakes", "max_lifetime"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), ("3", TypeError), (True, TypeError)])
def test_an_impossible_limit_is_refused(name, value, error):
    with pytest.raises(error, match=rf"{name}.*got {value!r}"):
        Limits(**{name: value})


# How hosts are distinguished.


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("192.0.2.1", 5000), ("192.0.2.1", 5001), True),
        (("192.0.2.1", 5000), ("192.0.2.2", 5000), False),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::ffff:2", 1, 0, 0), True),  # in the same /64 network
        (("2001:db8::1", 1, 0, 0), ("2001:db8:0:1::1", 1, 0, 0), False),
        (("::ffff:192.0.2.1", 1, 0, 0), ("192.0.2.1", 2), True),  # a client of a listener with dual_stack
        (("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.2", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::1%eth0", 2, 0, 2), True),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::2%eth0", 1, 0, 2), False),  # all of these share one network
    ],
)
def test_connections_count_by_host(one, other, same):
    count = HostCount(1)
    count.add("a connection", one)
    assert count.has_room(other) is not same
    count.remove("a connection")
    assert count.has_room(one)
    assert not count._counts  # no data is kept for a host that has gone


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (("192.0.2.1", 5000), "192.0.2.1"),
        (("::ffff:192.0.2.1", 1, 0, 0), "192.0.2.1"),
        (("2001:db8:0:1::5", 1, 0, 0), "2001:db8:0:1::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::1"),
    ],
)
def test_the_log_shows_a_host_as_it_is_counted(address, shown):
    assert format_host(address) == shown


@pytest.mark.parametrize("address", ["", "/run/client", b"\0abstract", None])
def test_a_client_on_a_unix_socket_has_no_host(address):
    assert host_key(address) is None


def test_the_limit_per_host_ignores_clients_on_a_unix_socket(folder):
    for stage in playing(UnixStage, folder):
        listener = stage.listen(Echo, limits=Limits(max_per_host=1))
        for _ in range(3):
            client = stage.client(listener)
            client.connection.write(b"?")
            stage.until(lambda client=client: client.data == b"?")


# Many connections from one host.


def about_connections(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "ngi_gevent.connection"]


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "refused a connection" in message]


@pytest.mark.parametrize("limits", [Limits(), Limits(max_per_host=16)], ids=["without", "with"])
def test_max_per_host_limits_a_host_that_opens_33_connections_a_second(simulated, caplog, limits):
    """Without the limit, there are 96 connections after three seconds, and no other client is served."""

    def attack():
        while True:
            held.append(BlockingSocket(attacker, listener.address))
            gevent.sleep(1 / 33)

    listener = simulated.listen(Echo, max_connections=96, limits=limits)
    attacker, held = simulated.simulation.host("attacker"), []
    attacking = gevent.spawn(attack)
    gevent.sleep(10)
    client = simulated.client(listener)
    client.connection.write(b"?")
    gevent.sleep(10)
    assert len(held) > 600
    if limits.max_per_host is None:
        assert client.data == b""
        assert refusals(caplog) == []
    else:
        assert client.data == b"?"
        assert len(list(listener.connections())) == 16 + 1
        assert {record.levelname for record in caplog.records} == {"WARNING"}
        assert 2 * crowd.MOST_REFUSED <= len(refusals(caplog)) <= 3 * crowd.MOST_REFUSED  # the number for 20 seconds
        assert f"{listener.address!r} refused a connection from ('10.0.0.2', " in refusals(caplog)[0]
        assert refusals(caplog)[0].endswith(": 10.0.0.2 has 16 open (max_per_host)")
        assert "more since the last such entry" in refusals(caplog)[crowd.MOST_REFUSED]
    attacking.kill()
    for each in held:
        each.close()


def test_a_refused_client_is_reset_and_the_server_is_not_called(tcp):
    listener = tcp.listen(Echo, limits=Limits(max_per_host=1))
    client = tcp.client(listener)
    peer = tcp.peer(listener)
    peer.read()
    tcp.until(lambda: peer.ended)
    assert peer.ended == "broken"
    assert len(tcp.served) == 1
    client.connection.close()
    tcp.until(lambda: not listener._connections)
    assert tcp.client(listener).connection  # the first client has left room


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_a_refused_client_gets_a_reset_which_fails_its_handshake_if_there_is_one(request, kind):
    stage = request.getfixturevalue(kind)
    listener = stage.listen(Echo, limits=Limits(max_per_host=1))
    stage.client(listener)
    refused = Witness(stage)
    stage.implementation.connect(listener.address, refused)
    stage.until(lambda: refused.closed or refused.failed)
    assert isinstance(refused.closed or refused.failed, ConnectionResetError)
    # Without TLS, the kernel can report the reset before the client notices that it is connected.
    assert kind == "tcp" or refused.connection is None


def test_a_refusal_names_the_network_of_the_client_and_the_address_of_the_listener(simulation, caplog):
    server, client = simulation.host("server"), simulation.host("client")
    options = {"limits": Limits(max_per_host=1)}
    server.listener([("10.0.0.1", 80), ("fd00:0:0:1::1", 80), ("0.0.0.0", 81), ("::", 81)], testing.Recorder, **options)
    for address in ("10.0.0.1", 80), ("fd00:0:0:1::1", 80), ("10.0.0.1", 81), ("fd00:0:0:1::1", 81):
        for _ in range(2):
            client.connect(address, testing.Recorder())
            gevent.sleep(1)
    assert [re.sub(r"32\d+", "…", line) for line in refusals(caplog)] == [
        f"listener on {address} refused a connection from {peer} (max_per_host)"
        for address, peer in [
            ("('10.0.0.1', 80)", "('10.0.0.2', …): 10.0.0.2 has 1 open"),
            ("('fd00:0:0:1::1', 80, 0, 0)", "('fd00:0:0:2::1', …, 0, 0): fd00:0:0:2::/64 has 1 open"),
            ("('0.0.0.0', 81)", "('10.0.0.2', …): 10.0.0.2 has 1 open"),
            ("('0.0.0.0', 81)", "('10.0.0.2', …): 10.0.0.2 has 1 open"),
            ("('::', 81, 0, 0)", "('fd00:0:0:2::1', …, 0, 0): fd00:0:0:2::/64 has 1 open"),
            ("('::', 81, 0, 0)", "('fd00:0:0:2::1', …, 0, 0): fd00:0:0:2::/64 has 1 open"),
        ]
    ]


def test_each_simulated_host_counts_separately(simulation):
    def greet(connection):
        testing.Recorder(connection)
        connection.write(b"hello")

    server = simulation.host("server")
    server.listener(("::", 80), greet, dual_stack=True, limits=Limits(max_per_host=2))
    for name in "one", "other":
        host = simulation.host(name)
        for address in "fd00:0:0:1::1", "10.0.0.1":
            recorder = testing.Recorder()
            host.connect((address, 80), recorder)
            recorder.expect(b"hello")


def test_connections_queued_when_the_listener_closes_also_count(tcp, caplog, sockets):
    listener = tcp.listen(Echo, limits=Limits(max_per_host=2))
    for _ in range(5):
        sockets.enter_context(socket.create_connection(listener.address))  # the server blocks, so none is accepted
    listener.close(lambda listener: None)
    assert len(listener._connections) == 2
    gevent.sleep(0)
    assert len(refusals(caplog)) == 3


@pytest.mark.parametrize("kind", ["simulated", "tls"])
def test_behind_a_proxy_the_limit_is_per_host_of_its_clients(request, kind, caplog):
    stage = request.getfixturevalue(kind)
    networks = ["10.0.0.0/8", "127.0.0.0/8"]
    listener = stage.listen(Echo, proxy_protocol=networks, limits=Limits(max_per_host=2))

    def comes(client):
        witness = Witness(stage)
        header = proxy_protocol.header(client, client and ("192.0.2.1", 80))
        stage.implementation.connect(listener.address, witness, proxy_header=header)
        return witness

    proxy = listener.address[0]  # clients on the proxy's own host also count
    many = [comes((proxy, 50_000 + number)) for number in range(5)]
    stage.until(lambda: sum(bool(each.closed or each.failed) for each in many) == 3)
    others = [comes(("198.51.100.8", 50_000)), comes(("2001:db8::1", 50_000))]
    others += [comes(None) for _ in range(3)]  # health checks of the proxy itself are not limited
    for each in [*others, *(each for each in many if not (each.closed or each.failed))]:
        stage.until(lambda each=each: each.connection)
        each.connection.write(b"?")
        stage.until(lambda each=each: each.data == b"?")
    assert len(refusals(caplog)) == len(caplog.messages) == 3
    assert f"refused a connection from ('{proxy}', 5000" in refusals(caplog)[0]
    listener.close()
    stage.until(lambda: not listener._connections)
    assert not listener._crowd._hosts._counts


# Connections that do not end.


class Large(Witness):
    """Answers with more than a slow peer can read in hours.  If the client has sent ``close``, also closes."""

    def handle_input(self, connection, data):
        connection.write(bytes(20_000_000))
        if data == b"close":
            connection.close()


@pytest.mark.parametrize("limits", [Limits(), Limits(max_lifetime=60)], ids=["without", "with"])
@pytest.mark.parametrize("says", [b"close", b"keep open"])
def test_only_max_lifetime_ends_the_connection_of_a_slow_reader(simulated, caplog, limits, says):
    def read():
        while peer.socket.recv(2048):
            gevent.sleep(1)

    caplog.set_level("INFO")
    listener = simulated.listen(Large, limits=limits)
    peer = simulated.peer(listener)
    peer.send(says)
    reading = gevent.spawn(read)
    gevent.sleep(59)
    assert len(listener._connections) == 1
    gevent.sleep(1 + linger.SEND_TIMEOUT + 1)
    served = simulated.served[0]
    if limits.max_lifetime is None:
        gevent.sleep(3600)
        assert len(listener._connections) == 1
        reading.kill()
        return
    assert len(listener._connections) == 0
    with pytest.raises(ConnectionResetError):
        reading.get()
    if says == b"close":
        assert served.closed is None
    else:
        assert isinstance(served.closed, ngi_gevent.Timeout)
        assert str(served.closed) == "the connection was open for 60 seconds (max_lifetime)"
    *ends, reset = about_connections(caplog)
    assert all(end.endswith("ended: Timeout: the connection was open for 60 seconds (max_lifetime)") for end in ends)
    assert len(ends) == (says != b"close")
    assert reset.endswith("reset: still closing 30.0 seconds after its max_lifetime of 60")


@pytest.mark.parametrize("limits", [Limits(), Limits(max_lifetime=60)], ids=["without", "with"])
def test_only_max_lifetime_ends_the_connection_of_a_peer_that_is_never_idle(simulated, limits):
    def chat():
        while True:
            peer.socket.sendall(b"?")
            assert peer.socket.recv(1)
            gevent.sleep(5)

    listener = simulated.listen(Echo, idle_timeout=30, limits=limits)
    peer = simulated.peer(listener)
    chatting = gevent.spawn(chat)
    gevent.sleep(59)
    assert simulated.served[0].closed is None
    gevent.sleep(1000)
    if limits.max_lifetime is None:
        assert simulated.served[0].closed is None
        chatting.kill()
    else:
        assert isinstance(simulated.served[0].closed, ngi_gevent.Timeout)
        assert len(listener._connections) == 0
        with pytest.raises((AssertionError, ConnectionError)):
            chatting.get()


def test_a_connection_whose_lifetime_ends_in_a_stalled_handshake_is_reported(tcp, monkeypatch):
    """The handshake's input had arrived in time, so the handshake still continues, and the connection is open at the
    limit.
    """

    def add(*arguments):
        original(*arguments)
        gevent.get_hub().loop.run_callback(time.sleep, 0.1)  # the process stalls

    original = crowd.Crowd.add
    monkeypatch.setattr(crowd.Crowd, "add", add)
    monkeypatch.setattr(lifetime, "CHECK_INTERVAL", 0.001)
    listener = tcp.listen(Echo, proxy_protocol=["127.0.0.0/8"], limits=Limits(max_lifetime=0.05))
    with socket.create_connection(listener.address) as peer:
        peer.sendall(b"PROXY UNKNOWN\r\nhello")
        tcp.until(lambda: tcp.served and tcp.served[0].closed)
    assert isinstance(tcp.served[0].closed, ngi_gevent.Timeout)
    assert listener.metrics().limited["max_lifetime"] == 1


def test_a_handshake_that_times_out_counts_once(tcp):
    listener = tcp.listen(Echo, proxy_protocol=["127.0.0.0/8"], limits=Limits(max_lifetime=0.05))
    client = tcp.client(listener)
    tcp.until(lambda: client.closed)
    counted = listener.metrics()
    assert (counted.open, counted.failed_handshakes, counted.limited["max_lifetime"]) == (0, 1, 0)


def test_a_peer_that_reads_gets_all_output_when_the_lifetime_ends(simulated):
    class Answer(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"x" * 1_000_000)

    began = clock.now()
    peer = simulated.peer(simulated.listen(Answer, limits=Limits(max_lifetime=20)))
    gevent.sleep(19.9)
    received = 0
    while data := peer.socket.recv(10_000):
        received += len(data)
        gevent.sleep(0.1)
    assert received == 1_000_000
    assert clock.now() - began > 29


@pytest.mark.parametrize("end", ["by the peer", "by the handler"])
def test_the_timer_of_the_lifetime_ends_with_the_connection(simulated, end):
    listener = simulated.listen(Echo, limits=Limits(max_lifetime=60))
    client = simulated.client(listener)
    simulated.until(lambda: simulated.served)
    (client if end == "by the peer" else simulated.served[0]).connection.close()
    simulated.until(lambda: not listener._connections)
    began = clock.now()
    with pytest.raises(gevent.exceptions.LoopExit):  # with no timer left, the loop has nothing to run
        listener.close()
        gevent.get_hub().join()
        gevent.event.Event().wait()
    assert clock.now() - began < 5


# Handshakes.


def client_hello() -> bytes:
    """Return the first message of a TLS client."""
    outgoing = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def answered(sockets: list[Any]) -> int:
    """Return how many of *sockets* have received data."""
    return len(select.select(sockets, [], [], 0)[0])


def echo(stage: Any, client: Any) -> None:
    """Exchange messages with *client*, so that all earlier input has been handled."""
    for _ in range(30):
        size = client.size
        client.connection.write(b"?")
        stage.until(lambda size=size: client.size > size)


@pytest.mark.parametrize("limits", [Limits(), Limits(max_handshakes=3)], ids=["without", "with"])
def test_a_crowd_of_hellos_uses_no_more_time_than_the_allowed_handshakes(tls, caplog, sockets, limits):
    """A hello makes the server compute a signature, which takes as long as 40 messages.  The client computes
    nothing.
    """
    listener = tls.listen(Echo, limits=limits)
    client = tls.client(listener)
    hello, attackers = client_hello(), []
    for _ in range(20):
        attackers.append(sockets.enter_context(gevent.socket.create_connection(listener.address)))
        attackers[-1].sendall(hello)
    echo(tls, client)
    if limits.max_handshakes is None:
        assert answered(attackers) == 20
        assert caplog.messages == []
    else:
        assert answered(attackers) == 3
        (line,) = caplog.messages
        assert line == (f"listener on {listener.address!r} paused, and new clients wait: max_handshakes=3 reached")
        for count in range(1, 18):
            attackers.pop(0).close()  # the next handshake then starts
            with gevent.Timeout(PATIENCE):
                while answered(attackers) < 3:
                    gevent.sleep(0.001)
            echo(tls, client)
            assert answered(attackers) == 3, count
        waiting = Witness(tls)
        tls.implementation.connect(listener.address, waiting)
        echo(tls, client)
        assert waiting.connection is None
        attackers.pop(0).close()
        tls.until(lambda: waiting.connection)


def test_the_end_of_a_handshake_starts_the_next_one(tls):
    listener = tls.listen(Echo, limits=Limits(max_handshakes=1))
    clients = [Witness(tls) for _ in range(5)]
    for client in clients:
        tls.implementation.connect(listener.address, client)
    tls.until(lambda: all(client.connection for client in clients))  # all of them stay


def test_silent_clients_make_room_for_others_after_the_handshake_timeout(tls, sockets):
    listener = tls.listen(Echo, handshake_timeout=0.1, limits=Limits(max_handshakes=2))
    for _ in range(4):
        sockets.enter_context(gevent.socket.create_connection(listener.address))
    assert tls.client(listener).connection


def test_the_lifetime_limits_the_handshake_too(tls, caplog):
    caplog.set_level("INFO")
    listener = tls.listen(Echo, handshake_timeout=None, limits=Limits(max_lifetime=0.05))
    with gevent.socket.create_connection(listener.address) as silent:
        assert silent.recv(1) == b""
    (line,) = about_connections(caplog)
    assert line.endswith("the TLS handshake failed: the client did not finish it within 0.05 seconds; does it use TLS?")


# Well-behaved clients.


def test_limits_that_are_not_reached_change_nothing(socket_stage, caplog):
    limits = Limits(max_per_host=2, max_handshakes=2, max_lifetime=3600)
    listener = socket_stage.listen(Echo, limits=limits)
    for _ in range(5):  # one after the other
        client = socket_stage.client(listener)
        client.connection.write(b"hello")
        socket_stage.until(lambda client=client: client.data == b"HELLO")
        client.connection.close()
        socket_stage.until(lambda: not listener._connections)
    assert caplog.messages == []
    assert all(served.closed == "end of input" for served in socket_stage.served)
