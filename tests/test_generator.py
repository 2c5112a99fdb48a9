"""Generator handlers, on every implementation."""

from __future__ import annotations

import contextlib
import logging

import gevent
import pytest
from stages import Witness

from ngi_gevent import ConnectionFailed, adapters, blocking, generator, testing

#: Bytes: more than any kernel accepts for a peer that does not read.
MUCH = 8 * 1024 * 1024


def test_a_generator_can_be_a_server(stage):
    @generator.handler
    def count(connection):
        """Answer with the number of received bytes."""
        total = 0
        while True:
            total += len((yield))
            connection.write(b"%d " % total)

    client, _ = stage.client(stage.listen(count)), None
    for size in 3, 4:
        answered = len(client.data)
        client.connection.write(b"x" * size)
        stage.until(lambda answered=answered: len(client.data) > answered)
    assert client.data == b"3 7 "
    assert count.__doc__ == "Answer with the number of received bytes."
    assert "count" in repr(count)


def test_a_generator_can_be_a_client(stage):
    @generator.handler
    def client(connection):
        connection.write(b"hello")
        got.append((yield))
        stage.happened()

    got = []
    listener = stage.listen(Echo)
    stage.implementation.connect(listener.address, client)
    stage.until(lambda: got and stage.served[0].closed)
    assert got == [b"HELLO"]
    assert stage.served[0].closed == "end of input"  # the generator has returned


class Echo(Witness):
    def handle_input(self, connection, data):
        super().handle_input(connection, data)
        connection.write(data.upper())


def test_a_failed_connection_attempt_of_a_generator_raises():
    @generator.handler
    def client(connection):
        yield

    with pytest.raises(ConnectionFailed, match="no server there") as caught:
        client.failed_connect("no server there")
    assert caught.value.reason == "no server there"


def test_a_generator_that_returns_at_once_closes_the_connection(stage):
    @generator.handler
    def bye(connection):
        connection.write(b"bye")
        if stage is None:
            yield

    listener = stage.listen(bye)
    client = stage.client(listener)
    stage.until(lambda: client.closed)
    assert client.data == b"bye"
    assert list(listener.connections()) == []


def test_methods_can_be_generator_handlers(stage):
    class Server:
        def __init__(self, greeting):
            self.greeting = greeting

        @generator.handler
        def serve(self, connection):
            connection.write(self.greeting)
            connection.write((yield))

    assert isinstance(Server.serve, generator.Handler)
    client = stage.client(stage.listen(Server(b"hello ").serve))
    client.connection.write(b"you")
    stage.until(lambda: client.closed)
    assert client.data == b"hello you"
    with pytest.raises(ConnectionFailed):
        Server(b"").serve.failed_connect("no")


def test_the_end_of_the_connection_is_raised_at_the_yield(stage):
    @generator.handler
    def serve(connection):
        try:
            yield
        except GeneratorExit as error:
            ends.append(error.args)
            assert not connection
            stage.happened()
            raise

    ends = []
    client = stage.client(stage.listen(serve))
    client.connection.close()
    stage.until(lambda: ends)
    assert ends == [("end of input",)]


def test_a_generator_with_eof_gets_the_end_of_input_as_empty_data(stage):
    @generator.handler(eof=True)
    def serve(connection):
        data = b""
        while piece := (yield):
            data += piece
        connection.write(data.upper())
        assert connection.input_ended

    class Server:
        @generator.handler(connection_adapter=adapters.Lines, eof=True)
        def serve(self, connection):
            while line := (yield):
                connection.write(line + b" ")
            connection.write(b"end")

    for server, answer in (serve, b"ONE\nTWO\nTHREE"), (Server().serve, b"one two end"):
        client = stage.client(stage.listen(server))
        client.connection.write(b"one\ntwo\nthree")
        client.connection.write_eof()
        stage.until(lambda client=client: client.closed)
        assert client.data == answer


def test_an_error_of_an_iterator_is_raised_at_the_yield(stage):
    def lines():
        yield b"good "
        raise ValueError("bad")

    @generator.handler
    def serve(connection):
        connection.writelines(lines())
        try:
            yield
        except ValueError as error:
            connection.write(str(error).encode())
        connection.write((yield))

    client = stage.client(stage.listen(serve))
    stage.until(lambda: client.data == b"good bad")
    client.connection.write(b"!")
    stage.until(lambda: client.closed)
    assert client.data == b"good bad!"


def test_a_generator_that_raises_is_treated_as_a_handler_that_raises(stage, caplog):
    @generator.handler
    def serve(connection):
        connection.write(b"before")
        raise KeyError((yield))

    client = stage.client(stage.listen(serve))
    client.connection.write(b"x")
    stage.until(lambda: client.closed)
    assert client.data == b"before"
    assert [record.exc_info[0] for record in caplog.records] == [KeyError]


def test_a_generator_that_continues_after_the_end_is_a_mistake(stage, caplog):
    @generator.handler
    def serve(connection):
        while True:
            try:
                yield
            except GeneratorExit:
                ended.append(1)
                stage.happened()
                if len(ended) > 1:
                    return

    ended = []
    client = stage.client(stage.listen(serve))
    client.connection.close()
    stage.until(lambda: len(ended) == 2 and caplog.records)
    assert [record.exc_info[0] for record in caplog.records] == [RuntimeError]
    assert caplog.records[0].levelno == logging.ERROR


def test_an_object_that_is_not_a_generator_function_is_refused(stage, caplog):
    @generator.handler
    def serve(connection):
        return None

    client = stage.client(stage.listen(serve))
    stage.until(lambda: client.closed)
    assert "generator function" in str(caplog.records[0].exc_info[1])


def test_an_object_that_is_not_callable_is_refused():
    with pytest.raises(TypeError, match="generator function"):
        generator.handler(5)


def test_a_generator_can_have_an_adapter():
    class Upper(adapters.Base):
        def write(self, data):
            super().write(data.upper())

    @generator.handler(connection_adapter=Upper)
    def serve(connection):
        connection.write(b"got ")
        connection.write((yield))

    recorder = testing.Recorder()
    connection = testing.Connection(recorder)
    serve(connection)
    connection.test_input(b"it")
    assert (recorder.data, recorder.closed) == (b"GOT IT", "end of input")


def test_a_listener_that_closes_before_the_first_yield_ends_the_generator_there():
    @generator.handler
    def serve(connection):
        connection.control.close()
        try:
            yield
        except GeneratorExit as error:
            ends.append(error.args)

    ends = []
    testing.Implementation().listener(None, serve).connect(testing.Recorder())
    assert ends == [("stopped",)]


@pytest.mark.parametrize("who", ["itself", "another"])
@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("adapter", [None, adapters.Lines])
def test_a_generator_is_closed_when_the_application_ends_its_connection(stage, who, end, adapter):
    """This includes a generator that yields again.  It is closed before the peer has read the output, on a greenlet
    that can block.
    """

    @generator.handler(connection_adapter=adapter)
    def serve(connection):
        connections.append(connection)
        connection.when_closed(lambda: happened("gone"))
        try:
            while True:
                data = yield
                connection.write(b"x" * MUCH)
                if who == "itself":
                    getattr(connection, end)()
                happened(data)
        except GeneratorExit as error:
            happened(error.args)
            raise
        finally:
            if not stage.at_once:
                gevent.sleep(0)
            happened("released")

    def happened(what):
        trace.append(what)
        stage.happened()

    connections, trace = [], []
    peer = stage.peer(stage.listen(serve))
    peer.send(b"go\n")
    stage.until(lambda: trace)
    if who == "another":
        getattr(connections[0], end)()
    stage.until(lambda: "released" in trace)
    assert trace[1:3] == [(), "released"]
    if end == "close":
        assert "gone" not in trace
    connections[0].abort()
    stage.until(lambda: "gone" in trace)
    assert len(trace) == 4


def test_a_generator_that_continues_after_it_closes_its_connection_is_a_mistake(stage, caplog):
    @generator.handler
    def serve(connection):
        connection.close()
        with contextlib.suppress(GeneratorExit):
            yield
        stage.happened()
        yield

    client = stage.client(stage.listen(serve))
    stage.until(lambda: client.closed and caplog.records)
    assert [record.exc_info[0] for record in caplog.records] == [RuntimeError]


def test_a_request_raises_an_exception_of_a_generator_that_has_closed_its_connection(stage, caplog):
    @generator.handler
    def ask(connection):
        try:
            connection.close()
            yield
        finally:
            raise KeyError("released")

    with pytest.raises(KeyError, match="released"):
        blocking.request(stage.implementation.connect, stage.listen().address, ask)
    assert not caplog.records
