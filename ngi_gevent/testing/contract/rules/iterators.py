"""Rules for iterators passed to ``writelines``: how their exceptions are reported."""

from __future__ import annotations

import pytest

from ngi_gevent.testing.contract.rules.common import Echo, Failure, tracebacks
from ngi_gevent.testing.contract.witness import Witness

# Rule 9: iterators that fail.


def broken_iterator(error):
    yield b"one "
    yield b"two "
    raise error


def no_bytes(error):
    yield b"one "
    yield b"two "
    yield "three"


@pytest.mark.parametrize("lines", [broken_iterator, no_bytes])
def test_an_iterators_error_goes_to_handle_exception_and_the_connection_stays_open(stage, caplog, lines):
    error = Failure("in an iterator")
    client, served = stage.talk(Echo)
    served.connection.write(b"zero ")
    served.connection.writelines(lines(error))
    served.connection.write(b"rest")
    stage.until(lambda: served.exceptions and client.data.endswith(b"rest"))
    assert client.data == b"zero one two rest"
    exception = served.exceptions[0]
    assert exception is error if lines is broken_iterator else isinstance(exception, TypeError)
    client.connection.write(b"hello")
    stage.until(lambda: client.data.endswith(b"HELLO"))
    assert len(served.exceptions) == 1
    assert not caplog.records


@pytest.mark.parametrize("lines", [broken_iterator, no_bytes])
def test_without_handle_exception_the_connection_is_closed_with_the_error(stage, caplog, lines):
    class NoHandleException(Witness):
        handle_exception = None

    error = Failure("in an iterator")
    client, served = stage.talk(NoHandleException)
    served.connection.writelines(lines(error))
    stage.until(lambda: served.closed and client.closed)
    assert client.data == b"one two "
    assert served.closed is error if lines is broken_iterator else isinstance(served.closed, TypeError)
    assert len(tracebacks(caplog)) == len(caplog.records) == 1


def test_an_iterators_error_after_the_close_is_logged_and_earlier_output_delivered(stage, caplog):
    class Leave(Witness):
        def handle_input(self, connection, data):
            super().handle_input(connection, data)
            connection.writelines(broken_iterator(error))
            connection.close()

    error = Failure("in an iterator")
    client, served = stage.talk(Leave)
    client.connection.write(b"go")
    stage.until(lambda: client.closed)
    assert client.data == b"one two "
    assert served.trace == [b"go"]
    assert len(tracebacks(caplog, error)) == len(caplog.records) == 1


def test_items_that_an_iterator_yields_after_it_aborted_are_not_sent(stage):
    def lines():
        yield b"one "
        stage.until(lambda: client.data == b"one ")
        served.connection.abort()
        yield b"two "

    client, served = stage.talk()
    served.connection.writelines(lines())
    stage.until(lambda: client.closed)
    assert client.data == b"one "


def test_an_iterators_error_is_held_until_there_is_a_handler(stage):
    connections = []

    def keep(connection):
        connections.append(connection)
        connection.writelines(broken_iterator(error))
        stage.happened()

    error = Failure("in an iterator")
    peer = stage.peer(stage.listen(keep))
    peer.read()
    stage.until(lambda: peer.received == b"one two ")
    stage.listeners[0].close()
    witness = Witness(stage)
    connections[0].set_handler(witness)
    stage.until(lambda: witness.closed)
    assert witness.trace == [("exception", error), ("close", "stopped")]


def test_an_iterator_needs_only_next(stage):
    class Iterable:
        def __iter__(self):
            return Iterator()

    class Iterator:
        def __next__(self):
            if not left:
                raise StopIteration
            return left.pop(0)

    left = [b"one ", b"two "]

    client, served = stage.talk()
    served.connection.writelines(Iterable())
    served.connection.close()
    stage.until(lambda: client.closed)
    assert client.data == b"one two "


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_iterator_can_end_the_program(stage, caplog, error):
    def write_and_wait():
        served.connection.writelines(broken_iterator(error))
        stage.until(lambda: False)

    client, served = stage.talk()
    if stage.name == "threaded":  # no caller receives it
        served.connection.writelines(broken_iterator(error))
    else:
        with pytest.raises(error):
            write_and_wait()
    stage.until(lambda: served.closed)
    assert type(served.closed) is error
    assert served.exceptions == []


# Rule 17: every path ends in a close.


class Pieces:
    """An iterator, but not a generator, that records whether it was closed."""

    def __init__(self, stage, closed, name):
        self._closing = lambda: (closed.append(name), stage.happened())

    def __iter__(self):
        return self

    def __next__(self):
        return b"x" * 65536

    def close(self):
        self._closing()


@pytest.mark.parametrize("end", ["abort", "stop", "reset"])
def test_dropped_iterables_are_closed_even_if_they_never_began(stage, end):
    closed = []

    def generator():
        try:
            yield b"never"
        finally:
            closed.append("never begun")  # a function that Python does not run

    peer = stage.peer(stage.listen())
    stage.until(lambda: stage.served)
    connection = stage.served[0].connection
    connection.writelines(Pieces(stage, closed, "begun"))
    connection.writelines(generator())
    connection.writelines(Pieces(stage, closed, "behind it"))
    stage.settle()
    {"abort": connection.abort, "stop": stage.listeners[0].close, "reset": peer.reset}[end]()
    stage.until(lambda: len(closed) == 2)
    assert closed == ["begun", "behind it"]


__all__ = [name for name in dir() if name.startswith("test_")]
