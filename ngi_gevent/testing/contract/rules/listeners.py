"""Rules for listeners: their addresses, connections and options, and how they close."""

from __future__ import annotations

import functools
import re

import pytest

import ngi_gevent
from ngi_gevent import Limits
from ngi_gevent.testing.contract.rules.common import MUCH, Echo, Failure, tracebacks
from ngi_gevent.testing.contract.witness import Witness

# Listeners.


def test_a_listener_returns_at_once_and_has_its_address(stage):
    listener = stage.listen(Echo)
    assert listener.address is not None
    assert list(listener.connections()) == []
    assert stage.client(listener).connection


def test_a_listener_on_a_list_of_addresses_has_all_of_them(stage):
    listener = stage.implementation.listener([stage.address()], stage.server(Echo))
    stage.listeners.append(listener)
    assert listener.addresses == (listener.address,)
    assert stage.listen().addresses == (stage.listeners[-1].address,)
    assert stage.client(listener).connection
    with pytest.raises(ValueError, match=r"empty; got \[\]"):
        stage.implementation.listener([], stage.server(Echo))


def test_an_address_in_use_is_refused_by_name_and_logged(stage, caplog):
    listener = stage.listen()
    with pytest.raises(OSError, match="in use") as caught:
        stage.implementation.listener(listener.address, stage.server())
    assert str(listener.address[0] if isinstance(listener.address, tuple) else listener.address) in str(caught.value)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("ngi_gevent.listener", "WARNING")
    assert record.getMessage().startswith(f"unable to listen on {listener.address!r}: OSError: ")
    assert stage.client(listener).connection


def test_connections_is_a_snapshot_of_the_open_ones(stage):
    clients = [stage.client(stage.listen())]
    listener = stage.listeners[0]
    clients += [stage.client(listener) for _ in range(2)]
    stage.until(lambda: len(stage.served) == 3)
    iterator = listener.connections()
    listener.close()
    assert [connection.peer_address for connection in iterator] == [
        client.connection.local_address for client in clients
    ]
    assert list(listener.connections()) == []


def test_close_ends_open_connections(stage):
    client, served = stage.talk(Echo)
    listener = stage.listeners[0]
    listener.close()
    assert not served.connection
    stage.until(lambda: client.closed and served.closed)
    assert served.trace == [("close", "stopped")]
    assert client.closed == "end of input"
    listener.close()
    client = stage.client(listener)
    assert client.failed


def test_close_does_not_wait_for_output(stage):
    stage.peer(stage.listen())
    stage.until(lambda: stage.served)
    served = stage.served[0]
    served.connection.writelines(b"x" * 65536 for _ in range(1000))
    stage.listeners[0].close()
    stage.until(lambda: served.closed)
    assert served.trace == [("close", "stopped")]


def test_close_lets_a_closed_connection_finish_delivering(stage):
    class Last(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(b"x" * MUCH)
            connection.writelines([b"the", b" end"])
            connection.close()
            connection.control.close()

    peer = stage.peer(stage.listen(Last))
    peer.send(b"shut down")
    stage.until(lambda: stage.served and stage.served[0].data)
    peer.read()
    stage.until(lambda: peer.ended)
    assert peer.ended == "end"
    assert peer.received == b"x" * MUCH + b"the end"
    assert stage.served[0].trace == [b"shut down"]


def test_close_in_a_callback_of_an_open_connection_notifies_it_afterwards(stage):
    class Stop(Witness):
        def handle_input(self, connection, data):
            connection.write(b"bye")
            connection.control.close()
            super().handle_input(connection, data)

    client, served = stage.talk(Stop)
    client.connection.write(b"stop")
    stage.until(lambda: client.closed and served.closed)
    assert served.trace == [b"stop", ("close", "stopped")]
    assert client.data == b"bye"


def test_close_with_a_handler_waits_for_the_last_connection(stage):
    client, served = stage.talk(Echo)
    listener = stage.listeners[0]
    told = []

    def closed(listener):
        told.append(listener)
        stage.happened()

    listener.close(closed)
    assert told == []
    assert stage.client(listener).failed
    client.connection.write(b"go on")
    stage.until(lambda: client.data == b"GO ON")
    listener.close(closed)
    client.connection.close()
    stage.until(lambda: len(told) == 2)
    assert told == [listener, listener]
    listener.close(closed)
    assert len(told) == 3


def test_close_accepts_only_a_callable(stage):
    with pytest.raises(TypeError, match="callable"):
        stage.listen().close("handler")


def test_a_raising_close_handler_is_logged(stage, caplog):
    def closed(listener):
        raise error

    error = Failure("in a close handler")
    stage.listen().close(closed)
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


def test_closing_frees_the_address_at_once(stage):
    client, served = stage.talk()
    address = stage.listeners[0].address
    stage.listeners[0].close()
    again = stage.implementation.listener(address, stage.server(Echo))
    stage.listeners.append(again)
    assert again.address == address
    client = stage.client(again)
    client.connection.write(b"hello")
    stage.until(lambda: client.data == b"HELLO")


def test_close_wait_without_connections_returns_at_once(stage):
    listener = stage.listen()
    assert listener.close_wait() == 0
    assert listener.close_wait(0) == 0
    assert stage.client(listener).failed


def test_close_wait_ends_the_remaining_connections(stage):
    client, served = stage.talk(Echo)
    assert stage.listeners[0].close_wait(0) == 1
    stage.until(lambda: client.closed and served.closed)
    assert (client.closed, served.trace) == ("end of input", [("close", "stopped")])


def test_close_wait_in_a_callback_that_it_waits_for_raises(stage, caplog):
    class Stop(Witness):
        def handle_input(self, connection, data):
            connection.control.close_wait(10)

    client, served = stage.talk(Stop)
    client.connection.write(b"stop")
    stage.until(lambda: served.closed)
    assert isinstance(served.closed, ngi_gevent.Deadlock)


def test_a_wrong_timeout_is_refused(stage):
    listener = stage.listen()
    for timeout, error in (-1, ValueError), ("1", TypeError), (float("nan"), ValueError), (True, TypeError):
        with pytest.raises(error, match="timeout"):
            listener.close_wait(timeout)
        with pytest.raises(error, match="timeout"):
            stage.implementation.wait(timeout)
    assert stage.client(listener).connection


def test_a_timeout_of_infinity_or_of_years_is_no_limit(stage):
    for timeout in float("inf"), 10**400:
        listener = stage.listen(idle_timeout=timeout, handshake_timeout=timeout)
        client = Witness(stage)
        listener.connect(client, timeout=timeout)
        stage.until(lambda client=client: client.connection)
        client.connection.close()
        assert listener.close_wait(timeout) == 0
        stage.until(lambda client=client: client.gone)
        stage.implementation.wait(timeout)


def test_a_listener_connects_to_itself(stage):
    listener = stage.listen(Echo)
    client = Witness(stage)
    listener.connect(client)
    stage.until(lambda: client.connection)
    client.connection.write(b"hello")
    stage.until(lambda: client.data == b"HELLO")


def test_the_same_options_are_accepted_everywhere(stage):
    of_both = {"idle_timeout": 100, "output_limit": 100_000, "keep_alive": (60, 10, 3), "linger_timeout": 2.5}
    of_listener = {"backlog": 5, "max_connections": 5, "reuse_port": False, "handshake_timeout": 5}
    of_listener["limits"] = Limits(max_per_host=5, max_handshakes=5, max_lifetime=100)
    listener = stage.listen(Echo, **of_listener, **of_both)
    client = Witness(stage)
    stage.implementation.connect(listener.address, client, timeout=20, local_address=None, **of_both)
    stage.until(lambda: client.connection)


IMPOSSIBLE = [
    ("backlog", -1),
    ("backlog", 2**31),
    ("output_limit", -1),
    ("max_connections", 0),
    ("idle_timeout", 0),
    ("idle_timeout", -1),
]
IMPOSSIBLE += [("linger_timeout", -1), ("slow_callback", 0), ("slow_callback", -1)]
IMPOSSIBLE += [("keep_alive", value) for value in [(), (60, 10), (0, 10, 3), (60, 40_000, 3), (60, 10, 128)]]


def test_a_listener_counts_its_connections(stage):
    class Ends(Witness):
        def handle_input(self, connection, data):
            if data == b"close":
                connection.close()
            elif data == b"abort":
                connection.abort()
            elif data == b"fail":
                connection.fail("a reason with the peer's own words: " + data.decode())
            else:
                raise LookupError(data)

    listener = stage.listen(Ends)
    assert listener.metrics()[:3] == (True, 0, 0)
    for count, data in enumerate([b"close", b"abort", b"fail", b"raise", b""], 1):
        client = stage.client(listener)
        stage.until(lambda count=count: len(stage.served) == count)
        assert listener.metrics()[:3] == (True, 1, count)
        client.connection.write(data) if data else client.connection.close()
        stage.until(lambda: stage.served[-1].gone)
    stage.client(listener)
    stage.until(lambda: len(stage.served) == 6)
    listener.close()
    stage.until(lambda: stage.served[-1].gone)
    metrics = listener.metrics()
    assert metrics[:3] == (False, 0, 6)
    assert metrics.ended == dict.fromkeys(("closed", "aborted", "failed", "LookupError", "end of input", "stopped"), 1)
    assert set(metrics.limited.values()) == {0}
    assert (metrics.failed_handshakes, metrics.output_pending) == (0, 0)


def test_a_listener_counts_pending_output(stage):
    class Answer(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.write(b"x" * MUCH)

    listener = stage.listen(Answer)
    peer = stage.peer(listener)
    peer.send(b"?")
    stage.until(lambda: stage.served and stage.served[0].data)
    stage.settle()
    assert 0 < listener.metrics().output_pending <= MUCH
    peer.read()
    stage.until(lambda: peer.size == MUCH)
    stage.settle()
    assert listener.metrics().output_pending == 0


def test_an_impossible_option_is_refused(stage):
    connect = functools.partial(stage.implementation.connect, stage.listen().address, Witness(stage))
    for option, value in IMPOSSIBLE:
        of_listener = option in ("backlog", "max_connections", "slow_callback")
        for use in (stage.listen,) if of_listener else (stage.listen, connect):
            with pytest.raises(ValueError, match=option):
                use(**{option: value})
            with pytest.raises(TypeError, match=option):
                use(**{option: "many"})
    for limits in None, {"max_per_host": 5}, Limits:
        with pytest.raises(TypeError, match=r"limits must be an ngi_gevent\.Limits; got"):
            stage.listen(limits=limits)
    with pytest.raises(TypeError):
        stage.listen(no_such_option=1)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("reuse_port", "yes", TypeError),
        ("dual_stack", 1, TypeError),
        ("mode", "0o660", TypeError),
        ("mode", 660, ValueError),  # as decimal digits
        ("owner", "root", TypeError),
        ("owner", (0,), TypeError),
        ("owner", (-2, 0), ValueError),
    ],
)
def test_an_impossible_option_for_binding_is_refused(stage, option, value, error):
    with pytest.raises(error, match=rf"{option}.*got {re.escape(repr(value))}"):
        stage.listen(**{option: value})
    if option != "dual_stack":
        with pytest.raises(error, match=rf"{option}.*got {re.escape(repr(value))}"):
            stage.listen_udp(print, **{option: value})


def test_an_impossible_option_of_a_connection_attempt_is_refused(stage):
    listener = stage.listen()
    for connect in functools.partial(stage.implementation.connect, listener.address), listener.connect:
        with pytest.raises(ValueError, match="timeout"):
            connect(Witness(stage), timeout=-1)
        with pytest.raises(TypeError, match="timeout"):
            connect(Witness(stage), timeout="long")
        with pytest.raises(TypeError):
            connect(Witness(stage), no_such_option=1)


__all__ = [name for name in dir() if name.startswith("test_")]
