"""Attempts to connect to a host with several addresses: their order, how they share the time, and how they end."""

from __future__ import annotations

import errno
import gc
import os
import socket
import weakref

import gevent
import pytest
from gevent.event import Event
from stages import PATIENCE, Witness

import ngi_gevent
from ngi_gevent.core import clock
from ngi_gevent.sockets import attempts
from ngi_gevent.sockets.attempts import Attempts, in_turns
from ngi_gevent.testing.contract.simulated import BlockingSocket
from ngi_gevent.testing.simulation import Simulation


def v4(number):
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{number}", 80)


def v6(number):
    return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"::{number}", 80, 0, 0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], []),
        ([v6(1), v6(2), v6(3), v4(1), v4(2)], [v6(1), v4(1), v6(2), v4(2), v6(3)]),
        ([v4(1), v4(2), v6(1)], [v4(1), v6(1), v4(2)]),
        ([v4(2), v4(1), v4(2), v4(1)], [v4(2), v4(1)]),
    ],
)
def test_address_families_alternate_and_keep_their_order(found, expected):
    assert in_turns(found) == expected


class Sock:
    """A socket that records whether it is closed."""

    closed = False

    def close(self):
        self.closed = True


class Peers:
    """Replaces the peers at several addresses.  Each answers when the test calls."""

    def __init__(self):
        self.begun = []
        self.cancelled = []
        self.socks = {}
        self._answers = {}

    def connect(self, candidate):
        self.begun.append(candidate)
        told = self._answers.setdefault(candidate, [Event(), None])
        try:
            told[0].wait()
        except gevent.GreenletExit:
            self.cancelled.append(candidate)
            raise
        if told[1] is not None:
            raise told[1]
        return self.socks.setdefault(candidate, Sock())

    def answer(self, candidate, error=None):
        told = self._answers.setdefault(candidate, [Event(), None])
        told[1] = error
        told[0].set()


@pytest.fixture
def peers():
    """Peers in a simulation, in which the pauses between attempts take no real time."""
    with Simulation() as simulation:
        yield Peers()
        simulation.raised.clear()  # the greenlets of failed races


def racing(peers, *candidates):
    return gevent.spawn(Attempts(candidates, peers.connect).first)


def until(condition):
    with gevent.Timeout(PATIENCE):
        while not condition():
            gevent.sleep(0.001)


def refused(number=errno.ECONNREFUSED):
    return OSError(number, os.strerror(number))


def test_a_peer_that_does_not_answer_delays_the_next_attempt_only_a_little(peers):
    race = racing(peers, v6(1), v4(1))
    until(lambda: peers.begun == [v6(1), v4(1)])
    assert clock.now() == pytest.approx(attempts.STAGGER, abs=0.01)
    peers.answer(v4(1))
    assert race.get(timeout=PATIENCE) is peers.socks[v4(1)]
    until(lambda: v6(1) in peers.cancelled)
    assert not peers.socks[v4(1)].closed


def test_a_late_answer_is_accepted_while_a_later_attempt_waits(peers):
    race = racing(peers, v6(1), v4(1))
    until(lambda: len(peers.begun) == 2)
    peers.answer(v6(1))
    assert race.get(timeout=PATIENCE) is peers.socks[v6(1)]
    until(lambda: peers.cancelled == [v4(1)])


def test_a_failure_starts_the_next_attempt_at_once(peers):
    peers.answer(v6(1), refused())
    peers.answer(v4(1), refused())
    peers.answer(v6(2))
    assert racing(peers, v6(1), v6(2), v4(1), v4(2)).get(timeout=PATIENCE) is peers.socks[v6(2)]
    assert peers.begun == [v6(1), v4(1), v6(2)]
    assert clock.now() < 0.01


def test_if_two_attempts_connect_in_the_same_turn_one_is_closed(peers):
    race = racing(peers, v6(1), v4(1))
    until(lambda: len(peers.begun) == 2)
    peers.answer(v6(1))
    peers.answer(v4(1))
    assert race.get(timeout=PATIENCE) is peers.socks[v6(1)]
    until(lambda: peers.socks[v4(1)].closed)
    assert not peers.socks[v6(1)].closed


@pytest.mark.parametrize(
    ("numbers", "kind", "number"),
    [
        ([errno.ECONNREFUSED, errno.ECONNREFUSED], ConnectionRefusedError, errno.ECONNREFUSED),
        ([errno.ENETUNREACH, errno.ECONNREFUSED], OSError, None),
    ],
)
def test_if_all_fail_the_error_lists_each_address_with_its_reason(peers, numbers, kind, number):
    for candidate, each in zip((v6(1), v4(1)), numbers, strict=True):
        peers.answer(candidate, refused(each))
    with pytest.raises(kind) as caught:
        racing(peers, v6(1), v4(1)).get(timeout=PATIENCE)
    assert caught.value.errno == number
    listed = [f"{host} ({os.strerror(each)})" for host, each in zip(("::1", "127.0.0.1"), numbers, strict=True)]
    assert ", ".join(listed) in str(caught.value)


def test_a_host_without_addresses_is_unreachable(peers):
    with pytest.raises(OSError, match="Cannot assign"):
        Attempts([], peers.connect).first()


@pytest.mark.parametrize("connects", [False, True])
def test_an_interrupt_ends_all_attempts(peers, connects):
    """One attempt may have connected in the same turn."""
    race = racing(peers, v6(1), v4(1))
    until(lambda: len(peers.begun) == 2)
    if connects:
        peers.answer(v6(1))
    race.kill(block=False)
    race.join(PATIENCE)
    until(lambda: len(peers.cancelled) + len(peers.socks) == 2)
    assert [sock.closed for sock in peers.socks.values()] == [True] * connects


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_unexpected_error_ends_all_attempts(peers, error):
    peers.answer(v6(1), error())
    with pytest.raises(error):
        Attempts([v6(1), v4(1)], peers.connect).first()
    assert peers.begun == [v6(1)]


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_failed_attempts_do_not_need_the_garbage_collector(error):
    def connect(candidate):
        raise error("refused")

    failed = Attempts([v6(1), v4(1)], connect)
    gone = weakref.ref(failed)
    gc.disable()
    try:
        with pytest.raises(error):
            failed.first()
        gevent.sleep(0)
        del failed
        assert gone() is None
    finally:
        gc.enable()


def test_cancelled_attempts_do_not_need_the_garbage_collector(peers):
    """In a simulation, the garbage collector does not run."""
    race = Attempts([v6(1), v4(1)], peers.connect)
    first, gone = gevent.spawn(race.first), weakref.ref(race)
    until(lambda: len(peers.begun) == 2)
    peers.answer(v4(1))
    assert first.get(timeout=PATIENCE) is peers.socks[v4(1)]
    until(lambda: peers.cancelled == [v6(1)])
    gevent.sleep(0)
    del race, first
    assert gone() is None


# Attempts on sockets.


class Resolver:
    """Finds several addresses for each name."""

    def __init__(self, *hosts):
        self.hosts = hosts

    def getaddrinfo(self, host, port, *arguments):
        return [found for host in self.hosts for found in socket.getaddrinfo(host, port, *arguments)]


def connect(tcp, monkeypatch, port, *hosts):
    monkeypatch.setattr(gevent.get_hub(), "resolver", Resolver(*hosts))
    client = Witness(tcp)
    tcp.implementation.connect(("many.example", port), client)
    tcp.until(lambda: client.connection or client.failed)
    return client


@pytest.fixture
def half(simulated):
    """The address of a server whose first address, with IPv6, does not answer: the queue of its listener is full."""
    server = simulated.simulation.host("server")
    network = server._network
    for family, host in (socket.AF_INET6, network.addresses[1]), (socket.AF_INET, network.addresses[0]):
        listening = network.make_socket(family, socket.SOCK_STREAM)
        listening.bind((host, 80))
        listening.listen(0 if family == socket.AF_INET6 else 5)
    simulated.peers.append(BlockingSocket(simulated.implementation, (network.addresses[1], 80)))
    return "server", 80


def test_a_host_is_reached_although_its_first_address_does_not_answer(simulated, half):
    client = Witness(simulated)
    simulated.implementation.connect(half, client)
    began = clock.now()
    simulated.until(lambda: client.connection)
    assert clock.now() - began == pytest.approx(attempts.STAGGER, abs=0.01)
    assert client.connection.peer_address == ("10.0.0.2", 80)


def test_pending_attempts_end_with_their_implementation(simulated, half):
    client = Witness(simulated)
    with simulated.make() as implementation:
        simulated.simulation.partition("server", implementation)
        implementation.connect(half, client)
        gevent.sleep(10)
    simulated.until(lambda: client.failed)
    assert client.failed == "stopped"
    gevent.sleep(0)  # their sockets are closed in this turn
    assert implementation._network._site.sockets() == []


def test_the_reason_of_a_failed_connection_lists_the_addresses(tcp, monkeypatch):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        client = connect(tcp, monkeypatch, bound.getsockname()[1], "127.0.0.1", "127.0.0.3")
    assert isinstance(client.failed, ConnectionRefusedError)
    assert "127.0.0.1 (Connection refused), 127.0.0.3 (Connection refused): ('many.example'" in str(client.failed)
    with pytest.raises(ngi_gevent.ConnectionFailed, match=r"127\.0\.0\.3"):
        raise ngi_gevent.ConnectionFailed.because(client.failed)
