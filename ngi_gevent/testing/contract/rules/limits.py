"""Rules for ``max_connections``: at the limit, further connections wait."""

from __future__ import annotations

import pytest

from ngi_gevent.testing.contract.rules.common import MUCH, Echo
from ngi_gevent.testing.contract.witness import Witness

# Limits.


def echoes(stage, client, times=20):
    """Exchange *times* messages with *client*, one after another, so that other events have time to happen."""
    for _ in range(times):
        answered = len(client.data) + 1
        client.connection.write(b"?")
        stage.until(lambda answered=answered: len(client.data) == answered)


def comes(stage, listener, question=b"", close=False):
    """A witness that connects to *listener*, which may take until there is room, and sends a question."""

    class Asks(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(question)
            if close:
                connection.close()

    client = Asks(stage)
    stage.implementation.connect(listener.address, client)
    return client


def test_there_are_never_more_connections_than_max_connections(stage):
    listener = stage.listen(Echo, max_connections=2)
    first, second = stage.client(listener), stage.client(listener)
    third = comes(stage, listener, b"third")
    echoes(stage, first)
    fourth = comes(stage, listener, b"fourth", close=True)
    echoes(stage, first)
    echoes(stage, second)
    assert (len(stage.served), third.data, len(list(listener.connections()))) == (2, b"", 2)
    first.connection.close()
    stage.until(lambda: third.data == b"THIRD")
    echoes(stage, second)
    assert len(stage.served) == 3
    second.connection.abort()
    stage.until(lambda: len(stage.served) == 4 and stage.served[3].closed)
    assert stage.served[3].data == b"fourth"
    assert fourth.closed is None
    fifth = stage.client(listener)
    echoes(stage, fifth)


def test_a_connection_counts_until_it_is_gone(stage):
    class Answer(Echo):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if data == b"all":
                connection.write(b"x" * MUCH)
                connection.close()

    listener = stage.listen(Answer, max_connections=2)
    peer = stage.peer(listener)
    peer.send(b"all")
    stage.until(lambda: stage.served and stage.served[0].data)
    other = stage.client(listener)
    echoes(stage, other)
    waiting = comes(stage, listener, b"?")
    echoes(stage, other)
    assert (len(list(listener.connections())), len(stage.served)) == (1, 2)
    peer.finish()
    peer.read()
    stage.until(lambda: waiting.data == b"?")


@pytest.mark.parametrize("close", ["close", "close with a handler", "close_wait"])
def test_connections_that_wait_for_room_are_reset_when_the_listener_closes(stage, close):
    listener = stage.listen(Echo, max_connections=1)
    client = stage.client(listener)
    stage.until(lambda: stage.served)
    waiting = [comes(stage, listener) for _ in range(3)]
    echoes(stage, client)
    if close == "close":
        listener.close()
    elif close == "close_wait":
        assert listener.close_wait(0) == 1
    else:
        listener.close(lambda listener: None)
        echoes(stage, client)
        client.connection.close()
    stage.until(lambda: all(each.closed or each.failed for each in waiting))
    assert all(isinstance(each.closed or each.failed, ConnectionError) for each in waiting)
    assert len(stage.served) == 1


__all__ = [name for name in dir() if name.startswith("test_")]
