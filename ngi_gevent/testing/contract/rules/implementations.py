"""Rules for implementations: connection attempts, waiting and closing."""

from __future__ import annotations

import logging

import pytest

import ngi_gevent
from ngi_gevent.testing.contract.rules.common import Failure
from ngi_gevent.testing.contract.stage import PATIENCE
from ngi_gevent.testing.contract.witness import Witness

# Implementations.


def test_a_server_must_be_callable(stage):
    with pytest.raises(TypeError, match="server"):
        stage.implementation.listener(stage.address(), object())


def test_a_client_connect_handler_must_be_one(stage):
    listener = stage.listen()
    for handler in None, object(), Witness:
        with pytest.raises(TypeError, match="client connect handler"):
            stage.implementation.connect(listener.address, handler)
    for handler in object(), Witness:
        with pytest.raises(TypeError, match="client connect handler"):
            listener.connect(handler)


def test_wait_waits_only_for_pending_work(stage):
    stage.implementation.wait()
    client, served = stage.talk()
    with pytest.raises(ngi_gevent.Timeout, match="pending") as caught:
        stage.implementation.wait(0)
    assert isinstance(caught.value, TimeoutError)
    stage.listeners[0].close()
    client.connection.close()
    stage.until(lambda: client.gone and served.gone)
    stage.implementation.wait(0)


def test_wait_in_a_callback_that_it_waits_for_raises(stage, caplog):
    class Wait(Witness):
        def handle_input(self, connection, data):
            stage.implementation.wait(10)

    client, served = stage.talk(Wait)
    client.connection.write(b"wait")
    stage.until(lambda: served.closed)
    assert isinstance(served.closed, ngi_gevent.Deadlock)


def test_close_ends_everything_and_later_calls_raise(stage):
    client, served = stage.talk()
    implementation = stage.implementation
    implementation.close()
    implementation.close()
    stage.until(lambda: client.gone and served.gone)
    assert client.closed in ("stopped", "end of input")
    assert served.closed in ("stopped", "end of input")
    for use in (
        lambda: implementation.connect(stage.listeners[0].address, client),
        lambda: implementation.listener(stage.address(), stage.server()),
    ):
        with pytest.raises(ngi_gevent.ImplementationClosed):
            use()
    implementation.wait(10)
    stage.implementation = stage.make()


def test_a_handler_that_connects_again_while_the_implementation_closes_logs_no_traceback(stage, caplog):
    class Again(Witness):
        def handle_close(self, connection, reason):
            super().handle_close(connection, reason)
            implementation.connect(address, self)

    implementation = stage.implementation
    client = Again(stage)
    listener = stage.listen(Again)
    address = listener.address
    listener.connect(client)
    stage.until(lambda: stage.served and client.connection)
    with caplog.at_level(logging.DEBUG, logger="ngi_gevent.connection"):
        implementation.close()
        stage.until(lambda: client.gone and stage.served[0].gone)
        implementation.wait(10)
    stage.implementation = stage.make()
    used = [record for record in caplog.records if record.getMessage().endswith("handle_close raised an exception")]
    assert [record.levelname for record in used] == ["DEBUG"] * 2
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_the_end_of_a_with_statement_closes_an_implementation(stage):
    with pytest.raises(Failure), stage.implementation as entered:
        assert entered is stage.implementation
        listener = stage.listen()
        assert next(listener.connections(), None) is None
        raise Failure
    with pytest.raises(ngi_gevent.ImplementationClosed):
        entered.listener(stage.address(), stage.server())
    entered.wait(10)
    stage.implementation = stage.make()


def give_answer(stage):
    """Answer a client that does not read yet with more than a network accepts, and close.  Return both."""
    answer = b"answer" * 1_000_000

    def serve(connection):
        connection.write(answer)
        connection.close()
        stage.served.append(connection)
        stage.happened()

    peer = stage.peer(stage.listen(serve))
    peer.finish()
    stage.until(lambda: stage.served)
    return peer, answer


def test_wait_after_close_returns_when_all_closed_connections_have_delivered(stage):
    peer, answer = give_answer(stage)
    if stage.at_once:
        peer.read()  # it belongs to the same implementation, whose end also ends it
        stage.implementation.close()
    else:
        stage.implementation.close()
        with pytest.raises(ngi_gevent.Timeout, match="pending"):
            stage.implementation.wait(0.01)
        peer.read()
    stage.implementation.wait(PATIENCE)
    stage.until(lambda: peer.ended)
    assert peer.received == answer
    stage.implementation = stage.make()


def test_the_end_of_a_with_statement_waits_until_closed_connections_have_delivered(stage):
    closed = []
    with stage.implementation:
        peer, answer = give_answer(stage)
        stage.served[0].when_closed(lambda: closed.append(True))
        peer.read()
    assert closed
    stage.until(lambda: peer.ended)
    assert peer.received == answer
    stage.implementation.wait(20)
    stage.implementation = stage.make()


def test_a_connection_attempt_with_a_delay_is_pending_and_can_be_cancelled(stage):
    class Delayed(Witness):
        def __init__(self, delay):
            super().__init__(stage)
            self.connect_delay = delay
            stage.implementation.connect(listener.address, self)

        def connecting(self, give_up):
            self.give_up = give_up

    listener = stage.listen()
    client = Delayed(0.01)
    stage.until(lambda: client.connection)
    client.connection.close()
    listener.close()
    stage.until(lambda: client.gone)
    waiting = Delayed(1000)
    with pytest.raises(ngi_gevent.Timeout, match="pending"):
        stage.implementation.wait(0.01)
    waiting.give_up()
    stage.until(lambda: waiting.failed)
    waiting.give_up()
    stopped = Delayed(1000)
    stage.implementation.close()
    stage.until(lambda: stopped.failed)
    assert waiting.failed == stopped.failed == "stopped"
    stage.implementation = stage.make()
    for delay, error in ("1", TypeError), (-1, ValueError), (float("inf"), ValueError):
        with pytest.raises(error, match=f"connect_delay.*got {delay!r}"):
            Delayed(delay)


def test_a_failed_connection_attempt_reports_the_reason(stage):
    listener = stage.listen()
    listener.close()
    client = stage.client(listener)
    assert client.connection is None
    assert str(client.failed)
    stage.implementation.wait(10)


__all__ = [name for name in dir() if name.startswith("test_")]
