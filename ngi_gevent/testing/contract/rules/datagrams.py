"""Rules for UDP listeners: how they receive datagrams, and send them from their own address."""

from __future__ import annotations

import gevent
import pytest

from ngi_gevent import ListenerClosed
from ngi_gevent.interfaces import IUDPListener
from ngi_gevent.testing.contract.stage import DatagramWitness

# Datagrams that are sent from the address of a listener.


def test_a_datagram_answer_comes_from_the_address_that_was_asked(stage):
    asker = DatagramWitness(stage)
    asked = stage.listen_udp(lambda address, data: asked.send(address, data.upper()))
    asking = stage.listen_udp(asker)
    asking.send(asked.address, b"hello")
    stage.until(lambda: asker.datagrams)
    assert (asker.senders, asker.datagrams) == ([asked.address], [b"HELLO"])
    assert isinstance(asked, IUDPListener)


def test_datagrams_of_a_listener_arrive_whole_and_in_order(stage):
    witness = DatagramWitness(stage)
    listener, sending = stage.listen_udp(witness), stage.listen_udp(DatagramWitness(stage))
    sent = [b"one", b"", b"two" * 1000, bytearray(b"three"), memoryview(b"four")]
    for data in sent:
        sending.send(listener.address, data)
    stage.until(lambda: len(witness.datagrams) == len(sent))
    assert witness.datagrams == [bytes(data) for data in sent]
    assert witness.senders == [sending.address] * len(sent)
    assert {type(data) for data in witness.datagrams} == {bytes}


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


def test_a_datagram_listener_that_sends_to_itself_is_called_again_when_it_has_returned(stage):
    trace = []

    def handle(address, data):
        trace.append(("begin", data))
        if len(data) < 4:
            listener.send(listener.address, data + b"x")
        trace.append(("end", data))
        stage.happened()

    listener = stage.listen_udp(handle)
    listener.send(listener.address, b"")
    stage.until(lambda: len(trace) == 10)
    assert trace == [(step, b"x" * length) for length in range(5) for step in ("begin", "end")]


def test_a_datagram_may_be_sent_from_a_listener_on_any_native_thread(stage):
    witness = DatagramWitness(stage)
    listener, sending = stage.listen_udp(witness), stage.listen_udp(DatagramWitness(stage))

    def send():
        for data in b"one", b"two", b"three":
            sending.send(listener.address, data)
        sending.close()
        with pytest.raises(ListenerClosed):
            sending.send(listener.address, b"four")

    gevent.get_hub().threadpool.apply(send)
    stage.until(lambda: len(witness.datagrams) == 3)
    assert witness.datagrams == [b"one", b"two", b"three"]
    assert witness.senders == [sending.address] * 3


def test_a_closed_datagram_listener_sends_nothing_and_says_so(stage):
    witness = DatagramWitness(stage)
    listener, closed = stage.listen_udp(witness), stage.listen_udp(DatagramWitness(stage))
    closed.close()
    with pytest.raises(ListenerClosed) as caught:
        closed.send(listener.address, b"x")
    assert isinstance(caught.value, ValueError)
    assert repr(closed.address) in str(caught.value)
    stage.implementation.udp(listener.address, b"end")
    stage.until(lambda: witness.datagrams)
    assert witness.datagrams == [b"end"]


def test_a_datagram_listener_of_a_closed_implementation_sends_nothing_and_says_so(stage):
    listener = stage.listen_udp(DatagramWitness(stage))
    stage.implementation.close()
    with pytest.raises(ListenerClosed):
        listener.send(listener.address, b"x")
    stage.implementation = stage.make()


def test_a_datagram_handler_that_closed_its_listener_cannot_answer(stage):
    raised = []

    def handle(address, data):
        listener.close()
        try:
            listener.send(listener.address, data)
        except ListenerClosed as error:
            raised.append(error)
        stage.happened()

    listener = stage.listen_udp(handle)
    stage.implementation.udp(listener.address, b"x")
    stage.until(lambda: raised)


@pytest.mark.parametrize("data", ["text", None, 1, [b"x"]])
def test_a_datagram_of_a_listener_is_bytes(stage, data):
    listener = stage.listen_udp(DatagramWitness(stage))
    with pytest.raises(TypeError, match="bytes"):
        listener.send(listener.address, data)


@pytest.mark.parametrize("address", [[1], None])
def test_a_datagram_of_a_listener_has_an_address(stage, address):
    """As a sender whose Unix socket has no name has none."""
    listener = stage.listen_udp(DatagramWitness(stage))
    with pytest.raises(TypeError, match="address"):
        listener.send(address, b"x")


__all__ = [name for name in dir() if name.startswith("test_")]


__all__ = [name for name in dir() if name.startswith("test_")]
