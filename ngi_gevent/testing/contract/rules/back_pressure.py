"""Rules for back-pressure: memory is bounded, whatever the peer does."""

from __future__ import annotations

import contextlib

import pytest

from ngi_gevent import ConnectionClosed, LimitExceeded
from ngi_gevent.testing.contract.rules.common import MEGABYTE, MUCH, Echo
from ngi_gevent.testing.contract.witness import Witness

# Rule 11: memory is bounded.


class EchoLines(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.writelines([data.upper()])


class EchoIterator(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.writelines(iter([data.upper()]))


@pytest.mark.parametrize("echo", [Echo, EchoLines, EchoIterator])
def test_a_peer_that_does_not_read_is_not_read_from(stage, echo):
    peer = stage.peer(stage.listen(echo))
    for _ in range(MUCH // 16384):
        peer.send(b"x" * 16384)
    other = stage.client(stage.listeners[0])
    stage.until(lambda: len(stage.served) == 2)
    before = -1
    while not stage.at_once and before < stage.served[0].size:  # as long as it reads
        before = stage.served[0].size
        for _ in range(20):
            answered = other.size
            other.connection.write(b"?")
            stage.until(lambda answered=answered: other.size > answered)
    assert stage.served[0].size < MUCH
    assert stage.waiting(stage.served[0].connection) < MEGABYTE
    peer.read()
    stage.until(lambda: peer.size == MUCH)
    assert peer.received == b"X" * MUCH


def test_output_that_the_peer_does_not_read_ends_the_connection_at_its_limit(stage):
    stage.peer(stage.listen(output_limit=MEGABYTE))
    stage.until(lambda: stage.served)
    served = stage.served[0]
    with contextlib.suppress(ConnectionClosed):
        for _ in range(MUCH // 65536):
            served.connection.write(b"x" * 65536)
    stage.until(lambda: served.closed)
    assert not served.connection
    assert isinstance(served.closed, LimitExceeded)
    assert "output_limit" in str(served.closed)
    with pytest.raises(ConnectionClosed):
        served.connection.write(b"x")


def test_a_client_has_an_output_limit_that_includes_writelines(stage):
    client = Witness(stage)
    listener = stage.listen(lambda connection: None)  # a handler that does not read
    stage.implementation.connect(listener.address, client, output_limit=MEGABYTE)
    stage.until(lambda: client.connection is not None)
    with contextlib.suppress(ConnectionClosed):
        for _ in range(MUCH // 65536):
            client.connection.writelines([b"x" * 65536])
    stage.until(lambda: client.closed)
    assert isinstance(client.closed, LimitExceeded)


def test_many_short_iterables_wait_for_the_peer_as_one_long_iterable_does(stage):
    """Each iterable was consumed to its end."""
    peer = stage.peer(stage.listen())
    stage.until(lambda: stage.served)
    connection = stage.served[0].connection
    for _ in range(MUCH // 131072):
        connection.writelines(b"x" * 65536 for _ in range(2))
        stage.settle()
    assert connection.output_pending < MEGABYTE
    peer.read()
    stage.until(lambda: peer.size == MUCH)


def test_two_peers_that_write_before_they_read_receive_everything(stage):
    class Talk(Witness):
        def connected(self, connection):
            super().connected(connection)
            connection.write(b"x" * 100_000)

    client, served = stage.talk(Talk, Talk)
    stage.until(lambda: client.size == served.size == 100_000)


@pytest.mark.parametrize("many", [False, True])
def test_a_client_that_sends_much_at_once_reads_the_answer_while_it_sends(stage, many):
    """If both sides stopped reading whenever much output is pending, neither would ever receive anything."""

    class Talk(Witness):
        def connected(self, connection):
            super().connected(connection)
            if many:
                connection.writelines(b"x" * 65536 for _ in range(MUCH // 65536))
            else:
                connection.write(b"x" * MUCH)

        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            if self.size == MUCH:
                connection.close()

    client, _ = stage.talk(Echo, Talk)
    stage.until(lambda: not client.connection)
    assert client.data == b"X" * MUCH


def test_an_iterable_beyond_the_limit_is_closed(stage):
    """The iterable never began, so only its ``close`` can release its resources."""

    class Lines:
        def __iter__(self):
            return self

        def __next__(self):
            raise StopIteration

        def close(self):
            closed.append(True)
            stage.happened()

    closed = []
    stage.peer(stage.listen(output_limit=MEGABYTE))
    stage.until(lambda: stage.served)
    connection = stage.served[0].connection
    connection.write(b"x" * MUCH)
    connection.writelines(Lines())
    stage.until(lambda: closed)
    assert not connection


__all__ = [name for name in dir() if name.startswith("test_")]
