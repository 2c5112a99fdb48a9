"""Rules for UDP listeners: their handlers, and their end."""

from __future__ import annotations

import errno

import pytest

from ngi_gevent import Deadlock, ImplementationClosed, ListenerClosed, Timeout
from ngi_gevent.core import clock, logs
from ngi_gevent.core.datagram import MOST_RAISED
from ngi_gevent.interfaces import IImplementation, IUDPListener
from ngi_gevent.testing.contract.rules.common import Failure, both_ways, tracebacks
from ngi_gevent.testing.contract.stage import PATIENCE
from ngi_gevent.testing.contract.witness import DatagramWitness


def test_udp_listeners_have_the_whole_interface(stage):
    assert isinstance(stage.implementation, IImplementation)
    assert isinstance(stage.listen_udp(DatagramWitness(stage)), IUDPListener)


# The handler.


@both_ways
def test_datagram_handlers_never_overlap(stage, way):
    """If a handler sends to its own listener, the call returns before the handler gets that datagram."""
    trace = []

    def handle(address, data):
        trace.append(("begin", data))
        if len(data) < 4:
            send(listener.address, data + b"x")
        trace.append(("end", data))
        stage.happened()

    listener = stage.listen_udp(handle)
    send = stage.implementation.udp if way == "udp" else listener.send
    send(listener.address, b"")
    stage.until(lambda: len(trace) == 10)
    assert trace == [(step, b"x" * length) for length in range(5) for step in ("begin", "end")]


def test_a_datagram_handler_that_raises_is_logged_and_the_listener_goes_on(stage, caplog):
    witness = DatagramWitness(stage)

    def fail_first(address, data):
        witness(address, data)
        if data == b"bad":
            raise Failure

    listener = stage.listen_udp(fail_first)
    for data in b"bad", b"good":
        stage.implementation.udp(listener.address, data)
    stage.until(lambda: witness.datagrams == [b"bad", b"good"])
    (record,) = tracebacks(caplog)
    assert isinstance(record.exc_info[1], Failure)
    assert repr(witness.senders[0]) in record.getMessage()
    assert record.name == "ngi_gevent.datagram"


def test_a_flood_of_datagrams_whose_handler_raises_does_not_fill_the_log(stage, caplog, monkeypatch):
    """The first exceptions of each listener are logged with tracebacks, even if other listeners log as well."""
    handled = []

    def raise_it(address, data):
        handled.append(data)
        stage.happened()
        if data == b"bad":
            raise Failure

    noisy, quiet = stage.listen_udp(raise_it), stage.listen_udp(raise_it)

    def send(listener, times):
        """Send one datagram at a time, since the kernel can queue few, and a good one after the last was logged."""
        for data in [b"bad"] * times + [b"good"]:
            before = len(handled)
            stage.implementation.udp(listener.address, data)
            stage.until(lambda before=before: len(handled) > before)

    send(noisy, 50)
    assert len(tracebacks(caplog)) == MOST_RAISED
    send(quiet, 1)
    assert len(tracebacks(caplog)) == MOST_RAISED + 1
    assert not any("more since" in record.getMessage() for record in tracebacks(caplog))
    later = clock.now() + logs.RATE_PERIOD
    monkeypatch.setattr(clock, "now", lambda: later)
    send(noisy, 2)
    *_, first, last = tracebacks(caplog)
    assert first.getMessage().endswith("raised an exception; 40 more since the last such entry")
    assert last.getMessage().endswith("raised an exception")
    assert isinstance(last.exc_info[1], Failure)


def test_waiting_in_a_datagram_handler_is_a_deadlock(stage):
    raised = []

    def wait(address, data):
        for _ in "open", "closed":
            try:
                stage.implementation.wait(PATIENCE)
            except Exception as error:
                raised.append(type(error))
            listener.close()
        stage.happened()

    listener = stage.listen_udp(wait)
    stage.implementation.udp(listener.address, b"x")
    stage.until(lambda: len(raised) == 2)
    assert raised == [Deadlock, Deadlock]


def test_a_datagram_handler_can_wait_for_another_implementation(stage):
    waited = []
    another = stage.make()

    def wait(address, data):
        another.wait(PATIENCE)
        waited.append(data)
        stage.happened()

    stage.implementation.udp(stage.listen_udp(wait).address, b"x")
    stage.until(lambda: waited)
    another.close()


def test_a_datagram_handler_can_wait_for_the_connections_of_a_listener(stage):
    ended = []
    connections = stage.listen()
    peer = stage.peer(connections)
    stage.until(lambda: stage.served)

    def end(address, data):
        ended.append(connections.close_wait(0))
        stage.happened()

    def ask(connection, data):  # to make the datagram come after a callback of one of these connections
        stage.implementation.udp(listener.address, b"x")

    stage.served[0].handle_input = ask
    listener = stage.listen_udp(end)
    peer.send(b"go")
    stage.until(lambda: ended)
    assert ended == [1]


# The end.


def test_closing_a_udp_listener_frees_its_address_at_once_and_twice_is_harmless(stage):
    witness = DatagramWitness(stage)
    closed = stage.listen_udp(DatagramWitness(stage))
    closed.close()
    listener = stage.implementation.udp_listener(closed.address, witness)
    closed.close()
    stage.listeners.append(listener)
    assert listener.address == closed.address
    stage.implementation.udp(listener.address, b"x")
    stage.until(lambda: witness.datagrams == [b"x"])


def test_a_udp_listener_closed_by_its_handler_receives_nothing_more(stage):
    witness = DatagramWitness(stage)

    def close(address, data):
        witness(address, data)
        listener.close()

    listener = stage.listen_udp(close)
    stage.implementation.udp(listener.address, b"one")
    if not stage.at_once:  # otherwise the listener is already closed
        stage.implementation.udp(listener.address, b"two")
    stage.until(lambda: witness.datagrams)
    stage.implementation.wait(PATIENCE)
    assert witness.datagrams == [b"one"]


def test_a_closed_udp_listener_raises_instead_of_sending(stage):
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


def test_a_udp_listener_is_pending_and_a_sender_is_not(stage):
    listener = stage.listen_udp(DatagramWitness(stage))
    stage.implementation.udp(listener.address, b"x")
    with pytest.raises(Timeout, match=r"DatagramListener on .*, open"):
        stage.implementation.wait(0.01)
    listener.close()
    stage.implementation.wait(0)
    assert "closed" in repr(listener)


def test_a_closed_implementation_has_closed_its_udp_listeners(stage):
    listener = stage.listen_udp(DatagramWitness(stage))
    stage.implementation.udp(listener.address, b"x")
    stage.implementation.close()
    stage.implementation.wait(PATIENCE)  # to wait for the listener's thread, if it has one
    assert "closed" in repr(listener)
    with pytest.raises(ListenerClosed):
        listener.send(listener.address, b"x")
    with pytest.raises(ImplementationClosed):
        stage.implementation.udp(listener.address, b"x")
    with pytest.raises(ImplementationClosed):
        stage.implementation.udp_listener(None, DatagramWitness(stage))
    stage.implementation = stage.make()


# Checks of arguments.


def test_a_udp_address_in_use_is_refused_by_name_and_logged(stage, caplog):
    listener = stage.listen_udp(DatagramWitness(stage))
    with pytest.raises(OSError, match="in use") as caught:
        stage.implementation.udp_listener(listener.address, DatagramWitness(stage))
    assert caught.value.errno == errno.EADDRINUSE
    assert repr(listener.address) in str(caught.value)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("ngi_gevent.datagram", "WARNING")
    assert record.getMessage().startswith(f"unable to receive datagrams on {listener.address!r}: OSError: ")


def test_a_datagram_handler_that_cannot_be_called_is_refused(stage):
    for handler in None, "text", Failure():
        with pytest.raises(TypeError, match="handler"):
            stage.listen_udp(handler)


def test_an_invalid_buffer_size_is_refused(stage):
    for size, error in ("1", TypeError), (True, TypeError), (0, ValueError), (-1, ValueError):
        with pytest.raises(error, match=rf"buffer_size.*got {size!r}"):
            stage.listen_udp(DatagramWitness(stage), buffer_size=size)


__all__ = [name for name in dir() if name.startswith("test_")]
