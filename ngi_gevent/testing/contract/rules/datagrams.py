"""Rules for datagrams: how they are sent and received."""

from __future__ import annotations

import logging

import gevent
import pytest

from ngi_gevent import ListenerClosed
from ngi_gevent.core import clock, logs
from ngi_gevent.testing.contract.rules.common import both_ways, sender
from ngi_gevent.testing.contract.witness import DatagramWitness


def warnings(caplog):
    return [record for record in caplog.records if record.name == "ngi_gevent.datagram"]


def is_unix(listener):
    return isinstance(listener.address, str)


@both_ways
def test_datagrams_arrive_whole_and_in_order(stage, way):
    witness = DatagramWitness(stage)
    listener, send = stage.listen_udp(witness), sender(stage, way)
    sent = [b"one", b"", b"two" * 1000, bytearray(b"three"), memoryview(b"four")]
    for data in sent:
        send(listener.address, data)
    stage.until(lambda: len(witness.datagrams) == len(sent))
    assert witness.datagrams == [bytes(data) for data in sent]
    assert {type(data) for data in witness.datagrams} == {bytes}


def test_a_datagram_answer_comes_from_the_address_that_was_asked(stage):
    asker = DatagramWitness(stage)
    asked = stage.listen_udp(lambda address, data: asked.send(address, data.upper()))
    asking = stage.listen_udp(asker)
    asking.send(asked.address, b"hello")
    stage.until(lambda: asker.datagrams)
    assert (asker.senders, asker.datagrams) == ([asked.address], [b"HELLO"])


def test_all_datagrams_of_udp_have_the_same_sender(stage):
    one, other = DatagramWitness(stage), DatagramWitness(stage)
    listeners = stage.listen_udp(one), stage.listen_udp(other)
    for listener in listeners:
        for _ in range(2):
            stage.implementation.udp(listener.address, b"x")
    stage.until(lambda: len(one.senders) == len(other.senders) == 2)
    assert len(set(one.senders + other.senders)) == 1
    assert (one.senders[0] is None) == is_unix(listeners[0])


def test_each_listener_sends_datagrams_from_its_own_address(stage):
    witness = DatagramWitness(stage)
    listener = stage.listen_udp(witness)
    others = [stage.listen_udp(DatagramWitness(stage)) for _ in range(2)]
    for other in others:
        other.send(listener.address, b"x")
    stage.implementation.udp(listener.address, b"x")
    stage.until(lambda: len(witness.senders) == 3)
    assert witness.senders[:2] == [other.address for other in others]
    assert witness.senders[2] not in witness.senders[:2]


def test_a_datagram_to_an_unused_address_is_lost(stage):
    listener = stage.listen_udp(DatagramWitness(stage))
    listener.close()
    if is_unix(listener):  # the kernel reports that nothing listens
        with pytest.raises(FileNotFoundError, match=listener.address):
            stage.implementation.udp(listener.address, b"x")
    else:
        stage.implementation.udp(listener.address, b"x")


def test_a_datagram_that_is_too_long_is_dropped_and_not_cut(stage, caplog):
    witness = DatagramWitness(stage)
    listener = stage.listen_udp(witness, buffer_size=10)
    for data in b"x" * 11, b"y" * 10, b"z" * 5000, b"end":
        stage.implementation.udp(listener.address, data)
    stage.until(lambda: b"end" in witness.datagrams)
    assert witness.datagrams == [b"y" * 10, b"end"]
    (record,) = warnings(caplog)
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (f"datagram from {witness.senders[0]!r} dropped: 11 bytes (buffer_size=10)")


def test_a_flood_of_datagrams_that_are_too_long_does_not_fill_the_log(stage, caplog, monkeypatch):
    witness = DatagramWitness(stage)
    listener = stage.listen_udp(witness, buffer_size=10)
    for _ in range(50):
        stage.implementation.udp(listener.address, b"x" * 11)
    stage.implementation.udp(listener.address, b"first")
    stage.until(lambda: b"first" in witness.datagrams)
    assert len(warnings(caplog)) == 1
    later = clock.now() + logs.RATE_PERIOD
    monkeypatch.setattr(clock, "now", lambda: later)
    stage.implementation.udp(listener.address, b"x" * 11)
    stage.implementation.udp(listener.address, b"last")
    stage.until(lambda: b"last" in witness.datagrams)
    assert len(warnings(caplog)) == 2
    assert warnings(caplog)[1].getMessage().endswith("; 49 more since the last such entry")


def test_a_datagram_can_be_sent_from_a_listener_on_any_native_thread(stage):
    witness = DatagramWitness(stage)
    listener, sending = stage.listen_udp(witness), stage.listen_udp(DatagramWitness(stage))

    def send():
        for data in b"one", b"two", b"three":
            sending.send(listener.address, data)
        sending.close()
        with pytest.raises(ListenerClosed):
            sending.send(listener.address, b"four")

    if not stage.has_threads:
        pytest.skip("a simulation has no native threads")
    gevent.get_hub().threadpool.apply(send)
    stage.until(lambda: len(witness.datagrams) == 3)
    assert witness.datagrams == [b"one", b"two", b"three"]
    assert witness.senders == [sending.address] * 3


@both_ways
def test_a_datagram_must_be_bytes(stage, way):
    listener = stage.listen_udp(DatagramWitness(stage))
    send = sender(stage, way)
    for data in "text", None, 1, [b"x"]:
        with pytest.raises(TypeError, match="bytes"):
            send(listener.address, data)


@both_ways
def test_a_datagram_must_have_an_address(stage, way):
    """For example, a sender whose Unix socket has no path has no address."""
    send = sender(stage, way)
    for address in [1], None:
        with pytest.raises(TypeError, match="address"):
            send(address, b"x")


__all__ = [name for name in dir() if name.startswith("test_")]
